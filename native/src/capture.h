// Expert outputs within the graph: of [n_embd, top_k, n_tokens] outputs only the captured experts' leave the device, and
// where they are pooled only sums over tokens.
//
// A slot is one request's share of a ubatch: the tokens whose outputs are summed up for it.
#pragma once

#include "safex/session.h"

#include <cstdint>
#include <vector>

struct ggml_context;
struct ggml_tensor;

namespace safex {

// The captured experts of one block, and where the layer's share of the graph's inputs begins.
struct CapturedLayer {
    int                  layer = 0;
    std::vector<int32_t> experts;       // numbers within the layer
    std::vector<size_t>  places;        // of each in Capture::experts
    size_t               n_before = 0;  // experts captured in earlier layers
};

std::vector<CapturedLayer> captured_layers(const Capture & capture);

// What came of one ubatch, experts as in Capture::experts. Valid only during the call it is handed to.
struct CaptureLog {
    size_t             n_embd = 0;
    size_t             n_rows = 0;  // slots, or tokens where nothing is pooled
    std::vector<float> outputs;     // [n_experts, n_rows, n_embd], sums where pooled
    std::vector<float> probs;       // [n_experts, n_tokens] the router's probability of the expert
};

// F32 [n_embd, n_experts, n_tokens]: each token's output of each of a layer's captured experts, 0 where not selected.
// outputs F32 [n_embd, top_k, n_tokens]; ids I32 [top_k, n_tokens], contiguous; one_hot F32 [n_experts, experts of the
// layer]: 1 where the row's expert is the captured one.
ggml_tensor * pick_selected(ggml_context * ctx, ggml_tensor * outputs, ggml_tensor * ids, ggml_tensor * one_hot);

// F32 [n_embd, n_slots, n_experts]: the same outputs, summed over the tokens of each slot. slots F32 [n_tokens, n_slots]:
// 1 where the token belongs to the slot.
ggml_tensor * pool_selected(ggml_context * ctx, ggml_tensor * outputs, ggml_tensor * ids, ggml_tensor * one_hot,
                            ggml_tensor * slots);

// The same of outputs F32 [n_embd, n_experts, n_tokens], where every token went through every captured expert.
ggml_tensor * pool_all(ggml_context * ctx, ggml_tensor * outputs, ggml_tensor * slots);

}  // namespace safex
