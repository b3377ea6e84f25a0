// safex/session.h for Python. The GIL is released while the core works and taken for its callbacks.
#include "safex/session.h"

#include "bind.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/function.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <optional>

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <typename T, size_t N>
using Array = nb::ndarray<nb::numpy, T, nb::ndim<N>>;

template <typename T, size_t N>
Array<T, N> to_numpy(std::vector<T> && values, const std::array<size_t, N> & shape) {
    auto *      owned = new std::vector<T>(std::move(values));
    nb::capsule owner(owned, [](void * p) noexcept { delete static_cast<std::vector<T> *>(p); });
    return Array<T, N>(owned->data(), N, shape.data(), owner);
}

// [n_layers, n_tokens, largest top_k]; a layer that selects fewer is padded with `filler`.
template <typename T>
Array<T, 3> stack(const std::vector<std::vector<T>> & layers, const std::vector<safex::RouterFacts> & routers, T filler) {
    size_t widest = 0;
    for (const safex::RouterFacts & router : routers) {
        widest = std::max(widest, static_cast<size_t>(router.top_k));
    }
    const size_t   n_tokens = layers.front().size() / static_cast<size_t>(routers.front().top_k);
    std::vector<T> flat(layers.size() * n_tokens * widest, filler);
    for (size_t l = 0; l < layers.size(); l++) {
        const auto k = static_cast<size_t>(routers[l].top_k);
        for (size_t t = 0; t < n_tokens; t++) {
            std::copy_n(&layers[l][t * k], k, &flat[(l * n_tokens + t) * widest]);
        }
    }
    return to_numpy<T, 3>(std::move(flat), {layers.size(), n_tokens, widest});
}

// (n_tokens, counts, gate_sum, prob_sum), the arrays of shape [n_layers, n_experts].
nb::tuple statistics(safex::Statistics & s) {
    const size_t                n_layers = s.n_experts == 0 ? 0 : s.counts.size() / s.n_experts;
    const std::array<size_t, 2> shape    = {n_layers, s.n_experts};
    return nb::make_tuple(s.n_tokens, to_numpy<uint32_t, 2>(std::move(s.counts), shape),
                          to_numpy<double, 2>(std::move(s.gate_sum), shape),
                          to_numpy<double, 2>(std::move(s.prob_sum), shape));
}

nb::tuple routes(const safex::RawRoutes & raw, const std::vector<safex::RouterFacts> & routers) {
    return nb::make_tuple(stack(raw.ids, routers, -1), stack(raw.weights, routers, 0.0f), stack(raw.probs, routers, 0.0f));
}

// features [rows, n_embd], n_pooled [n_experts], probs [rows]; where nothing is pooled experts and positions [rows] too.
nb::dict captured(safex::Captured & c, size_t n_embd) {
    const size_t n_rows = c.probs.size();
    nb::dict     dict;
    dict["features"]  = to_numpy<float, 2>(std::move(c.features), {n_rows, n_embd});
    dict["n_pooled"]  = to_numpy<uint32_t, 1>(std::move(c.n_pooled), {c.n_pooled.size()});
    dict["probs"]     = to_numpy<float, 1>(std::move(c.probs), {n_rows});
    dict["experts"]   = to_numpy<uint32_t, 1>(std::move(c.experts), {c.experts.size()});
    dict["positions"] = to_numpy<uint32_t, 1>(std::move(c.positions), {c.positions.size()});
    return dict;
}

// Text of tokens may end in the middle of a character.
nb::str to_str(const std::string & text) {
    return nb::steal<nb::str>(PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "replace"));
}

const char * finish_name(safex::Finish finish) {
    switch (finish) {
        case safex::Finish::stop: return "stop";
        case safex::Finish::length: return "length";
        default: return "prompt";
    }
}

nb::dict to_dict(safex::Result && result, const safex::RunOptions & options, const safex::ModelFacts & facts) {
    nb::dict dict;
    dict["generated"] = result.generated;
    dict["text"]      = to_str(result.text);
    dict["finish"]    = finish_name(result.finish);
    if (!options.targets.empty()) {
        const size_t n_rows = result.scores.size() / options.targets.size();
        dict["scores"]      = to_numpy<float, 2>(std::move(result.scores), {n_rows, options.targets.size()});
    }
    if (options.statistics) {
        dict["prompt"]   = statistics(result.prompt);
        dict["suffix"]   = statistics(result.suffix);
        dict["response"] = statistics(result.response);
    }
    if (options.routes) {
        dict["routes"] = routes(result.routes, facts.routers);
    }
    if (options.capture) {
        dict["captured"] = captured(result.captured, static_cast<size_t>(facts.n_embd));
    }
    if (options.logits) {
        const auto n_vocab  = static_cast<size_t>(facts.n_vocab);
        const auto n_tokens = result.logits.size() / n_vocab;
        dict["logits"]      = to_numpy<float, 2>(std::move(result.logits), {n_tokens, n_vocab});
    }
    return dict;
}

safex::Pool to_pool(const std::string & name) {
    if (name == "last") {
        return safex::Pool::last;
    }
    return name == "none" ? safex::Pool::none : safex::Pool::mean;
}

// (list of (layer, expert), forced, pool, phase)
std::optional<safex::Capture> to_capture(const nb::object & capture) {
    if (capture.is_none()) {
        return std::nullopt;
    }
    safex::Capture result;
    result.experts   = nb::cast<std::vector<std::pair<int, int>>>(capture[0]);
    result.forced    = nb::cast<bool>(capture[1]);
    result.pool      = to_pool(nb::cast<std::string>(capture[2]));
    const auto phase = nb::cast<std::string>(capture[3]);
    result.phase     = phase == "suffix"     ? safex::Phase::suffix
                       : phase == "response" ? safex::Phase::response
                                             : safex::Phase::prompt;
    return result;
}

safex::MaskMode mask_mode(const std::string & name) {
    if (name == "reroute") {
        return safex::MaskMode::reroute;
    }
    return name == "force" ? safex::MaskMode::force : safex::MaskMode::gain;
}

// Each mask is a list of (layer, expert, mode, gain).
std::vector<safex::Mask> to_masks(const nb::list & masks) {
    std::vector<safex::Mask> result;
    for (nb::handle mask : masks) {
        safex::Mask & edits = result.emplace_back();
        for (nb::handle edit : mask) {
            edits.push_back({nb::cast<int>(edit[0]), nb::cast<int>(edit[1]), mask_mode(nb::cast<std::string>(edit[2])),
                             nb::cast<float>(edit[3])});
        }
    }
    return result;
}

// Each request is (tokens, n_suffix, n_forced, (mask of the prompt, of the response), max_new, (temperature, top_p, seed)).
safex::Request to_request(nb::handle request) {
    const nb::handle masks    = request[3];
    const nb::handle sampling = request[5];
    safex::Request   result;
    result.tokens        = nb::cast<std::vector<int32_t>>(request[0]);
    result.n_suffix      = nb::cast<int>(request[1]);
    result.n_forced      = nb::cast<int>(request[2]);
    result.mask          = nb::cast<int>(masks[0]);
    result.response_mask = nb::cast<int>(masks[1]);
    result.max_new       = nb::cast<int>(request[4]);
    result.sampling      = {nb::cast<float>(sampling[0]), nb::cast<float>(sampling[1]), nb::cast<uint32_t>(sampling[2])};
    return result;
}

std::vector<safex::Request> to_requests(const nb::list & requests) {
    std::vector<safex::Request> result;
    for (nb::handle request : requests) {
        result.push_back(to_request(request));
    }
    return result;
}

// Python's signal handlers run, then the caller's tick. A Python exception stops the run and is kept for the caller.
bool tick_python(const nb::object & tick, uint64_t n_done, std::optional<nb::python_error> & raised) {
    const nb::gil_scoped_acquire acquire;
    try {
        if (PyErr_CheckSignals() != 0) {
            throw nb::python_error();
        }
        if (!tick.is_none()) {
            tick(n_done);
        }
        return true;
    } catch (nb::python_error & error) {
        raised.emplace(std::move(error));
        return false;
    }
}

void run(safex::Session & session, const nb::list & requests, const nb::list & masks, const nb::object & on_result,
         const nb::object & tick, bool with_statistics, bool with_routes, bool with_logits,
         const std::vector<int32_t> & targets, const std::vector<std::string> & stop, bool share_prefixes,
         const nb::object & capture) {
    const std::vector<safex::Request> native_requests = to_requests(requests);
    std::optional<nb::python_error>   raised;
    safex::RunOptions                 options;
    options.masks          = to_masks(masks);
    options.statistics     = with_statistics;
    options.routes         = with_routes;
    options.logits         = with_logits;
    options.targets        = targets;
    options.stop           = stop;
    options.share_prefixes = share_prefixes;
    options.capture        = to_capture(capture);
    options.tick           = [&](uint64_t n_done) { return tick_python(tick, n_done, raised); };
    const auto deliver     = [&](size_t index, safex::Result && result) {
        const nb::gil_scoped_acquire acquire;
        on_result(index, to_dict(std::move(result), options, session.facts()));
    };
    try {
        const nb::gil_scoped_release release;
        session.run(native_requests, options, deliver);
    } catch (const std::exception &) {
        if (raised) {
            throw std::move(*raised);
        }
        throw;
    }
}

safex::FlashAttention flash_attention(std::optional<bool> value) {
    if (!value) {
        return safex::FlashAttention::automatic;
    }
    return *value ? safex::FlashAttention::on : safex::FlashAttention::off;
}

void init(safex::Session * self, const std::string & path, int n_gpu_layers, int n_threads, uint32_t n_ctx,
          uint32_t n_ubatch, std::optional<bool> flash_attn, const std::string & kv_type, bool mmap,
          const std::vector<std::pair<std::string, std::string>> & tensor_overrides, const nb::object & progress) {
    std::optional<nb::python_error> raised;
    safex::SessionOptions           options;
    options.path             = path;
    options.n_gpu_layers     = n_gpu_layers;
    options.n_threads        = n_threads;
    options.n_ctx            = n_ctx;
    options.n_ubatch         = n_ubatch;
    options.flash_attn       = flash_attention(flash_attn);
    options.kv_type          = kv_type;
    options.mmap             = mmap;
    options.tensor_overrides = tensor_overrides;
    options.on_load_progress = [&](float share) {
        const nb::gil_scoped_acquire acquire;
        return tick_python(nb::none(), 0, raised) && (progress.is_none() || (progress(share), true));
    };
    try {
        const nb::gil_scoped_release release;
        new (self) safex::Session(options);
    } catch (const std::exception &) {
        if (raised) {
            throw std::move(*raised);
        }
        throw;
    }
}

nb::str detokenize(const safex::Session & session, const std::vector<int32_t> & tokens, bool special) {
    return to_str(session.detokenize(tokens, special));
}

}  // namespace

void bind_session(nb::module_ & m) {
    m.def("load_backends", &safex::load_backends, "folder"_a);
    m.def("llama_library_path", &safex::llama_library_path);

    nb::class_<safex::RouterFacts>(m, "RouterFacts")
        .def_ro("layer", &safex::RouterFacts::layer)
        .def_ro("n_experts", &safex::RouterFacts::n_experts)
        .def_ro("top_k", &safex::RouterFacts::top_k)
        .def_ro("n_groups", &safex::RouterFacts::n_groups)
        .def_ro("n_groups_used", &safex::RouterFacts::n_groups_used)
        .def_ro("ids_are_given", &safex::RouterFacts::ids_are_given);

    nb::class_<safex::ModelFacts>(m, "ModelFacts")
        .def_ro("architecture", &safex::ModelFacts::architecture)
        .def_ro("name", &safex::ModelFacts::name)
        .def_ro("routers", &safex::ModelFacts::routers)
        .def_ro("n_experts", &safex::ModelFacts::n_experts)
        .def_ro("n_blocks", &safex::ModelFacts::n_blocks)
        .def_ro("n_embd", &safex::ModelFacts::n_embd)
        .def_ro("n_vocab", &safex::ModelFacts::n_vocab)
        .def_ro("n_ctx_train", &safex::ModelFacts::n_ctx_train)
        .def_ro("n_params", &safex::ModelFacts::n_params)
        .def_ro("n_bytes", &safex::ModelFacts::n_bytes)
        .def_ro("adds_bos", &safex::ModelFacts::adds_bos)
        .def_ro("bos", &safex::ModelFacts::bos)
        .def_ro("eos", &safex::ModelFacts::eos)
        .def_ro("chat_template", &safex::ModelFacts::chat_template)
        .def_ro("metadata", &safex::ModelFacts::metadata);

    nb::class_<safex::Session>(m, "Session")
        .def("__init__", &init, "path"_a, "n_gpu_layers"_a, "n_threads"_a, "n_ctx"_a, "n_ubatch"_a, "flash_attn"_a.none(),
             "kv_type"_a, "mmap"_a, "tensor_overrides"_a, "progress"_a.none())
        .def_prop_ro("facts", &safex::Session::facts, nb::rv_policy::reference_internal)
        .def("require_experts", &safex::Session::require_experts)
        .def_prop_ro("n_ctx", &safex::Session::n_ctx)
        .def_prop_ro("n_splits", &safex::Session::n_splits)
        .def_prop_ro("n_graph_reuses", &safex::Session::n_graph_reuses)
        .def_prop_ro("devices", &safex::Session::device_description)
        .def("tokenize", &safex::Session::tokenize, "text"_a, "parse_special"_a)
        .def("detokenize", &detokenize, "tokens"_a, "special"_a)
        .def("run", &run, "requests"_a, "masks"_a, "on_result"_a, "tick"_a.none(), "statistics"_a = false,
             "routes"_a = false, "logits"_a = false, "targets"_a = std::vector<int32_t>(),
             "stop"_a = std::vector<std::string>(), "share_prefixes"_a = true, "capture"_a = nb::none());
}
