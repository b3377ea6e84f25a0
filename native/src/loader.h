// Loading: options to llama.cpp's parameters, model file to model and context, and the facts read from them.
#pragma once

#include "safex/session.h"
#include "tap.h"

#include <llama.h>

#include <memory>

namespace safex {

struct ModelDeleter {
    void operator()(llama_model * model) const { llama_model_free(model); }
};
struct ContextDeleter {
    void operator()(llama_context * context) const { llama_free(context); }
};
using ModelPtr   = std::unique_ptr<llama_model, ModelDeleter>;
using ContextPtr = std::unique_ptr<llama_context, ContextDeleter>;

ModelPtr load_model(const SessionOptions & options);

// `all_outputs`: every token of a ubatch may ask for logits.
ContextPtr make_context(llama_model * model, const SessionOptions & options, bool all_outputs);

// Blocks that hold routed experts or a router, from the tensor names of the file; none in a dense model.
std::vector<int> expert_blocks(const std::string & path);

// What errors say of a model without routed experts.
std::string dense_model(const std::string & architecture);

ModelFacts read_facts(const llama_model * model);

}  // namespace safex
