#include "safex/gguf_file.h"

#include "safex/error.h"
#include "utf8.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

namespace safex {
namespace {

[[noreturn]] void refuse(const std::string & path, const std::string & what) {
    throw Error(ErrorCode::input, path + ": " + what);
}

std::string last_error() {
    return std::strerror(errno);
}

// A file's bytes while its header is parsed.
class Map {
  public:
    Map(int fd, size_t size, const std::string & path) : size_(size) {
        if (size_ > 0) {
            data_ = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0);
            if (data_ == MAP_FAILED) {
                refuse(path, "can't be mapped: " + last_error());
            }
        }
    }

    ~Map() {
        if (size_ > 0) {
            munmap(data_, size_);
        }
    }

    Map(const Map &)             = delete;
    Map & operator=(const Map &) = delete;

    std::span<const uint8_t> bytes() const { return {static_cast<const uint8_t *>(data_), size_}; }

  private:
    void * data_ = nullptr;
    size_t size_ = 0;
};

uint64_t size_of(int fd, const std::string & path) {
    struct stat found = {};
    if (fstat(fd, &found) != 0) {
        refuse(path, "can't be read: " + last_error());
    }
    if (!S_ISREG(found.st_mode)) {
        refuse(path, "is no regular file, expected a GGUF file");
    }
    return static_cast<uint64_t>(found.st_size);
}

std::optional<uint64_t> not_negative(int64_t value) {
    return value < 0 ? std::nullopt : std::optional(static_cast<uint64_t>(value));
}

template <typename T>
T from(const uint8_t * bytes) {
    T value;
    std::memcpy(&value, bytes, sizeof value);
    return value;
}

std::optional<uint64_t> to_number(GgufType type, const uint8_t * bytes) {
    switch (type) {
        case GgufType::u8: return from<uint8_t>(bytes);
        case GgufType::u16: return from<uint16_t>(bytes);
        case GgufType::u32: return from<uint32_t>(bytes);
        case GgufType::u64: return from<uint64_t>(bytes);
        case GgufType::i8: return not_negative(from<int8_t>(bytes));
        case GgufType::i16: return not_negative(from<int16_t>(bytes));
        case GgufType::i32: return not_negative(from<int32_t>(bytes));
        case GgufType::i64: return not_negative(from<int64_t>(bytes));
        default: return std::nullopt;
    }
}

}  // namespace

GgufFile::GgufFile(std::string path) : path_(std::move(path)), fd_(open(path_.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (fd_ < 0) {
        refuse(path_, "can't be opened: " + last_error());
    }
    try {
        size_ = size_of(fd_, path_);
        const Map map(fd_, static_cast<size_t>(size_), path_);
        header_ = parse_gguf(map.bytes(), path_);
    } catch (...) {
        close(fd_);
        throw;
    }
}

GgufFile::~GgufFile() {
    close(fd_);
}

const GgufEntry * GgufFile::find_entry(const std::string & key) const {
    const auto found = std::find_if(header_.entries.begin(), header_.entries.end(),
                                    [&](const GgufEntry & entry) { return entry.key == key; });
    return found == header_.entries.end() ? nullptr : &*found;
}

const GgufTensor * GgufFile::find_tensor(const std::string & name) const {
    const auto found = std::find_if(header_.tensors.begin(), header_.tensors.end(),
                                    [&](const GgufTensor & tensor) { return tensor.name == name; });
    return found == header_.tensors.end() ? nullptr : &*found;
}

std::optional<std::string> GgufFile::text(const std::string & key) const {
    const GgufEntry * entry = find_entry(key);
    if (entry == nullptr) {
        return std::nullopt;
    }
    if (entry->type != GgufType::string) {
        refuse(path_, "metadata '" + key + "' is no text");
    }
    constexpr uint64_t length_field = 8;
    std::string        text(static_cast<size_t>(entry->end - entry->value - length_field), '\0');
    read(entry->value + length_field, {reinterpret_cast<uint8_t *>(text.data()), text.size()});
    if (!is_utf8(text)) {
        refuse(path_, "metadata '" + key + "' is no UTF-8 text");
    }
    return text;
}

std::optional<uint64_t> GgufFile::number(const std::string & key) const {
    const GgufEntry * entry = find_entry(key);
    if (entry == nullptr) {
        return std::nullopt;
    }
    uint8_t bytes[8] = {};
    if (entry->end - entry->value <= sizeof bytes) {
        read(entry->value, {bytes, static_cast<size_t>(entry->end - entry->value)});
        if (const auto value = to_number(entry->type, bytes)) {
            return value;
        }
    }
    refuse(path_, "metadata '" + key + "' is no whole number from 0 on");
}

void GgufFile::read(uint64_t offset, std::span<uint8_t> bytes) const {
    while (!bytes.empty()) {
        const ssize_t n = pread(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            refuse(path_, "can't be read: " + last_error());
        }
        if (n == 0) {
            refuse(path_, "has become shorter while it was read (it ends before byte " + std::to_string(offset) +
                              "): start again when nothing else writes it");
        }
        bytes = bytes.subspan(static_cast<size_t>(n));
        offset += static_cast<uint64_t>(n);
    }
}

}  // namespace safex
