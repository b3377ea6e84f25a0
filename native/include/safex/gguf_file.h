// A GGUF file on disk: its header checked once, its bytes read on demand.
//
// A GgufFile owns a descriptor, not a map: data is read into the caller's memory, so that a file that shrinks while it is
// read is an error and not a SIGBUS, and pages of a large model don't count as ours. Everything a header says is checked
// while it is parsed: afterwards each range lies within the file. Threads may share a file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace safex {

// GGUF's types of metadata values, by number.
enum class GgufType : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

struct GgufEntry {
    std::string key;
    GgufType    type    = GgufType::u8;
    GgufType    element = GgufType::u8;  // of an array
    uint64_t    count   = 1;             // elements of an array
    uint64_t    begin   = 0;             // bytes [begin, end) of the file: key, type, value
    uint64_t    value   = 0;             // where the value begins; of an array behind type and count
    uint64_t    end     = 0;
};

struct GgufTensor {
    std::string           name;
    uint32_t              type = 0;    // see gguf_types.h
    std::vector<uint64_t> shape;       // fastest dimension first, as in the file
    uint64_t              offset = 0;  // in the file
    uint64_t              size   = 0;  // bytes
};

struct GgufHeader {
    uint32_t                version       = 0;
    uint64_t                alignment     = 32;
    uint64_t                entries_begin = 0;
    uint64_t                entries_end   = 0;  // the tensors' descriptions begin here
    uint64_t                end           = 0;  // and end here; zeros up to `data`
    uint64_t                data          = 0;  // where the tensors' offsets count from
    std::vector<GgufEntry>  entries;            // in the file's order
    std::vector<GgufTensor> tensors;            // likewise
};

// Reads the header of a file whose bytes are `file`; `path` is for messages. Needs memory in proportion to what is there,
// not to what the header claims. Throws Error(input).
GgufHeader parse_gguf(std::span<const uint8_t> file, const std::string & path);

class GgufFile {
  public:
    // Throws Error(input): no such file, no GGUF, or a header that doesn't hold together.
    explicit GgufFile(std::string path);
    ~GgufFile();
    GgufFile(const GgufFile &)             = delete;
    GgufFile & operator=(const GgufFile &) = delete;

    const std::string & path() const { return path_; }
    const GgufHeader &  header() const { return header_; }
    uint64_t            size() const { return size_; }

    const GgufEntry *  find_entry(const std::string & key) const;    // nullptr: none
    const GgufTensor * find_tensor(const std::string & name) const;  // nullptr: none

    // The value of a text or an unsigned or signed whole number (one that is not negative); nothing where the key is
    // missing. Throws Error(input) where it is of another type, or the text is no UTF-8.
    std::optional<std::string> text(const std::string & key) const;
    std::optional<uint64_t>    number(const std::string & key) const;

    // Fills `bytes` from `offset` on. Throws Error(input) where the file has become shorter or can't be read.
    void read(uint64_t offset, std::span<uint8_t> bytes) const;

  private:
    std::string path_;
    int         fd_   = -1;
    uint64_t    size_ = 0;
    GgufHeader  header_;
};

}  // namespace safex
