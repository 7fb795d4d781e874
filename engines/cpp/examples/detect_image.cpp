// Prints what an engine finds in pictures as COCO results, the same JSON as `yolact-deploy predict ENGINE PICTURE --json FILE` writes.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
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
            arguments.score_threshold = std::stof(value(index));
        } else if (text == "--raw") {
            const std::string size = value(index);
            if (std::sscanf(size.c_str(), "%dx%d", &arguments.raw_width, &arguments.raw_height) != 2) {
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

// COCO's numeric id where the file's name is one (000000000139.jpg: 139), else the file's name.
std::string image_id(const std::string &path) {
    const std::filesystem::path file(path);
    const std::string stem = file.stem().string();
    if (!stem.empty() && stem.size() < 18 && stem.find_first_not_of("0123456789") == std::string::npos) return std::to_string(std::stoll(stem));
    std::string text = "\"";
    for (const char letter : file.filename().string()) {
        if (letter == '"' || letter == '\\') text += '\\';
        text += letter;
    }
    return text + "\"";
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
    for (const std::string &path : arguments.pictures) {
        const PictureFile file = arguments.raw_width ? read_raw_picture(path, arguments.raw_width, arguments.raw_height) : read_picture(path);
        yolact::ImageView picture;
        picture.data = file.pixels.data();
        picture.width = file.width;
        picture.height = file.height;
        detector.detect({picture}, results);
        const std::string json = results[0].above(arguments.score_threshold).coco_json(image_id(path));
        if (json.size() > 2) all += (all.empty() ? "" : ",\n ") + json.substr(1, json.size() - 2);
    }
    std::printf("[%s]\n", all.c_str());
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
