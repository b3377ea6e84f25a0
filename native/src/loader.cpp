#include "loader.h"

#include "library.h"
#include "safex/error.h"

#include <ggml-backend.h>
#include <gguf.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <regex>
#include <set>
#include <thread>

namespace safex {
namespace {

ggml_type kv_type(const std::string & name) {
    static const std::map<std::string, ggml_type> types = {
        {"f32", GGML_TYPE_F32},   {"f16", GGML_TYPE_F16},   {"bf16", GGML_TYPE_BF16}, {"q8_0", GGML_TYPE_Q8_0},
        {"q5_1", GGML_TYPE_Q5_1}, {"q5_0", GGML_TYPE_Q5_0}, {"q4_1", GGML_TYPE_Q4_1}, {"q4_0", GGML_TYPE_Q4_0},
    };
    const auto found = types.find(name);
    if (found == types.end()) {
        throw Error(ErrorCode::input,
                    "kv_type is '" + name + "', expected one of f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0");
    }
    return found->second;
}

llama_flash_attn_type flash_type(FlashAttention value) {
    switch (value) {
        case FlashAttention::off: return LLAMA_FLASH_ATTN_TYPE_DISABLED;
        case FlashAttention::on: return LLAMA_FLASH_ATTN_TYPE_ENABLED;
        default: return LLAMA_FLASH_ATTN_TYPE_AUTO;
    }
}

ggml_backend_buffer_type_t buffer_type(const std::string & name) {
    std::string known;
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        ggml_backend_buffer_type_t type = ggml_backend_dev_buffer_type(ggml_backend_dev_get(i));
        if (type != nullptr && name == ggml_backend_buft_name(type)) {
            return type;
        }
        known += (known.empty() ? "" : ", ") + std::string(type == nullptr ? "" : ggml_backend_buft_name(type));
    }
    throw Error(ErrorCode::input, "tensor override: no buffer type '" + name + "'; this machine has " + known);
}

std::vector<llama_model_tensor_buft_override> overrides(const SessionOptions & options) {
    std::vector<llama_model_tensor_buft_override> result;
    for (const auto & [pattern, buffer] : options.tensor_overrides) {
        result.push_back({pattern.c_str(), buffer_type(buffer)});
    }
    result.push_back({nullptr, nullptr});
    return result;
}

struct LoadProgress {
    const std::function<bool(float)> & callback;
    bool                               stopped = false;
};

bool forward_progress(float share, void * user_data) {
    auto & progress  = *static_cast<LoadProgress *>(user_data);
    progress.stopped = progress.callback && !progress.callback(share);
    return !progress.stopped;
}

// llama.cpp's own words, without the names of its functions.
std::string reason() {
    std::string error = first_logged_error();
    if (const auto colon = error.find(": "); colon != std::string::npos) {
        error = error.substr(colon + 2);
    }
    if (error.starts_with("error loading model: ")) {
        error = error.substr(error.find(": ") + 2);
    }
    return error.empty() ? "no reason given" : error;
}

std::string model_string(const llama_model * model, const char * key) {
    std::vector<char> buffer(1024);
    const int32_t     length = llama_model_meta_val_str(model, key, buffer.data(), buffer.size());
    if (length < 0) {
        return "";
    }
    if (static_cast<size_t>(length) >= buffer.size()) {
        buffer.resize(static_cast<size_t>(length) + 1);
        llama_model_meta_val_str(model, key, buffer.data(), buffer.size());
    }
    return buffer.data();
}

std::vector<std::pair<std::string, std::string>> all_metadata(const llama_model * model) {
    std::vector<std::pair<std::string, std::string>> result;
    for (int32_t i = 0; i < llama_model_meta_count(model); i++) {
        std::vector<char> key(256);
        llama_model_meta_key_by_index(model, i, key.data(), key.size());
        result.emplace_back(key.data(), model_string(model, key.data()));
    }
    return result;
}

struct GgufDeleter {
    void operator()(gguf_context * context) const { gguf_free(context); }
};

// The file's other shards carry the experts too: name-00001-of-00003.gguf.
std::vector<std::string> shards(const std::string & path) {
    static const std::regex pattern("(.*)-([0-9]{5})-of-([0-9]{5})\\.gguf");
    std::smatch             match;
    if (!std::regex_match(path, match, pattern)) {
        return {path};
    }
    std::vector<std::string> result;
    for (int i = 1; i <= std::stoi(match[3]); i++) {
        std::vector<char> name(path.size() + 16);
        llama_split_path(name.data(), name.size(), match[1].str().c_str(), i - 1, std::stoi(match[3]));
        result.emplace_back(name.data());
    }
    return result;
}

// Calls `visit(name, type)` for every tensor of the file.
void visit_tensors(const std::string & path, const std::function<void(const char *, ggml_type)> & visit) {
    for (const std::string & shard : shards(path)) {
        const std::unique_ptr<gguf_context, GgufDeleter> file(gguf_init_from_file(shard.c_str(), {true, nullptr}));
        for (int64_t i = 0; file && i < gguf_get_n_tensors(file.get()); i++) {
            visit(gguf_get_tensor_name(file.get(), i), gguf_get_tensor_type(file.get(), i));
        }
    }
}

// Whether upstream may store weights in layouts of its own on a CPU. On x86 those of K-quants have no matrix kernel for
// experts, which go token by token then: prompts run half as fast as on the file's own blocks. Where flash attention is
// off, results are compared with others': there the layout stays the one that they compute with.
bool keeps_repacking(const SessionOptions & options) {
#if defined(__x86_64__)
    bool k_quants = false;
    if (options.flash_attn != FlashAttention::off) {
        visit_tensors(options.path, [&](const char * name, ggml_type type) {
            k_quants = k_quants || (std::strstr(name, "_exps.") != nullptr && ggml_blck_size(type) == 256);
        });
    }
    return !k_quants;
#else
    (void)options;
    return true;
#endif
}

}  // namespace

ModelPtr load_model(const SessionOptions & options) {
    capture_log();
    llama_model_params params = llama_model_default_params();
    params.use_extra_bufts    = keeps_repacking(options);
    forget_errors();
    const auto   tensor_overrides = overrides(options);
    LoadProgress progress{options.on_load_progress};
    params.n_gpu_layers                = options.n_gpu_layers;
    params.tensor_buft_overrides       = tensor_overrides.data();
    params.load_mode                   = options.mmap ? LLAMA_LOAD_MODE_MMAP : LLAMA_LOAD_MODE_NONE;
    params.progress_callback           = forward_progress;
    params.progress_callback_user_data = &progress;
    ModelPtr model(llama_model_load_from_file(options.path.c_str(), params));
    if (progress.stopped) {
        throw Error(ErrorCode::interrupted, "interrupted");
    }
    if (!model) {
        throw Error(ErrorCode::input, options.path + ": not a model that can be loaded: " + reason() +
                                          " (is the file whole, and made for this llama.cpp?)");
    }
    return model;
}

ContextPtr make_context(llama_model * model, const SessionOptions & options, bool all_outputs) {
    forget_errors();
    const int threads = options.n_threads > 0 ? options.n_threads : static_cast<int>(std::thread::hardware_concurrency());
    llama_context_params params = llama_context_default_params();
    params.n_ctx                = options.n_ctx;
    params.n_batch              = std::min(options.n_ubatch, options.n_ctx);
    params.n_ubatch             = params.n_batch;
    params.n_seq_max            = std::min(params.n_batch, max_sequences);
    params.n_outputs_max        = all_outputs ? params.n_batch : params.n_seq_max;
    params.n_threads            = threads;
    params.n_threads_batch      = threads;
    params.flash_attn_type      = flash_type(options.flash_attn);
    params.type_k               = kv_type(options.kv_type);
    params.type_v               = kv_type(options.kv_type);
    params.kv_unified           = true;
    params.swa_full             = true;
    ContextPtr context(llama_init_from_model(model, params));
    if (!context) {
        throw Error(ErrorCode::device, options.path + ": no context of " + std::to_string(options.n_ctx) +
                                           " tokens could be made: " + reason());
    }
    return context;
}

std::vector<int> expert_blocks(const std::string & path) {
    static const std::regex pattern("blk\\.([0-9]+)\\.ffn_(down_exps|gate_inp)\\.weight");
    std::set<int>           blocks;
    visit_tensors(path, [&](const char * name, ggml_type) {
        std::cmatch match;
        if (std::regex_match(name, match, pattern)) {
            blocks.insert(std::stoi(match[1]));
        }
    });
    return {blocks.begin(), blocks.end()};
}

std::string dense_model(const std::string & architecture) {
    return "a dense model (architecture " + architecture + "): it has no routed experts to profile or mask";
}

ModelFacts read_facts(const llama_model * model) {
    const llama_vocab * vocab = llama_model_get_vocab(model);
    const char *        chat  = llama_model_chat_template(model, nullptr);
    ModelFacts          facts;
    facts.architecture  = model_string(model, "general.architecture");
    facts.name          = model_string(model, "general.name");
    facts.n_blocks      = llama_model_n_layer(model);
    facts.n_embd        = llama_model_n_embd(model);
    facts.n_vocab       = llama_vocab_n_tokens(vocab);
    facts.n_ctx_train   = static_cast<uint32_t>(llama_model_n_ctx_train(model));
    facts.n_params      = llama_model_n_params(model);
    facts.n_bytes       = llama_model_size(model);
    facts.adds_bos      = llama_vocab_get_add_bos(vocab);
    facts.bos           = llama_vocab_bos(vocab);
    facts.eos           = llama_vocab_eos(vocab);
    facts.chat_template = chat == nullptr ? "" : chat;
    facts.metadata      = all_metadata(model);
    return facts;
}

}  // namespace safex
