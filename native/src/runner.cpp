#include "runner.h"

#include "library.h"
#include "memory.h"
#include "safex/error.h"

#include <algorithm>
#include <numeric>

namespace safex {
namespace {

constexpr auto tick_interval = std::chrono::milliseconds(100);

void append(RawRoutes & to, const RouteLog & log, size_t row, std::span<const RouterFacts> routers) {
    to.ids.resize(routers.size());
    to.weights.resize(routers.size());
    to.probs.resize(routers.size());
    for (size_t l = 0; l < routers.size(); l++) {
        const auto k     = static_cast<ptrdiff_t>(routers[l].top_k);
        const auto start = static_cast<ptrdiff_t>(row) * k;
        const auto copy  = [&](const auto & from, auto & into) {
            into.insert(into.end(), from.begin() + start, from.begin() + start + k);
        };
        copy(log.layers[l].ids, to.ids[l]);
        copy(log.layers[l].weights, to.weights[l]);
        copy(log.layers[l].probs, to.probs[l]);
    }
}

// A token that is computed for several requests has no statistics, routes or logits of its own in each.
bool may_share(llama_context * context, const RunOptions & options) {
    const bool everything_is_read = options.statistics || options.routes || options.logits || options.capture;
    return options.share_prefixes && !everything_is_read && can_share_prefixes(context);
}

}  // namespace

Runner::Runner(llama_context * context, Tap & tap, const std::vector<Request> & requests, const RunOptions & options,
               const std::function<void(size_t, Result &&)> & on_result)
    : context_(context),
      tap_(tap),
      requests_(requests),
      options_(options),
      on_result_(on_result),
      vocab_(llama_model_get_vocab(llama_get_model(context))),
      n_batch_(llama_n_ubatch(context)),
      n_cells_(llama_n_ctx(context)),
      n_vocab_(static_cast<size_t>(llama_vocab_n_tokens(vocab_))),
      most_prefixes_(llama_n_seq_max(context) / 4),
      queue_(requests, most_prefixes_ > 0 && may_share(context, options)),
      free_sequences_(llama_n_seq_max(context)),
      batch_(llama_batch_init(static_cast<int32_t>(n_batch_), 0, 1)),
      last_tick_(std::chrono::steady_clock::now()) {
    std::iota(free_sequences_.rbegin(), free_sequences_.rend(), 0);
    tap_.set_masks(options_.masks);
    if (options_.capture) {
        gathering_.emplace(*options_.capture, tap_.routers());
        tap_.set_capture(*options_.capture,
                         [this](const CaptureLog & log, const RouteLog & routes) { take_capture(log, routes); });
    }
    if (options_.statistics || options_.routes || options_.capture) {
        tap_.set_log_handler([this](const RouteLog & log) { take_log(log); });
    }
    llama_set_abort_callback(context_, tick_within, this);
}

Runner::~Runner() {
    llama_set_abort_callback(context_, nullptr, nullptr);
    tap_.set_log_handler({});
    tap_.set_capture({}, {});
    tap_.set_masks({});
    llama_memory_clear(llama_get_memory(context_), false);
    llama_batch_free(batch_);
}

void Runner::run() {
    while (!queue_.empty() || !active_.empty()) {
        compose();
        if (batch_.n_tokens == 0) {
            give_up_a_prefix();
            continue;
        }
        decode();
        take_outputs();
        retire();
        if (!tick()) {
            throw Error(ErrorCode::interrupted, "interrupted");
        }
    }
    if (options_.statistics && options_.masks.empty()) {
        constant_.finish(tap_.routers());
    }
}

Result Runner::empty_result() const {
    Result result;
    if (options_.statistics) {
        size_t n_experts = 0;
        for (const RouterFacts & router : tap_.routers()) {
            n_experts = std::max(n_experts, static_cast<size_t>(router.n_experts));
        }
        const Statistics zero(tap_.routers().size(), n_experts);
        result.prompt = result.suffix = result.response = zero;
    }
    return result;
}

void Runner::compose() {
    batch_.n_tokens = 0;
    n_outputs_      = 0;
    slots_.clear();
    add_generated();
    add_prompts();
}

void Runner::add_generated() {
    for (const auto & active : active_) {
        if (active->next >= 0) {
            choose_mask(*active);
            add_token(*active, active->next, active->n_past++, !active->last);
        }
    }
}

void Runner::add_prompts() {
    const auto room = [&] { return n_batch_ - static_cast<size_t>(batch_.n_tokens); };
    for (const auto & active : active_) {
        if (active->next < 0 && room() > 0) {
            add_chunk(*active, room());
        }
    }
    while (room() > 0) {
        Active * admitted = admit(room());
        if (admitted == nullptr) {
            return;
        }
        add_chunk(*admitted, room());
    }
}

Runner::Active * Runner::admit(size_t room) {
    if (free_sequences_.empty()) {
        return nullptr;
    }
    const auto index = queue_.take(room, n_batch_, n_cells_ - n_reserved_, n_prefixes_ < most_prefixes_);
    if (!index) {
        return nullptr;
    }
    const Job & job      = queue_.job(*index);
    const int   sequence = free_sequences_.back();
    free_sequences_.pop_back();
    n_reserved_ += job.n_cells();
    n_prefixes_ += static_cast<size_t>(job.is_prefix);
    if (job.parent >= 0) {
        const auto parent = static_cast<size_t>(job.parent);
        queue_.job(parent).n_running++;
        llama_memory_seq_cp(llama_get_memory(context_), kept_.at(parent)->sequence, sequence, 0,
                            static_cast<llama_pos>(job.n_taken));
    }
    const Sampling & sampling = requests_[job.request].sampling;
    active_.push_back(std::make_unique<Active>(
        Active{*index, sequence, job.n_taken, Sampler(sampling), StopWatch(vocab_, options_.stop), empty_result()}));
    return active_.back().get();
}

// Prompt and response share a ubatch only where they share a mask: a sequence has one mask at a time.
void Runner::add_chunk(Active & active, size_t n_tokens) {
    const Request & r   = request(active);
    size_t          end = std::min(job(active).n_tokens, active.n_past + n_tokens);
    if (active.n_past < n_prompt(active) && r.response_mask != same_mask && r.response_mask != r.mask) {
        end = std::min(end, n_prompt(active));
    }
    choose_mask(active);
    for (; active.n_past < end; active.n_past++) {
        const bool output = wants_output(active, active.n_past);
        if (output && n_outputs_ == llama_n_seq_max(context_)) {
            return;
        }
        add_token(active, r.tokens[active.n_past], active.n_past, output);
    }
}

size_t Runner::n_prompt(const Active & active) {
    return request(active).tokens.size() - static_cast<size_t>(request(active).n_forced);
}

void Runner::choose_mask(const Active & active) {
    const Request & r           = request(active);
    const bool      in_response = active.n_past >= n_prompt(active) && r.response_mask != same_mask;
    tap_.set_mask_of_sequence(active.sequence, in_response ? r.response_mask : r.mask);
}

bool Runner::wants_output(const Active & active, size_t position) {
    const Request & r = request(active);
    if (job(active).is_prefix) {
        return false;
    }
    const bool scored    = !options_.targets.empty() && position + 1 >= n_prompt(active);
    const bool generates = r.max_new > 0 && position + 1 == r.tokens.size();
    return options_.logits || scored || generates;
}

void Runner::add_token(Active & active, int32_t token, size_t position, bool output) {
    const int32_t i     = batch_.n_tokens++;
    batch_.token[i]     = token;
    batch_.pos[i]       = static_cast<llama_pos>(position);
    batch_.n_seq_id[i]  = 1;
    batch_.seq_id[i][0] = active.sequence;
    batch_.logits[i]    = static_cast<int8_t>(output || tap_.needs_all_outputs());
    slots_.push_back({&active, position, output ? static_cast<int>(n_outputs_++) : -1});
}

bool Runner::is_captured(const Slot & slot) {
    const Capture & capture     = *options_.capture;
    const size_t    prompt_ends = n_prompt(*slot.active);
    if (capture.phase == Phase::response) {
        return slot.position >= prompt_ends;
    }
    if (slot.position >= prompt_ends || (capture.pool == Pool::last && slot.position + 1 < prompt_ends)) {
        return false;
    }
    const auto n_suffix = static_cast<size_t>(request(*slot.active).n_suffix);
    return capture.phase == Phase::prompt || slot.position + n_suffix >= prompt_ends;
}

void Runner::prepare_capture() {
    std::vector<Gathering::Token> tokens;
    for (const Slot & slot : slots_) {
        Captured * owner = is_captured(slot) ? &slot.active->result.captured : nullptr;
        tokens.push_back({owner, static_cast<uint32_t>(slot.position)});
    }
    gathering_->set_batch(std::move(tokens));
    tap_.set_slots(gathering_->slot_of_batch(), std::max<size_t>(1, gathering_->n_slots()));
}

void Runner::decode() {
    if (gathering_) {
        prepare_capture();
    }
    forget_errors();
    const int32_t status = llama_decode(context_, batch_);
    if (log_error_) {
        std::rethrow_exception(log_error_);
    }
    if (stopped_) {
        throw Error(ErrorCode::interrupted, "interrupted");
    }
    if (status != 0) {
        const std::string reason = first_logged_error();
        throw Error(ErrorCode::device, "computing " + std::to_string(batch_.n_tokens) + " tokens failed (code " +
                                           std::to_string(status) + ")" + (reason.empty() ? "" : ": " + reason));
    }
    n_done_ += static_cast<uint64_t>(batch_.n_tokens);
}

// Called from within llama_decode: no exception may cross it.
void Runner::take_log(const RouteLog & log) {
    try {
        // Copies of one token may well go the same way; different tokens may not.
        if (std::any_of(batch_.token, batch_.token + batch_.n_tokens, [&](int32_t t) { return t != batch_.token[0]; })) {
            constant_.see(log);
        }
        for (size_t row = 0; row < log.batch_index.size(); row++) {
            const Slot &    slot        = slots_[static_cast<size_t>(log.batch_index[row])];
            const Request & r           = request(*slot.active);
            Result &        result      = slot.active->result;
            const size_t    prompt_ends = n_prompt(*slot.active);
            if (options_.routes) {
                append(result.routes, log, row, tap_.routers());
            }
            if (!options_.statistics) {
                continue;
            }
            if (slot.position >= prompt_ends) {
                result.response.add(log, row, tap_.routers());
                continue;
            }
            result.prompt.add(log, row, tap_.routers());
            if (slot.position + static_cast<size_t>(r.n_suffix) >= prompt_ends) {
                result.suffix.add(log, row, tap_.routers());
            }
        }
    } catch (...) {
        log_error_ = std::current_exception();
    }
}

// Called from within llama_decode, after take_log: no exception may cross it.
void Runner::take_capture(const CaptureLog & log, const RouteLog & routes) {
    try {
        gathering_->take(log, routes);
    } catch (...) {
        log_error_ = std::current_exception();
    }
}

void Runner::take_outputs() {
    for (size_t i = 0; i < slots_.size(); i++) {
        const Slot & slot = slots_[i];
        if (slot.output < 0) {
            continue;
        }
        const float * row = llama_get_logits_ith(context_, static_cast<int32_t>(i));
        if (row == nullptr) {
            throw Error(ErrorCode::device, "the model returned no logits");
        }
        const std::span<const float> logits(row, n_vocab_);
        Active &                     active   = *slot.active;
        const size_t                 n_tokens = request(active).tokens.size();
        if (options_.logits) {
            active.result.logits.insert(active.result.logits.end(), logits.begin(), logits.end());
        }
        if (!options_.targets.empty() && slot.position + 1 >= n_prompt(active) && slot.position < n_tokens) {
            append_log_probabilities(logits, options_.targets, active.result.scores);
        }
        if (request(active).max_new > 0 && slot.position + 1 >= n_tokens) {
            take_token(active, logits);
        }
    }
}

void Runner::take_token(Active & active, std::span<const float> logits) {
    const int32_t token = active.sampler.choose(logits);
    if (llama_vocab_is_eog(vocab_, token)) {
        active.result.finish = Finish::stop;
        active.last          = true;
        active.next          = -1;
        return;
    }
    active.result.generated.push_back(token);
    active.next        = token;
    const bool stopped = active.stop.add(token);
    if (stopped || static_cast<int>(active.result.generated.size()) == request(active).max_new) {
        active.result.finish = stopped ? Finish::stop : Finish::length;
        active.last          = true;
    }
}

// The last token of a response is fed too where its routing is wanted.
bool Runner::finished(const Active & active) {
    if (active.n_past < job(active).n_tokens) {
        return false;
    }
    if (job(active).is_prefix || request(active).max_new == 0) {
        return true;
    }
    const bool routing_wanted = options_.statistics || options_.routes || options_.capture;
    const bool all_fed        = active.n_past == request(active).tokens.size() + active.result.generated.size();
    return active.last && (all_fed || !routing_wanted);
}

void Runner::retire() {
    for (auto & active : active_) {
        if (!finished(*active)) {
            continue;
        }
        std::unique_ptr<Active> done = std::move(active);
        if (job(*done).is_prefix) {
            queue_.children_may_start(done->job);
            kept_.emplace(done->job, std::move(done));
            continue;
        }
        free_cells(*done);
        leave_parent(job(*done).parent);
        if (gathering_) {
            gathering_->finish(done->result.captured, static_cast<size_t>(llama_model_n_embd(llama_get_model(context_))));
        }
        done->result.text = cut_at_stop(detokenize(vocab_, done->result.generated, false), options_.stop);
        on_result_(job(*done).request, std::move(done->result));
    }
    std::erase(active_, nullptr);
    if (active_.empty() && kept_.empty()) {
        llama_memory_clear(llama_get_memory(context_), false);  // the next ubatch starts at cell 0: attention stays short
    }
}

void Runner::free_cells(const Active & active) {
    n_reserved_ -= job(active).n_cells();
    n_prefixes_ -= static_cast<size_t>(job(active).is_prefix);
    free_sequences_.push_back(active.sequence);
    tap_.set_mask_of_sequence(active.sequence, 0);
    llama_memory_seq_rm(llama_get_memory(context_), active.sequence, -1, -1);
}

// A prefix whose children are all done goes too, and leaves its own parent.
void Runner::leave_parent(int parent) {
    while (parent >= 0) {
        const auto index = static_cast<size_t>(parent);
        Job &      job   = queue_.job(index);
        job.n_running--;
        job.n_children--;
        if (job.n_children > 0) {
            return;
        }
        free_cells(*kept_.at(index));
        kept_.erase(index);
        parent = job.parent;
    }
}

// The kept prefixes leave nobody enough cells or sequences: one that nobody uses goes, for good, so that this ends.
void Runner::give_up_a_prefix() {
    const auto found =
        std::find_if(kept_.begin(), kept_.end(), [&](const auto & kept) { return queue_.job(kept.first).n_running == 0; });
    if (found == kept_.end()) {
        throw Error(ErrorCode::device, "no prompt can be started, although the context has room for each");
    }
    queue_.orphan_children(found->first);
    free_cells(*found->second);
    const int parent = job(*found->second).parent;
    kept_.erase(found);
    leave_parent(parent);
}

bool Runner::tick() {
    last_tick_ = std::chrono::steady_clock::now();
    return !options_.tick || options_.tick(n_done_);
}

// ggml asks after each node whether to stop; the answer is renewed ten times a second.
bool Runner::tick_within(void * self) {
    auto * runner = static_cast<Runner *>(self);
    if (!runner->stopped_ && std::chrono::steady_clock::now() - runner->last_tick_ >= tick_interval) {
        runner->stopped_ = !runner->tick();
    }
    return runner->stopped_;
}

}  // namespace safex
