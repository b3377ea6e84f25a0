// What is to be computed, and what goes next. A job fills one sequence: a request, or a prefix that other jobs begin with.
#pragma once

#include "prefixes.h"

#include <optional>

namespace safex {

struct Job {
    size_t request;         // whose tokens it computes; whose result it makes, unless it is a prefix
    size_t n_tokens;        // of the request's tokens, from the first
    size_t n_taken   = 0;   // of those, taken over from the parent
    size_t n_new     = 0;   // tokens to generate
    int    parent    = -1;  // job of the prefix that it begins with, -1: none
    bool   is_prefix = false;
    // Of a prefix:
    std::vector<size_t> children   = {};  // jobs that begin with it
    size_t              n_children = 0;   // of those, the ones that are not done
    size_t              n_running  = 0;   // of those, the ones that are started
    size_t              largest    = 0;   // cells that its largest child needs

    size_t n_own() const { return n_tokens - n_taken; }  // tokens to compute before anything is generated
    size_t n_cells() const { return n_own() + n_new; }   // of the KV cache, beside its parent's
    size_t n_cells_to_go_on() const { return n_cells() + largest; }
};

// Jobs without a parent wait from the start; the children of a prefix wait from when it is computed.
class Queue {
  public:
    Queue(const std::vector<Request> & requests, bool share_prefixes);

    bool  empty() const { return roots_.empty() && children_.empty(); }
    Job & job(size_t index) { return jobs_[index]; }

    // Takes out the job to start next where a ubatch of n_batch tokens has `room` left and the KV cache n_cells. Jobs that
    // begin with a computed prefix come first; no prefix is started while a request waits for its turn with another.
    std::optional<size_t> take(size_t room, size_t n_batch, size_t n_cells, bool allow_prefix);

    // The prefix is computed: its children wait.
    void children_may_start(size_t prefix);
    // The prefix is given up: its children that still wait compute all of their tokens themselves.
    void orphan_children(size_t prefix);

  private:
    using Waiting = std::vector<size_t>;  // the one with most tokens to compute first

    void                  link(size_t index);
    void                  add(Waiting & waiting, const std::vector<size_t> & jobs);
    std::optional<size_t> take_from(Waiting & waiting, size_t room, size_t n_batch, size_t n_cells, bool allow_prefix);

    std::vector<Job> jobs_;  // the requests, in their order, then the prefixes, parents first
    Waiting          roots_;
    Waiting          children_;
};

}  // namespace safex
