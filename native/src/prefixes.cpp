#include "prefixes.h"

#include <algorithm>
#include <numeric>
#include <span>

namespace safex {
namespace {

// Requests order[first] to order[last - 1] begin with the same `n_tokens` tokens, those of `prefix` (-1: no such prefix).
struct Group {
    size_t first;
    size_t last;
    int    prefix;
    size_t n_tokens;
};

// What may be taken over: all of the prompt but its last token.
std::span<const int32_t> sharable(const Request & request) {
    const size_t n_prompt = request.tokens.size() - static_cast<size_t>(request.n_forced);
    return {request.tokens.data(), n_prompt - 1};
}

std::vector<size_t> sorted_order(const std::vector<Request> & requests) {
    std::vector<size_t> order(requests.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
        if (requests[a].mask != requests[b].mask) {
            return requests[a].mask < requests[b].mask;
        }
        const auto one   = sharable(requests[a]);
        const auto other = sharable(requests[b]);
        return std::lexicographical_compare(one.begin(), one.end(), other.begin(), other.end());
    });
    return order;
}

// [i] tokens that order[i] has in common with order[i - 1]; [0] is 0.
std::vector<size_t> common_lengths(const std::vector<Request> & requests, const std::vector<size_t> & order) {
    std::vector<size_t> result(order.size(), 0);
    for (size_t i = 1; i < order.size(); i++) {
        const auto one   = sharable(requests[order[i - 1]]);
        const auto other = sharable(requests[order[i]]);
        if (requests[order[i - 1]].mask == requests[order[i]].mask) {
            const auto differ = std::mismatch(one.begin(), one.end(), other.begin(), other.end());
            result[i]         = static_cast<size_t>(differ.first - one.begin());
        }
    }
    return result;
}

// The parts of a group of two or more: neighbours that have no more than `n_common` tokens in common go apart.
std::vector<Group> divide(const Group & group, const std::vector<size_t> & common, size_t n_common) {
    std::vector<Group> parts;
    const auto         end = common.begin() + static_cast<ptrdiff_t>(group.last);
    for (size_t first = group.first; first < group.last; first = parts.back().last) {
        const auto found = std::find(common.begin() + static_cast<ptrdiff_t>(first + 1), end, n_common);
        parts.push_back({first, static_cast<size_t>(found - common.begin()), group.prefix, group.n_tokens});
    }
    return parts;
}

}  // namespace

// Sorted, requests with a common beginning are neighbours, and a group of them has as many tokens in common as the two
// neighbours in it that have the fewest; divided there, it falls into groups that have more.
Prefixes find_prefixes(const std::vector<Request> & requests, size_t shortest) {
    const std::vector<size_t> order  = sorted_order(requests);
    const std::vector<size_t> common = common_lengths(requests, order);
    Prefixes                  result{{}, std::vector<int>(requests.size(), -1)};
    std::vector<Group>        groups = {{0, requests.size(), -1, 0}};
    while (!groups.empty()) {
        Group group = groups.back();
        groups.pop_back();
        if (group.last - group.first == 1) {
            result.of_request[order[group.first]] = group.prefix;
        }
        if (group.last - group.first < 2) {
            continue;
        }
        const auto   begin    = common.begin() + static_cast<ptrdiff_t>(group.first);
        const auto   end      = common.begin() + static_cast<ptrdiff_t>(group.last);
        const size_t n_common = *std::min_element(begin + 1, end);
        if (n_common >= group.n_tokens + shortest) {
            result.all.push_back({order[group.first], n_common, group.prefix});
            group.prefix   = static_cast<int>(result.all.size()) - 1;
            group.n_tokens = n_common;
        }
        const std::vector<Group> parts = divide(group, common, n_common);
        groups.insert(groups.end(), parts.begin(), parts.end());
    }
    return result;
}

}  // namespace safex
