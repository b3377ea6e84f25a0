// A loaded model and what can be run on it.
//
// A Session owns the model, its context, its KV cache and the tap. It is used by one thread at a time; `tick` is called
// on that thread. Vectors handed to callbacks are valid during the call only.
#pragma once

#include "safex/mask.h"
#include "safex/statistics.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace safex {

enum class FlashAttention { automatic, off, on };

struct SessionOptions {
    std::string                                      path;                 // first shard of a split file
    int                                              n_gpu_layers = 0;     // negative: all
    int                                              n_threads    = 0;     // 0: all the process may use
    uint32_t                                         n_ctx        = 4096;  // tokens in the KV cache, all sequences together
    uint32_t                                         n_ubatch     = 512;   // tokens computed at once
    FlashAttention                                   flash_attn   = FlashAttention::automatic;
    std::string                                      kv_type      = "f16";
    bool                                             mmap         = true;
    std::vector<std::pair<std::string, std::string>> tensor_overrides;  // (regex on tensor names, buffer type)
    std::function<bool(float)>                       on_load_progress;  // 0..1; false stops
};

struct ModelFacts {
    std::string                                      architecture;
    std::string                                      name;
    std::vector<RouterFacts>                         routers;  // in block order
    int                                              n_experts   = 0;
    int                                              n_blocks    = 0;
    int                                              n_embd      = 0;
    int                                              n_vocab     = 0;
    uint32_t                                         n_ctx_train = 0;
    uint64_t                                         n_params    = 0;
    uint64_t                                         n_bytes     = 0;
    bool                                             adds_bos    = false;
    int32_t                                          bos         = -1;
    int32_t                                          eos         = -1;
    std::string                                      chat_template;  // empty: the model has none
    std::vector<std::pair<std::string, std::string>> metadata;       // every key of the file, as text
};

// How a token is chosen. The most probable ones that reach top_p together, then the temperature, then a draw.
struct Sampling {
    float    temperature = 0.0f;  // 0: the most probable token
    float    top_p       = 1.0f;
    uint32_t seed        = 0;
};

// Request::response_mask: the prompt's mask acts on the response too.
constexpr int same_mask = -1;

enum class Phase { prompt, suffix, response };

// What is kept of a phase's outputs: their mean, the one at the last token, or all of them.
enum class Pool { mean, last, none };

// Expert outputs to keep, before the gate weight, of each request's tokens of one phase.
struct Capture {
    std::vector<std::pair<int, int>> experts;  // (layer, expert), no two alike
    bool forced = false;                       // every token goes through each expert, beside the model's own routing;
                                               // else the tokens that selected it
    Pool  pool  = Pool::mean;
    Phase phase = Phase::prompt;
};

// What a capture gives of one request. A row is one expert's output, pooled or (Pool::none) at one token.
struct Captured {
    std::vector<float>    features;      // [rows, n_embd]: a row for each expert, 0 where none was pooled
    std::vector<uint32_t> n_pooled;      // [n_experts] tokens behind it
    std::vector<float>    probs;         // of each row, the router's probability of the expert, pooled over all of the phase
    uint32_t              n_tokens = 0;  // that these were pooled over
    // Pool::none: of each row, which expert of the capture and which token. In the order of the tokens.
    std::vector<uint32_t> experts, positions;
};

// One prompt to run. Tokens are processed as given.
struct Request {
    std::vector<int32_t> tokens;
    int                  n_suffix = 0;  // the last n_suffix tokens of the prompt are the phase "suffix" too
    int                  mask     = 0;  // of the prompt: index into RunOptions::masks plus one; 0: none
    int                  max_new  = 0;  // tokens to generate

    int      response_mask = same_mask;  // of the response, numbered likewise
    int      n_forced      = 0;          // the last n_forced of `tokens` are no prompt, but what the response begins with
    Sampling sampling      = {};
};

enum class Finish { prompt, stop, length };  // nothing generated; end-of-generation token or stop string; max_new reached

struct RawRoutes {
    // Per layer, then per token: [n_layers][n_tokens * top_k], prompt and generated tokens in order.
    std::vector<std::vector<int32_t>> ids;
    std::vector<std::vector<float>>   weights;
    std::vector<std::vector<float>>   probs;
};

struct Result {
    std::vector<int32_t> generated;
    Finish               finish = Finish::prompt;
    std::string          text;                      // of what was generated, up to the stop string if one ended it
    std::vector<float>   scores;                    // [1 + n_forced, n_targets], where RunOptions::targets
    Statistics           prompt, suffix, response;  // where RunOptions::statistics
    RawRoutes            routes;                    // where RunOptions::routes
    Captured             captured;                  // where RunOptions::capture
    std::vector<float>   logits;                    // [n_tokens, n_vocab] of the prompt, where RunOptions::logits
};

struct RunOptions {
    std::vector<Mask> masks;
    bool              statistics = false;
    bool              routes     = false;
    bool              logits     = false;
    // Tokens whose log-probability is wanted where the first token of the response is predicted, and after each forced one.
    std::vector<int32_t>     targets;
    std::vector<std::string> stop;  // a response ends where its text holds one of these
    std::optional<Capture>   capture;
    // Beginnings that prompts have in common are computed once. Never where statistics, routes, logits or a capture are
    // asked for.
    bool share_prefixes = true;
    // Called after each ubatch and, on a CPU, about ten times a second within one, with the tokens processed so far.
    // False stops the run with Error(interrupted).
    std::function<bool(uint64_t)> tick;
};

class Session {
  public:
    // A dense model loads too: it has no routers. Throws Error: input (not a model file), unsupported (routing that the tap
    // can't follow, or a model that can't continue a text), device (out of memory, a back end that fails), interrupted.
    explicit Session(const SessionOptions & options);
    ~Session();
    Session(const Session &)             = delete;
    Session & operator=(const Session &) = delete;

    const ModelFacts & facts() const;
    void               require_experts() const;  // throws Error(unsupported) where the model is dense
    uint32_t           n_ctx() const;            // longest prompt plus response
    std::string        device_description() const;
    int                n_splits() const;        // of the last graph computed
    int                n_graph_reuses() const;  // ubatches computed so far without building their graph anew

    // `parse_special`: text such as <|im_end|> becomes its token. Never adds BOS or EOS.
    std::vector<int32_t> tokenize(const std::string & text, bool parse_special) const;
    std::string          detokenize(const std::vector<int32_t> & tokens, bool special) const;

    // Runs all requests packed into full ubatches and hands over each result as it is ready, in no fixed order. Refuses
    // requests that can't be run, masks among them, before the first ubatch.
    void run(const std::vector<Request> & requests, const RunOptions & options,
             const std::function<void(size_t, Result &&)> & on_result);

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

// Loads ggml's back ends (CPU kernels, CUDA, ...) from the folder. Once in a process, before the first Session.
void load_backends(const std::string & folder);

// The file that llama.cpp's functions come from in this process: must be our libsafex-llama.
std::string llama_library_path();

}  // namespace safex
