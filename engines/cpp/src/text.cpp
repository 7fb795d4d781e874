#include "text.hpp"

#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "utf8.hpp"

namespace yolact::detail {

std::string with_commas(std::uint64_t number) {
    std::string digits = std::to_string(number);
    for (std::size_t place = digits.size(); place > 3; place -= 3) digits.insert(place - 3, ",");
    return digits;
}

std::string joined(const std::vector<std::string> &parts, const std::string &between) {
    std::string text;
    for (const std::string &part : parts) {
        if (!text.empty()) text += between;
        text += part;
    }
    return text;
}

std::string shape_text(const std::vector<std::int64_t> &shape) {
    std::vector<std::string> sizes;
    for (const std::int64_t size : shape) sizes.push_back(std::to_string(size));
    return "[" + joined(sizes) + "]";
}

std::string hexadecimal(std::uint64_t number) {
    char text[20];
    std::snprintf(text, sizeof text, "%#llx", static_cast<unsigned long long>(number));
    return number ? text : "0x0";
}

namespace {

// "1.2345e-07" with the fewest digits that read back as `number`.
std::string shortest(double number) {
    char text[40];
#if defined(__cpp_lib_to_chars) && __cpp_lib_to_chars >= 201611L
    const auto end = std::to_chars(text, text + sizeof text, number, std::chars_format::scientific).ptr;
    return std::string(text, end);
#else
    for (int digits = 0; digits < 17; ++digits) {
        std::snprintf(text, sizeof text, "%.*e", digits, number);
        if (std::strtod(text, nullptr) == number) break;
    }
    return text;
#endif
}

}  // namespace

std::string python_float(double number) {
    if (std::isnan(number)) return "NaN";
    if (std::isinf(number)) return number < 0 ? "-Infinity" : "Infinity";
    std::string text = shortest(number);
    const std::string sign = text[0] == '-' ? "-" : "";
    const std::size_t mark = text.find('e');
    const int exponent = std::atoi(text.c_str() + mark + 1);
    std::string digits;
    for (const char letter : text.substr(0, mark))
        if (letter >= '0' && letter <= '9') digits += letter;
    const int count = static_cast<int>(digits.size());
    if (exponent < -4 || exponent >= 16) {
        char power[16];
        std::snprintf(power, sizeof power, "e%c%02d", exponent < 0 ? '-' : '+', std::abs(exponent));
        return sign + digits[0] + (count > 1 ? "." + digits.substr(1) : "") + power;
    }
    if (exponent < 0) return sign + "0." + std::string(static_cast<std::size_t>(-exponent - 1), '0') + digits;
    if (exponent + 1 >= count) return sign + digits + std::string(static_cast<std::size_t>(exponent + 1 - count), '0') + ".0";
    return sign + digits.substr(0, static_cast<std::size_t>(exponent) + 1) + "." + digits.substr(static_cast<std::size_t>(exponent) + 1);
}

std::string json_string(const std::string &utf8) {
    std::string text = "\"";
    const auto escape = [&text](unsigned unit) {
        char code[8];
        std::snprintf(code, sizeof code, "\\u%04x", unit);
        text += code;
    };
    for (std::size_t place = 0; place < utf8.size();) {
        const char32_t letter = next_letter(utf8, place);
        switch (letter) {
            case '"': text += "\\\""; break;
            case '\\': text += "\\\\"; break;
            case '\n': text += "\\n"; break;
            case '\r': text += "\\r"; break;
            case '\t': text += "\\t"; break;
            case '\b': text += "\\b"; break;
            case '\f': text += "\\f"; break;
            default:
                if (letter >= 0x20 && letter < 0x7f) {
                    text += static_cast<char>(letter);
                } else if (letter >= 0x10000) {
                    escape(0xd800 + static_cast<unsigned>((letter - 0x10000) >> 10));
                    escape(0xdc00 + static_cast<unsigned>((letter - 0x10000) & 0x3ff));
                } else {
                    escape(static_cast<unsigned>(letter));
                }
        }
    }
    return text + "\"";
}

}  // namespace yolact::detail
