#include "queue.h"

#include <algorithm>

namespace safex {
namespace {

// Shorter ones are not worth a sequence of their own and a ubatch's delay.
constexpr size_t shortest_prefix = 16;

}  // namespace

Queue::Queue(const std::vector<Request> & requests, bool share_prefixes) {
    const Prefixes prefixes = share_prefixes ? find_prefixes(requests, shortest_prefix) : Prefixes();
    const auto     job_of   = [&](int prefix) { return prefix < 0 ? -1 : static_cast<int>(requests.size()) + prefix; };
    for (size_t i = 0; i < requests.size(); i++) {
        const int parent = share_prefixes ? job_of(prefixes.of_request[i]) : -1;
        jobs_.push_back({i, requests[i].tokens.size(), 0, static_cast<size_t>(requests[i].max_new), parent});
    }
    for (const Prefix & prefix : prefixes.all) {
        jobs_.push_back({prefix.request, prefix.n_tokens, 0, 0, job_of(prefix.parent), true});
    }
    // Children before their parents: what a prefix needs includes what its own largest child needs.
    for (size_t i = 0; i < requests.size(); i++) {
        link(i);
    }
    for (size_t i = jobs_.size(); i-- > requests.size();) {
        link(i);
    }
    std::vector<size_t> roots;
    for (size_t i = 0; i < jobs_.size(); i++) {
        if (jobs_[i].parent < 0) {
            roots.push_back(i);
        }
    }
    add(roots_, roots);
}

void Queue::link(size_t index) {
    Job & job = jobs_[index];
    if (job.parent < 0) {
        return;
    }
    Job & parent = jobs_[static_cast<size_t>(job.parent)];
    job.n_taken  = parent.n_tokens;
    parent.children.push_back(index);
    parent.n_children++;
    parent.largest = std::max(parent.largest, job.n_cells_to_go_on());
}

void Queue::add(Waiting & waiting, const std::vector<size_t> & jobs) {
    const auto longer = [&](size_t a, size_t b) { return jobs_[a].n_own() > jobs_[b].n_own(); };
    const auto middle = waiting.insert(waiting.end(), jobs.begin(), jobs.end());
    std::stable_sort(middle, waiting.end(), longer);
    std::inplace_merge(waiting.begin(), middle, waiting.end(), longer);
}

void Queue::children_may_start(size_t prefix) {
    add(children_, jobs_[prefix].children);
}

void Queue::orphan_children(size_t prefix) {
    const auto          is_child = [&](size_t i) { return jobs_[i].parent == static_cast<int>(prefix); };
    std::vector<size_t> orphans;
    std::copy_if(children_.begin(), children_.end(), std::back_inserter(orphans), is_child);
    std::erase_if(children_, is_child);
    for (const size_t orphan : orphans) {
        jobs_[orphan].parent  = -1;
        jobs_[orphan].n_taken = 0;
    }
    add(roots_, orphans);
}

std::optional<size_t> Queue::take(size_t room, size_t n_batch, size_t n_cells, bool allow_prefix) {
    const bool request_waits =
        std::any_of(children_.begin(), children_.end(), [&](size_t i) { return !jobs_[i].is_prefix; });
    const bool prefix_too = allow_prefix && !request_waits;
    const auto child      = take_from(children_, room, n_batch, n_cells, prefix_too);
    return child ? child : take_from(roots_, room, n_batch, n_cells, prefix_too);
}

// Jobs longer than a ubatch come first, in part, so that others fill the ubatch their tail ends in; then, of those that
// fit whole into the room, the longest: no prompt is cut that need not be.
std::optional<size_t> Queue::take_from(Waiting & waiting, size_t room, size_t n_batch, size_t n_cells, bool allow_prefix) {
    const auto fits = [&](size_t i) {
        return (allow_prefix || !jobs_[i].is_prefix) && jobs_[i].n_cells_to_go_on() <= n_cells;
    };
    const auto whole =
        std::partition_point(waiting.begin(), waiting.end(), [&](size_t i) { return jobs_[i].n_own() > room; });
    const bool has_long = !waiting.empty() && jobs_[waiting.front()].n_own() > n_batch;
    auto       chosen   = std::find_if(whole, waiting.end(), fits);
    if (has_long && (room == n_batch || chosen == waiting.end()) && fits(waiting.front())) {
        chosen = waiting.begin();
    }
    if (chosen == waiting.end()) {
        return std::nullopt;
    }
    const size_t taken = *chosen;
    waiting.erase(chosen);
    return taken;
}

}  // namespace safex
