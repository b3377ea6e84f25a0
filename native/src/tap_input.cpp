#include "tap_input.h"

#include "llama-batch.h"

#include <ggml-backend.h>
#include <ggml.h>

#include <algorithm>

namespace safex {
namespace {

void set_tensor(ggml_tensor * tensor, const void * data) {
    if (tensor != nullptr && tensor->buffer != nullptr) {
        ggml_backend_tensor_set(tensor, data, 0, ggml_nbytes(tensor));
    }
}

}  // namespace

void TapInput::set_input(const llama_ubatch * ubatch) {
    std::vector<int32_t> rows_used(ubatch->n_tokens);
    std::vector<int32_t> rows_wanted;
    for (uint32_t i = 0; i < ubatch->n_tokens; i++) {
        rows_used[i] = tap_.row_of_sequence_[static_cast<size_t>(ubatch->seq_id[i][0])];
        if (n_outputs == n_tokens || (ubatch->output != nullptr && ubatch->output[i] != 0)) {
            rows_wanted.push_back(static_cast<int32_t>(i));
        }
    }
    set_tensor(row_of_token, rows_used.data());
    set_tensor(output_rows, rows_wanted.data());
    // Here, not where the graph is built: a reused graph must see new masks.
    if (row_of_token != nullptr) {
        tap_.fill_tables(static_cast<size_t>(n_experts), static_cast<size_t>(n_layers));
    }
    if (slots != nullptr) {
        fill_capture(*ubatch);
    }
    set_tensor(gains, tap_.gains_.data());
    set_tensor(bias, tap_.bias_.data());
}

void TapInput::make_tables(const llm_graph_context & graph) {
    n_experts            = static_cast<int>(graph.n_expert);
    n_layers             = static_cast<int>(graph.n_layer + graph.n_layer_nextn);
    ggml_context * ctx   = graph.ctx0;
    const auto     table = [&](const char * name) {
        ggml_tensor * t = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, n_experts, tap_.n_rows() * n_layers);
        ggml_set_input(t);
        ggml_set_name(t, name);
        return t;
    };
    row_of_token = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, n_tokens);
    ggml_set_input(row_of_token);
    ggml_set_name(row_of_token, "safex_row_of_token");
    gains = tap_.has_gains_ ? table("safex_gains") : nullptr;
    bias  = tap_.has_bias_ ? table("safex_bias") : nullptr;
}

void TapInput::fill_capture(const llama_ubatch & ubatch) {
    std::vector<float>   members(static_cast<size_t>(ggml_nelements(slots)), 0.0f);
    std::vector<float>   chosen(one_hot == nullptr ? 0 : static_cast<size_t>(ggml_nelements(one_hot)), 0.0f);
    std::vector<int32_t> ids;
    for (uint32_t token = 0; token < ubatch.n_tokens; token++) {
        const int32_t slot = tap_.slot_of_batch_.at(static_cast<size_t>(ubatch.data->batch_idxs[token]));
        if (slot >= 0) {
            members[static_cast<size_t>(slot) * ubatch.n_tokens + token] = 1.0f;
        }
    }
    for (const CapturedLayer & layer : tap_.captured_layers_) {
        const size_t n = layer.experts.size();
        for (size_t c = 0; c < n && one_hot != nullptr; c++) {
            chosen[layer.n_before * static_cast<size_t>(n_experts) + static_cast<size_t>(layer.experts[c]) * n + c] = 1.0f;
        }
        for (uint32_t token = 0; token < ubatch.n_tokens; token++) {
            ids.insert(ids.end(), layer.experts.begin(), layer.experts.end());
        }
    }
    set_tensor(slots, members.data());
    set_tensor(one_hot, chosen.data());
    set_tensor(captured_ids, ids.data());
}

void TapInput::make_capture(const llm_graph_context & graph) {
    const auto n_captured = static_cast<int64_t>(tap_.n_captured_);
    const auto as_input   = [](ggml_tensor * tensor, const char * name) {
        ggml_set_input(tensor);
        ggml_set_name(tensor, name);
        return tensor;
    };
    ggml_context * ctx = graph.ctx0;
    n_experts          = static_cast<int>(graph.n_expert);
    slots = as_input(ggml_new_tensor_2d(ctx, GGML_TYPE_F32, n_tokens, static_cast<int64_t>(tap_.n_slots_)), "safex_slots");
    captured_ids = as_input(ggml_new_tensor_1d(ctx, GGML_TYPE_I32, n_captured * n_tokens), "safex_captured_ids");
    if (!tap_.capture_forced_) {
        one_hot = as_input(ggml_new_tensor_1d(ctx, GGML_TYPE_F32, n_captured * n_experts), "safex_one_hot");
    }
}

ggml_tensor * TapInput::one_hot_of(ggml_context * ctx, const CapturedLayer & layer) const {
    const auto n = static_cast<int64_t>(layer.experts.size());
    return ggml_view_2d(ctx, one_hot, n, n_experts, layer.experts.size() * sizeof(float),
                        layer.n_before * static_cast<size_t>(n_experts) * sizeof(float));
}

ggml_tensor * TapInput::captured_ids_of(ggml_context * ctx, const CapturedLayer & layer) const {
    const auto n = static_cast<int64_t>(layer.experts.size());
    return ggml_view_2d(ctx, captured_ids, n, n_tokens, layer.experts.size() * sizeof(int32_t),
                        layer.n_before * static_cast<size_t>(n_tokens) * sizeof(int32_t));
}

ggml_tensor * TapInput::rows(ggml_context * ctx, ggml_tensor * table, int layer) const {
    const auto    offset = static_cast<size_t>(layer * tap_.n_rows()) * table->nb[1];
    ggml_tensor * view   = ggml_view_2d(ctx, table, table->ne[0], tap_.n_rows(), table->nb[1], offset);
    return ggml_get_rows(ctx, view, row_of_token);
}

ggml_tensor * TapInput::wanted_rows(ggml_context * ctx) {
    if (output_rows == nullptr) {
        output_rows = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, n_outputs);
        ggml_set_input(output_rows);
        ggml_set_name(output_rows, "safex_output_rows");
    }
    return output_rows;
}

LayerLog & TapInput::log_of(int layer) {
    const auto found = std::find_if(logs.begin(), logs.end(), [&](const LayerLog & l) { return l.router.layer == layer; });
    if (found != logs.end()) {
        return *found;
    }
    logs.emplace_back().router.layer = layer;
    return logs.back();
}

}  // namespace safex
