// safex/attach.h for Python.
#include "safex/attach.h"

#include "bind.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <tuple>

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Edit = std::tuple<int, int, std::string, float>;  // layer, expert, mode, gain

safex::MaskMode to_mode(const std::string & name) {
    if (name == "reroute") {
        return safex::MaskMode::reroute;
    }
    return name == "force" ? safex::MaskMode::force : safex::MaskMode::gain;
}

void init(safex::Attachment * self, uintptr_t context, const std::vector<Edit> & mask) {
    safex::Mask edits;
    for (const auto & [layer, expert, mode, gain] : mask) {
        edits.push_back({layer, expert, to_mode(mode), gain});
    }
    const nb::gil_scoped_release release;
    new (self) safex::Attachment(context, edits);
}

}  // namespace

void bind_attach(nb::module_ & m) {
    nb::class_<safex::Attachment>(m, "Attachment")
        .def("__init__", &init, "context"_a, "mask"_a)
        .def_prop_ro("n_graph_reuses", &safex::Attachment::n_graph_reuses);
}
