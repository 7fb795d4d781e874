// Prints what an engine finds in pictures as COCO results, the same JSON as `yolact-deploy predict ENGINE PICTURE --json FILE` writes.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include <yolact_deploy/yolact.hpp>

#include "picture_file.hpp"

namespace {

constexpr const char *USAGE =
    "usage: detect_image ENGINE PICTURE... [options]\n"
    "  --score-threshold X   keep detections that score above this (default 0.15)\n"
    "  --raw WIDTHxHEIGHT    the pictures are files of RGB bytes of this size\n"
    "  --nms KIND            fast, cross-class or traditional (default fast)\n"
    "  --selftest            run the engine's self-test first\n";

struct Arguments {
    std::string engine;
    std::vector<std::string> pictures;
    float score_threshold = 0.15f;
    int raw_width = 0, raw_height = 0;
    bool selftest = false;
    yolact::Options options;
};

float score_of(const std::string &text) {
    char *end = nullptr;
    const float score = std::strtof(text.c_str(), &end);
    if (text.empty() || *end || !(score >= 0 && score <= 1)) {
        throw std::invalid_argument("--score-threshold is " + text + ", a number from 0 to 1 was wanted.");
    }
    return score;
}

Arguments parsed(int count, char **texts) {
    Arguments arguments;
    std::vector<std::string> names;
    const auto value = [&](int &index) -> std::string {
        if (index + 1 >= count) throw std::invalid_argument(std::string(texts[index]) + " wants a value.");
        return texts[++index];
    };
    for (int index = 1; index < count; ++index) {
        const std::string text = texts[index];
        if (text == "--score-threshold") {
            arguments.score_threshold = score_of(value(index));
        } else if (text == "--raw") {
            const std::string size = value(index);
            char rest = 0;
            const int read = std::sscanf(size.c_str(), "%5dx%5d%c", &arguments.raw_width, &arguments.raw_height, &rest);
            if (read != 2 || arguments.raw_width < 1 || arguments.raw_height < 1) {
                throw std::invalid_argument("--raw is " + size + ", a size such as 640x480 was wanted.");
            }
        } else if (text == "--nms") {
            const std::string kind = value(index);
            const std::vector<std::string> kinds = {"fast", "cross-class", "traditional"};
            const auto found = std::find(kinds.begin(), kinds.end(), kind);
            if (found == kinds.end()) throw std::invalid_argument("--nms is " + kind + ", fast, cross-class or traditional was wanted.");
            arguments.options.nms = static_cast<yolact::Nms>(found - kinds.begin());
        } else if (text == "--selftest") {
            arguments.selftest = true;
        } else if (text.compare(0, 2, "--") == 0) {
            throw std::invalid_argument("There is no option " + text + ".");
        } else {
            names.push_back(text);
        }
    }
    if (names.size() < 2) throw std::invalid_argument("An engine and a picture are wanted.");
    arguments.engine = names[0];
    arguments.pictures.assign(names.begin() + 1, names.end());
    return arguments;
}

// A letter of UTF-8 at `place`, which moves on behind it. What is none becomes a surrogate, as Python has it in names of files.
unsigned next_letter(const std::string &text, std::size_t &place) {
    const auto byte = [&text](std::size_t index) { return static_cast<unsigned char>(text[index]); };
    const unsigned first = byte(place++);
    const std::size_t more = first >= 0xf0 && first < 0xf5 ? 3 : first >= 0xe0 && first < 0xf0 ? 2 : first >= 0xc2 && first < 0xe0 ? 1 : 0;
    unsigned letter = more ? first & (0x3fu >> more) : first;
    bool right = first < 0x80 || (more && place + more <= text.size());
    for (std::size_t index = 0; right && index < more; ++index) {
        right = (byte(place + index) & 0xc0) == 0x80;
        letter = letter << 6 | (byte(place + index) & 0x3f);
    }
    const unsigned least[] = {0, 0x80, 0x800, 0x10000};
    if (!right || letter < least[more] || letter > 0x10ffff || (letter >= 0xd800 && letter < 0xe000)) return 0xdc00 + first;
    place += more;
    return letter;
}

// A JSON text as Python's json.dumps writes it.
std::string quoted(const std::string &text) {
    const std::string plain = "\"\\\b\f\n\r\t", marks = "\"\\bfnrt";
    std::string json = "\"";
    const auto escape = [&json](unsigned unit) {
        char code[8];
        std::snprintf(code, sizeof code, "\\u%04x", unit & 0xffff);
        json += code;
    };
    for (std::size_t place = 0; place < text.size();) {
        const unsigned letter = next_letter(text, place);
        const std::size_t mark = letter < 0x80 ? plain.find(static_cast<char>(letter)) : std::string::npos;
        if (mark != std::string::npos) {
            json += {'\\', marks[mark]};
        } else if (letter >= 0x20 && letter < 0x7f) {
            json += static_cast<char>(letter);
        } else if (letter < 0x10000) {
            escape(letter);
        } else {
            escape(0xd800 + ((letter - 0x10000) >> 10)), escape(0xdc00 + ((letter - 0x10000) & 0x3ff));
        }
    }
    return json + "\"";
}

// COCO's numeric id where the file's name is one (000000000139.jpg: 139), else the file's name; that too where `taken` has the id already.
std::string image_id(const std::string &path, std::set<std::string> &taken) {
    const std::filesystem::path file(path);
    const std::string stem = file.stem().string(), name = quoted(file.filename().string());
    std::string id = name;
    if (!stem.empty() && stem.find_first_not_of("0123456789") == std::string::npos) {
        id = stem.substr(std::min(stem.find_first_not_of('0'), stem.size() - 1));
    }
    return taken.insert(id).second ? id : name;
}

int run(const Arguments &arguments) {
    if (arguments.selftest) {
        const yolact::SelftestResult result = yolact::selftest(arguments.engine);
        for (const std::string &problem : result.problems) std::fprintf(stderr, "%s\n", problem.c_str());
        if (!result.passed) return 1;
    }
    yolact::Detector detector = yolact::Detector::load(arguments.engine, arguments.options);
    yolact::Results results;
    std::string all;
    std::set<std::string> ids;
    for (const std::string &path : arguments.pictures) {
        const PictureFile file = arguments.raw_width ? read_raw_picture(path, arguments.raw_width, arguments.raw_height) : read_picture(path);
        yolact::ImageView picture;
        picture.data = file.pixels.data();
        picture.width = file.width;
        picture.height = file.height;
        detector.detect({picture}, results);
        const std::string json = results[0].above(arguments.score_threshold).coco_json(image_id(path, ids));
        if (json.size() > 2) all += (all.empty() ? "" : ",\n ") + json.substr(1, json.size() - 2);
    }
    std::printf("[%s]\n", all.c_str());
    if (std::fflush(stdout) != 0) throw std::runtime_error("The results cannot be written.");
    return 0;
}

}  // namespace

int main(int count, char **texts) {
    try {
        return run(parsed(count, texts));
    } catch (const std::invalid_argument &error) {
        std::fprintf(stderr, "detect_image: %s\n%s", error.what(), USAGE);
        return 2;
    } catch (const std::exception &error) {
        std::fprintf(stderr, "detect_image: %s\n", error.what());
        return 1;
    }
}
