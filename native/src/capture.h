// Pooling of expert outputs within the graph: of [n_embd, top_k, n_tokens] outputs only sums over tokens leave the device.
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

// Sums of one ubatch. Valid only during the call it is handed to.
struct CaptureLog {
    size_t             n_embd  = 0;
    size_t             n_slots = 0;
    std::vector<float> sums;  // [n_experts, n_slots, n_embd], experts as in Capture::experts
};

// F32 [n_embd, n_slots, n_experts]: outputs of a layer's captured experts, summed over the tokens that selected them.
// outputs F32 [n_embd, top_k, n_tokens]; ids I32 [top_k, n_tokens], contiguous; one_hot F32 [n_experts, experts of the
// layer]: 1 where the row's expert is the captured one; slots F32 [n_tokens, n_slots]: 1 where the token belongs to the
// slot.
ggml_tensor * pool_selected(ggml_context * ctx, ggml_tensor * outputs, ggml_tensor * ids, ggml_tensor * one_hot,
                            ggml_tensor * slots);

// The same where every token went through every captured expert: outputs F32 [n_embd, n_experts, n_tokens].
ggml_tensor * pool_all(ggml_context * ctx, ggml_tensor * outputs, ggml_tensor * slots);

}  // namespace safex
