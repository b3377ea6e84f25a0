// Pooling in a graph against loops over the same numbers, and gathering over ubatches against one pass over all tokens.
#include "capture.h"

#include "check.h"
#include "gathering.h"
#include "safex/session.h"

#include <ggml-backend.h>
#include <ggml.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

namespace {

constexpr int64_t n_embd = 6, top_k = 3, n_experts = 8, n_tokens = 11, n_slots = 4;

const std::vector<int32_t> captured = {5, 0, 7};  // experts of the layer

struct Case {
    std::vector<float>   outputs = std::vector<float>(n_embd * top_k * n_tokens);
    std::vector<int32_t> ids;
    std::vector<int32_t> slot_of_token;

    explicit Case(uint32_t seed) {
        std::mt19937                          random(seed);
        std::uniform_real_distribution<float> share(-1.0f, 1.0f);
        std::generate(outputs.begin(), outputs.end(), [&] { return share(random); });
        std::vector<int32_t> all(n_experts);
        std::iota(all.begin(), all.end(), 0);
        for (int64_t token = 0; token < n_tokens; token++) {
            std::shuffle(all.begin(), all.end(), random);
            ids.insert(ids.end(), all.begin(), all.begin() + top_k);
            slot_of_token.push_back(static_cast<int32_t>(random() % (n_slots + 1)) - 1);
        }
    }

    // Output of a captured expert at a token, null where it wasn't selected.
    const float * output(int64_t token, int32_t expert) const {
        for (int64_t rank = 0; rank < top_k; rank++) {
            if (ids[static_cast<size_t>(token * top_k + rank)] == expert) {
                return &outputs[static_cast<size_t>((token * top_k + rank) * n_embd)];
            }
        }
        return nullptr;
    }
};

// Computes what `build` makes of the case's outputs, ids, one-hot table and slots.
template <typename Build>
std::vector<float> computed(const Case & c, Build build) {
    static const bool      loaded  = (safex::load_backends(SAFEX_LIB), true);
    ggml_backend_t         backend = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr);
    const ggml_init_params params{loaded ? size_t{1} << 20 : 0, nullptr, true};
    ggml_context *         ctx     = ggml_init(params);
    ggml_tensor *          outputs = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, n_embd, top_k, n_tokens);
    ggml_tensor *          ids     = ggml_new_tensor_2d(ctx, GGML_TYPE_I32, top_k, n_tokens);
    ggml_tensor * one_hot = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, static_cast<int64_t>(captured.size()), n_experts);
    ggml_tensor * slots   = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, n_tokens, n_slots);
    ggml_tensor * result  = build(ctx, outputs, ids, one_hot, slots);
    ggml_cgraph * graph   = ggml_new_graph(ctx);
    ggml_build_forward_expand(graph, result);
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors(ctx, backend);

    std::vector<float> table(captured.size() * n_experts), members(n_tokens * n_slots);
    for (size_t i = 0; i < captured.size(); i++) {
        table[static_cast<size_t>(captured[i]) * captured.size() + i] = 1.0f;
    }
    for (size_t token = 0; token < n_tokens; token++) {
        if (c.slot_of_token[token] >= 0) {
            members[static_cast<size_t>(c.slot_of_token[token]) * n_tokens + token] = 1.0f;
        }
    }
    ggml_backend_tensor_set(outputs, c.outputs.data(), 0, ggml_nbytes(outputs));
    ggml_backend_tensor_set(ids, c.ids.data(), 0, ggml_nbytes(ids));
    ggml_backend_tensor_set(one_hot, table.data(), 0, ggml_nbytes(one_hot));
    ggml_backend_tensor_set(slots, members.data(), 0, ggml_nbytes(slots));
    CHECK(ggml_backend_graph_compute(backend, graph) == GGML_STATUS_SUCCESS);
    std::vector<float> values(static_cast<size_t>(ggml_nelements(result)));
    ggml_backend_tensor_get(result, values.data(), 0, ggml_nbytes(result));
    ggml_backend_buffer_free(buffer);
    ggml_free(ctx);
    ggml_backend_free(backend);
    return values;
}

bool close(const std::vector<float> & one, const std::vector<float> & other) {
    return one.size() == other.size() &&
           std::equal(one.begin(), one.end(), other.begin(), [](float a, float b) { return std::fabs(a - b) < 1e-5f; });
}

}  // namespace

TEST(outputs_are_picked_token_by_token) {
    const Case         c(1);
    std::vector<float> expected;
    for (int64_t token = 0; token < n_tokens; token++) {
        for (const int32_t expert : captured) {
            const float * output = c.output(token, expert);
            for (int64_t i = 0; i < n_embd; i++) {
                expected.push_back(output == nullptr ? 0.0f : output[i]);
            }
        }
    }
    CHECK(close(computed(c, [](auto * ctx, auto * outputs, auto * ids, auto * one_hot,
                               auto *) { return safex::pick_selected(ctx, outputs, ids, one_hot); }),
                expected));
}

TEST(outputs_are_summed_by_slot) {
    const Case         c(2);
    std::vector<float> expected(captured.size() * n_slots * n_embd);
    for (size_t e = 0; e < captured.size(); e++) {
        for (int64_t token = 0; token < n_tokens; token++) {
            const float * output = c.output(token, captured[e]);
            const int32_t slot   = c.slot_of_token[static_cast<size_t>(token)];
            for (int64_t i = 0; i < n_embd && output != nullptr && slot >= 0; i++) {
                expected[(e * n_slots + static_cast<size_t>(slot)) * n_embd + static_cast<size_t>(i)] += output[i];
            }
        }
    }
    CHECK(close(computed(c, [](auto * ctx, auto * outputs, auto * ids, auto * one_hot,
                               auto * slots) { return safex::pool_selected(ctx, outputs, ids, one_hot, slots); }),
                expected));
    // Picked first and pooled then, as where every token went through every captured expert.
    CHECK(close(computed(c,
                         [](auto * ctx, auto * outputs, auto * ids, auto * one_hot, auto * slots) {
                             return safex::pool_all(ctx, safex::pick_selected(ctx, outputs, ids, one_hot), slots);
                         }),
                expected));
}

TEST(gathering_adds_ubatches_up) {
    const safex::Capture                  capture{{{0, 1}, {2, 0}}, false, safex::Pool::mean, safex::Phase::prompt};
    const std::vector<safex::RouterFacts> routers = {{.layer = 0, .n_experts = 4, .top_k = 1},
                                                     {.layer = 2, .n_experts = 4, .top_k = 2}};
    safex::Gathering                      gathering(capture, routers);
    safex::Captured                       first, second;
    // One token of `first`, one of nobody, one of `second`, the ubatch in another order than the batch.
    gathering.set_batch({{&first, 0}, {nullptr, 0}, {&second, 7}});
    CHECK(gathering.slot_of_batch() == (std::vector<int32_t>{0, -1, 1}));
    CHECK_EQ(gathering.n_slots(), size_t{2});
    safex::RouteLog routes;
    routes.batch_index = {2, 0, 1};
    routes.layers      = {{{1, 3, 1}, {}, {}}, {{0, 2, 3, 0, 0, 1}, {}, {}}};
    safex::CaptureLog log;
    log.n_embd  = 1;
    log.n_rows  = 2;
    log.outputs = {0.0f, 6.0f, 4.0f, 8.0f};               // expert 0: slots 0 and 1; expert 1 likewise
    log.probs   = {0.5f, 0.25f, 9.0f, 0.1f, 0.2f, 9.0f};  // expert 0: tokens of the ubatch; expert 1 likewise
    gathering.take(log, routes);
    gathering.set_batch({{&first, 1}});
    routes.batch_index = {0};
    routes.layers      = {{{1}, {}, {}}, {{3, 2}, {}, {}}};
    log.n_rows         = 1;
    log.outputs        = {2.0f, 0.0f};
    log.probs          = {0.75f, 0.4f};
    gathering.take(log, routes);
    gathering.finish(first, 1);
    gathering.finish(second, 1);
    CHECK(first.n_pooled == (std::vector<uint32_t>{1, 1}));  // expert 0 in the second ubatch, expert 1 in the first
    CHECK(close(first.features, {2.0f, 4.0f}));
    CHECK(close(first.probs, {0.5f, 0.3f}));
    CHECK(second.n_pooled == (std::vector<uint32_t>{1, 1}));
    CHECK(close(second.features, {6.0f, 8.0f}));
    CHECK(close(second.probs, {0.5f, 0.1f}));
}

TEST(unpooled_rows_say_whose_they_are) {
    const safex::Capture                  capture{{{0, 1}, {0, 2}}, false, safex::Pool::none, safex::Phase::prompt};
    const std::vector<safex::RouterFacts> routers = {{.layer = 0, .n_experts = 4, .top_k = 2}};
    safex::Gathering                      gathering(capture, routers);
    safex::Captured                       result;
    gathering.set_batch({{&result, 3}, {&result, 4}, {nullptr, 0}});
    safex::RouteLog routes;
    routes.batch_index = {0, 1, 2};
    routes.layers      = {{{0, 2, 2, 1, 1, 2}, {}, {}}};
    safex::CaptureLog log;
    log.n_embd  = 2;
    log.n_rows  = 3;
    log.outputs = {0, 0, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
    log.probs   = {0.1f, 0.2f, 0.3f, 0.4f, 0.5f, 0.6f};
    gathering.take(log, routes);
    gathering.finish(result, 2);
    CHECK(result.experts == (std::vector<uint32_t>{1, 0, 1}));
    CHECK(result.positions == (std::vector<uint32_t>{3, 4, 4}));
    CHECK(close(result.features, {7, 8, 3, 4, 9, 10}));
    CHECK(close(result.probs, {0.4f, 0.2f, 0.5f}));
    CHECK(result.n_pooled == (std::vector<uint32_t>{1, 2}));
}
