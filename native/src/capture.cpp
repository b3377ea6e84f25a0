#include "capture.h"

#include <ggml.h>

#include <algorithm>

namespace safex {

std::vector<CapturedLayer> captured_layers(const Capture & capture) {
    std::vector<CapturedLayer> result;
    for (size_t place = 0; place < capture.experts.size(); place++) {
        const auto [layer, expert] = capture.experts[place];
        auto found = std::find_if(result.begin(), result.end(), [&](const CapturedLayer & l) { return l.layer == layer; });
        if (found == result.end()) {
            found = result.insert(result.end(), {layer, {}, {}, 0});
        }
        found->experts.push_back(expert);
        found->places.push_back(place);
    }
    size_t n_before = 0;
    for (CapturedLayer & layer : result) {
        layer.n_before = n_before;
        n_before += layer.experts.size();
    }
    return result;
}

// A small matrix product for each token: its outputs, transposed, by which of its ranks hold which captured expert.
ggml_tensor * pick_selected(ggml_context * ctx, ggml_tensor * outputs, ggml_tensor * ids, ggml_tensor * one_hot) {
    const int64_t top_k    = ids->ne[0];
    const int64_t n_tokens = ids->ne[1];

    ggml_tensor * chosen = ggml_get_rows(ctx, one_hot, ggml_reshape_1d(ctx, ids, top_k * n_tokens));
    chosen               = ggml_reshape_3d(ctx, chosen, one_hot->ne[0], top_k, n_tokens);
    chosen               = ggml_cont(ctx, ggml_permute(ctx, chosen, 1, 0, 2, 3));  // [top_k, n_experts, n_tokens]
    return ggml_mul_mat(ctx, ggml_cont(ctx, ggml_permute(ctx, outputs, 1, 0, 2, 3)), chosen);
}

// One matrix product: the columns of its second factor hold 1 where a (token, rank) belongs to the slot and its id is the
// expert's. Both factors have the tokens along their rows, hence the transposed outputs.
ggml_tensor * pool_selected(ggml_context * ctx, ggml_tensor * outputs, ggml_tensor * ids, ggml_tensor * one_hot,
                            ggml_tensor * slots) {
    const int64_t top_k     = ids->ne[0];
    const int64_t n_tokens  = ids->ne[1];
    const int64_t n_rows    = top_k * n_tokens;
    const int64_t n_slots   = slots->ne[1];
    const int64_t n_experts = one_hot->ne[0];

    ggml_tensor * chosen  = ggml_get_rows(ctx, one_hot, ggml_reshape_1d(ctx, ids, n_rows));  // [n_experts, n_rows]
    chosen                = ggml_cont(ctx, ggml_transpose(ctx, chosen));
    chosen                = ggml_reshape_3d(ctx, chosen, n_rows, 1, n_experts);
    ggml_tensor * members = ggml_reshape_3d(ctx, slots, 1, n_tokens, n_slots);
    members               = ggml_repeat_4d(ctx, members, top_k, n_tokens, n_slots, 1);
    members               = ggml_reshape_3d(ctx, members, n_rows, n_slots, 1);
    members               = ggml_repeat_4d(ctx, members, n_rows, n_slots, n_experts, 1);
    ggml_tensor * columns = ggml_reshape_2d(ctx, ggml_mul(ctx, members, chosen), n_rows, n_slots * n_experts);

    ggml_tensor * rows = ggml_reshape_2d(ctx, outputs, outputs->ne[0], n_rows);
    ggml_tensor * sums = ggml_mul_mat(ctx, ggml_cont(ctx, ggml_transpose(ctx, rows)), columns);
    return ggml_reshape_3d(ctx, sums, outputs->ne[0], n_slots, n_experts);
}

ggml_tensor * pool_all(ggml_context * ctx, ggml_tensor * outputs, ggml_tensor * slots) {
    ggml_tensor * rows    = ggml_cont(ctx, ggml_permute(ctx, outputs, 1, 2, 0, 3));  // [n_tokens, n_embd, n_experts]
    ggml_tensor * columns = ggml_repeat_4d(ctx, slots, slots->ne[0], slots->ne[1], outputs->ne[1], 1);
    return ggml_mul_mat(ctx, rows, columns);
}

}  // namespace safex
