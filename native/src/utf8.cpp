#include "utf8.h"

#include <array>
#include <cstddef>
#include <cstdint>

namespace safex {
namespace {

// First bytes from..to begin a character of `length` bytes whose second byte lies in low..high.
struct Form {
    uint8_t from, to;
    size_t  length;
    uint8_t low, high;
};

constexpr std::array<Form, 9> forms = {{
    {0x00, 0x7F, 1, 0, 0},
    {0xC2, 0xDF, 2, 0x80, 0xBF},
    {0xE0, 0xE0, 3, 0xA0, 0xBF},
    {0xE1, 0xEC, 3, 0x80, 0xBF},
    {0xED, 0xED, 3, 0x80, 0x9F},
    {0xEE, 0xEF, 3, 0x80, 0xBF},
    {0xF0, 0xF0, 4, 0x90, 0xBF},
    {0xF1, 0xF3, 4, 0x80, 0xBF},
    {0xF4, 0xF4, 4, 0x80, 0x8F},
}};

uint8_t byte(std::string_view text, size_t at) {
    return static_cast<uint8_t>(text[at]);
}

// Bytes of the character at the start, 0 where there is none.
size_t character(std::string_view text) {
    for (const Form & form : forms) {
        if (byte(text, 0) < form.from || byte(text, 0) > form.to) {
            continue;
        }
        if (text.size() < form.length || (form.length > 1 && (byte(text, 1) < form.low || byte(text, 1) > form.high))) {
            return 0;
        }
        for (size_t i = 2; i < form.length; i++) {
            if ((byte(text, i) & 0xC0) != 0x80) {
                return 0;
            }
        }
        return form.length;
    }
    return 0;
}

}  // namespace

bool is_utf8(std::string_view text) {
    while (!text.empty()) {
        const size_t length = character(text);
        if (length == 0) {
            return false;
        }
        text.remove_prefix(length);
    }
    return true;
}

}  // namespace safex
