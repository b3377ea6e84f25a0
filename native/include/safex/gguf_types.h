// Tensor types of GGUF files, read from ggml's tables: sizes, decoding, encoding, multiplying in place.
//
// A block holds `block_size` values of a row in `block_bytes` bytes. Buffers are the caller's and are used during the
// call only. Nothing here needs load_backends().
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace safex {

struct TensorType {
    uint32_t    id = 0;  // as it stands in the file
    std::string name;    // ggml's, e.g. "q4_K"
    uint64_t    block_size    = 1;
    uint64_t    block_bytes   = 0;
    bool        decodes       = false;
    bool        encodes       = false;
    bool        needs_imatrix = false;  // encodes only with one
};

// Every type that a file may hold, by id.
const std::vector<TensorType> & tensor_types();

// nullptr where there is no such type.
const TensorType * find_tensor_type(uint32_t id);

// Throws Error(input) where there is no such type.
const TensorType & tensor_type(uint32_t id);

// The values of whole blocks. Throws Error(input) for sizes that don't fit, Error(unsupported) for a type of integers.
std::vector<float> decode(const TensorType & type, std::span<const uint8_t> blocks);

// Rows of `row_length` values as blocks. `imatrix` [row_length] weighs the columns, or is empty.
// Throws Error: input (sizes, values that are not finite or too large for the type, a missing imatrix), unsupported.
std::vector<uint8_t> encode(const TensorType & type, std::span<const float> values, size_t row_length,
                            std::span<const float> imatrix);

enum class Scaling {
    exact,       // every value is exactly `factor` times what it was
    rounded,     // the blocks' scales were rounded
    impossible,  // the type has no scale that can hold the product; the blocks are as they were
};

// Multiplies the values of whole blocks by `factor` through the blocks' own scales, so that quants stay what they are.
Scaling scale_blocks(const TensorType & type, std::span<uint8_t> blocks, float factor);

}  // namespace safex
