#include "text.h"

#include <algorithm>

namespace safex {
namespace {

std::string piece(const llama_vocab * vocab, int32_t token) {
    std::string text(64, '\0');
    const auto  convert = [&] {
        return llama_token_to_piece(vocab, token, text.data(), static_cast<int32_t>(text.size()), 0, false);
    };
    int32_t n = convert();
    if (n < 0) {
        text.resize(static_cast<size_t>(-n));
        n = convert();
    }
    text.resize(static_cast<size_t>(std::max(n, 0)));
    return text;
}

}  // namespace

std::vector<int32_t> tokenize(const llama_vocab * vocab, const std::string & text, bool parse_special) {
    std::vector<int32_t> tokens(text.size() + 8);
    const auto           convert = [&] {
        return llama_tokenize(vocab, text.data(), static_cast<int32_t>(text.size()), tokens.data(),
                                        static_cast<int32_t>(tokens.size()), false, parse_special);
    };
    int32_t n = convert();
    if (n < 0) {
        tokens.resize(static_cast<size_t>(-n));
        n = convert();
    }
    tokens.resize(static_cast<size_t>(std::max(n, 0)));
    return tokens;
}

std::string detokenize(const llama_vocab * vocab, const std::vector<int32_t> & tokens, bool special) {
    std::string text(tokens.size() * 8 + 64, '\0');
    const auto  convert = [&] {
        return llama_detokenize(vocab, tokens.data(), static_cast<int32_t>(tokens.size()), text.data(),
                                 static_cast<int32_t>(text.size()), false, special);
    };
    int32_t n = convert();
    if (n < 0) {
        text.resize(static_cast<size_t>(-n));
        n = convert();
    }
    text.resize(static_cast<size_t>(std::max(n, 0)));
    return text;
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
