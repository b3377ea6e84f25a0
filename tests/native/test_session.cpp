// The shipped demo model through the whole native core, without Python.
#include "safex/session.h"

#include "check.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <numeric>
#include <set>

using safex::Finish;
using safex::Mask;
using safex::MaskMode;
using safex::Request;
using safex::Result;
using safex::RunOptions;
using safex::Session;
using safex::SessionOptions;
using safex::Statistics;

namespace {

SessionOptions exact_options() {
    static const bool loaded = (safex::load_backends(SAFEX_LIB), true);
    SessionOptions    options;
    options.path       = SAFEX_DEMO;
    options.n_threads  = loaded ? 1 : 0;
    options.n_ctx      = 1024;
    options.n_ubatch   = 64;
    options.flash_attn = safex::FlashAttention::off;
    options.kv_type    = "f32";
    return options;
}

// One for all tests: that a run leaves nothing behind is part of what they check.
Session & session() {
    static Session one(exact_options());
    return one;
}

std::vector<int32_t> text(size_t n_tokens, int seed) {
    const auto           n_vocab = session().facts().n_vocab;
    std::vector<int32_t> tokens;
    for (size_t i = 0; i < n_tokens; i++) {
        tokens.push_back(
            static_cast<int32_t>((static_cast<size_t>(seed) * 7919 + i * i * 31 + i) % static_cast<size_t>(n_vocab)));
    }
    return tokens;
}

std::vector<Result> run(const std::vector<Request> & requests, const RunOptions & options) {
    std::vector<Result> results(requests.size());
    size_t              n_results = 0;
    session().run(requests, options, [&](size_t index, Result && result) {
        results[index] = std::move(result);
        n_results++;
    });
    CHECK_EQ(n_results, requests.size());
    return results;
}

Result run_one(const Request & request, const RunOptions & options) {
    return std::move(run({request}, options).front());
}

RunOptions with_logits(const std::vector<Mask> & masks = {}) {
    RunOptions options;
    options.logits = true;
    options.masks  = masks;
    return options;
}

// Relative L2 distance.
double distance(const std::vector<float> & a, const std::vector<float> & b) {
    if (a.size() != b.size() || a.empty()) {
        return INFINITY;
    }
    double difference = 0.0;
    double norm       = 0.0;
    for (size_t i = 0; i < a.size(); i++) {
        difference += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
        norm += std::pow(static_cast<double>(b[i]), 2);
    }
    return std::sqrt(difference / norm);
}

// Rounding depends on how many tokens are computed together; no more than that may differ.
constexpr double rounding = 1e-3;

Mask first_experts(MaskMode mode, float gain, int n) {
    Mask mask;
    for (const auto & router : session().facts().routers) {
        for (int expert = 0; expert < n; expert++) {
            mask.push_back({router.layer, expert, mode, gain});
        }
    }
    return mask;
}

uint64_t sum(const std::vector<uint32_t> & counts) {
    return std::accumulate(counts.begin(), counts.end(), uint64_t{0});
}

// Selections that the two hold in other places.
uint64_t moved(const Statistics & a, const Statistics & b) {
    uint64_t n = 0;
    for (size_t i = 0; i < a.counts.size(); i++) {
        n += a.counts[i] > b.counts[i] ? a.counts[i] - b.counts[i] : b.counts[i] - a.counts[i];
    }
    return n / 2;
}

}  // namespace

TEST(the_library_is_ours) {
    CHECK_EQ(std::filesystem::path(safex::llama_library_path()).filename().string(), "libsafex-llama.so");
}

TEST(facts_are_read) {
    const safex::ModelFacts & facts = session().facts();
    CHECK(!facts.architecture.empty());
    CHECK(!facts.chat_template.empty());
    CHECK(!facts.routers.empty());
    CHECK(facts.n_vocab > 0);
    CHECK(facts.n_experts > 1);
    for (const auto & router : facts.routers) {
        CHECK(router.top_k > 0 && router.top_k <= router.n_experts && router.n_experts <= facts.n_experts);
        CHECK(router.layer >= 0 && router.layer < facts.n_blocks);
    }
    CHECK(session().n_ctx() >= 1024);
    CHECK(!session().device_description().empty());
}

TEST(text_becomes_tokens_and_text_again) {
    const std::string said = "Tell me how bread is made.";
    CHECK_EQ(session().detokenize(session().tokenize(said, false), false), said);
    CHECK(session().tokenize("", false).empty());
}

TEST(logits_have_a_row_for_each_token) {
    const auto   n_vocab = static_cast<size_t>(session().facts().n_vocab);
    const Result result  = run_one({text(130, 1)}, with_logits());  // three ubatches
    CHECK_EQ(result.logits.size(), 130 * n_vocab);
    CHECK(std::all_of(result.logits.begin(), result.logits.end(), [](float x) { return std::isfinite(x); }));
    CHECK(result.finish == Finish::prompt);
    CHECK(result.generated.empty());
}

TEST(packed_sequences_equal_single_runs) {
    std::vector<Request> requests;
    for (int i = 0; i < 12; i++) {
        requests.push_back({text(static_cast<size_t>(5 + 17 * i), i)});
    }
    const std::vector<Result> packed = run(requests, with_logits());
    for (size_t i = 0; i < requests.size(); i++) {
        CHECK(distance(packed[i].logits, run_one(requests[i], with_logits()).logits) < rounding);
    }
}

TEST(packed_statistics_equal_single_runs) {
    RunOptions options;
    options.statistics = true;
    std::vector<Request> requests;
    for (int i = 0; i < 80; i++) {  // more than there are sequences
        requests.push_back({text(static_cast<size_t>(3 + i), i), i % 3});
    }
    const std::vector<Result> packed  = run(requests, options);
    uint64_t                  n_moved = 0;
    uint64_t                  n_total = 0;
    for (size_t i = 0; i < requests.size(); i++) {
        const Result single = run_one(requests[i], options);
        CHECK_EQ(packed[i].prompt.n_tokens, requests[i].tokens.size());
        CHECK_EQ(packed[i].suffix.n_tokens, static_cast<uint64_t>(requests[i].n_suffix));
        CHECK_EQ(packed[i].response.n_tokens, 0u);
        CHECK_EQ(sum(packed[i].prompt.counts), sum(single.prompt.counts));
        n_moved += moved(packed[i].prompt, single.prompt) + moved(packed[i].suffix, single.suffix);
        n_total += sum(single.prompt.counts);
    }
    CHECK(n_moved * 1000 <= n_total);  // near ties may fall either way
}

TEST(routes_agree_with_statistics) {
    RunOptions options;
    options.statistics = options.routes = true;
    const Result result                 = run_one({text(100, 3)}, options);
    const auto & routers                = session().facts().routers;
    const auto   n_experts              = static_cast<size_t>(session().facts().n_experts);
    for (size_t layer = 0; layer < routers.size(); layer++) {
        CHECK_EQ(result.routes.ids[layer].size(), 100 * static_cast<size_t>(routers[layer].top_k));
        std::vector<uint32_t> counts(n_experts, 0);
        for (const int32_t id : result.routes.ids[layer]) {
            counts[static_cast<size_t>(id)]++;
        }
        CHECK(std::equal(counts.begin(), counts.end(),
                         result.prompt.counts.begin() + static_cast<ptrdiff_t>(layer * n_experts)));
    }
}

TEST(a_gain_of_one_changes_nothing) {
    const Request plain  = {text(40, 4)};
    const Request masked = {text(40, 4), 0, 1};
    const Mask    ones   = first_experts(MaskMode::gain, 1.0f, session().facts().n_experts);
    CHECK(run_one(plain, with_logits()).logits == run_one(masked, with_logits({ones})).logits);
}

TEST(a_mask_changes_its_own_sequence_only) {
    const std::vector<Mask>    masks  = {first_experts(MaskMode::gain, 0.0f, 4), first_experts(MaskMode::reroute, 0.0f, 4)};
    const std::vector<int32_t> tokens = text(30, 5);
    const auto                 packed = run({{tokens}, {tokens, 0, 1}, {tokens, 0, 2}}, with_logits(masks));
    const auto                 plain  = run_one({tokens}, with_logits()).logits;
    CHECK(distance(packed[0].logits, plain) < rounding);
    CHECK(distance(packed[1].logits, plain) > rounding);
    CHECK(distance(packed[2].logits, plain) > rounding);
    CHECK(distance(packed[2].logits, packed[1].logits) > rounding);
    for (int m = 1; m <= 2; m++) {
        const auto single = run_one({tokens, 0, m}, with_logits(masks)).logits;
        CHECK(distance(packed[static_cast<size_t>(m)].logits, single) < rounding);
    }
}

// The graph of the run before is reused where its shape fits: the table of masks must still be the new one.
TEST(a_run_uses_its_own_masks_not_those_of_the_run_before) {
    const Request request = {text(30, 6), 0, 1};
    const auto    zero    = run_one(request, with_logits({first_experts(MaskMode::gain, 0.0f, 4)})).logits;
    const auto    ones    = run_one(request, with_logits({first_experts(MaskMode::gain, 1.0f, 4)})).logits;
    const auto    plain   = run_one({text(30, 6)}, with_logits()).logits;
    CHECK(ones == plain);
    CHECK(distance(zero, plain) > rounding);
}

TEST(a_rerouted_expert_is_never_selected_and_a_forced_one_always) {
    RunOptions options;
    options.statistics   = true;
    options.masks        = {first_experts(MaskMode::reroute, 0.0f, 1), first_experts(MaskMode::force, 0.0f, 1)};
    const auto results   = run({{text(50, 7), 0, 1}, {text(50, 7), 0, 2}}, options);
    const auto n_experts = static_cast<size_t>(session().facts().n_experts);
    for (size_t layer = 0; layer < session().facts().routers.size(); layer++) {
        CHECK_EQ(results[0].prompt.counts[layer * n_experts], 0u);
        CHECK_EQ(results[1].prompt.counts[layer * n_experts], 50u);
    }
}

TEST(batched_generation_equals_single) {
    RunOptions options;
    options.statistics = true;
    std::vector<Request> requests;
    for (const char * said : {"How do I bake bread?", "Tell me a joke.", "What is the capital of France?"}) {
        requests.push_back({session().tokenize(said, false), 0, 0, 12});
    }
    const std::vector<Result> batched = run(requests, options);
    for (size_t i = 0; i < requests.size(); i++) {
        const Result single = run_one(requests[i], options);
        CHECK(batched[i].generated == single.generated);
        CHECK(batched[i].finish == single.finish);
        CHECK(single.finish == Finish::stop || single.generated.size() == 12);
        CHECK_EQ(single.response.n_tokens, single.generated.size());
    }
}

// Logits of a request's tokens under a mask, turned into log-probabilities of a target in double precision.
double log_probability(const Result & result, size_t row, int32_t target) {
    const auto    n_vocab = static_cast<size_t>(session().facts().n_vocab);
    const float * logits  = result.logits.data() + row * n_vocab;
    double        sum     = 0.0;
    for (size_t i = 0; i < n_vocab; i++) {
        sum += std::exp(static_cast<double>(logits[i]));
    }
    return static_cast<double>(logits[target]) - std::log(sum);
}

TEST(scores_are_log_probabilities_of_the_wanted_rows) {
    const Mask           mask = first_experts(MaskMode::gain, 0.0f, 4);
    RunOptions           options;
    std::vector<Request> requests;
    options.masks   = {mask};
    options.targets = {3, 500, 3};
    for (int i = 0; i < 90; i++) {  // with forced tokens, more rows than a ubatch may have
        requests.push_back({text(static_cast<size_t>(7 + i), i), 0, i % 2});
        requests.back().n_forced = i % 4;
    }
    const auto results = run(requests, options);
    for (size_t i = 0; i < requests.size(); i++) {
        const Request & r      = requests[i];
        const auto      n_rows = 1 + static_cast<size_t>(r.n_forced);
        const Result    whole  = run_one({r.tokens, 0, r.mask}, with_logits({mask}));
        CHECK_EQ(results[i].scores.size(), n_rows * 3);
        for (size_t row = 0; row < n_rows; row++) {
            const size_t position = r.tokens.size() - n_rows + row;
            CHECK_EQ(results[i].scores[row * 3], results[i].scores[row * 3 + 2]);
            for (size_t t = 0; t < 2; t++) {
                const double expected = log_probability(whole, position, options.targets[t]);
                CHECK(std::abs(static_cast<double>(results[i].scores[row * 3 + t]) - expected) < 1e-3);
            }
        }
    }
}

// The router's choices tell which mask was on for which token.
TEST(a_mask_may_act_on_the_prompt_or_the_response_only) {
    RunOptions options;
    options.statistics   = true;
    options.masks        = {first_experts(MaskMode::reroute, 0.0f, 1), first_experts(MaskMode::force, 0.0f, 1)};
    const auto n_experts = static_cast<size_t>(session().facts().n_experts);
    for (const int n_forced : {0, 5}) {
        Request request       = {text(45, 11), 0, 1, 6};
        request.n_forced      = n_forced;
        request.response_mask = 2;
        const Result result   = run_one(request, options);
        const auto   n_answer = static_cast<uint32_t>(result.generated.size()) + static_cast<uint32_t>(n_forced);
        CHECK_EQ(result.response.n_tokens, n_answer);
        for (size_t layer = 0; layer < session().facts().routers.size(); layer++) {
            CHECK_EQ(result.prompt.counts[layer * n_experts], 0u);
            CHECK_EQ(result.response.counts[layer * n_experts], n_answer);
        }
    }
}

TEST(the_prompt_phase_ends_with_the_prompts_last_token) {
    const std::vector<Mask> masks   = {first_experts(MaskMode::gain, 0.0f, 6)};
    RunOptions              options = with_logits(masks);
    Request                 request = {text(40, 12), 0, 0};
    request.n_forced                = 10;
    request.response_mask           = 1;
    const auto   n_vocab            = session().facts().n_vocab;
    const auto   cut                = static_cast<ptrdiff_t>(30) * n_vocab;
    const Result mixed              = run_one(request, options);
    const Result plain              = run_one({request.tokens}, options);
    const auto   part               = [&](const Result & r, bool prompt) {
        return prompt ? std::vector<float>(r.logits.begin(), r.logits.begin() + cut)
                                      : std::vector<float>(r.logits.begin() + cut, r.logits.end());
    };
    CHECK(distance(part(mixed, true), part(plain, true)) < rounding);
    CHECK(distance(part(mixed, false), part(plain, false)) > rounding);
    request.mask          = 1;
    request.response_mask = safex::same_mask;
    CHECK(distance(run_one(request, options).logits, run_one({request.tokens, 0, 1}, options).logits) < rounding);
}

TEST(more_masks_than_sequences_are_each_their_own) {
    RunOptions           options;
    std::vector<Request> requests;
    options.targets       = {1, 2, 3};
    const auto & routers  = session().facts().routers;
    const int    n_masks  = 300;
    const auto   n_before = [&] { return session().n_graph_reuses(); };
    for (int m = 0; m < n_masks; m++) {
        options.masks.push_back({{routers[static_cast<size_t>(m) % routers.size()].layer, m % 32, MaskMode::gain, 0.0f},
                                 {routers[0].layer, (m / 9 + 1 + m) % 32, MaskMode::reroute, 0.0f}});
        if (options.masks.back()[0].layer == options.masks.back()[1].layer) {
            options.masks.back().pop_back();
        }
        requests.push_back({text(16, 13), 0, m + 1});
    }
    const int  reused = n_before();
    const auto many   = run(requests, options);
    CHECK(n_before() - reused >= n_masks * 16 / 64 - 4);  // a ubatch of 64 tokens at a time, one graph
    for (size_t m = 0; m < requests.size(); m += 7) {
        RunOptions alone = options;
        alone.masks      = {options.masks[m]};
        const auto one   = run_one({requests[m].tokens, 0, 1}, alone);
        for (size_t t = 0; t < 3; t++) {
            CHECK(std::abs(many[m].scores[t] - one.scores[t]) < 1e-3f);
        }
    }
}

// The tokens of a question in the demo model's own template.
std::vector<int32_t> chat(const std::string & question) {
    return session().tokenize("<|im_start|>user\n" + question + "<|im_end|>\n<|im_start|>assistant\n", true);
}

TEST(samples_are_the_same_alone_and_in_a_batch) {
    std::vector<Request> requests;
    for (int i = 0; i < 100; i++) {
        Request request  = {chat(i % 2 ? "How do I bake bread?" : "Tell me a joke about foxes.")};
        request.max_new  = 10;
        request.sampling = {3.0f, i % 3 ? 1.0f : 0.9f, static_cast<uint32_t>(i)};
        requests.push_back(request);
    }
    const auto                     batched = run(requests, {});
    std::set<std::vector<int32_t>> distinct;
    int                            n_same = 0;
    for (size_t i = 0; i < requests.size(); i++) {
        n_same += batched[i].generated == run_one(requests[i], {}).generated ? 1 : 0;
        distinct.insert(batched[i].generated);
    }
    CHECK(n_same >= 95);  // near ties of the router
    CHECK(distinct.size() > 20);
}

// Independent truth: a distribution small enough to count. The first token's frequencies over many seeds.
TEST(samples_follow_the_probabilities) {
    const auto           n_vocab = static_cast<size_t>(session().facts().n_vocab);
    Request              request = {session().tokenize("Tell me a joke about foxes.", false)};
    const Result         logits  = run_one(request, with_logits());
    const size_t         row     = request.tokens.size() - 1;
    std::vector<Request> requests;
    const int            n_draws = 4000;
    for (int i = 0; i < n_draws; i++) {
        request.max_new  = 1;
        request.sampling = {1.0f, 1.0f, static_cast<uint32_t>(i * 7 + 1)};
        requests.push_back(request);
    }
    std::map<int32_t, int> counts;
    for (const Result & result : run(requests, {})) {
        counts[result.generated.empty() ? -1 : result.generated[0]]++;
    }
    double never_drawn = 0.0;  // and end-of-generation tokens, which give no token
    for (size_t token = 0; token < n_vocab; token++) {
        const double p     = std::exp(log_probability(logits, row, static_cast<int32_t>(token)));
        const auto   drawn = counts.find(static_cast<int32_t>(token));
        if (drawn == counts.end()) {
            never_drawn += p * n_draws;
        } else {
            CHECK(std::abs(drawn->second - p * n_draws) < 5.0 * std::sqrt(p * n_draws) + 5.0);
        }
    }
    CHECK(std::abs(counts[-1] - never_drawn) < 5.0 * std::sqrt(never_drawn) + 20.0);
}

TEST(a_stop_string_ends_a_response) {
    Request request  = {chat("How do I bake bread?")};
    request.max_new  = 30;
    const Result all = run_one(request, {});
    CHECK(all.text.size() > 20);
    CHECK_EQ(all.text, session().detokenize(all.generated, false));
    for (size_t at = 3; at + 4 < all.text.size(); at += 3) {
        RunOptions options;
        options.stop                = {"never said", all.text.substr(at, 4)};
        const Result         result = run_one(request, options);
        std::vector<int32_t> tokens = result.generated;
        CHECK(result.finish == Finish::stop);
        CHECK_EQ(result.text, all.text.substr(0, all.text.find(options.stop[1])));
        CHECK(std::equal(tokens.begin(), tokens.end(), all.generated.begin()));
        CHECK(session().detokenize(tokens, false).find(options.stop[1]) != std::string::npos);
        tokens.pop_back();
        CHECK(session().detokenize(tokens, false).find(options.stop[1]) == std::string::npos);
    }
}

// Tokens computed, and the results, with beginnings computed once and with each prompt computed whole.
struct Shared {
    uint64_t            n_shared   = 0;
    uint64_t            n_unshared = 0;
    std::vector<Result> results;
};

// Near ties of the router may fall either way on this quantized model, so that a few answers go another way.
Shared check_sharing(Session & model, const std::vector<Request> & requests, RunOptions options) {
    Shared              found;
    std::vector<Result> unshared(requests.size());
    found.results.resize(requests.size());
    options.tick = [&](uint64_t n_done) { return (found.n_shared = n_done, true); };
    model.run(requests, options, [&](size_t i, Result && result) { found.results[i] = std::move(result); });
    options.share_prefixes = false;
    options.tick           = [&](uint64_t n_done) { return (found.n_unshared = n_done, true); };
    model.run(requests, options, [&](size_t i, Result && result) { unshared[i] = std::move(result); });
    size_t n_differ = 0;
    for (size_t i = 0; i < requests.size(); i++) {
        CHECK_EQ(found.results[i].scores.size(), unshared[i].scores.size());
        const bool far = !unshared[i].scores.empty() && distance(found.results[i].scores, unshared[i].scores) > 5 * rounding;
        n_differ += far || found.results[i].generated != unshared[i].generated ? 1 : 0;
    }
    CHECK(n_differ * 20 <= requests.size());
    return found;
}

std::vector<int32_t> joined(std::vector<int32_t> one, const std::vector<int32_t> & other) {
    one.insert(one.end(), other.begin(), other.end());
    return one;
}

TEST(samples_of_a_prompt_share_it) {
    std::vector<Request> requests;
    for (int i = 0; i < 80; i++) {
        requests.push_back({text(90 + 10 * static_cast<size_t>(i / 16), i / 16), 0, 0, 5});
        requests.back().sampling = {1.0f, 1.0f, static_cast<uint32_t>(i)};
    }
    const Shared found = check_sharing(session(), requests, {});
    CHECK(found.n_shared * 8 < found.n_unshared);
}

TEST(a_common_system_prompt_is_computed_once_for_each_mask) {
    RunOptions options;
    options.targets = {4, 5};
    options.masks   = {first_experts(MaskMode::gain, 0.0f, 4), first_experts(MaskMode::reroute, 0.0f, 4)};
    std::vector<Request> requests;
    for (int i = 0; i < 120; i++) {
        requests.push_back({joined(text(200, 1), text(static_cast<size_t>(3 + i % 10), 100 + i)), 0, i % 3, 4});
        requests.back().response_mask = (i + 1) % 3;
        requests.back().n_forced      = i % 2;
    }
    const Shared found = check_sharing(session(), requests, options);
    CHECK(found.n_shared < 120 * 20 + 3 * 200);
    CHECK(found.n_unshared > 120 * 200);
}

TEST(samples_share_their_prompt_and_prompts_their_beginning) {
    std::vector<Request> requests;
    for (int i = 0; i < 160; i++) {
        requests.push_back({joined(text(150, 2), text(40, 200 + i / 8)), 0, 0, 3});
        requests.back().sampling = {1.0f, 1.0f, static_cast<uint32_t>(i)};
    }
    const Shared found = check_sharing(session(), requests, {});
    CHECK(found.n_shared <= 150 + 20 * 39 + 160 * 4);
}

// Prompts that each extend another: more prefixes at a time than may be kept, so that some are given up.
TEST(prefixes_that_leave_no_room_are_given_up) {
    std::vector<Request> requests;
    for (int i = 0; i < 40; i++) {
        requests.push_back({joined(text(16 * static_cast<size_t>(1 + i / 2), 3), text(5, 300 + i)), 0, 0, 3});
    }
    const Shared wide = check_sharing(session(), requests, {});
    CHECK(wide.n_shared < wide.n_unshared);
    SessionOptions small = exact_options();
    small.n_ubatch       = 8;  // 8 sequences, 2 prefixes
    small.n_ctx          = 500;
    requests.resize(16);
    Session      narrow(small);
    const Shared tight = check_sharing(narrow, requests, {});
    CHECK(tight.n_shared < tight.n_unshared);
}

TEST(what_is_read_of_every_token_is_not_shared) {
    RunOptions options;
    options.routes                   = true;
    const std::vector<Request> twice = {{text(60, 4), 0, 0, 2}, {text(60, 4), 0, 0, 2}};
    const Shared               found = check_sharing(session(), twice, options);
    CHECK_EQ(found.n_shared, found.n_unshared);
    CHECK(found.results[0].routes.ids == found.results[1].routes.ids);
}

TEST(a_tick_that_stops_a_shared_run_leaves_nothing_behind) {
    const std::vector<Request> requests(40, {text(100, 5), 0, 0, 20});
    RunOptions                 options;
    options.tick = [](uint64_t n_done) { return n_done < 150; };
    CHECK_ERROR(interrupted, "interrupted", run(requests, options));
    options.tick     = nullptr;
    const auto after = run(requests, options);
    CHECK(after[0].generated == run_one(requests[0], {}).generated);
}

TEST(a_tick_that_says_stop_interrupts) {
    RunOptions options;
    options.statistics = true;
    uint64_t n_seen    = 0;
    options.tick       = [&](uint64_t n_done) {
        n_seen = n_done;
        return n_done < 128;
    };
    const std::vector<Request> requests = {{text(500, 8)}};
    CHECK_ERROR(interrupted, "interrupted", run(requests, options));
    CHECK(n_seen >= 128 && n_seen < 500);
    options.tick = nullptr;
    CHECK_EQ(run_one(requests[0], options).prompt.n_tokens, 500u);  // the session is as good as before
}

TEST(an_exception_of_the_caller_passes_and_the_session_lives_on) {
    const std::vector<Request> requests = {{text(20, 9)}, {text(30, 9)}};
    const auto                 refuse   = [](size_t, Result &&) { throw std::out_of_range("disk full"); };
    std::string                caught;
    try {
        session().run(requests, with_logits(), refuse);
    } catch (const std::out_of_range & error) {
        caught = error.what();
    }
    CHECK_EQ(caught, "disk full");
    CHECK_EQ(run(requests, with_logits()).size(), 2u);
}

TEST(bad_requests_are_refused) {
    const RunOptions none;
    const int        n_vocab = session().facts().n_vocab;
    const auto       n_ctx   = session().n_ctx();
    CHECK_ERROR(input, "prompt 1 has no tokens", run({{{1}}, {{}}}, none));
    CHECK_ERROR_WITH(input, "prompt 0 holds token " + std::to_string(n_vocab) + ", the vocabulary has 0 to",
                     run({{{1, n_vocab}}}, none));
    CHECK_ERROR_WITH(input, "prompt 0 holds token -1", run({{{-1}}}, none));
    CHECK_ERROR_WITH(input, "give a larger n_ctx or a shorter prompt", run({{text(n_ctx + 1, 1)}}, none));
    CHECK_ERROR_WITH(input, "(" + std::to_string(n_ctx) + " of the prompt)", run({{text(n_ctx, 1), 0, 0, 1}}, none));
    CHECK_ERROR_WITH(input, "mask out of range", run({{{1}, 0, 1}}, none));
    CHECK_ERROR_WITH(input, "mask out of range", run({{{1}, 0, -1}}, none));
    CHECK_ERROR_WITH(input, "max_new or mask out of range", run({{{1}, 0, 0, -1}}, none));
    const auto sampled = [](float temperature, float top_p) { return Request{{1}, 0, 0, 1, 0, 0, {temperature, top_p, 0}}; };
    CHECK_ERROR_WITH(input, "temperature must be 0", run({sampled(-1.0f, 1.0f)}, none));
    CHECK_ERROR_WITH(input, "temperature must be 0", run({sampled(NAN, 1.0f)}, none));
    CHECK_ERROR_WITH(input, "top_p must be more than 0", run({sampled(1.0f, 0.0f)}, none));
    CHECK_ERROR_WITH(input, "top_p must be more than 0", run({sampled(1.0f, 1.5f)}, none));
    CHECK_ERROR_WITH(input, "mask out of range", run({{{1}, 0, 0, 1, 1}}, none));
    CHECK_ERROR_WITH(input, "prompt 0 has no tokens", run({{{1, 2}, 0, 0, 1, 0, 2}}, none));
    RunOptions wanted;
    wanted.targets = {n_vocab};
    CHECK_ERROR_WITH(input, "the list of targets holds token", run({{{1}}}, wanted));
    wanted.targets = {};
    wanted.stop    = {""};
    CHECK_ERROR_WITH(input, "a stop string is empty", run({{{1}}}, wanted));
    CHECK_ERROR_WITH(input, "has no routed experts", run({{{1}, 0, 1}}, with_logits({{{1000, 0}}})));
}

TEST(no_requests_are_no_work) {
    CHECK(run({}, with_logits()).empty());
}

TEST(a_file_that_is_no_model_is_refused) {
    SessionOptions options = exact_options();
    options.path           = "/nonexistent/model.gguf";
    CHECK_ERROR_WITH(input, "/nonexistent/model.gguf: not a model that can be loaded", Session{options});
    const auto path = std::filesystem::temp_directory_path() / ("safex-garbage-" + std::to_string(std::rand()) + ".gguf");
    std::ofstream(path) << "GGUF, but not really";
    options.path = path.string();
    CHECK_ERROR_WITH(input, "not a model that can be loaded", Session{options});
    std::filesystem::remove(path);
}

TEST(bad_options_are_refused) {
    SessionOptions options = exact_options();
    options.kv_type        = "f12";
    CHECK_ERROR_WITH(input, "kv_type is 'f12', expected one of f32, f16", Session{options});
    options                  = exact_options();
    options.tensor_overrides = {{"exps", "nowhere"}};
    CHECK_ERROR_WITH(input, "tensor override: no buffer type 'nowhere'; this machine has", Session{options});
}

TEST(loading_can_be_interrupted) {
    SessionOptions options   = exact_options();
    options.on_load_progress = [](float) { return false; };
    CHECK_ERROR_WITH(interrupted, "interrupted", Session{options});
}
