// Common beginnings found by sorting, against all pairs compared.
#include "prefixes.h"

#include "check.h"

#include <algorithm>
#include <random>

using safex::find_prefixes;
using safex::Prefix;
using safex::Prefixes;
using safex::Request;

namespace {

std::vector<Request> random_requests(std::mt19937 & random, size_t n) {
    std::vector<Request> requests;
    const auto           draw = [&](int most) { return std::uniform_int_distribution<int>(0, most)(random); };
    for (size_t i = 0; i < n; i++) {
        Request request;
        if (!requests.empty() && draw(3) > 0) {  // begin like an earlier one
            const auto & other = requests[static_cast<size_t>(draw(static_cast<int>(i) - 1))].tokens;
            request.tokens.assign(other.begin(), other.begin() + draw(static_cast<int>(other.size())));
        }
        for (int more = draw(12); more >= 0; more--) {
            request.tokens.push_back(draw(1));
        }
        request.mask     = draw(1);
        request.n_forced = draw(static_cast<int>(request.tokens.size()) - 1);
        requests.push_back(request);
    }
    return requests;
}

size_t n_sharable(const Request & request) {
    return request.tokens.size() - static_cast<size_t>(request.n_forced) - 1;
}

bool begins_with(const Request & request, const Request & owner, const Prefix & prefix) {
    return request.mask == owner.mask && n_sharable(request) >= prefix.n_tokens &&
           std::equal(owner.tokens.begin(), owner.tokens.begin() + static_cast<ptrdiff_t>(prefix.n_tokens),
                      request.tokens.begin());
}

// Longest beginning that any other request has in common with this one.
size_t longest_common(const std::vector<Request> & requests, size_t index) {
    size_t longest = 0;
    for (size_t i = 0; i < requests.size(); i++) {
        if (i != index && requests[i].mask == requests[index].mask) {
            const size_t most = std::min(n_sharable(requests[i]), n_sharable(requests[index]));
            size_t       n    = 0;
            while (n < most && requests[i].tokens[n] == requests[index].tokens[n]) {
                n++;
            }
            longest = std::max(longest, n);
        }
    }
    return longest;
}

}  // namespace

TEST(prefixes_are_what_requests_begin_with) {
    std::mt19937 random(1);
    for (size_t n : {1, 2, 3, 10, 60}) {
        for (size_t shortest : {1, 2, 5}) {
            const auto     requests = random_requests(random, n);
            const Prefixes found    = find_prefixes(requests, shortest);
            CHECK_EQ(found.of_request.size(), n);
            for (size_t i = 0; i < found.all.size(); i++) {
                const Prefix & prefix = found.all[i];
                CHECK(prefix.parent < static_cast<int>(i));
                const size_t before = prefix.parent < 0 ? 0 : found.all[static_cast<size_t>(prefix.parent)].n_tokens;
                CHECK(prefix.n_tokens >= before + shortest);
                const auto users = std::count_if(requests.begin(), requests.end(), [&](const Request & r) {
                    return begins_with(r, requests[prefix.request], prefix);
                });
                CHECK(users >= 2);
            }
            for (size_t i = 0; i < n; i++) {
                const size_t possible = longest_common(requests, i);
                const int    mine     = found.of_request[i];
                const size_t taken    = mine < 0 ? 0 : found.all[static_cast<size_t>(mine)].n_tokens;
                CHECK(taken <= possible && taken + shortest > possible);
                for (int p = mine; p >= 0; p = found.all[static_cast<size_t>(p)].parent) {
                    const Prefix & prefix = found.all[static_cast<size_t>(p)];
                    CHECK(begins_with(requests[i], requests[prefix.request], prefix));
                }
            }
        }
    }
}

TEST(no_requests_have_no_prefixes) {
    CHECK(find_prefixes({}, 1).all.empty());
}

TEST(thousands_of_nested_prompts_are_no_trouble) {
    std::vector<Request> requests;
    for (size_t n = 1; n <= 3000; n++) {
        requests.push_back({std::vector<int32_t>(n, 7)});
    }
    const Prefixes found = find_prefixes(requests, 16);
    CHECK(found.all.size() > 180 && found.all.size() < 190);
}
