#include "safex/gguf_types.h"

#include "safex/error.h"

#include <ggml.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string_view>

namespace safex {
namespace {

[[noreturn]] void refuse(ErrorCode code, const TensorType & type, const std::string & what) {
    throw Error(code, "type " + type.name + ": " + what);
}

// ggml_quantize_chunk() knows these and asserts on others.
constexpr std::array encodable = {
    GGML_TYPE_F32,     GGML_TYPE_F16,   GGML_TYPE_BF16,   GGML_TYPE_Q1_0,   GGML_TYPE_Q2_0,    GGML_TYPE_Q4_0,
    GGML_TYPE_Q4_1,    GGML_TYPE_Q5_0,  GGML_TYPE_Q5_1,   GGML_TYPE_Q8_0,   GGML_TYPE_MXFP4,   GGML_TYPE_NVFP4,
    GGML_TYPE_Q2_K,    GGML_TYPE_Q3_K,  GGML_TYPE_Q4_K,   GGML_TYPE_Q5_K,   GGML_TYPE_Q6_K,    GGML_TYPE_TQ1_0,
    GGML_TYPE_TQ2_0,   GGML_TYPE_IQ1_S, GGML_TYPE_IQ1_M,  GGML_TYPE_IQ2_XS, GGML_TYPE_IQ2_XXS, GGML_TYPE_IQ2_S,
    GGML_TYPE_IQ3_XXS, GGML_TYPE_IQ3_S, GGML_TYPE_IQ4_NL, GGML_TYPE_IQ4_XS,
};

TensorType describe(ggml_type id) {
    const bool encodes = std::find(encodable.begin(), encodable.end(), id) != encodable.end();
    const bool decodes = id == GGML_TYPE_F32 || ggml_get_type_traits(id)->to_float != nullptr;
    return {static_cast<uint32_t>(id),
            ggml_type_name(id),
            static_cast<uint64_t>(ggml_blck_size(id)),
            ggml_type_size(id),
            decodes,
            encodes,
            ggml_quantize_requires_imatrix(id)};
}

std::vector<TensorType> all_types() {
    std::vector<TensorType> types;
    for (int id = 0; id < GGML_TYPE_COUNT; id++) {
        if (ggml_type_size(static_cast<ggml_type>(id)) > 0) {  // 0: removed
            types.push_back(describe(static_cast<ggml_type>(id)));
        }
    }
    return types;
}

void check_finite(const TensorType & type, std::span<const float> values, const char * what) {
    if (!std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); })) {
        refuse(ErrorCode::input, type, what);
    }
}

void check_encoding(const TensorType & type, std::span<const float> values, size_t row_length,
                    std::span<const float> imatrix) {
    if (!type.encodes) {
        refuse(ErrorCode::unsupported, type, "nothing can be encoded in it");
    }
    if (row_length == 0 || row_length % type.block_size != 0 || values.size() % row_length != 0) {
        refuse(
            ErrorCode::input, type,
            "rows of " + std::to_string(row_length) + " values, expected a multiple of " + std::to_string(type.block_size));
    }
    if (imatrix.empty() && type.needs_imatrix) {
        refuse(ErrorCode::input, type, "needs an importance matrix: give one");
    }
    if (!imatrix.empty() && imatrix.size() != row_length) {
        refuse(ErrorCode::input, type,
               "an importance matrix of " + std::to_string(imatrix.size()) + " columns for rows of " +
                   std::to_string(row_length));
    }
    check_finite(type, values, "values to encode are not finite");
    check_finite(type, imatrix, "the importance matrix is not finite");
}

// --- scales within blocks

enum class Number { f16, bf16, f32, e8m0 };

// Where the factors of a block lie that all its values are linear in. Types that are missing here have none that is a
// number of its own.
struct Scales {
    ggml_type        type;
    Number           number;
    std::vector<int> at;
};

const Scales * find_scales(const TensorType & type) {
    static const std::vector<Scales> table = {
        {GGML_TYPE_F32, Number::f32, {0}},     {GGML_TYPE_F16, Number::f16, {0}},
        {GGML_TYPE_BF16, Number::bf16, {0}},   {GGML_TYPE_Q1_0, Number::f16, {0}},
        {GGML_TYPE_Q2_0, Number::f16, {0}},    {GGML_TYPE_Q4_0, Number::f16, {0}},
        {GGML_TYPE_Q4_1, Number::f16, {0, 2}}, {GGML_TYPE_Q5_0, Number::f16, {0}},
        {GGML_TYPE_Q5_1, Number::f16, {0, 2}}, {GGML_TYPE_Q8_0, Number::f16, {0}},
        {GGML_TYPE_MXFP4, Number::e8m0, {0}},  {GGML_TYPE_Q2_K, Number::f16, {80, 82}},
        {GGML_TYPE_Q3_K, Number::f16, {108}},  {GGML_TYPE_Q4_K, Number::f16, {0, 2}},
        {GGML_TYPE_Q5_K, Number::f16, {0, 2}}, {GGML_TYPE_Q6_K, Number::f16, {208}},
        {GGML_TYPE_TQ1_0, Number::f16, {52}},  {GGML_TYPE_TQ2_0, Number::f16, {64}},
        {GGML_TYPE_IQ1_S, Number::f16, {0}},   {GGML_TYPE_IQ2_XS, Number::f16, {0}},
        {GGML_TYPE_IQ2_XXS, Number::f16, {0}}, {GGML_TYPE_IQ2_S, Number::f16, {0}},
        {GGML_TYPE_IQ3_S, Number::f16, {0}},   {GGML_TYPE_IQ3_XXS, Number::f16, {0}},
        {GGML_TYPE_IQ4_NL, Number::f16, {0}},  {GGML_TYPE_IQ4_XS, Number::f16, {0}},
    };
    const auto found = std::find_if(table.begin(), table.end(),
                                    [&](const Scales & scales) { return static_cast<uint32_t>(scales.type) == type.id; });
    return found == table.end() ? nullptr : &*found;
}

template <typename T>
T load(const uint8_t * at) {
    T value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

template <typename T>
void store(uint8_t * at, T value) {
    std::memcpy(at, &value, sizeof value);
}

// The nearest number of the kind to `value`, written at `at`; what it is worth.
double store_nearest(Number number, uint8_t * at, float value) {
    switch (number) {
        case Number::f16: {
            const ggml_fp16_t half = ggml_fp32_to_fp16(value);
            store(at, half);
            return static_cast<double>(ggml_fp16_to_fp32(half));
        }
        case Number::bf16: {
            const ggml_bf16_t half = ggml_fp32_to_bf16(value);
            store(at, half);
            return static_cast<double>(ggml_bf16_to_fp32(half));
        }
        default: store(at, value); return static_cast<double>(value);
    }
}

float load_number(Number number, const uint8_t * at) {
    switch (number) {
        case Number::f16: return ggml_fp16_to_fp32(load<ggml_fp16_t>(at));
        case Number::bf16: return ggml_bf16_to_fp32(load<ggml_bf16_t>(at));
        default: return load<float>(at);
    }
}

Scaling scale_number(Number number, uint8_t * at, float factor) {
    const double wanted = static_cast<double>(load_number(number, at)) * static_cast<double>(factor);
    const double stored = store_nearest(number, at, static_cast<float>(wanted));
    if (!std::isfinite(stored)) {
        return Scaling::impossible;
    }
    return stored == wanted ? Scaling::exact : Scaling::rounded;
}

// A power of two, its exponent in one byte: only its neighbours by powers of two exist.
Scaling scale_exponent(uint8_t * at, float factor) {
    int         exponent = 0;
    const float mantissa = std::frexp(factor, &exponent);
    const int   moved    = *at + exponent - 1;
    if (mantissa != 0.5f || moved < 1 || moved > 254) {
        return Scaling::impossible;
    }
    *at = static_cast<uint8_t>(moved);
    return Scaling::exact;
}

Scaling scale_field(Number number, uint8_t * at, float factor) {
    return number == Number::e8m0 ? scale_exponent(at, factor) : scale_number(number, at, factor);
}

}  // namespace

const std::vector<TensorType> & tensor_types() {
    static const std::vector<TensorType> types = all_types();
    return types;
}

const TensorType * find_tensor_type(uint32_t id) {
    const auto & types = tensor_types();
    const auto   found = std::find_if(types.begin(), types.end(), [&](const TensorType & type) { return type.id == id; });
    return found == types.end() ? nullptr : &*found;
}

const TensorType & tensor_type(uint32_t id) {
    if (const TensorType * type = find_tensor_type(id)) {
        return *type;
    }
    throw Error(ErrorCode::input, "there is no tensor type " + std::to_string(id));
}

std::vector<float> decode(const TensorType & type, std::span<const uint8_t> blocks) {
    if (!type.decodes) {
        refuse(ErrorCode::unsupported, type, "its values can't be decoded");
    }
    if (blocks.size() % type.block_bytes != 0) {
        refuse(ErrorCode::input, type,
               std::to_string(blocks.size()) + " bytes, expected a multiple of " + std::to_string(type.block_bytes));
    }
    std::vector<float> values(blocks.size() / type.block_bytes * type.block_size);
    if (type.id == GGML_TYPE_F32) {
        std::copy(blocks.begin(), blocks.end(), reinterpret_cast<uint8_t *>(values.data()));
    } else if (!values.empty()) {
        const auto to_float = ggml_get_type_traits(static_cast<ggml_type>(type.id))->to_float;
        to_float(blocks.data(), values.data(), static_cast<int64_t>(values.size()));
    }
    return values;
}

std::vector<uint8_t> encode(const TensorType & type, std::span<const float> values, size_t row_length,
                            std::span<const float> imatrix) {
    check_encoding(type, values, row_length, imatrix);
    std::vector<uint8_t> blocks(values.size() / type.block_size * type.block_bytes);
    ggml_quantize_chunk(static_cast<ggml_type>(type.id), values.data(), blocks.data(), 0,
                        static_cast<int64_t>(values.size() / row_length), static_cast<int64_t>(row_length),
                        imatrix.empty() ? nullptr : imatrix.data());
    check_finite(type, decode(type, blocks), "values are too large for it");
    return blocks;
}

Scaling scale_blocks(const TensorType & type, std::span<uint8_t> blocks, float factor) {
    const Scales * scales = find_scales(type);
    if (scales == nullptr || blocks.size() % type.block_bytes != 0) {
        return Scaling::impossible;
    }
    const std::vector<uint8_t> before(blocks.begin(), blocks.end());
    Scaling                    worst = Scaling::exact;
    for (size_t block = 0; block < blocks.size() && worst != Scaling::impossible; block += type.block_bytes) {
        for (const int at : scales->at) {
            worst = std::max(worst, scale_field(scales->number, blocks.data() + block + at, factor));
        }
    }
    if (worst == Scaling::impossible) {
        std::copy(before.begin(), before.end(), blocks.begin());
    }
    return worst;
}

}  // namespace safex
