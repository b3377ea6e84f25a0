// Gathers what a capture gives, ubatch by ubatch, into each request's result.
#pragma once

#include "capture.h"
#include "safex/session.h"

#include <cstdint>
#include <span>
#include <vector>

namespace safex {

class Gathering {
  public:
    Gathering(const Capture & capture, std::span<const RouterFacts> routers);

    // A token of the next batch: whose it is, null where it isn't captured, and its place in the request.
    struct Token {
        Captured * owner    = nullptr;
        uint32_t   position = 0;
    };
    void set_batch(std::vector<Token> tokens);

    // Of the batch: the slot of each token, -1 for none, and how many there are.
    std::vector<int32_t> slot_of_batch() const;
    size_t               n_slots() const { return owners_.size(); }

    void take(const CaptureLog & log, const RouteLog & routes);
    // Sums become means, and results without any token get their zeros.
    void finish(Captured & captured, size_t n_embd) const;

  private:
    bool is_taken(const RouteLog & routes, size_t row, size_t expert) const;
    void add_token(const CaptureLog & log, const RouteLog & routes, size_t row, const Token & token) const;
    void pool_token(const CaptureLog & log, const RouteLog & routes, size_t row, Captured & captured) const;
    void pool_outputs(const CaptureLog & log, size_t slot, Captured & captured) const;

    const Capture &              capture_;
    std::span<const RouterFacts> routers_;
    std::vector<size_t>          router_of_expert_;  // of each captured expert, the place of its router
    std::vector<Token>           tokens_;            // of the batch
    std::vector<Captured *>      owners_;            // of each slot of the batch
};

}  // namespace safex
