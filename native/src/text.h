// Tokens and text, and the strings that end a response.
#pragma once

#include <llama.h>

#include <cstdint>
#include <string>
#include <vector>

namespace safex {

// `parse_special`: text such as <|im_end|> becomes its token. Never adds BOS or EOS.
std::vector<int32_t> tokenize(const llama_vocab * vocab, const std::string & text, bool parse_special);

// `special`: with the names of special tokens. A character that the last tokens begin but don't end is given as it is.
std::string detokenize(const llama_vocab * vocab, const std::vector<int32_t> & tokens, bool special);

// `text` up to the first of the stop strings in it.
std::string cut_at_stop(const std::string & text, const std::vector<std::string> & stop);

// Follows one response as it grows, and sees when a stop string is complete. Borrows its arguments.
class StopWatch {
  public:
    StopWatch(const llama_vocab * vocab, const std::vector<std::string> & stop);

    // True where this token completes a stop string, also one that began tokens ago or within a token.
    bool add(int32_t token);

  private:
    const llama_vocab *              vocab_;
    const std::vector<std::string> & stop_;
    size_t                           n_kept_   = 0;  // bytes that may be the beginning of a stop string
    bool                             is_first_ = true;
    std::string                      tail_;
};

}  // namespace safex
