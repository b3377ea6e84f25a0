#include "safex/session.h"

#include "library.h"
#include "loader.h"
#include "runner.h"
#include "safex/error.h"
#include "text.h"

#include <algorithm>
#include <cmath>

namespace safex {

struct Session::Impl {
    SessionOptions options;
    ModelPtr       model;
    Tap            tap;  // outlives the context
    ContextPtr     context;
    ModelFacts     facts;

    explicit Impl(const SessionOptions & given)
        : options(given), model(load_model(options)), facts(read_facts(model.get())) {
        const std::vector<int> blocks = expert_blocks(options.path);
        open_context(false);
        if (blocks.empty()) {  // dense: the tap stays idle
            check_continues();
            return;
        }
        probe(blocks);
        if (tap.needs_all_outputs()) {
            open_context(true);
        }
    }

    void open_context(bool all_outputs) {
        context.reset();
        context = make_context(model.get(), options, all_outputs);
        llama_set_tap(context.get(), &tap);
    }

    // Two tokens through the graph tell what it routes, and whether all of it can be seen.
    void probe(const std::vector<int> & blocks) {
        RunOptions run_options;
        run_options.routes                  = true;
        const std::vector<Request> requests = {{{0, 0}, 0, 0, 0}};
        Runner(context.get(), tap, requests, run_options, [](size_t, Result &&) {}).run();
        facts.routers = tap.routers();
        check_all_seen(blocks);
        for (const RouterFacts & router : facts.routers) {
            facts.n_experts = std::max(facts.n_experts, router.n_experts);
        }
    }

    void check_all_seen(const std::vector<int> & blocks) const {
        for (int block : blocks) {
            const bool seen = std::any_of(facts.routers.begin(), facts.routers.end(),
                                          [&](const RouterFacts & r) { return r.layer == block; });
            if (!seen && block < facts.n_blocks) {
                throw Error(ErrorCode::unsupported, options.path + ": architecture " + facts.architecture +
                                                        " routes the experts of block " + std::to_string(block) +
                                                        " by a path of its own, which safex can't see");
            }
        }
    }

    // Encoders and diffusion models have no cache that a text could be continued from.
    void check_continues() const {
        if (llama_get_memory(context.get()) == nullptr || llama_model_has_encoder(model.get())) {
            throw Error(ErrorCode::unsupported, options.path + ": architecture " + facts.architecture +
                                                    " takes whole texts and can't continue one: expected a model that "
                                                    "generates token by token");
        }
    }

    void require_experts() const {
        if (facts.routers.empty()) {
            throw Error(ErrorCode::unsupported, options.path + ": " + dense_model(facts.architecture));
        }
    }

    void check(const std::vector<Request> & requests, const RunOptions & run_options) const {
        const bool masked =
            std::any_of(run_options.masks.begin(), run_options.masks.end(), [](const Mask & mask) { return !mask.empty(); });
        if (masked || run_options.statistics || run_options.routes || run_options.capture) {
            require_experts();
        }
        if (run_options.capture) {
            check_capture(*run_options.capture);
        }
        for (const Mask & mask : run_options.masks) {
            check_mask(mask, facts.routers);
        }
        check_tokens("the list of targets", run_options.targets);
        for (const std::string & stop : run_options.stop) {
            if (stop.empty()) {
                throw Error(ErrorCode::input, "a stop string is empty");
            }
        }
        for (size_t i = 0; i < requests.size(); i++) {
            check_request("prompt " + std::to_string(i), requests[i], static_cast<int>(run_options.masks.size()));
        }
    }

    void check_capture(const Capture & capture) const {
        if (facts.architecture == "llama4") {
            throw Error(ErrorCode::unsupported, options.path +
                                                    ": architecture llama4 multiplies an expert's input by its gate "
                                                    "weight, so there is no output before it to capture");
        }
        if (capture.experts.empty()) {
            throw Error(ErrorCode::input, "no experts to capture: the list is empty");
        }
        Mask mask;
        for (const auto & [layer, expert] : capture.experts) {
            mask.push_back({layer, expert, MaskMode::gain, 1.0f});
        }
        check_mask(mask, facts.routers);
    }

    void check_tokens(const std::string & which, const std::vector<int32_t> & tokens) const {
        for (int32_t token : tokens) {
            if (token < 0 || token >= facts.n_vocab) {
                throw Error(ErrorCode::input, which + " holds token " + std::to_string(token) +
                                                  ", the vocabulary has 0 to " + std::to_string(facts.n_vocab - 1));
            }
        }
    }

    void check_request(const std::string & which, const Request & request, int n_masks) const {
        const uint32_t longest  = llama_n_ctx(context.get());
        const auto     n_forced = static_cast<size_t>(std::max(0, request.n_forced));
        if (request.tokens.size() <= n_forced) {
            throw Error(ErrorCode::input, which + " has no tokens");
        }
        const size_t needed = request.tokens.size() + static_cast<size_t>(std::max(0, request.max_new));
        if (needed > longest) {
            throw Error(ErrorCode::input, which + " needs " + std::to_string(needed) + " tokens (" +
                                              std::to_string(request.tokens.size() - n_forced) +
                                              " of the prompt), the context holds " + std::to_string(longest) +
                                              "; give a larger n_ctx or a shorter prompt");
        }
        check_tokens(which, request.tokens);
        if (request.max_new < 0 || request.n_forced < 0 || request.mask < 0 || request.mask > n_masks ||
            request.response_mask < same_mask || request.response_mask > n_masks) {
            throw Error(ErrorCode::input, which + ": n_forced, max_new or mask out of range");
        }
        const Sampling & sampling = request.sampling;
        if (!std::isfinite(sampling.temperature) || sampling.temperature < 0.0f) {
            throw Error(ErrorCode::input, which + ": the temperature must be 0 (greedy) or more");
        }
        if (!(sampling.top_p > 0.0f && sampling.top_p <= 1.0f)) {
            throw Error(ErrorCode::input, which + ": top_p must be more than 0 and at most 1");
        }
    }
};

Session::Session(const SessionOptions & options) : impl_(std::make_unique<Impl>(options)) {}

Session::~Session() = default;

const ModelFacts & Session::facts() const {
    return impl_->facts;
}

void Session::require_experts() const {
    impl_->require_experts();
}

uint32_t Session::n_ctx() const {
    return llama_n_ctx(impl_->context.get());
}

int Session::n_splits() const {
    return impl_->tap.n_splits();
}

int Session::n_graph_reuses() const {
    return llama_perf_context(impl_->context.get()).n_reused;
}

std::string Session::device_description() const {
    std::string text;
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        ggml_backend_dev_t device = ggml_backend_dev_get(i);
        text += (text.empty() ? "" : ", ") + std::string(ggml_backend_dev_name(device)) + " (" +
                ggml_backend_dev_description(device) + ")";
    }
    return text;
}

std::vector<int32_t> Session::tokenize(const std::string & text, bool parse_special) const {
    return safex::tokenize(llama_model_get_vocab(impl_->model.get()), text, parse_special);
}

std::string Session::detokenize(const std::vector<int32_t> & tokens, bool special) const {
    return safex::detokenize(llama_model_get_vocab(impl_->model.get()), tokens, special);
}

void Session::run(const std::vector<Request> & requests, const RunOptions & options,
                  const std::function<void(size_t, Result &&)> & on_result) {
    impl_->check(requests, options);
    Runner(impl_->context.get(), impl_->tap, requests, options, on_result).run();
}

}  // namespace safex
