// Beginnings that several prompts have in common, and that are worth computing once.
#pragma once

#include "safex/session.h"

namespace safex {

// The first n_tokens tokens of a request, which others with the same mask begin with too.
struct Prefix {
    size_t request;
    size_t n_tokens;
    int    parent;  // the longest shorter prefix among them, -1: none
};

struct Prefixes {
    std::vector<Prefix> all;         // a parent stands before its children
    std::vector<int>    of_request;  // the longest prefix of each request, -1: none
};

// Where a prefix leaves out the last token of a prompt: its logits are each request's own.
// Each prefix is at least `shortest` tokens longer than its parent.
Prefixes find_prefixes(const std::vector<Request> & requests, size_t shortest);

}  // namespace safex
