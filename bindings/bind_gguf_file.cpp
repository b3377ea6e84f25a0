// safex/gguf_file.h for Python. The GIL is released while a file is read.
#include "safex/gguf_file.h"

#include "bind.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

namespace nb = nanobind;
using namespace nb::literals;

namespace {

void init(safex::GgufFile * self, const std::string & path) {
    const nb::gil_scoped_release release;
    new (self) safex::GgufFile(path);
}

nb::bytes read_bytes(const safex::GgufFile & file, uint64_t offset, size_t size) {
    PyObject * bytes = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size));
    if (bytes == nullptr) {
        throw nb::python_error();
    }
    const nb::bytes result = nb::steal<nb::bytes>(bytes);
    {
        auto * const                 data = reinterpret_cast<uint8_t *>(PyBytes_AsString(bytes));
        const nb::gil_scoped_release release;
        file.read(offset, {data, size});
    }
    return result;
}

}  // namespace

void bind_gguf_file(nb::module_ & m) {
    nb::enum_<safex::GgufType>(m, "GgufType")
        .value("u8", safex::GgufType::u8)
        .value("i8", safex::GgufType::i8)
        .value("u16", safex::GgufType::u16)
        .value("i16", safex::GgufType::i16)
        .value("u32", safex::GgufType::u32)
        .value("i32", safex::GgufType::i32)
        .value("f32", safex::GgufType::f32)
        .value("boolean", safex::GgufType::boolean)
        .value("string", safex::GgufType::string)
        .value("array", safex::GgufType::array)
        .value("u64", safex::GgufType::u64)
        .value("i64", safex::GgufType::i64)
        .value("f64", safex::GgufType::f64);

    nb::class_<safex::GgufEntry>(m, "GgufEntry")
        .def_ro("key", &safex::GgufEntry::key)
        .def_ro("type", &safex::GgufEntry::type)
        .def_ro("element", &safex::GgufEntry::element)
        .def_ro("count", &safex::GgufEntry::count)
        .def_ro("begin", &safex::GgufEntry::begin)
        .def_ro("value", &safex::GgufEntry::value)
        .def_ro("end", &safex::GgufEntry::end);

    nb::class_<safex::GgufTensor>(m, "GgufTensor")
        .def_ro("name", &safex::GgufTensor::name)
        .def_ro("type", &safex::GgufTensor::type)
        .def_ro("shape", &safex::GgufTensor::shape)
        .def_ro("offset", &safex::GgufTensor::offset)
        .def_ro("size", &safex::GgufTensor::size);

    nb::class_<safex::GgufHeader>(m, "GgufHeader")
        .def_ro("version", &safex::GgufHeader::version)
        .def_ro("alignment", &safex::GgufHeader::alignment)
        .def_ro("entries_begin", &safex::GgufHeader::entries_begin)
        .def_ro("entries_end", &safex::GgufHeader::entries_end)
        .def_ro("end", &safex::GgufHeader::end)
        .def_ro("data", &safex::GgufHeader::data)
        .def_ro("entries", &safex::GgufHeader::entries)
        .def_ro("tensors", &safex::GgufHeader::tensors);

    nb::class_<safex::GgufFile>(m, "GgufFile")
        .def("__init__", &init, "path"_a)
        .def_prop_ro("path", &safex::GgufFile::path)
        .def_prop_ro("header", &safex::GgufFile::header, nb::rv_policy::reference_internal)
        .def_prop_ro("size", &safex::GgufFile::size)
        .def("text", &safex::GgufFile::text, "key"_a)
        .def("number", &safex::GgufFile::number, "key"_a)
        .def("read", &read_bytes, "offset"_a, "size"_a);
}
