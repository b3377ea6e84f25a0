#include "tap.h"

#include "llama-batch.h"
#include "safex/error.h"
#include "tap_input.h"

#include <ggml-backend.h>
#include <ggml.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

namespace safex {
namespace {

// Added to the selection score of a forced expert: larger than any router score, small enough to stay finite in sums.
constexpr float force_bias = 1e6f;

constexpr float no_gain = 1.0f;
constexpr float no_bias = 0.0f;

// Llama-4 multiplies the expert's input by the gate weight: a gain on the weight is no gain on the output there.
bool weight_before_ffn(const llm_graph_context & graph) {
    return graph.arch == LLM_ARCH_LLAMA4;
}

// The router's probability of every expert, computed anew: the graph's own node disappears in fused kernels.
ggml_tensor * probabilities(ggml_context * ctx, const llm_tap_routing & routing) {
    switch (routing.gating) {
        case LLAMA_EXPERT_GATING_FUNC_TYPE_SOFTMAX:
        case LLAMA_EXPERT_GATING_FUNC_TYPE_SOFTMAX_WEIGHT: return ggml_soft_max(ctx, routing.logits);
        case LLAMA_EXPERT_GATING_FUNC_TYPE_SIGMOID: return ggml_sigmoid(ctx, routing.logits);
        case LLAMA_EXPERT_GATING_FUNC_TYPE_SQRT_SOFTPLUS: return ggml_sqrt(ctx, ggml_softplus(ctx, routing.logits));
        default:
            throw Error(ErrorCode::unsupported, "block " + std::to_string(routing.layer) + ": unknown gating function " +
                                                    std::to_string(routing.gating));
    }
}

RouterFacts facts(const llm_graph_context & graph, const llm_tap_routing & routing) {
    RouterFacts router;
    router.layer     = routing.layer;
    router.n_experts = static_cast<int>(routing.n_expert);
    router.top_k     = static_cast<int>(routing.ids->ne[0]);
    if (graph.hparams.n_expert_groups > 1) {
        router.n_groups      = static_cast<int>(graph.hparams.n_expert_groups);
        router.n_groups_used = static_cast<int>(graph.hparams.n_group_used);
    }
    return router;
}

}  // namespace

void Tap::set_masks(const std::vector<Mask> & masks) {
    masks_     = masks;
    has_gains_ = has_bias_ = false;
    for (const Mask & mask : masks_) {
        for (const ExpertEdit & edit : mask) {
            (edit.mode == MaskMode::gain ? has_gains_ : has_bias_) = true;
        }
    }
    // Rounded up, so that calls with a few masks more or less use one graph.
    const size_t n_rows = std::min<size_t>(std::bit_ceil(masks_.size() + 1), max_sequences + 1);
    rows_.assign(has_gains_ || has_bias_ ? n_rows : 0, {});
    std::fill(row_of_sequence_.begin(), row_of_sequence_.end(), 0);
    gains_.clear();
    bias_.clear();
}

void Tap::set_capture(const Capture & capture, CaptureHandler handler) {
    capture_handler_ = std::move(handler);
    captured_layers_ = captured_layers(capture);
    n_captured_      = capture.experts.size();
    capture_forced_  = capture.forced;
    capture_pools_   = capture.pool != Pool::none;
    forcing_         = false;
    capture_number_++;
    set_slots({}, 1);
}

void Tap::set_slots(std::vector<int32_t> slot_of_batch, size_t n_slots) {
    slot_of_batch_ = std::move(slot_of_batch);
    n_slots_       = std::bit_ceil(n_slots);  // so that batches with a few sequences more or less use one graph
}

const CapturedLayer * Tap::captured(int layer) const {
    const auto found = std::find_if(captured_layers_.begin(), captured_layers_.end(),
                                    [&](const CapturedLayer & candidate) { return candidate.layer == layer; });
    return capture_handler_ && found != captured_layers_.end() ? &*found : nullptr;
}

void Tap::set_mask_of_sequence(int sequence, int mask) {
    int32_t & row = row_of_sequence_.at(static_cast<size_t>(sequence));
    if (rows_.empty() || rows_[static_cast<size_t>(row)].mask == mask) {
        return;
    }
    rows_[static_cast<size_t>(row)].n_users--;
    const auto holds = [&](const Row & r) { return r.mask == mask; };
    const auto free  = [](const Row & r) { return r.n_users == 0; };
    auto       found = std::find_if(rows_.begin() + (mask == 0 ? 0 : 1), rows_.end(), holds);
    if (found == rows_.end()) {
        found = std::find_if(rows_.begin() + 1, rows_.end(), free);
    }
    found->mask = mask;
    found->n_users++;
    row = static_cast<int32_t>(found - rows_.begin());
}

void Tap::fill_tables(size_t n_experts, size_t n_layers) {
    const size_t size = n_layers * rows_.size() * n_experts;
    if (gains_.size() != (has_gains_ ? size : 0) || bias_.size() != (has_bias_ ? size : 0)) {
        gains_.assign(has_gains_ ? size : 0, no_gain);
        bias_.assign(has_bias_ ? size : 0, no_bias);
        for (Row & row : rows_) {
            row.filled = 0;
        }
    }
    for (size_t row = 0; row < rows_.size(); row++) {
        if (rows_[row].filled != rows_[row].mask) {
            fill_row(row, n_experts, n_layers);
            rows_[row].filled = rows_[row].mask;
        }
    }
}

void Tap::fill_row(size_t row, size_t n_experts, size_t n_layers) {
    const auto start = [&](size_t layer) { return (layer * rows_.size() + row) * n_experts; };
    for (size_t layer = 0; layer < n_layers; layer++) {
        const auto at = static_cast<ptrdiff_t>(start(layer));
        if (has_gains_) {
            std::fill_n(gains_.begin() + at, n_experts, no_gain);
        }
        if (has_bias_) {
            std::fill_n(bias_.begin() + at, n_experts, no_bias);
        }
    }
    if (rows_[row].mask == 0) {
        return;
    }
    for (const ExpertEdit & edit : masks_[static_cast<size_t>(rows_[row].mask) - 1]) {
        const size_t at = start(static_cast<size_t>(edit.layer)) + static_cast<size_t>(edit.expert);
        if (edit.mode == MaskMode::gain) {
            gains_[at] = edit.gain;
        } else {
            bias_[at] = edit.mode == MaskMode::force ? force_bias : -std::numeric_limits<float>::infinity();
        }
    }
}

uint64_t Tap::topology() const {
    const auto rows  = static_cast<uint64_t>(n_rows());
    const auto slots = static_cast<uint64_t>(capture_handler_ ? n_slots_ : 0);
    return (log_handler_ ? 1u : 0u) | (has_gains_ ? 2u : 0u) | (has_bias_ ? 4u : 0u) | rows << 3 | slots << 16 |
           (capture_handler_ ? static_cast<uint64_t>(capture_number_) << 32 : 0);
}

bool Tap::active(const llm_graph_context & graph) const {
    return !graph.cparams.warmup && !narrowing_ && !forcing_ && (log_handler_ || n_rows() > 0);
}

TapInput & Tap::input(const llm_graph_context & graph) {
    for (const llm_graph_input_ptr & candidate : graph.res->inputs) {
        if (auto * found = dynamic_cast<TapInput *>(candidate.get())) {
            return *found;
        }
    }
    return static_cast<TapInput &>(*graph.res->add_input(std::make_unique<TapInput>(*this, graph)));
}

bool Tap::keep_all_rows(const llm_graph_context & graph) {
    if (!active(graph)) {
        return false;
    }
    input(graph).keeps_rows = true;
    return true;
}

ggml_tensor * Tap::head_input(const llm_graph_context & graph, ggml_tensor * cur, const ggml_tensor * norm) {
    if (!active(graph) || norm == nullptr || std::string(ggml_get_name(norm)) != "output_norm.weight") {
        return cur;
    }
    TapInput & in = input(graph);
    if (!in.keeps_rows || in.picks_rows || cur->ne[1] != in.n_tokens) {
        return cur;
    }
    in.picks_rows = true;
    return ggml_get_rows(graph.ctx0, cur, in.wanted_rows(graph.ctx0));
}

ggml_tensor * Tap::router_logits(const llm_graph_context & graph, ggml_tensor * logits, int layer) {
    if (!active(graph) || n_rows() == 0) {
        return logits;
    }
    TapInput & in = input(graph);
    if (in.row_of_token == nullptr) {
        in.make_tables(graph);
    }
    if (in.bias == nullptr) {
        return logits;
    }
    // Only exclusion acts before the softmax; a forced expert keeps its own probability.
    ggml_tensor * bias = in.rows(graph.ctx0, in.bias, layer);
    return ggml_add(graph.ctx0, logits, ggml_clamp(graph.ctx0, bias, -std::numeric_limits<float>::infinity(), 0.0f));
}

ggml_tensor * Tap::selection_scores(const llm_graph_context & graph, ggml_tensor * scores, bool ids_are_given, int layer) {
    if (!active(graph)) {
        return scores;
    }
    TapInput & in                         = input(graph);
    in.log_of(layer).router.ids_are_given = ids_are_given;
    if (in.bias == nullptr || ids_are_given) {
        return scores;
    }
    return ggml_add(graph.ctx0, scores, in.rows(graph.ctx0, in.bias, layer));
}

ggml_tensor * Tap::gate_weights(const llm_graph_context & graph, const llm_tap_routing & routing) {
    if (!active(graph)) {
        return routing.weights;
    }
    ggml_context * ctx = graph.ctx0;
    TapInput &     in  = input(graph);
    LayerLog &     log = in.log_of(routing.layer);
    if (log.router.top_k != 0 || routing.n_expert != graph.n_expert || routing.ids->ne[1] != in.n_tokens) {
        throw Error(ErrorCode::unsupported, "block " + std::to_string(routing.layer) + " of architecture " +
                                                llm_arch_name(graph.arch) +
                                                " routes tokens more than once or only in part, which safex can't follow");
    }
    const bool ids_are_given = log.router.ids_are_given;
    log.router               = facts(graph, routing);
    log.router.ids_are_given = ids_are_given;
    const auto as_output     = [&](ggml_tensor * tensor) {
        ggml_set_output(tensor);
        ggml_build_forward_expand(graph.gf, tensor);
        return tensor;
    };
    if (log_handler_) {
        // [1, n_expert, n_tokens] and [top_k, n_tokens] -> [1, top_k, n_tokens]
        ggml_tensor * all = ggml_reshape_3d(ctx, probabilities(ctx, routing), 1, routing.n_expert, in.n_tokens);
        log.ids           = as_output(ggml_cont(ctx, routing.ids));
        log.weights       = as_output(ggml_cont(ctx, routing.weights));
        log.probs         = as_output(ggml_get_rows(ctx, all, routing.ids));
        if (const CapturedLayer * found = captured(routing.layer)) {
            if (in.slots == nullptr) {
                in.make_capture(graph);
            }
            log.captured_probs = as_output(ggml_get_rows(ctx, all, in.captured_ids_of(ctx, *found)));
        }
    }
    if (in.gains == nullptr) {
        return routing.weights;
    }
    ggml_tensor * rows  = ggml_reshape_3d(ctx, in.rows(ctx, in.gains, routing.layer), 1, routing.n_expert, in.n_tokens);
    ggml_tensor * gains = ggml_get_rows(ctx, rows, routing.ids);
    if (weight_before_ffn(graph)) {
        log.gains = gains;
        return routing.weights;
    }
    return ggml_mul(ctx, routing.weights, gains);
}

ggml_tensor * Tap::forced_experts(const llm_graph_context & graph, int layer) {
    const CapturedLayer * found = active(graph) && capture_forced_ ? captured(layer) : nullptr;
    if (found == nullptr) {
        return nullptr;
    }
    TapInput & in = input(graph);
    if (in.slots == nullptr) {
        in.make_capture(graph);
    }
    forcing_ = true;
    return in.captured_ids_of(graph.ctx0, *found);
}

// In the last layer a token's experts matter only to its own logits: where none are asked for, its routing is all there
// is to see, and the experts need not run. With masks, a capture or a head that takes all rows, everything runs.
bool Tap::narrow(const llm_graph_context & graph, ggml_tensor * cur, ggml_tensor * logits, int layer, llm_tap_rows & rows) {
    if (!active(graph) || n_rows() > 0 || capture_handler_ || layer != graph.n_layer - 1) {
        return false;
    }
    TapInput & in = input(graph);
    if (!in.keeps_rows || in.n_outputs == in.n_tokens) {
        return false;
    }
    narrowing_ = true;
    if (in.n_outputs > 0) {
        ggml_tensor * wanted = in.wanted_rows(graph.ctx0);
        rows.cur             = ggml_get_rows(graph.ctx0, cur, wanted);
        rows.logits          = ggml_get_rows(graph.ctx0, logits, wanted);
        rows.ids             = ggml_get_rows(graph.ctx0, in.log_of(layer).ids, wanted);
    }
    return true;
}

ggml_tensor * Tap::widen(const llm_graph_context & graph, ggml_tensor * out, ggml_tensor * cur) {
    narrowing_         = false;
    ggml_tensor * zero = ggml_scale(graph.ctx0, cur, 0.0f);
    return out == nullptr ? zero : ggml_set_rows(graph.ctx0, zero, out, input(graph).wanted_rows(graph.ctx0));
}

ggml_tensor * Tap::expert_outputs(const llm_graph_context & graph, ggml_tensor * outputs, ggml_tensor * /*ids*/, int layer) {
    const bool forced = std::exchange(forcing_, false);
    if (!active(graph)) {
        return outputs;
    }
    TapInput &            in    = input(graph);
    LayerLog &            log   = in.log_of(layer);
    const CapturedLayer * found = captured(layer);
    if (found != nullptr && forced == capture_forced_) {
        log.captured = found;
        log.outputs  = captured_outputs(graph.ctx0, in, log, outputs);
        ggml_set_output(log.outputs);
        ggml_build_forward_expand(graph.gf, log.outputs);
    }
    if (forced) {
        return nullptr;
    }
    return log.gains == nullptr ? outputs : ggml_mul(graph.ctx0, outputs, log.gains);
}

ggml_tensor * Tap::captured_outputs(ggml_context * ctx, const TapInput & in, const LayerLog & log, ggml_tensor * outputs) {
    if (capture_forced_) {
        return capture_pools_ ? pool_all(ctx, outputs, in.slots) : ggml_cont(ctx, outputs);
    }
    ggml_tensor * one_hot = in.one_hot_of(ctx, *log.captured);
    return capture_pools_ ? pool_selected(ctx, outputs, log.ids, one_hot, in.slots)
                          : pick_selected(ctx, outputs, log.ids, one_hot);
}

void Tap::graph_computed(const llm_graph_result & result, const llama_ubatch & ubatch, ggml_backend_sched_t sched) {
    n_splits_ = ggml_backend_sched_get_n_splits(sched);
    for (const llm_graph_input_ptr & candidate : result.inputs) {
        const auto * in = dynamic_cast<const TapInput *>(candidate.get());
        if (in == nullptr) {
            continue;
        }
        if (in->keeps_rows && result.get_logits() != nullptr && result.get_logits()->ne[1] != in->n_outputs) {
            needs_all_outputs_ = true;
        }
        if (routers_.empty()) {
            learn_routers(*in);
        }
        if (log_handler_) {
            read_log(*in, ubatch, sched);
        }
        if (capture_handler_) {
            read_capture(*in);
        }
    }
}

void Tap::learn_routers(const TapInput & input) {
    for (const LayerLog & log : input.logs) {
        routers_.push_back(log.router);
    }
    std::sort(routers_.begin(), routers_.end(), [](const auto & a, const auto & b) { return a.layer < b.layer; });
}

void Tap::read_capture(const TapInput & input) {
    std::vector<float> values;
    const auto         read = [&](const ggml_tensor * tensor) {
        values.resize(static_cast<size_t>(ggml_nelements(tensor)));
        ggml_backend_tensor_get(tensor, values.data(), 0, ggml_nbytes(tensor));
    };
    // Row `row` of `n_rows` of the layer's expert `c`, `size` floats long, to its place in `into`.
    const auto place = [&](std::vector<float> & into, const CapturedLayer & layer, size_t size, size_t n_rows,
                           bool rows_first) {
        into.resize(n_captured_ * n_rows * size);
        const size_t n = layer.places.size();
        for (size_t c = 0; c < n; c++) {
            for (size_t row = 0; row < n_rows; row++) {
                const size_t from = rows_first ? c * n_rows + row : row * n + c;
                std::copy_n(values.begin() + static_cast<ptrdiff_t>(from * size), size,
                            into.begin() + static_cast<ptrdiff_t>((layer.places[c] * n_rows + row) * size));
            }
        }
    };
    const auto n_tokens = static_cast<size_t>(input.n_tokens);
    for (const LayerLog & log : input.logs) {
        if (log.outputs == nullptr) {
            continue;
        }
        capture_log_.n_embd = static_cast<size_t>(log.outputs->ne[0]);
        capture_log_.n_rows = capture_pools_ ? static_cast<size_t>(log.outputs->ne[1]) : n_tokens;
        read(log.outputs);
        place(capture_log_.outputs, *log.captured, capture_log_.n_embd, capture_log_.n_rows, capture_pools_);
        read(log.captured_probs);
        place(capture_log_.probs, *log.captured, 1, n_tokens, false);
    }
    capture_handler_(capture_log_, log_);
}

void Tap::read_log(const TapInput & input, const llama_ubatch & ubatch, ggml_backend_sched_t sched) {
    log_.layers.resize(input.logs.size());
    for (const LayerLog & from : input.logs) {
        const auto        position = std::find_if(routers_.begin(), routers_.end(),
                                                  [&](const RouterFacts & r) { return r.layer == from.router.layer; });
        RouteLog::Layer & to       = log_.layers[static_cast<size_t>(position - routers_.begin())];
        const auto        request  = [&](ggml_tensor * tensor, auto & values) {
            values.resize(static_cast<size_t>(ggml_nelements(tensor)));
            ggml_backend_tensor_get_async(ggml_backend_sched_get_tensor_backend(sched, tensor), tensor, values.data(), 0,
                                                  ggml_nbytes(tensor));
        };
        request(from.ids, to.ids);
        request(from.weights, to.weights);
        request(from.probs, to.probs);
    }
    ggml_backend_sched_synchronize(sched);
    log_.batch_index.assign(ubatch.data->batch_idxs.begin(), ubatch.data->batch_idxs.end());
    log_handler_(log_);
}

}  // namespace safex
