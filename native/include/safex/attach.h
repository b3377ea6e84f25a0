// A mask on a llama.cpp context that somebody else made and decodes with, such as llama-cpp-python's server.
//
// The context is borrowed: it must be one of our libsafex-llama, have a KV cache, and outlive the Attachment. One thread
// at a time decodes; it may be another than the one that attached.
#pragma once

#include "safex/mask.h"

#include <cstdint>
#include <memory>

namespace safex {

class Attachment {
  public:
    // From here on, every token that `context` (its address) decodes in sequence 0 is computed under `mask`. Runs two
    // tokens through the context to learn its routers and clears its memory.
    // Throws Error: input (the mask), unsupported (no routed experts, or a model the tap can't follow), device.
    Attachment(uintptr_t context, const Mask & mask);
    // Takes the mask off again.
    ~Attachment();
    Attachment(const Attachment &)             = delete;
    Attachment & operator=(const Attachment &) = delete;

    int n_graph_reuses() const;  // ubatches computed so far without building their graph anew

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace safex
