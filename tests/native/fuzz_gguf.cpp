// Hostile GGUF files by mutation: whatever the bytes, they are read or refused with an Error, nothing else.
//
// LLVMFuzzerTestOneInput has libFuzzer's signature. Here a driver of our own calls it, as g++ has no fuzzer:
// fuzz_gguf [ITERATIONS] [SEED]. Run by scripts/sanitize.sh with sanitizers and a limit on allocations.
#include "gguf_bytes.h"
#include "safex/error.h"
#include "safex/gguf_slices.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>

namespace {

using bytes::Bytes;

const std::filesystem::path & scratch() {
    static const auto path =
        std::filesystem::temp_directory_path() / ("safex-fuzz-" + std::to_string(std::random_device{}()) + ".gguf");
    return path;
}

// Reads every slice, as an edit would.
void read_slices(const safex::GgufModel & model) {
    for (const safex::ExpertTensor & tensor : model.expert_tensors()) {
        Bytes slice(static_cast<size_t>(tensor.slice));
        for (int expert = 0; expert < std::min(tensor.n_experts, 4); expert++) {
            model.files()[tensor.file]->read(tensor.offset + static_cast<uint64_t>(expert) * tensor.slice, slice);
        }
    }
}

// Numbers that are wrong in interesting ways.
uint64_t odd_number(std::mt19937_64 & random) {
    const uint64_t some[] = {0, 1, 31, 33, 255, 1u << 16, 1u << 31, 0xFFFFFFFFu, 1ull << 32, 1ull << 62, ~0ull, ~31ull};
    return random() % 4 == 0 ? random() >> (random() % 64) : some[random() % std::size(some)];
}

void mutate(Bytes & data, std::mt19937_64 & random) {
    const size_t at = random() % data.size();
    switch (random() % 6) {
        case 0: data[at] = static_cast<uint8_t>(random()); break;
        case 1: data[at] ^= static_cast<uint8_t>(1u << random() % 8); break;
        case 2: data.resize(std::max<size_t>(at, 1)); break;
        case 3:
            data.insert(data.begin() + static_cast<ptrdiff_t>(at), random() % 9 + 1, static_cast<uint8_t>(random()));
            break;
        case 4: {
            const size_t   n     = random() % 2 == 0 ? 4 : 8;
            const uint64_t value = odd_number(random);
            std::memcpy(data.data() + std::min(at, data.size() - std::min(n, data.size())), &value,
                        std::min(n, data.size()));
            break;
        }
        default:
            data.erase(data.begin() + static_cast<ptrdiff_t>(at));
            data.push_back(0);
            break;
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size);

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    std::ofstream(scratch(), std::ios::binary)
        .write(reinterpret_cast<const char *>(data), static_cast<std::streamsize>(size));
    try {
        read_slices(safex::GgufModel({scratch().string()}));
    } catch (const safex::Error &) {
        return 0;
    }
    return 1;
}

int main(int argc, char ** argv) {
    const long      iterations = argc > 1 ? std::atol(argv[1]) : 10000;
    std::mt19937_64 random(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1);
    const Bytes     seed = bytes::small_model().write();
    long            read = 0;
    for (long i = 0; i < iterations; i++) {
        Bytes data = seed;
        for (uint64_t n = random() % 4 + 1; n > 0; n--) {
            mutate(data, random);
        }
        read += LLVMFuzzerTestOneInput(data.data(), data.size());
    }
    std::filesystem::remove(scratch());
    std::fprintf(stderr, "%ld files: %ld read, %ld refused\n", iterations, read, iterations - read);
    return read > 0 && read < iterations ? 0 : 1;
}
