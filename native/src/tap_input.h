// The tap's share of one graph: its inputs, and the tensors that are read when the graph is computed.
#pragma once

#include "llama-graph.h"
#include "tap.h"

#include <vector>

namespace safex {

struct LayerLog {
    RouterFacts   router;
    ggml_tensor * ids     = nullptr;  // I32 [top_k, n_tokens]
    ggml_tensor * weights = nullptr;  // F32 [1, top_k, n_tokens]
    ggml_tensor * probs   = nullptr;  // F32 [1, top_k, n_tokens]
    ggml_tensor * gains   = nullptr;  // F32 [1, top_k, n_tokens], where they wait for the expert outputs

    const CapturedLayer * captured       = nullptr;
    ggml_tensor *         outputs        = nullptr;  // F32 [n_embd, n_slots, experts captured], or with n_tokens last
    ggml_tensor *         captured_probs = nullptr;  // F32 [1, experts captured, n_tokens]
};

// Lives and dies with the graph, before which the tap must not go.
class TapInput final : public llm_graph_input_i {
  public:
    TapInput(Tap & tap, const llm_graph_context & graph) : tap_(tap), n_tokens(graph.n_tokens), n_outputs(graph.n_outputs) {}

    void set_input(const llama_ubatch * ubatch) override;
    bool can_reuse(const llm_graph_params & params) override { return params.n_outputs == n_outputs; }

    void make_tables(const llm_graph_context & graph);
    // F32 [n_experts, n_tokens]: the layer's row of the table for each token's mask.
    ggml_tensor * rows(ggml_context * ctx, ggml_tensor * table, int layer) const;
    LayerLog &    log_of(int layer);
    void          make_capture(const llm_graph_context & graph);
    ggml_tensor * one_hot_of(ggml_context * ctx, const CapturedLayer & layer) const;
    // I32 [experts of the layer, n_tokens]: the captured ones for every token.
    ggml_tensor * captured_ids_of(ggml_context * ctx, const CapturedLayer & layer) const;
    // I32 [n_outputs]: the tokens whose logits are asked for.
    ggml_tensor * wanted_rows(ggml_context * ctx);

  private:
    void fill_capture(const llama_ubatch & ubatch);

    Tap & tap_;

  public:
    const int64_t         n_tokens;
    const int64_t         n_outputs;
    ggml_tensor *         output_rows  = nullptr;  // I32 [n_outputs]
    ggml_tensor *         row_of_token = nullptr;  // I32 [n_tokens]
    ggml_tensor *         gains        = nullptr;  // F32 [n_experts, n_rows * n_layers]
    ggml_tensor *         bias         = nullptr;  // likewise
    int                   n_experts    = 0;        // of the tables
    int                   n_layers     = 0;
    ggml_tensor *         slots        = nullptr;  // F32 [n_tokens, n_slots], where the tap captures
    ggml_tensor *         one_hot      = nullptr;  // F32, of each captured layer [experts of it, n_experts]
    ggml_tensor *         captured_ids = nullptr;  // I32, of each captured layer [experts of it, n_tokens]
    bool                  picks_rows   = false;    // the head got its rows
    bool                  keeps_rows   = false;
    std::vector<LayerLog> logs;
};

}  // namespace safex
