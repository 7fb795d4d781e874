// Answers one question a line, in hexadecimal so that any bytes may be in it: `json TEXT`, `sha256 DATA`, `float BITS`, `string UTF8`,
// `runs COUNTS PIXELS`, `iou COUNTS COUNTS PIXELS`, `commas NUMBER`. Linked with the static library, whose internals are called.
#include <cinttypes>
#include <cstring>
#include <iostream>
#include <sstream>

#include "harness.hpp"
#include "json.hpp"
#include "rle.hpp"
#include "sha256.hpp"
#include "text.hpp"

namespace {

using namespace yolact::detail;

std::string bytes_of(const std::string &hexadecimal_text) {
    std::string bytes;
    for (std::size_t place = 1; place + 1 < hexadecimal_text.size(); place += 2)  // behind an x, so that nothing is something too
        bytes += static_cast<char>(std::stoi(hexadecimal_text.substr(place, 2), nullptr, 16));
    return bytes;
}

std::string exact(double number) {
    std::uint64_t bits = 0;
    std::memcpy(&bits, &number, sizeof bits);
    if (number != number) bits = 0x7ff8000000000000;
    char text[20];
    std::snprintf(text, sizeof text, "%016" PRIx64, bits);
    return text;
}

// As test_internals.py writes what json.loads gives.
std::string shown(const Json &value) {
    switch (value.kind()) {
        case Json::Kind::null: return "null";
        case Json::Kind::boolean: return value.boolean("it") ? "true" : "false";
        case Json::Kind::string: return "s" + hexed(value.string("it").data(), value.string("it").size());
        case Json::Kind::number: {
            try {
                const std::int64_t whole = value.integer("it");
                return "n" + exact(whole ? value.number("it") : 0.0) + "i" + std::to_string(whole);  // -0 is an integer without a sign there
            } catch (const JsonError &) {
                return "n" + exact(value.number("it")) + "f";
            }
        }
        case Json::Kind::array: {
            std::string text = "[";
            for (const Json &each : value.array("it")) text += shown(each) + ",";
            return text + "]";
        }
        case Json::Kind::object: {
            std::string text = "{";
            for (const auto &[name, each] : value.object("it")) text += "s" + hexed(name.data(), name.size()) + ":" + shown(each) + ",";
            return text + "}";
        }
    }
    return "?";
}

std::string wrong_kinds(const Json &value) {
    std::string found;
    const auto tell = [&](const char *name, const auto &ask) {
        try {
            ask();
        } catch (const JsonError &error) {
            found += std::string(name) + ": " + error.what() + "; ";
        }
    };
    tell("boolean", [&] { value.boolean("it"); });
    tell("number", [&] { value.number("it"); });
    tell("integer", [&] { value.integer("it"); });
    tell("string", [&] { value.string("it"); });
    tell("array", [&] { value.array("it"); });
    tell("object", [&] { value.object("it"); });
    tell("member", [&] { value.at("name"); });
    return found;
}

std::string answer(const std::string &question, std::istringstream &words) {
    std::string one, two;
    words >> one >> two;
    if (question == "json" || question == "kinds") {
        try {
            const Json value = Json::parse(bytes_of(one));
            return question == "json" ? shown(value) : wrong_kinds(value);
        } catch (const JsonError &error) {
            return std::string("refused: ") + error.what();
        }
    }
    if (question == "sha256") {
        const std::string bytes = bytes_of(one);
        return sha256(bytes.data(), bytes.size());
    }
    if (question == "string") return json_string(bytes_of(one));
    if (question == "commas") return with_commas(std::stoull(one)) + " " + hexadecimal(std::stoull(one));
    if (question == "float") {
        const std::uint64_t bits = std::stoull(one, nullptr, 16);
        double number = 0;
        std::memcpy(&number, &bits, sizeof number);
        return python_float(number);
    }
    Runs a, b;
    if (question == "runs") {
        if (!read_runs(bytes_of(one), std::stoll(two), a)) return "refused";
        std::string text;
        for (const std::int64_t run : a) text += std::to_string(run) + " ";
        return text;
    }
    std::string pixels;
    words >> pixels;
    CHECK(question == "iou" && read_runs(bytes_of(one), std::stoll(pixels), a) && read_runs(bytes_of(two), std::stoll(pixels), b));
    return exact(mask_iou(a, b));
}

}  // namespace

int main() {
    for (std::string line; std::getline(std::cin, line);) {
        std::istringstream words(line);
        std::string question;
        words >> question;
        std::printf("%s\n", answer(question, words).c_str());
        std::fflush(stdout);
    }
    return 0;
}
