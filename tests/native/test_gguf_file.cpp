#include "safex/gguf_file.h"

#include "check.h"
#include "gguf_bytes.h"
#include "safex/gguf_slices.h"

#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>

using bytes::Bytes;
using bytes::Gguf;
using safex::parse_gguf;

namespace {

// A file that is removed with it.
struct OnDisk {
    std::filesystem::path path;

    explicit OnDisk(const Bytes & data)
        : path(std::filesystem::temp_directory_path() / ("safex-" + std::to_string(std::rand()) + ".gguf")) {
        std::ofstream(path, std::ios::binary)
            .write(reinterpret_cast<const char *>(data.data()), static_cast<std::streamsize>(data.size()));
    }

    ~OnDisk() { std::filesystem::remove(path); }
};

Gguf changed(const std::function<void(Gguf &)> & change) {
    Gguf file = bytes::small_model();
    change(file);
    return file;
}

// Reading the changed model must fail with this.
void refused(const std::string & part, const std::function<void(Gguf &)> & change) {
    CHECK_ERROR_WITH(input, part, parse_gguf(changed(change).write(), "x.gguf"));
}

}  // namespace

TEST(a_header_is_read) {
    const Bytes data   = bytes::small_model().write();
    const auto  header = parse_gguf(data, "x.gguf");
    CHECK_EQ(header.version, 3u);
    CHECK_EQ(header.entries.size(), 6u);
    CHECK_EQ(header.tensors.size(), 5u);
    CHECK_EQ(header.data, data.size() - 2400);
    CHECK_EQ(header.tensors[1].offset, header.data + 1024);
    CHECK_EQ(header.tensors[1].size, 272u);  // 8 blocks of 34 bytes
    CHECK_EQ(header.entries[5].count, 3u);
    CHECK_EQ(header.entries[5].end, header.entries_end);
}

TEST(every_cut_is_refused_or_harmless) {
    const Bytes data = bytes::small_model().write();
    for (size_t n = 0; n < data.size(); n++) {
        CHECK_ERROR_WITH(input, "x.gguf: ", parse_gguf({data.data(), n}, "x.gguf"));
    }
}

TEST(numbers_that_the_file_has_no_room_for_are_refused) {
    for (const uint64_t n : {uint64_t(1) << 20, uint64_t(1) << 32, std::numeric_limits<uint64_t>::max()}) {
        Bytes data = bytes::small_model().write();
        std::memcpy(data.data() + 8, &n, sizeof n);
        CHECK_ERROR_WITH(input, "claims " + std::to_string(n) + " tensors, more than", parse_gguf(data, "x.gguf"));
        data = bytes::small_model().write();
        std::memcpy(data.data() + 16, &n, sizeof n);
        CHECK_ERROR_WITH(input, "claims " + std::to_string(n) + " metadata entries", parse_gguf(data, "x.gguf"));
        data = bytes::small_model().write();
        std::memcpy(data.data() + 24, &n, sizeof n);  // the length of the first key
        CHECK_ERROR_WITH(input, "within the key of metadata entry 0", parse_gguf(data, "x.gguf"));
    }
}

TEST(shapes_that_overflow_are_refused) {
    refused("larger than any file", [](Gguf & file) { file.tensors[0].shape = {1u << 31, 1u << 31, 1u << 31}; });
    refused("larger than any file", [](Gguf & file) { file.tensors[0].shape = {1ull << 63, 1ull << 63}; });
    refused("is not within the file", [](Gguf & file) { file.tensors[0].shape = {1ull << 40}; });
    refused("5 dimensions", [](Gguf & file) { file.tensors[0].shape = {1, 1, 1, 1, 1}; });
    refused("rows of 31 values, expected a multiple of 32", [](Gguf & file) { file.tensors[1].shape = {31, 2, 4}; });
}

TEST(places_that_can_t_be_are_refused) {
    refused("is not within the file", [](Gguf & file) { file.tensors[4].offset = 1408; });
    refused("is not within the file", [](Gguf & file) { file.tensors[0].offset = ~31ull; });
    refused("overlap", [](Gguf & file) { file.tensors[1].offset = 992; });
    refused("overlap", [](Gguf & file) { file.tensors[2].offset = 0; });
    refused("lies at offset 1030, expected a multiple of 32", [](Gguf & file) { file.tensors[1].offset = 1030; });
    refused("is of type 4, which there is not", [](Gguf & file) { file.tensors[0].type = 4; });
    refused("is of type 4000000000", [](Gguf & file) { file.tensors[0].type = 4000000000u; });
}

TEST(names_that_can_t_be_are_refused) {
    refused("tensor 'token_embd.weight' is there twice", [](Gguf & file) { file.tensors[1].name = file.tensors[0].name; });
    refused("metadata 'general.name' is there twice", [](Gguf & file) { file.text("general.name", "another"); });
    refused("no UTF-8", [](Gguf & file) { file.tensors[0].name = "\xC3\x28"; });
    refused("no UTF-8", [](Gguf & file) { file.text("\xED\xA0\x80", "a surrogate"); });
    refused("has 0 bytes", [](Gguf & file) { file.tensors[0].name = ""; });
    refused("has 64 bytes, expected 1 to 63", [](Gguf & file) { file.tensors[0].name = std::string(64, 'x'); });
    refused("has 70000 bytes", [](Gguf & file) { file.text(std::string(70000, 'x'), ""); });
}

TEST(an_alignment_that_can_t_be_is_refused) {
    for (const uint32_t n : {0u, 3u, 48u, 1u << 21}) {
        refused("general.alignment is " + std::to_string(n),
                [&](Gguf & file) { file.number<uint32_t>("general.alignment", 4, n); });
    }
    refused("general.alignment is 0", [](Gguf & file) { file.number<uint64_t>("general.alignment", 10, 32); });
    Gguf file = bytes::small_model();
    file.number<uint32_t>("general.alignment", 4, 8);
    CHECK_EQ(parse_gguf(file.write(8), "x.gguf").alignment, 8u);
}

TEST(other_versions_and_arrays_of_arrays_are_refused) {
    refused("GGUF of version 1, expected 2 or 3", [](Gguf & file) { file.version = 1; });
    refused("(big-endian)", [](Gguf & file) { file.version = 3u << 24; });
    refused("is an array of arrays", [](Gguf & file) {
        Bytes & entry = file.entries.emplace_back();
        bytes::put_text(entry, "nested");
        bytes::put<uint32_t>(entry, 9);
        bytes::put<uint32_t>(entry, 9);
        bytes::put<uint64_t>(entry, 1);
    });
    refused("claims more values", [](Gguf & file) {
        Bytes & entry = file.entries.emplace_back();
        bytes::put_text(entry, "huge");
        bytes::put<uint32_t>(entry, 9);
        bytes::put<uint32_t>(entry, 10);
        bytes::put<uint64_t>(entry, 1ull << 62);
    });
    CHECK_ERROR_WITH(input, "not a GGUF file", parse_gguf(Bytes{'G', 'G', 'M', 'L', 0, 0}, "x.gguf"));
}

TEST(values_are_read_on_demand) {
    const OnDisk          disk(bytes::small_model().write());
    const safex::GgufFile file(disk.path.string());
    CHECK_EQ(file.text("general.name").value_or(""), "a model");
    CHECK(!file.text("general.description"));
    CHECK_EQ(file.number("tiny.expert_used_count").value_or(0), 2u);
    CHECK_ERROR_WITH(input, "'general.name' is no whole number", file.number("general.name"));
    CHECK_ERROR_WITH(input, "'tiny.expert_used_count' is no text", file.text("tiny.expert_used_count"));
    Bytes some(4);
    file.read(0, some);
    CHECK(some == (Bytes{'G', 'G', 'U', 'F'}));
    std::filesystem::resize_file(disk.path, 100);
    CHECK_ERROR_WITH(input, "has become shorter while it was read", file.read(98, some));
    CHECK_ERROR_WITH(input, "can't be opened: No such file", safex::GgufFile("/nowhere.gguf"));
    CHECK_ERROR_WITH(input, "is no regular file", safex::GgufFile("/tmp"));
}

TEST(slices_of_experts_are_found) {
    const OnDisk           disk(bytes::small_model().write());
    const safex::GgufModel model({disk.path.string()});
    CHECK_EQ(model.routers().size(), 2u);
    CHECK_EQ(model.routers()[0].n_experts, 4);
    CHECK_EQ(model.routers()[0].top_k, 2);
    CHECK_EQ(model.routers()[0].n_groups, 2);
    const safex::ExpertTensor * down = model.find(0, "ffn_down_exps.weight");
    CHECK(down != nullptr);
    CHECK_EQ(down->slice, 68u);
    CHECK_EQ(down->rows, 2u);
    CHECK_EQ(down->columns, 32u);
    CHECK_EQ(model.find(0, "ffn_down_exps.bias")->slice, 8u);
    CHECK(model.find(2, "ffn_down_exps.weight") == nullptr);
    CHECK(!model.scores_are_independent());
}

TEST(experts_that_contradict_each_other_are_refused) {
    const auto open = [](const std::function<void(Gguf &)> & change) {
        const OnDisk disk(changed(change).write());
        safex::GgufModel({disk.path.string()});
    };
    CHECK_ERROR_WITH(input, "holds 2 experts, 'blk.0.ffn_down_exps.weight' 4",
                     open([](Gguf & file) { file.tensors[3].shape = {4, 2}; }));
    CHECK_ERROR_WITH(input, "has another shape than experts have",
                     open([](Gguf & file) { file.tensors[1].shape = {32, 8}; }));
    CHECK_ERROR_WITH(input, "'tiny.expert_used_count' is 9, expected at most 4", open([](Gguf & file) {
                         file.entries.erase(file.entries.begin() + 2);
                         file.number<uint32_t>("tiny.expert_used_count", 4, 9);
                     }));
    const OnDisk disk(bytes::small_model().write());
    CHECK_ERROR_WITH(input, "is in ", safex::GgufModel({disk.path.string(), disk.path.string()}));
}
