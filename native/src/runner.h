// Packs requests into full ubatches, decodes them and gathers their results.
#pragma once

#include "gathering.h"
#include "loader.h"
#include "logits.h"
#include "queue.h"
#include "safex/session.h"
#include "tap.h"
#include "text.h"

#include <chrono>
#include <map>
#include <optional>
#include <vector>

namespace safex {

// Runs `requests` once. Borrowed: context, tap and everything in the arguments.
class Runner {
  public:
    Runner(llama_context * context, Tap & tap, const std::vector<Request> & requests, const RunOptions & options,
           const std::function<void(size_t, Result &&)> & on_result);
    ~Runner();
    Runner(const Runner &)             = delete;
    Runner & operator=(const Runner &) = delete;

    void run();

  private:
    // A job whose tokens are in the KV cache, in part or whole.
    struct Active {
        size_t    job;
        int       sequence;  // KV sequence id
        size_t    n_past;    // tokens computed or taken over
        Sampler   sampler;
        StopWatch stop;
        Result    result;
        int32_t   next = -1;     // generated token to feed, -1 while the prompt is not through
        bool      last = false;  // `next` is the last one: feed it for its routing, then finish
    };

    // What one token of the batch belongs to.
    struct Slot {
        Active * active   = nullptr;
        size_t   position = 0;   // among the request's tokens, or after them + index of the generated token
        int      output   = -1;  // row of the logits, -1 where none was asked for
    };

    const Job &     job(const Active & active) { return queue_.job(active.job); }
    const Request & request(const Active & active) { return requests_[job(active).request]; }
    size_t          n_prompt(const Active & active);
    Result          empty_result() const;

    void     compose();
    void     add_generated();
    void     add_prompts();
    void     add_chunk(Active & active, size_t n_tokens);
    void     add_token(Active & active, int32_t token, size_t position, bool output);
    void     choose_mask(const Active & active);
    bool     wants_output(const Active & active, size_t position);
    Active * admit(size_t room);

    void        decode();
    void        take_log(const RouteLog & log);
    bool        is_captured(const Slot & slot);
    void        prepare_capture();
    void        take_capture(const CaptureLog & log, const RouteLog & routes);
    void        take_outputs();
    void        take_token(Active & active, std::span<const float> logits);
    void        retire();
    bool        finished(const Active & active);
    void        free_cells(const Active & active);
    void        leave_parent(int parent);
    void        give_up_a_prefix();
    bool        tick();
    static bool tick_within(void * runner);

    llama_context *                                context_;
    Tap &                                          tap_;
    const std::vector<Request> &                   requests_;
    const RunOptions &                             options_;
    const std::function<void(size_t, Result &&)> & on_result_;
    const llama_vocab *                            vocab_;

    const size_t                              n_batch_;
    const size_t                              n_cells_;
    const size_t                              n_vocab_;
    const size_t                              most_prefixes_;  // in the KV cache at a time
    Queue                                     queue_;
    std::vector<std::unique_ptr<Active>>      active_;
    std::map<size_t, std::unique_ptr<Active>> kept_;  // prefixes that are computed, by job, until their children are done
    std::vector<int>                          free_sequences_;
    size_t                                    n_reserved_ = 0;  // KV cells promised to the active and the kept
    size_t                                    n_prefixes_ = 0;  // of the active and the kept
    llama_batch                               batch_;
    std::vector<Slot>                         slots_;
    size_t                                    n_outputs_ = 0;
    uint64_t                                  n_done_    = 0;
    bool                                      stopped_   = false;
    ConstantRouterCheck                       constant_;
    std::optional<Gathering>                  gathering_;  // where RunOptions::capture
    std::exception_ptr                        log_error_;
    std::chrono::steady_clock::time_point     last_tick_;
};

}  // namespace safex
