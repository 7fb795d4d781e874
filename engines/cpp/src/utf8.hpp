// Letters of UTF-8.
#pragma once

#include <cstddef>
#include <string>

namespace yolact::detail {

// The letter that begins at `place`, which moves behind it; U+FFFD, one byte on, where there is none.
char32_t next_letter(const std::string &text, std::size_t &place);

void append_letter(std::string &text, char32_t letter);

bool is_utf8(const std::string &text);

}  // namespace yolact::detail
