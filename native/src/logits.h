// What is read from the logits of one token: the token that follows, and log-probabilities.
#pragma once

#include "safex/session.h"

#include <llama.h>

#include <memory>
#include <span>

namespace safex {

// Chooses the tokens of one response, by llama.cpp's samplers.
class Sampler {
  public:
    explicit Sampler(const Sampling & sampling);

    // Greedy: the first of the largest logits.
    int32_t choose(std::span<const float> logits);

  private:
    struct Deleter {
        void operator()(llama_sampler * chain) const { llama_sampler_free(chain); }
    };

    std::unique_ptr<llama_sampler, Deleter> chain_;  // none where greedy
};

// Appends the natural logarithms of the targets' probabilities. Sums are double.
void append_log_probabilities(std::span<const float> logits, std::span<const int32_t> targets, std::vector<float> & to);

}  // namespace safex
