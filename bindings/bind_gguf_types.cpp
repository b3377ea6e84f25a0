// safex/gguf_types.h for Python. The GIL is released while values are computed.
#include "safex/gguf_types.h"

#include "bind.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <utility>

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Rows    = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Columns = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Values  = nb::ndarray<nb::numpy, float, nb::ndim<1>>;

std::span<const uint8_t> view(const nb::bytes & bytes) {
    return {static_cast<const uint8_t *>(bytes.data()), bytes.size()};
}

Values decode(uint32_t type, const nb::bytes & blocks) {
    auto *      values = new std::vector<float>;
    nb::capsule owner(values, [](void * p) noexcept { delete static_cast<std::vector<float> *>(p); });
    {
        const std::span<const uint8_t> bytes = view(blocks);
        const nb::gil_scoped_release   release;
        *values = safex::decode(safex::tensor_type(type), bytes);
    }
    const size_t shape[] = {values->size()};
    return Values(values->data(), 1, shape, owner);
}

nb::bytes encode(uint32_t type, const Rows & rows, const std::optional<Columns> & imatrix) {
    const std::span<const float> weights = imatrix ? std::span(imatrix->data(), imatrix->size()) : std::span<const float>();
    std::vector<uint8_t>         blocks;
    {
        const nb::gil_scoped_release release;
        blocks = safex::encode(safex::tensor_type(type), {rows.data(), rows.size()}, rows.shape(1), weights);
    }
    return nb::bytes(blocks.data(), blocks.size());
}

const char * name_of(safex::Scaling scaling) {
    switch (scaling) {
        case safex::Scaling::exact: return "exact";
        case safex::Scaling::rounded: return "rounded";
        default: return "impossible";
    }
}

std::pair<nb::bytes, std::string> scale_blocks(uint32_t type, const nb::bytes & blocks, float factor) {
    std::vector<uint8_t> scaled(view(blocks).begin(), view(blocks).end());
    safex::Scaling       scaling = safex::Scaling::impossible;
    {
        const nb::gil_scoped_release release;
        scaling = safex::scale_blocks(safex::tensor_type(type), scaled, factor);
    }
    return {nb::bytes(scaled.data(), scaled.size()), name_of(scaling)};
}

}  // namespace

void bind_gguf_types(nb::module_ & m) {
    nb::class_<safex::TensorType>(m, "TensorType")
        .def_ro("id", &safex::TensorType::id)
        .def_ro("name", &safex::TensorType::name)
        .def_ro("block_size", &safex::TensorType::block_size)
        .def_ro("block_bytes", &safex::TensorType::block_bytes)
        .def_ro("decodes", &safex::TensorType::decodes)
        .def_ro("encodes", &safex::TensorType::encodes)
        .def_ro("needs_imatrix", &safex::TensorType::needs_imatrix);

    m.def("tensor_types", &safex::tensor_types);
    m.def("tensor_type", &safex::tensor_type, "type"_a);
    m.def("decode", &decode, "type"_a, "blocks"_a);
    m.def("encode", &encode, "type"_a, nb::arg("rows").noconvert(), nb::arg("imatrix").noconvert().none());
    m.def("scale_blocks", &scale_blocks, "type"_a, "blocks"_a, "factor"_a);
}
