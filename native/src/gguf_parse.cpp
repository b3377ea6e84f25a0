// parse_gguf: every number of the header is checked against what the file has room for before it is used.
#include "safex/error.h"
#include "safex/gguf_file.h"
#include "safex/gguf_types.h"
#include "utf8.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <string_view>
#include <unordered_set>

namespace safex {
namespace {

constexpr uint64_t max_alignment   = 1 << 20;
constexpr uint64_t max_name        = 63;     // ggml keeps names in 64 bytes
constexpr uint64_t max_key         = 65535;  // the format's own limit
constexpr uint32_t max_dimensions  = 4;      // ggml's
constexpr uint64_t smallest_entry  = 8 + 1 + 4 + 1;
constexpr uint64_t smallest_tensor = 8 + 4 + 4 + 8;
constexpr uint64_t size_of_type[]  = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};  // 0: strings and arrays
constexpr uint32_t n_types         = 13;
constexpr char     alignment_key[] = "general.alignment";
static_assert(std::endian::native == std::endian::little, "GGUF files are little-endian, and so are our loads");

bool multiply(uint64_t & product, uint64_t factor) {
    if (factor != 0 && product > std::numeric_limits<uint64_t>::max() / factor) {
        return false;
    }
    product *= factor;
    return true;
}

class Parser {
  public:
    Parser(std::span<const uint8_t> file, const std::string & path) : file_(file), path_(path) {}

    GgufHeader parse() {
        check_magic();
        header_.version = load<uint32_t>("the version");
        check_version();
        const uint64_t n_tensors = count("tensors", smallest_tensor);
        const uint64_t n_entries = count("metadata entries", smallest_entry);
        header_.entries_begin    = at_;
        for (uint64_t i = 0; i < n_entries; i++) {
            add_entry(i);
        }
        header_.entries_end = at_;
        for (uint64_t i = 0; i < n_tensors; i++) {
            add_tensor(i);
        }
        header_.end = at_;
        place_tensors();
        check_overlaps();
        return std::move(header_);
    }

  private:
    [[noreturn]] void refuse(const std::string & what) const {
        throw Error(ErrorCode::input, path_ + ": a damaged GGUF file: " + what + "; get the file again");
    }

    uint64_t left() const { return file_.size() - at_; }

    void need(uint64_t n, const std::string & what) const {
        if (n > left()) {
            refuse("it ends at byte " + std::to_string(file_.size()) + ", within " + what);
        }
    }

    template <typename T>
    T load(const std::string & what) {
        need(sizeof(T), what);
        T value;
        std::memcpy(&value, file_.data() + at_, sizeof value);
        at_ += sizeof value;
        return value;
    }

    void check_magic() {
        if (file_.size() < 4 || std::memcmp(file_.data(), "GGUF", 4) != 0) {
            throw Error(ErrorCode::input, path_ + ": not a GGUF file (it doesn't begin with GGUF)");
        }
        at_ = 4;
    }

    void check_version() const {
        if (header_.version == 2 || header_.version == 3) {
            return;
        }
        const bool swapped = header_.version != 0 && (header_.version & 0xFFFF) == 0;
        throw Error(ErrorCode::input, path_ + ": GGUF of version " + std::to_string(header_.version) +
                                          (swapped ? " (big-endian)" : "") +
                                          ", expected 2 or 3, little-endian: convert the model again");
    }

    uint64_t count(const std::string & what, uint64_t smallest) {
        const auto n = load<uint64_t>("the number of " + what);
        if (n > left() / smallest) {
            refuse("it claims " + std::to_string(n) + " " + what + ", more than it has room for");
        }
        return n;
    }

    std::string_view string(const std::string & what) {
        const auto length = load<uint64_t>(what);
        need(length, what);
        const std::string_view text(reinterpret_cast<const char *>(file_.data() + at_), static_cast<size_t>(length));
        at_ += length;
        return text;
    }

    std::string name(const std::string & what, uint64_t longest) {
        const std::string_view text = string(what);
        if (text.empty() || text.size() > longest) {
            refuse(what + " has " + std::to_string(text.size()) + " bytes, expected 1 to " + std::to_string(longest));
        }
        if (!is_utf8(text)) {
            refuse(what + " is no UTF-8 text");
        }
        return std::string(text);
    }

    // --- metadata

    void add_entry(uint64_t number) {
        GgufEntry entry;
        entry.begin = at_;
        entry.key   = name("the key of metadata entry " + std::to_string(number), max_key);
        if (!seen_.insert(entry.key).second) {
            refuse("metadata '" + shown(entry.key) + "' is there twice");
        }
        const std::string what = "metadata '" + shown(entry.key) + "'";
        entry.type             = type(what);
        if (entry.type == GgufType::array) {
            entry.element = type(what);
            entry.count   = load<uint64_t>(what);
        }
        entry.value = at_;
        skip_values(entry.type == GgufType::array ? entry.element : entry.type, entry.count, what);
        entry.end = at_;
        if (entry.key == alignment_key) {
            set_alignment(entry);
        }
        header_.entries.push_back(std::move(entry));
    }

    GgufType type(const std::string & what) {
        const auto number = load<uint32_t>(what);
        if (number >= n_types) {
            refuse(what + " is of type " + std::to_string(number) + ", which there is not");
        }
        return static_cast<GgufType>(number);
    }

    void skip_values(GgufType element, uint64_t n, const std::string & what) {
        if (element == GgufType::array) {
            refuse(what + " is an array of arrays, which GGUF readers don't know");
        }
        if (element == GgufType::string) {
            for (uint64_t i = 0; i < n; i++) {
                string(what);
            }
            return;
        }
        if (!multiply(n, size_of_type[static_cast<uint32_t>(element)])) {
            refuse(what + " claims more values than it has room for");
        }
        need(n, what);
        at_ += n;
    }

    void set_alignment(const GgufEntry & entry) {
        uint32_t value = 0;
        if (entry.type == GgufType::u32) {
            std::memcpy(&value, file_.data() + entry.value, sizeof value);
        }
        if (!std::has_single_bit(value) || value > max_alignment) {
            refuse("general.alignment is " + std::to_string(value) + ", expected a power of two up to " +
                   std::to_string(max_alignment) + " of type u32");
        }
        header_.alignment = value;
    }

    static std::string shown(const std::string & key) {
        return key.size() <= max_name ? key : key.substr(0, cut(key)) + "...";
    }

    // Where a long key may be cut without splitting a character.
    static size_t cut(const std::string & key) {
        size_t at = max_name;
        while (at > 0 && (static_cast<uint8_t>(key[at]) & 0xC0) == 0x80) {
            at--;
        }
        return at;
    }

    // --- tensors

    void add_tensor(uint64_t number) {
        GgufTensor tensor;
        tensor.name = name("the name of tensor " + std::to_string(number), max_name);
        if (!seen_tensors_.insert(tensor.name).second) {
            refuse("tensor '" + tensor.name + "' is there twice");
        }
        const std::string what = "the description of tensor '" + tensor.name + "'";
        const auto        n    = load<uint32_t>(what);
        if (n > max_dimensions) {
            refuse("tensor '" + tensor.name + "' has " + std::to_string(n) + " dimensions, expected at most 4");
        }
        for (uint32_t i = 0; i < n; i++) {
            tensor.shape.push_back(load<uint64_t>(what));
        }
        tensor.type   = load<uint32_t>(what);
        tensor.offset = load<uint64_t>(what);
        tensor.size   = bytes_of(tensor);
        header_.tensors.push_back(std::move(tensor));
    }

    uint64_t bytes_of(const GgufTensor & tensor) const {
        const TensorType * type = find_tensor_type(tensor.type);
        if (type == nullptr) {
            refuse("tensor '" + tensor.name + "' is of type " + std::to_string(tensor.type) + ", which there is not");
        }
        const uint64_t row = tensor.shape.empty() ? 1 : tensor.shape[0];
        if (row % type->block_size != 0) {
            refuse("tensor '" + tensor.name + "' has rows of " + std::to_string(row) + " values, expected a multiple of " +
                   std::to_string(type->block_size) + " in type " + type->name);
        }
        uint64_t size = row / type->block_size;
        bool     fits = multiply(size, type->block_bytes);
        for (size_t i = 1; i < tensor.shape.size(); i++) {
            fits = fits && multiply(size, tensor.shape[i]);
        }
        if (!fits) {
            refuse("tensor '" + tensor.name + "' is larger than any file");
        }
        return size;
    }

    // Offsets from the start of the file instead of the data.
    void place_tensors() {
        header_.data = (header_.end + header_.alignment - 1) / header_.alignment * header_.alignment;
        for (GgufTensor & tensor : header_.tensors) {
            if (tensor.offset % header_.alignment != 0) {
                refuse("tensor '" + tensor.name + "' lies at offset " + std::to_string(tensor.offset) +
                       ", expected a multiple of " + std::to_string(header_.alignment));
            }
            if (header_.data > file_.size() || tensor.offset > file_.size() - header_.data ||
                tensor.size > file_.size() - header_.data - tensor.offset) {
                refuse("tensor '" + tensor.name + "' (" + std::to_string(tensor.size) + " bytes at offset " +
                       std::to_string(tensor.offset) + " of the data) is not within the file of " +
                       std::to_string(file_.size()) + " bytes");
            }
            tensor.offset += header_.data;
        }
    }

    void check_overlaps() const {
        std::vector<const GgufTensor *> order;
        for (const GgufTensor & tensor : header_.tensors) {
            order.push_back(&tensor);
        }
        std::sort(order.begin(), order.end(), [](const GgufTensor * a, const GgufTensor * b) {
            return a->offset != b->offset ? a->offset < b->offset : a->size < b->size;
        });
        for (size_t i = 1; i < order.size(); i++) {
            if (order[i - 1]->offset + order[i - 1]->size > order[i]->offset) {
                refuse("tensors '" + order[i - 1]->name + "' and '" + order[i]->name + "' overlap");
            }
        }
    }

    std::span<const uint8_t>        file_;
    const std::string &             path_;
    uint64_t                        at_ = 0;
    GgufHeader                      header_;
    std::unordered_set<std::string> seen_;
    std::unordered_set<std::string> seen_tensors_;
};

}  // namespace

GgufHeader parse_gguf(std::span<const uint8_t> file, const std::string & path) {
    return Parser(file, path).parse();
}

}  // namespace safex
