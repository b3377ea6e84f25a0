// One bind_<header> function for each public header of the core.
#pragma once

#include <nanobind/nanobind.h>

void bind_attach(nanobind::module_ & m);
void bind_bootstrap(nanobind::module_ & m);
void bind_error(nanobind::module_ & m);
void bind_gguf_file(nanobind::module_ & m);
void bind_gguf_slices(nanobind::module_ & m);
void bind_gguf_types(nanobind::module_ & m);
void bind_session(nanobind::module_ & m);
