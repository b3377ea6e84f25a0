// The seam between llama.cpp's graph and safex-native: llama.cpp calls these, native/src/tap.cpp implements them.
//
// Ownership: the caller of llama_set_tap owns the tap and keeps it alive longer than the context. Every call happens on
// the thread that calls llama_decode. Calls made while a graph is built may add nodes; they return the tensor to go on
// with, which is the one they were given where the tap has nothing to do.
#pragma once

#include "llama.h"

#include <cstdint>

struct llama_ubatch;
struct llm_graph_context;
class llm_graph_result;

// What the router decided, once the gate weights are final.
struct llm_tap_routing {
    ggml_tensor * logits;   // F32 [n_expert, n_tokens] router logits, after router_logits()
    ggml_tensor * ids;      // I32 [n_expert_used, n_tokens] selected experts, a strided view
    ggml_tensor * weights;  // F32 [1, n_expert_used, n_tokens] final gate weights
    int64_t       n_expert;
    int           gating;   // llama_expert_gating_func_type
    int           layer;
};

// The tokens of a layer whose expert outputs somebody reads. No tensors: nobody reads any.
struct llm_tap_rows {
    ggml_tensor * cur    = nullptr;  // F32 [n_embd, n_rows] input of the experts
    ggml_tensor * logits = nullptr;  // F32 [n_expert, n_rows]
    ggml_tensor * ids    = nullptr;  // I32 [n_expert_used, n_rows]
};

struct llm_graph_tap {
    virtual ~llm_graph_tap() = default;

    // A graph is reused only while this number stays the same.
    virtual uint64_t topology() const = 0;
    virtual uint32_t max_nodes_per_layer() const = 0;

    // True: no layer drops tokens without requested output; head_input() picks the wanted rows instead.
    virtual bool keep_all_rows(const llm_graph_context & graph) = 0;
    virtual ggml_tensor * head_input(const llm_graph_context & graph, ggml_tensor * cur, const ggml_tensor * norm) = 0;

    // In build_moe_ffn, in this order.
    virtual ggml_tensor * router_logits(const llm_graph_context & graph, ggml_tensor * logits, int layer) = 0;
    virtual ggml_tensor * selection_scores(const llm_graph_context & graph, ggml_tensor * scores, bool ids_are_given, int layer) = 0;
    virtual ggml_tensor * gate_weights(const llm_graph_context & graph, const llm_tap_routing & routing) = 0;
    // Experts I32 [n, n_tokens] that every token shall go through beside its own, for expert_outputs() alone; null: none.
    virtual ggml_tensor * forced_experts(const llm_graph_context & graph, int layer) = 0;
    // True: the experts need to run for `rows` only; widen() puts their output (null: none) in place among all tokens.
    virtual bool narrow(const llm_graph_context & graph, ggml_tensor * cur, ggml_tensor * logits, int layer, llm_tap_rows & rows) = 0;
    virtual ggml_tensor * widen(const llm_graph_context & graph, ggml_tensor * out, ggml_tensor * cur) = 0;
    // Null ends the branch of forced_experts().
    virtual ggml_tensor * expert_outputs(const llm_graph_context & graph, ggml_tensor * outputs, ggml_tensor * ids, int layer) = 0;

    // After a ubatch was submitted, before its buffers are used again.
    virtual void graph_computed(const llm_graph_result & result, const llama_ubatch & ubatch, ggml_backend_sched_t sched) = 0;
};

// nullptr removes the tap.
LLAMA_API void llama_set_tap(struct llama_context * ctx, llm_graph_tap * tap);
