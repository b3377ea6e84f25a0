// safex/gguf_slices.h for Python.
#include "safex/gguf_slices.h"

#include "bind.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <tuple>

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using PyEdit = std::tuple<int, int, std::string, float>;  // layer, expert, mode, gain

void init(safex::GgufModel * self, const std::vector<std::string> & paths) {
    const nb::gil_scoped_release release;
    new (self) safex::GgufModel(paths);
}

std::vector<const safex::GgufFile *> files(const safex::GgufModel & model) {
    std::vector<const safex::GgufFile *> files;
    for (const auto & file : model.files()) {
        files.push_back(file.get());
    }
    return files;
}

void check_mask(const safex::GgufModel & model, const std::vector<PyEdit> & mask) {
    safex::Mask edits;
    for (const auto & [layer, expert, mode, gain] : mask) {
        edits.push_back({layer, expert, mode == "reroute" ? safex::MaskMode::reroute : safex::MaskMode::gain, gain});
    }
    safex::check_mask(edits, model.routers());
}

}  // namespace

void bind_gguf_slices(nb::module_ & m) {
    nb::class_<safex::ExpertTensor>(m, "ExpertTensor")
        .def_ro("name", &safex::ExpertTensor::name)
        .def_ro("role", &safex::ExpertTensor::role)
        .def_ro("layer", &safex::ExpertTensor::layer)
        .def_ro("n_experts", &safex::ExpertTensor::n_experts)
        .def_ro("file", &safex::ExpertTensor::file)
        .def_ro("offset", &safex::ExpertTensor::offset)
        .def_ro("slice", &safex::ExpertTensor::slice)
        .def_ro("type", &safex::ExpertTensor::type)
        .def_ro("columns", &safex::ExpertTensor::columns)
        .def_ro("rows", &safex::ExpertTensor::rows);

    nb::class_<safex::GgufModel>(m, "GgufModel")
        .def("__init__", &init, "paths"_a)
        .def_prop_ro("files", &files, nb::rv_policy::reference_internal)
        .def_prop_ro("architecture", &safex::GgufModel::architecture)
        .def_prop_ro("expert_tensors", &safex::GgufModel::expert_tensors)
        .def_prop_ro("layers",
                     [](const safex::GgufModel & model) {
                         std::vector<int> layers;
                         for (const safex::RouterFacts & router : model.routers()) {
                             layers.push_back(router.layer);
                         }
                         return layers;
                     })
        .def_prop_ro("scores_are_independent", &safex::GgufModel::scores_are_independent)
        .def("find", &safex::GgufModel::find, "layer"_a, "role"_a, nb::rv_policy::reference_internal)
        .def("check_mask", &check_mask, "mask"_a);
}
