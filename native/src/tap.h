// The tap: the nodes that safex-native adds to a MoE graph, and their read-back.
//
// tap*.cpp and capture.cpp are the files of the core that know llama.cpp's graph. A Tap belongs to one Session, outlives its
// llama_context, and is used by the thread that decodes. While no log is wanted and no mask set it adds nothing.
#pragma once

#include "capture.h"
#include "llama-tap.h"
#include "safex/mask.h"
#include "safex/statistics.h"

#include <functional>
#include <vector>

namespace safex {

// Sequences that may be in flight; also the most rows of logits computed in one ubatch (151k floats each in Qwen3).
constexpr uint32_t max_sequences = 64;

class TapInput;
struct LayerLog;

class Tap final : public llm_graph_tap {
  public:
    using LogHandler     = std::function<void(const RouteLog &)>;
    using CaptureHandler = std::function<void(const CaptureLog &, const RouteLog &)>;

    // A route log is made and handed over after each ubatch; an empty handler switches it off.
    void set_log_handler(LogHandler handler) { log_handler_ = std::move(handler); }

    // Outputs of experts are handed over after each ubatch, with its route log, which must be on; an empty handler
    // switches it off. The experts have been checked.
    void set_capture(const Capture & capture, CaptureHandler handler);
    // Of the next batch: the slot of each token, -1 for none, and how many there are. Unused where nothing is pooled.
    void set_slots(std::vector<int32_t> slot_of_batch, size_t n_slots);

    // Sequences start without a mask; number 0 is "none", n is masks[n - 1]. Masks have been checked. Masks in use take a
    // row of the tables each, so that a call may have thousands and its graph only as many rows as there are sequences.
    void set_masks(const std::vector<Mask> & masks);
    void set_mask_of_sequence(int sequence, int mask);

    // The routers in block order, known once a graph was computed.
    const std::vector<RouterFacts> & routers() const { return routers_; }

    // True where the model's head could not be given the wanted rows only: every token must be an output.
    bool needs_all_outputs() const { return needs_all_outputs_; }

    int n_splits() const { return n_splits_; }  // of the last graph computed

    uint64_t      topology() const override;
    uint32_t      max_nodes_per_layer() const override { return 64; }
    bool          keep_all_rows(const llm_graph_context & graph) override;
    ggml_tensor * head_input(const llm_graph_context & graph, ggml_tensor * cur, const ggml_tensor * norm) override;
    ggml_tensor * router_logits(const llm_graph_context & graph, ggml_tensor * logits, int layer) override;
    ggml_tensor * selection_scores(const llm_graph_context & graph, ggml_tensor * scores, bool ids_are_given,
                                   int layer) override;
    ggml_tensor * gate_weights(const llm_graph_context & graph, const llm_tap_routing & routing) override;
    ggml_tensor * forced_experts(const llm_graph_context & graph, int layer) override;
    bool          narrow(const llm_graph_context & graph, ggml_tensor * cur, ggml_tensor * logits, int layer,
                         llm_tap_rows & rows) override;
    ggml_tensor * widen(const llm_graph_context & graph, ggml_tensor * out, ggml_tensor * cur) override;
    ggml_tensor * expert_outputs(const llm_graph_context & graph, ggml_tensor * outputs, ggml_tensor * ids,
                                 int layer) override;
    void graph_computed(const llm_graph_result & result, const llama_ubatch & ubatch, ggml_backend_sched_t sched) override;

  private:
    friend class TapInput;

    bool                  active(const llm_graph_context & graph) const;
    int64_t               n_rows() const { return static_cast<int64_t>(rows_.size()); }
    TapInput &            input(const llm_graph_context & graph);
    void                  fill_tables(size_t n_experts, size_t n_layers);
    void                  fill_row(size_t row, size_t n_experts, size_t n_layers);
    void                  learn_routers(const TapInput & input);
    const CapturedLayer * captured(int layer) const;
    ggml_tensor * captured_outputs(ggml_context * ctx, const TapInput & in, const LayerLog & log, ggml_tensor * outputs);
    void          read_capture(const TapInput & input);
    void          read_log(const TapInput & input, const llama_ubatch & ubatch, ggml_backend_sched_t sched);

    // A row of the tables, and how many sequences use it. Row 0 is "none".
    struct Row {
        int mask    = 0;  // number of the mask that the row is for
        int n_users = 0;
        int filled  = -1;  // number of the mask whose values it holds
    };

    LogHandler                 log_handler_;
    RouteLog                   log_;
    std::vector<RouterFacts>   routers_;
    std::vector<Mask>          masks_;
    std::vector<Row>           rows_;  // none: no masks
    bool                       has_gains_ = false;
    bool                       has_bias_  = false;
    std::vector<float>         gains_;  // [n_layers, n_rows, n_experts]
    std::vector<float>         bias_;   // likewise: 0, -inf (reroute) or a large number (force)
    std::vector<int32_t>       row_of_sequence_ = std::vector<int32_t>(256, 0);
    CaptureHandler             capture_handler_;
    CaptureLog                 capture_log_;
    std::vector<CapturedLayer> captured_layers_;
    size_t                     n_captured_     = 0;
    bool                       capture_forced_ = false;
    bool                       capture_pools_  = true;
    uint32_t                   capture_number_ = 0;  // of the set_capture calls so far
    std::vector<int32_t>       slot_of_batch_;
    size_t                     n_slots_   = 1;
    bool                       forcing_   = false;  // between forced_experts() and expert_outputs() of its branch
    bool                       narrowing_ = false;  // between narrow() and widen(): we are called for rows seen already
    bool                       needs_all_outputs_ = false;
    int                        n_splits_          = 0;
};

}  // namespace safex
