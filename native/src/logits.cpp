#include "logits.h"

#include <algorithm>
#include <cmath>

namespace safex {

Sampler::Sampler(const Sampling & sampling) {
    if (sampling.temperature <= 0.0f) {
        return;
    }
    chain_.reset(llama_sampler_chain_init(llama_sampler_chain_default_params()));
    llama_sampler_chain_add(chain_.get(), llama_sampler_init_top_p(sampling.top_p, 1));
    llama_sampler_chain_add(chain_.get(), llama_sampler_init_temp(sampling.temperature));
    llama_sampler_chain_add(chain_.get(), llama_sampler_init_dist(sampling.seed));
}

int32_t Sampler::choose(std::span<const float> logits) {
    if (!chain_) {
        return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    }
    std::vector<llama_token_data> candidates(logits.size());
    for (size_t i = 0; i < logits.size(); i++) {
        candidates[i] = {static_cast<llama_token>(i), logits[i], 0.0f};
    }
    llama_token_data_array array = {candidates.data(), candidates.size(), -1, false};
    llama_sampler_apply(chain_.get(), &array);
    return array.data[array.selected].id;
}

void append_log_probabilities(std::span<const float> logits, std::span<const int32_t> targets, std::vector<float> & to) {
    const float largest = *std::max_element(logits.begin(), logits.end());
    double      sum     = 0.0;
    for (const float logit : logits) {
        sum += static_cast<double>(std::exp(logit - largest));
    }
    const double normaliser = static_cast<double>(largest) + std::log(sum);
    for (const int32_t target : targets) {
        to.push_back(static_cast<float>(static_cast<double>(logits[static_cast<size_t>(target)]) - normaliser));
    }
}

}  // namespace safex
