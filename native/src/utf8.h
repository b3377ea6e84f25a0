// Whether bytes are text.
#pragma once

#include <string_view>

namespace safex {

// Well-formed UTF-8: no overlong forms, no surrogates, nothing above U+10FFFF.
bool is_utf8(std::string_view text);

}  // namespace safex
