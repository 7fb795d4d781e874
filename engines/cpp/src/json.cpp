#include "json.hpp"

#include <cerrno>
#include <clocale>
#include <cstdlib>
#include <limits>
#include <locale>
#include <sstream>

#include "utf8.hpp"

namespace yolact::detail {

namespace {

constexpr int DEEPEST = 200;
constexpr const char *KINDS[] = {"null", "true or false", "a number", "a text", "a list", "an object"};

bool is_digit(char letter) { return letter >= '0' && letter <= '9'; }

// As std::stod without the program's locale, whose decimal point may be a comma.
double parsed_number(const std::string &text) {
    std::istringstream stream(text);
    stream.imbue(std::locale::classic());
    double number = 0;
    stream >> number;
    if (!stream.fail()) return number;
    const bool tiny = text.find("e-") != std::string::npos || text.find("E-") != std::string::npos;  // what is out of range
    return tiny ? 0.0 : (text[0] == '-' ? -1 : 1) * std::numeric_limits<double>::infinity();
}

}  // namespace

class JsonReader {
public:
    explicit JsonReader(const std::string &text) : text_(text) {}

    Json document() {
        Json found = value(0);
        skip();
        if (place_ != text_.size()) fail("more text after the end");
        return found;
    }

private:
    [[noreturn]] void fail(const std::string &what) const { throw JsonError(what + " at byte " + std::to_string(place_)); }

    char peek() const { return place_ < text_.size() ? text_[place_] : '\0'; }

    void skip() {
        while (place_ < text_.size() && (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r')) ++place_;
    }

    bool take(const char *word) {
        const std::string wanted = word;
        if (text_.compare(place_, wanted.size(), wanted) != 0) return false;
        place_ += wanted.size();
        return true;
    }

    Json value(int depth) {
        if (depth > DEEPEST) fail("too many nested values");
        skip();
        Json found;
        switch (peek()) {
            case '{': return object(depth);
            case '[': return array(depth);
            case '"':
                found.kind_ = Json::Kind::string;
                found.string_ = string();
                return found;
            default: break;
        }
        if (take("null")) return found;
        if (take("true") || take("false")) {
            found.kind_ = Json::Kind::boolean;
            found.boolean_ = text_[place_ - 2] == 'u';
            return found;
        }
        return number();
    }

    Json number() {
        Json found;
        found.kind_ = Json::Kind::number;
        constexpr double infinity = std::numeric_limits<double>::infinity();
        for (const auto &[word, special] : {std::pair{"NaN", std::numeric_limits<double>::quiet_NaN()}, {"Infinity", infinity}, {"-Infinity", -infinity}}) {
            if (!take(word)) continue;
            found.number_ = special;
            return found;
        }
        const std::size_t start = place_;
        if (peek() == '-') ++place_;
        if (!is_digit(peek())) fail("no value");
        if (peek() == '0') {
            ++place_;
        } else {
            digits();
        }
        bool whole = true;
        if (peek() == '.') {
            whole = false;
            ++place_;
            digits();
        }
        if (peek() == 'e' || peek() == 'E') {
            whole = false;
            ++place_;
            if (peek() == '+' || peek() == '-') ++place_;
            digits();
        }
        const std::string written = text_.substr(start, place_ - start);
        found.number_ = parsed_number(written);
        if (whole) {
            errno = 0;
            const long long exact = std::strtoll(written.c_str(), nullptr, 10);
            if (errno == 0) found.integer_ = exact;
        }
        return found;
    }

    void digits() {
        if (!is_digit(peek())) fail("a number without digits");
        while (is_digit(peek())) ++place_;
    }

    unsigned unit() {
        unsigned number = 0;
        for (int index = 0; index < 4; ++index, ++place_) {
            const char letter = peek();
            const int digit = is_digit(letter)                    ? letter - '0'
                              : letter >= 'a' && letter <= 'f' ? letter - 'a' + 10
                              : letter >= 'A' && letter <= 'F' ? letter - 'A' + 10
                                                               : -1;
            if (digit < 0) fail("a wrong escape");
            number = number * 16 + static_cast<unsigned>(digit);
        }
        return number;
    }

    void escape(std::string &into) {
        const char letter = peek();
        ++place_;
        switch (letter) {
            case '"': case '\\': case '/': into += letter; return;
            case 'b': into += '\b'; return;
            case 'f': into += '\f'; return;
            case 'n': into += '\n'; return;
            case 'r': into += '\r'; return;
            case 't': into += '\t'; return;
            case 'u': break;
            default: fail("a wrong escape");
        }
        char32_t code = unit();
        if (code >= 0xd800 && code < 0xdc00 && text_.compare(place_, 2, "\\u") == 0) {
            const std::size_t before = place_;
            place_ += 2;
            const char32_t second = unit();
            if (second >= 0xdc00 && second < 0xe000) {
                code = 0x10000 + ((code - 0xd800) << 10) + (second - 0xdc00);
            } else {
                place_ = before;
            }
        }
        append_letter(into, code >= 0xd800 && code < 0xe000 ? 0xfffd : code);  // half a pair is no letter
    }

    std::string string() {
        std::string found;
        for (++place_;;) {
            if (place_ >= text_.size()) fail("a text without an end");
            const char letter = text_[place_];
            if (static_cast<unsigned char>(letter) < 0x20) fail("a control character in a text");
            ++place_;
            if (letter == '"') return found;
            if (letter == '\\') {
                escape(found);
            } else {
                found += letter;
            }
        }
    }

    Json array(int depth) {
        Json found;
        found.kind_ = Json::Kind::array;
        ++place_;
        skip();
        if (take("]")) return found;
        for (;;) {
            found.array_.push_back(value(depth + 1));
            skip();
            if (take("]")) return found;
            if (!take(",")) fail("no comma between values");
        }
    }

    Json object(int depth) {
        Json found;
        found.kind_ = Json::Kind::object;
        ++place_;
        skip();
        if (take("}")) return found;
        for (;;) {
            skip();
            if (peek() != '"') fail("no name of a member");
            std::string name = string();
            skip();
            if (!take(":")) fail("no colon after a name");
            found.object_.insert_or_assign(std::move(name), value(depth + 1));
            skip();
            if (take("}")) return found;
            if (!take(",")) fail("no comma between members");
        }
    }

    const std::string &text_;
    std::size_t place_ = 0;
};

Json Json::parse(const std::string &text) { return JsonReader(text).document(); }

void Json::want(Kind kind, const std::string &what) const {
    if (kind_ != kind) throw JsonError(what + " is " + KINDS[static_cast<int>(kind_)] + ", " + KINDS[static_cast<int>(kind)] + " was wanted");
}

bool Json::boolean(const std::string &what) const { return want(Kind::boolean, what), boolean_; }
double Json::number(const std::string &what) const { return want(Kind::number, what), number_; }
const std::string &Json::string(const std::string &what) const { return want(Kind::string, what), string_; }
const std::vector<Json> &Json::array(const std::string &what) const { return want(Kind::array, what), array_; }
const std::map<std::string, Json> &Json::object(const std::string &what) const { return want(Kind::object, what), object_; }

std::int64_t Json::integer(const std::string &what) const {
    want(Kind::number, what);
    if (!integer_) throw JsonError(what + " is no whole number of 64 bits");
    return *integer_;
}

const Json *Json::find(const std::string &name) const noexcept {
    const auto found = object_.find(name);
    return found == object_.end() ? nullptr : &found->second;
}

const Json &Json::at(const std::string &name) const {
    want(Kind::object, "what holds " + name);
    const Json *found = find(name);
    if (!found) throw JsonError(name + " is missing");
    return *found;
}

}  // namespace yolact::detail
