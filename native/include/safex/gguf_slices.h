// The experts of a model file: where the slice of each lies, tensor by tensor.
//
// A GgufModel owns the files of one model, one or the parts of a split one. Tensors of experts have the expert as their
// slowest dimension, so that a slice is one range of bytes of one file.
#pragma once

#include "safex/gguf_file.h"
#include "safex/mask.h"

#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

namespace safex {

// One tensor that has a slice for each expert of a block.
struct ExpertTensor {
    std::string name;  // in the file, e.g. blk.3.ffn_down_exps.weight
    std::string role;  // without the block, e.g. ffn_down_exps.weight
    int         layer     = 0;
    int         n_experts = 0;
    size_t      file      = 0;  // which of the model's files
    uint64_t    offset    = 0;  // of the first slice in that file
    uint64_t    slice     = 0;  // bytes of a slice
    uint32_t    type      = 0;  // see gguf_types.h
    uint64_t    columns   = 1;  // values of a row; a slice is [rows, columns]
    uint64_t    rows      = 1;
};

class GgufModel {
  public:
    // All files of the model, in order. Throws Error(input): a file that can't be read, a tensor in two of them, experts
    // whose tensors contradict each other.
    explicit GgufModel(const std::vector<std::string> & paths);
    GgufModel(const GgufModel &)             = delete;
    GgufModel & operator=(const GgufModel &) = delete;

    const std::vector<std::unique_ptr<GgufFile>> & files() const { return files_; }
    const std::string &                            architecture() const { return architecture_; }
    const std::vector<ExpertTensor> &              expert_tensors() const { return tensors_; }
    const ExpertTensor *                           find(int layer, const std::string & role) const;  // nullptr: none

    // The blocks with routed experts, in order, as far as a file tells. Throws Error(input) for metadata that can't be.
    const std::vector<RouterFacts> & routers() const { return routers_; }

    // Whether the metadata say that a router's score of an expert is independent of the others' (sigmoid, not softmax).
    bool scores_are_independent() const { return independent_; }

  private:
    void                    add_tensors(size_t file);
    void                    check_numbers() const;
    void                    read_routers();
    RouterFacts             router_of(const ExpertTensor & tensor) const;
    int                     bounded(const std::string & name, int most) const;
    std::optional<uint64_t> number(const std::string & name) const;

    std::vector<std::unique_ptr<GgufFile>>  files_;
    std::string                             architecture_;
    std::vector<ExpertTensor>               tensors_;
    std::unordered_map<std::string, size_t> by_name_;  // into tensors_
    std::vector<RouterFacts>                routers_;
    bool                                    independent_ = false;
};

}  // namespace safex
