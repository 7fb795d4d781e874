#include "utf8.hpp"

namespace yolact::detail {

namespace {

constexpr char32_t NO_LETTER = 0xffffffff, REPLACEMENT = 0xfffd;

// NO_LETTER, the place one byte on, where the bytes are none of UTF-8's (RFC 3629).
char32_t decoded(const std::string &text, std::size_t &place) {
    const auto at = [&text](std::size_t index) { return static_cast<unsigned char>(text[index]); };
    const unsigned first = at(place++);
    if (first < 0x80) return first;
    const int more = first >= 0xf0 && first < 0xf5 ? 3 : first >= 0xe0 && first < 0xf0 ? 2 : first >= 0xc2 && first < 0xe0 ? 1 : 0;
    if (!more || place + static_cast<std::size_t>(more) > text.size()) return NO_LETTER;
    char32_t letter = first & (0x3fu >> more);
    for (int index = 0; index < more; ++index) {
        const unsigned next = at(place + static_cast<std::size_t>(index));
        if ((next & 0xc0) != 0x80) return NO_LETTER;
        letter = letter << 6 | (next & 0x3f);
    }
    const char32_t least = more == 3 ? 0x10000 : more == 2 ? 0x800 : 0x80;
    if (letter < least || letter > 0x10ffff || (letter >= 0xd800 && letter < 0xe000)) return NO_LETTER;
    place += static_cast<std::size_t>(more);
    return letter;
}

}  // namespace

char32_t next_letter(const std::string &text, std::size_t &place) {
    const char32_t letter = decoded(text, place);
    return letter == NO_LETTER ? REPLACEMENT : letter;
}

void append_letter(std::string &text, char32_t letter) {
    const auto add = [&text](char32_t byte) { text += static_cast<char>(static_cast<unsigned char>(byte)); };
    if (letter < 0x80) {
        add(letter);
    } else if (letter < 0x800) {
        add(0xc0 | letter >> 6), add(0x80 | (letter & 0x3f));
    } else if (letter < 0x10000) {
        add(0xe0 | letter >> 12), add(0x80 | (letter >> 6 & 0x3f)), add(0x80 | (letter & 0x3f));
    } else {
        add(0xf0 | letter >> 18), add(0x80 | (letter >> 12 & 0x3f)), add(0x80 | (letter >> 6 & 0x3f)), add(0x80 | (letter & 0x3f));
    }
}

bool is_utf8(const std::string &text) {
    for (std::size_t place = 0; place < text.size();)
        if (decoded(text, place) == NO_LETTER) return false;
    return true;
}

}  // namespace yolact::detail
