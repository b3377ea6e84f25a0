#include "safex/gguf_slices.h"

#include "safex/error.h"
#include "safex/gguf_types.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <string_view>
#include <unordered_map>

namespace safex {
namespace {

[[noreturn]] void refuse(const GgufFile & file, const std::string & what) {
    throw Error(ErrorCode::input, file.path() + ": " + what);
}

constexpr char down[] = "ffn_down_exps.weight";

// Of upstream's gating functions, by number, those without a softmax over all experts.
constexpr uint64_t sigmoid       = 2;
constexpr uint64_t sqrt_softplus = 4;

// Tensors with a slice for each expert, and how many dimensions they have.
struct Role {
    std::string_view name;
    size_t           n_dimensions;
};

constexpr Role roles[] = {
    {"ffn_gate_exps.weight", 3}, {"ffn_up_exps.weight", 3}, {"ffn_down_exps.weight", 3}, {"ffn_gate_up_exps.weight", 3},
    {"ffn_gate_exps.bias", 2},   {"ffn_up_exps.bias", 2},   {"ffn_down_exps.bias", 2},   {"ffn_gate_up_exps.bias", 2},
    {"ffn_gate_exps.scale", 1},  {"ffn_up_exps.scale", 1},  {"ffn_down_exps.scale", 1},  {"ffn_gate_up_exps.scale", 1},
    {"ffn_gate_inp.weight", 2},  {"ffn_gate_inp.bias", 1},  {"exp_probs_b.bias", 1},
};

// "blk.3.ffn_down_exps.weight" -> 3 and "ffn_down_exps.weight".
struct BlockName {
    int              layer = -1;
    std::string_view role;
};

BlockName divide(std::string_view name) {
    constexpr std::string_view prefix = "blk.";
    if (!name.starts_with(prefix)) {
        return {};
    }
    name.remove_prefix(prefix.size());
    int layer               = -1;
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), layer);
    const auto dot          = static_cast<size_t>(end - name.data());
    if (error != std::errc() || layer < 0 || dot >= name.size() || name[dot] != '.') {
        return {};
    }
    return {layer, name.substr(dot + 1)};
}

const Role * find_role(std::string_view name) {
    const auto * found = std::find_if(std::begin(roles), std::end(roles), [&](const Role & r) { return r.name == name; });
    return found == std::end(roles) ? nullptr : found;
}

void check_shape(const GgufFile & file, const GgufTensor & tensor, size_t n_dimensions) {
    const bool right = tensor.shape.size() == n_dimensions && tensor.size > 0 &&
                       tensor.shape.back() <= static_cast<uint64_t>(std::numeric_limits<int>::max());
    if (!right) {
        refuse(file, "tensor '" + tensor.name + "' has another shape than experts have (expected " +
                         std::to_string(n_dimensions) + " dimensions, the last one the experts)");
    }
}

ExpertTensor describe(const GgufFile & file, size_t number, const GgufTensor & tensor, const BlockName & name) {
    check_shape(file, tensor, find_role(name.role)->n_dimensions);
    ExpertTensor expert;
    expert.name      = tensor.name;
    expert.role      = name.role;
    expert.layer     = name.layer;
    expert.n_experts = static_cast<int>(tensor.shape.back());
    expert.file      = number;
    expert.offset    = tensor.offset;
    expert.slice     = tensor.size / tensor.shape.back();
    expert.type      = tensor.type;
    expert.columns   = tensor.shape.size() > 1 ? tensor.shape[0] : 1;
    expert.rows      = tensor.shape.size() > 2 ? tensor.shape[1] : 1;
    return expert;
}

}  // namespace

GgufModel::GgufModel(const std::vector<std::string> & paths) {
    std::unordered_map<std::string, size_t> seen;
    for (size_t i = 0; i < paths.size(); i++) {
        files_.push_back(std::make_unique<GgufFile>(paths[i]));
        for (const GgufTensor & tensor : files_.back()->header().tensors) {
            if (!seen.emplace(tensor.name, i).second) {
                refuse(*files_.back(), "tensor '" + tensor.name + "' is in " + paths[seen[tensor.name]] + " too");
            }
        }
        add_tensors(i);
    }
    architecture_ = files_.front()->text("general.architecture").value_or("");
    check_numbers();
    read_routers();
}

void GgufModel::add_tensors(size_t file) {
    for (const GgufTensor & tensor : files_[file]->header().tensors) {
        const BlockName name = divide(tensor.name);
        if (name.layer >= 0 && find_role(name.role) != nullptr) {
            by_name_.emplace(tensor.name, tensors_.size());
            tensors_.push_back(describe(*files_[file], file, tensor, name));
        }
    }
}

const ExpertTensor * GgufModel::find(int layer, const std::string & role) const {
    const auto found = by_name_.find("blk." + std::to_string(layer) + "." + role);
    return found == by_name_.end() ? nullptr : &tensors_[found->second];
}

void GgufModel::check_numbers() const {
    for (const ExpertTensor & tensor : tensors_) {
        const ExpertTensor * with = find(tensor.layer, down);
        if (with != nullptr && with->n_experts != tensor.n_experts) {
            refuse(*files_[tensor.file], "tensor '" + tensor.name + "' holds " + std::to_string(tensor.n_experts) +
                                             " experts, '" + with->name + "' " + std::to_string(with->n_experts));
        }
    }
}

std::optional<uint64_t> GgufModel::number(const std::string & name) const {
    return files_.front()->number(architecture_ + "." + name);
}

// A count from 1 on; 1 where the metadata leave it out.
int GgufModel::bounded(const std::string & name, int most) const {
    const uint64_t value = std::max<uint64_t>(number(name).value_or(1), 1);
    if (value > static_cast<uint64_t>(most)) {
        refuse(*files_.front(), "metadata '" + architecture_ + "." + name + "' is " + std::to_string(value) +
                                    ", expected at most " + std::to_string(most));
    }
    return static_cast<int>(value);
}

RouterFacts GgufModel::router_of(const ExpertTensor & tensor) const {
    RouterFacts router;
    router.layer         = tensor.layer;
    router.n_experts     = tensor.n_experts;
    router.top_k         = bounded("expert_used_count", tensor.n_experts);
    router.n_groups      = bounded("expert_group_count", tensor.n_experts);
    router.n_groups_used = bounded("expert_group_used_count", router.n_groups);
    return router;
}

void GgufModel::read_routers() {
    for (const ExpertTensor & tensor : tensors_) {
        if (tensor.role == down) {
            routers_.push_back(router_of(tensor));
        }
    }
    std::sort(routers_.begin(), routers_.end(), [](const auto & a, const auto & b) { return a.layer < b.layer; });
    const uint64_t gating = routers_.empty() ? 0 : number("expert_gating_func").value_or(0);
    independent_          = gating == sigmoid || gating == sqrt_softplus;
}

}  // namespace safex
