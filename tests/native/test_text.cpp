// Stop strings, token by token.
#include "text.h"

#include "check.h"
#include "loader.h"

namespace {

const llama_vocab * vocab() {
    static const bool            loaded = (safex::load_backends(SAFEX_LIB), true);
    static const safex::ModelPtr model  = [] {
        safex::SessionOptions options;
        options.path = SAFEX_DEMO;
        return safex::load_model(options);
    }();
    return loaded ? llama_model_get_vocab(model.get()) : nullptr;
}

// The number of tokens after which the stop strings end this text, 0: never.
size_t ends_after(const std::string & said, const std::vector<std::string> & stop) {
    safex::StopWatch watch(vocab(), stop);
    size_t           n = 0;
    for (const int32_t token : safex::tokenize(vocab(), said, false)) {
        n++;
        if (watch.add(token)) {
            return n;
        }
    }
    return 0;
}

}  // namespace

TEST(a_stop_string_is_seen_when_it_is_complete) {
    const std::string said = "Sure, here is a plan: na\xC3\xAFve \xF0\x9F\x99\x82 foxes rest.";
    const auto        all  = safex::tokenize(vocab(), said, false);
    CHECK_EQ(safex::detokenize(vocab(), all, false), said);
    for (const std::string stop : {"S", "re, he", "plan:", "\xC3\xAF", "\xF0\x9F\x99\x82", "\x82 f", "rest.", " "}) {
        const size_t n = ends_after(said, {stop, "not said"});
        CHECK(n > 0);
        const std::vector<int32_t> before(all.begin(), all.begin() + static_cast<ptrdiff_t>(n - 1));
        const std::vector<int32_t> until(all.begin(), all.begin() + static_cast<ptrdiff_t>(n));
        CHECK(safex::detokenize(vocab(), before, false).find(stop) == std::string::npos);
        CHECK(safex::detokenize(vocab(), until, false).find(stop) != std::string::npos);
    }
    CHECK_EQ(ends_after(said, {"not said", "rest. "}), 0u);
    CHECK_EQ(ends_after(said, {}), 0u);
}

TEST(text_ends_before_the_first_stop_string) {
    CHECK_EQ(safex::cut_at_stop("one two three", {"three", "two"}), "one ");
    CHECK_EQ(safex::cut_at_stop("one two three", {"four"}), "one two three");
    CHECK_EQ(safex::cut_at_stop("one", {"one"}), "");
    CHECK_EQ(safex::cut_at_stop("one", {}), "one");
}
