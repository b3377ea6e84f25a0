#include "text.h"

#include <algorithm>

namespace safex {
namespace {

// Fills `into` by `convert(data, size)`, which returns the length, or minus the length that is needed.
template <typename Container, typename Convert>
Container filled(Container into, const Convert & convert) {
    int32_t n = convert(into.data(), static_cast<int32_t>(into.size()));
    if (n < 0) {
        into.resize(static_cast<size_t>(-n));
        n = convert(into.data(), static_cast<int32_t>(into.size()));
    }
    into.resize(static_cast<size_t>(std::max(n, 0)));
    return into;
}

std::string piece(const llama_vocab * vocab, int32_t token) {
    return filled(std::string(64, '\0'),
                  [&](char * data, int32_t size) { return llama_token_to_piece(vocab, token, data, size, 0, false); });
}

}  // namespace

std::vector<int32_t> tokenize(const llama_vocab * vocab, const std::string & text, bool parse_special) {
    return filled(std::vector<int32_t>(text.size() + 8), [&](int32_t * data, int32_t size) {
        return llama_tokenize(vocab, text.data(), static_cast<int32_t>(text.size()), data, size, false, parse_special);
    });
}

std::string detokenize(const llama_vocab * vocab, const std::vector<int32_t> & tokens, bool special) {
    return filled(std::string(tokens.size() * 8 + 64, '\0'), [&](char * data, int32_t size) {
        return llama_detokenize(vocab, tokens.data(), static_cast<int32_t>(tokens.size()), data, size, false, special);
    });
}

std::string cut_at_stop(const std::string & text, const std::vector<std::string> & stop) {
    size_t end = text.size();
    for (const std::string & one : stop) {
        end = std::min(end, text.find(one));
    }
    return text.substr(0, end);
}

StopWatch::StopWatch(const llama_vocab * vocab, const std::vector<std::string> & stop) : vocab_(vocab), stop_(stop) {
    for (const std::string & one : stop) {
        n_kept_ = std::max(n_kept_, one.size() - 1);
    }
}

bool StopWatch::add(int32_t token) {
    if (stop_.empty()) {
        return false;
    }
    tail_ += is_first_ ? detokenize(vocab_, {token}, false) : piece(vocab_, token);  // the first may lose its space
    is_first_ = false;
    if (cut_at_stop(tail_, stop_).size() < tail_.size()) {
        return true;
    }
    tail_.erase(0, tail_.size() - std::min(tail_.size(), n_kept_));
    return false;
}

}  // namespace safex
