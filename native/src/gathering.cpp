#include "gathering.h"

#include <algorithm>

namespace safex {

Gathering::Gathering(const Capture & capture, std::span<const RouterFacts> routers) : capture_(capture), routers_(routers) {
    for (const auto & [layer, _] : capture.experts) {
        const auto found =
            std::find_if(routers.begin(), routers.end(), [l = layer](const RouterFacts & r) { return r.layer == l; });
        router_of_expert_.push_back(static_cast<size_t>(found - routers.begin()));
    }
}

void Gathering::set_batch(std::vector<Token> tokens) {
    tokens_ = std::move(tokens);
    owners_.clear();
    for (const Token & token : tokens_) {
        if (token.owner != nullptr && std::find(owners_.begin(), owners_.end(), token.owner) == owners_.end()) {
            owners_.push_back(token.owner);
        }
    }
}

std::vector<int32_t> Gathering::slot_of_batch() const {
    std::vector<int32_t> slots;
    for (const Token & token : tokens_) {
        const auto found = std::find(owners_.begin(), owners_.end(), token.owner);
        slots.push_back(found == owners_.end() ? -1 : static_cast<int32_t>(found - owners_.begin()));
    }
    return slots;
}

void Gathering::take(const CaptureLog & log, const RouteLog & routes) {
    for (size_t row = 0; row < routes.batch_index.size(); row++) {
        const Token & token = tokens_[static_cast<size_t>(routes.batch_index[row])];
        if (token.owner == nullptr) {
            continue;
        }
        token.owner->n_pooled.resize(capture_.experts.size());
        if (capture_.pool == Pool::none) {
            add_token(log, routes, row, token);
        } else {
            pool_token(log, routes, row, *token.owner);
        }
    }
    for (size_t slot = 0; slot < owners_.size() && capture_.pool != Pool::none; slot++) {
        pool_outputs(log, slot, *owners_[slot]);
    }
}

bool Gathering::is_taken(const RouteLog & routes, size_t row, size_t expert) const {
    const size_t router = router_of_expert_[expert];
    const auto   k      = static_cast<size_t>(routers_[router].top_k);
    const auto   ids    = std::span(routes.layers[router].ids).subspan(row * k, k);
    return capture_.forced || std::find(ids.begin(), ids.end(), capture_.experts[expert].second) != ids.end();
}

void Gathering::add_token(const CaptureLog & log, const RouteLog & routes, size_t row, const Token & token) const {
    for (size_t c = 0; c < capture_.experts.size(); c++) {
        if (!is_taken(routes, row, c)) {
            continue;
        }
        Captured & into = *token.owner;
        into.n_pooled[c]++;
        into.experts.push_back(static_cast<uint32_t>(c));
        into.positions.push_back(token.position);
        into.probs.push_back(log.probs[c * log.n_rows + row]);
        const auto from = log.outputs.begin() + static_cast<ptrdiff_t>((c * log.n_rows + row) * log.n_embd);
        into.features.insert(into.features.end(), from, from + static_cast<ptrdiff_t>(log.n_embd));
    }
}

// Pooled for the last token alone, each token of a response takes the place of the one before it.
void Gathering::pool_token(const CaptureLog & log, const RouteLog & routes, size_t row, Captured & captured) const {
    const bool   last     = capture_.pool == Pool::last;
    const size_t n_tokens = routes.batch_index.size();
    captured.n_tokens     = last ? 1 : captured.n_tokens + 1;
    captured.probs.resize(capture_.experts.size());
    for (size_t c = 0; c < capture_.experts.size(); c++) {
        const auto  taken    = static_cast<uint32_t>(is_taken(routes, row, c));
        const float prob     = log.probs[c * n_tokens + row];
        captured.n_pooled[c] = last ? taken : captured.n_pooled[c] + taken;
        captured.probs[c]    = last ? prob : captured.probs[c] + prob;
    }
}

void Gathering::pool_outputs(const CaptureLog & log, size_t slot, Captured & captured) const {
    captured.features.resize(capture_.experts.size() * log.n_embd, 0.0f);
    for (size_t c = 0; c < capture_.experts.size(); c++) {
        const float * from = &log.outputs[(c * log.n_rows + slot) * log.n_embd];
        float *       into = &captured.features[c * log.n_embd];
        for (size_t i = 0; i < log.n_embd; i++) {
            into[i] = capture_.pool == Pool::last ? from[i] : into[i] + from[i];
        }
    }
}

void Gathering::finish(Captured & captured, size_t n_embd) const {
    const size_t n_experts = capture_.experts.size();
    captured.n_pooled.resize(n_experts, 0);
    if (capture_.pool == Pool::none) {
        return;
    }
    captured.features.resize(n_experts * n_embd, 0.0f);
    captured.probs.resize(n_experts, 0.0f);
    for (size_t i = 0; i < captured.features.size(); i++) {
        captured.features[i] /= static_cast<float>(std::max(1u, captured.n_pooled[i / n_embd]));
    }
    for (float & prob : captured.probs) {
        prob /= static_cast<float>(std::max(1u, captured.n_tokens));
    }
}

}  // namespace safex
