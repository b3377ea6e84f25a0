// What the context's memory of past tokens is able to do.
#pragma once

#include <llama.h>

namespace safex {

// Whether the beginning of a sequence can be given to another: one attention cache for all tokens, with neither a sliding
// window, whose cells are used again, nor a recurrent state, which knows only the sequence's end.
bool can_share_prefixes(llama_context * context);

}  // namespace safex
