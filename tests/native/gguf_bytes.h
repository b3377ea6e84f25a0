// GGUF files put together byte by byte, for tests.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace bytes {

using Bytes = std::vector<uint8_t>;

template <typename T>
void put(Bytes & out, T value) {
    const size_t at = out.size();
    out.resize(at + sizeof value);
    std::memcpy(out.data() + at, &value, sizeof value);
}

inline void put_text(Bytes & out, const std::string & text) {
    put<uint64_t>(out, text.size());
    out.insert(out.end(), text.begin(), text.end());
}

struct Tensor {
    std::string           name;
    std::vector<uint64_t> shape;
    uint32_t              type   = 0;
    uint64_t              offset = 0;
};

// A file's parts; `write` puts them together.
struct Gguf {
    uint32_t            version = 3;
    std::vector<Bytes>  entries;
    std::vector<Tensor> tensors;
    size_t              n_data = 0;

    void text(const std::string & key, const std::string & value) {
        Bytes & entry = entries.emplace_back();
        put_text(entry, key);
        put<uint32_t>(entry, 8);
        put_text(entry, value);
    }

    template <typename T>
    void number(const std::string & key, uint32_t type, T value) {
        Bytes & entry = entries.emplace_back();
        put_text(entry, key);
        put<uint32_t>(entry, type);
        put(entry, value);
    }

    void texts(const std::string & key, const std::vector<std::string> & values) {
        Bytes & entry = entries.emplace_back();
        put_text(entry, key);
        put<uint32_t>(entry, 9);
        put<uint32_t>(entry, 8);
        put<uint64_t>(entry, values.size());
        for (const std::string & value : values) {
            put_text(entry, value);
        }
    }

    Bytes write(size_t alignment = 32) const {
        Bytes out = {'G', 'G', 'U', 'F'};
        put<uint32_t>(out, version);
        put<uint64_t>(out, tensors.size());
        put<uint64_t>(out, entries.size());
        for (const Bytes & entry : entries) {
            out.insert(out.end(), entry.begin(), entry.end());
        }
        for (const Tensor & tensor : tensors) {
            put_text(out, tensor.name);
            put<uint32_t>(out, static_cast<uint32_t>(tensor.shape.size()));
            for (const uint64_t n : tensor.shape) {
                put(out, n);
            }
            put(out, tensor.type);
            put(out, tensor.offset);
        }
        out.resize((out.size() + alignment - 1) / alignment * alignment + n_data);
        return out;
    }
};

// Two blocks of 4 experts, of which the first has a bias, with a router each.
inline Gguf small_model() {
    Gguf file;
    file.text("general.architecture", "tiny");
    file.text("general.name", "a model");
    file.number<uint32_t>("tiny.expert_used_count", 4, 2);
    file.number<uint32_t>("tiny.expert_group_count", 4, 2);
    file.number<uint8_t>("tiny.flag", 7, 1);
    file.texts("tokenizer.ggml.tokens", {"a", "b", ""});
    file.tensors = {
        {"token_embd.weight", {32, 8}, 0, 0},
        {"blk.0.ffn_down_exps.weight", {32, 2, 4}, 8, 1024},  // Q8_0
        {"blk.0.ffn_down_exps.bias", {2, 4}, 0, 1312},
        {"blk.0.ffn_gate_inp.weight", {2, 4}, 0, 1344},
        {"blk.1.ffn_down_exps.weight", {32, 2, 4}, 0, 1376},
    };
    file.n_data = 1376 + 1024;
    return file;
}

}  // namespace bytes
