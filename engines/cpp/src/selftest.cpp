// The same rule as the Python package's yolact_deploy/runtime/selftesting.py, whose documentation has it; the numbers stand in the file.
#include "yolact_deploy/selftest.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>

#include "errors.hpp"
#include "files.hpp"
#include "json.hpp"
#include "manifest.hpp"
#include "rle.hpp"
#include "sha256.hpp"
#include "translated.hpp"
#include "utf8.hpp"

namespace yolact {

namespace {

using detail::Json;
using detail::JsonError;

constexpr std::int64_t SCHEMA = 1;  // the newest that is read
constexpr std::uintmax_t LARGEST_FILE = std::uintmax_t{64} << 20;
constexpr int LARGEST_SIDE = 4096;
constexpr double LARGEST_MASK_SCORE = 1e6;
constexpr int RUNS = 2;  // the second replays the CUDA graph that the first recorded

struct Item {
    std::int64_t label = 0;
    double score = 0;
    double box[4] = {};
    detail::Runs mask;
};

struct Test {
    int width = 0, height = 0;
    std::string pixels;  // RGB
    double score_threshold = 0, score_tolerance = 0, mask_iou = 0, box_iou = 0;
    std::vector<Item> expected;

    double limit() const { return score_threshold + score_tolerance; }
    int wanted() const {
        return static_cast<int>(std::count_if(expected.begin(), expected.end(), [this](const Item &item) { return item.score > limit(); }));
    }
};

void require(bool holds, const std::string &what) {
    if (!holds) throw JsonError(what);
}

double number(const Json &fields, const std::string &name, double low, double high) {
    const double found = fields.at(name).number(name);
    require(found >= low && found <= high, name + " is out of range");
    return found;
}

int whole(const Json &fields, const std::string &name, std::int64_t low, std::int64_t high) {
    const std::int64_t found = fields.at(name).integer(name);
    require(found >= low && found <= high, name + " is out of range");
    return static_cast<int>(found);
}

// RFC 4648, section 4, with nothing beside it.
std::string base64_bytes(const std::string &text) {
    require(text.size() % 4 == 0, "the picture's base64 is cut short");
    const std::size_t last = text.find_last_not_of('='), used = last == std::string::npos ? 0 : last + 1;
    require(text.size() - used <= 2, "the picture's base64 is wrong");
    std::string bytes;
    bytes.reserve(used * 3 / 4);
    std::uint32_t bits = 0;
    int count = 0;
    for (std::size_t place = 0; place < used; ++place) {
        const char letter = text[place];
        const int value = letter >= 'A' && letter <= 'Z'   ? letter - 'A'
                          : letter >= 'a' && letter <= 'z' ? letter - 'a' + 26
                          : letter >= '0' && letter <= '9' ? letter - '0' + 52
                          : letter == '+'                  ? 62
                          : letter == '/'                  ? 63
                                                           : -1;
        require(value >= 0, "the picture's base64 is wrong");
        bits = bits << 6 | static_cast<std::uint32_t>(value);
        count += 6;
        if (count < 8) continue;
        count -= 8;
        bytes += static_cast<char>(bits >> count & 0xff);
    }
    return bytes;
}

Item item_of(const Json &fields, int width, int height) {
    Item item;
    item.label = whole(fields, "label", 0, 1 << 20);
    item.score = static_cast<double>(static_cast<float>(number(fields, "score", 0, 1)));
    number(fields, "mask_score", 0, LARGEST_MASK_SCORE);
    const std::vector<Json> &box = fields.at("box").array("box");
    require(box.size() == 4, "a box has " + std::to_string(box.size()) + " numbers");
    for (std::size_t side = 0; side < 4; ++side) {
        const double found = box[side].number("a side of a box");
        require(found >= 0 && found <= (side % 2 ? height : width), "a box is outside the picture");
        item.box[side] = static_cast<double>(static_cast<float>(found));
    }
    require(item.box[0] <= item.box[2] && item.box[1] <= item.box[3], "a box is no box");
    const std::string &counts = fields.at("counts").string("counts");
    require(detail::read_runs(counts, static_cast<std::int64_t>(width) * height, item.mask), "the mask of a detection is damaged");
    return item;
}

Test test_of(const Json &fields) {
    Test test;
    test.score_tolerance = number(fields, "score_tolerance", 0, 1);
    test.mask_iou = number(fields, "mask_iou", 0, 1);
    test.box_iou = number(fields, "box_iou", 0, 1);
    test.score_threshold = number(fields, "score_threshold", 0, 1);
    const Json &picture = fields.at("picture");
    test.width = whole(picture, "width", 1, LARGEST_SIDE);
    test.height = whole(picture, "height", 1, LARGEST_SIDE);
    test.pixels = base64_bytes(picture.at("rgb").string("rgb"));
    const std::string size = std::to_string(test.width) + " x " + std::to_string(test.height) + " x 3";
    require(test.pixels.size() == static_cast<std::size_t>(test.width) * static_cast<std::size_t>(test.height) * 3,
            "the picture has " + std::to_string(test.pixels.size()) + " bytes of " + size);
    for (const Json &entry : fields.at("detections").array("detections")) test.expected.push_back(item_of(entry, test.width, test.height));
    const auto worse = [](const Item &a, const Item &b) { return a.score > b.score; };
    require(std::is_sorted(test.expected.begin(), test.expected.end(), worse), "the detections are not ordered by their scores");
    fields.at("reference").string("reference");
    require(test.wanted() > 0, "it wants nothing found");
    return test;
}

Test read_test(const std::string &engine, const detail::Target &target) {
    if (target.selftest.file.empty()) {
        throw detail::model_error(engine + " carries no self-test.", "Build it with: " + target.rebuild + " --with-selftest");
    }
    const std::string path = detail::beside(engine, target.selftest.file);
    const std::string mend = "Copy all files of the engine again, or rebuild it: " + target.rebuild;
    std::error_code ignored;
    if (!std::filesystem::is_regular_file(path, ignored)) {
        throw detail::model_error(engine + " needs its self-test " + detail::base_name(path) + " beside it, which is missing.", mend);
    }
    std::string content;
    const std::string reason = detail::read_file(path, LARGEST_FILE, content);
    if (reason == detail::TOO_LARGE) throw detail::model_error("The self-test " + path + " is larger than 64 MiB.", mend);
    if (!reason.empty()) throw detail::model_error("The self-test " + path + " cannot be read (" + reason + ").", mend);
    if (detail::sha256(content.data(), content.size()) != target.selftest.sha256) {
        throw detail::model_error(path + " is not the self-test that " + detail::base_name(engine) + " was built with: its SHA-256 differs.", mend);
    }
    Json fields;
    try {
        require(detail::is_utf8(content), "it is not UTF-8");
        fields = Json::parse(content);
        fields.at("schema");
    } catch (const JsonError &) {
        throw detail::model_error("The self-test " + path + " is damaged.", mend);
    }
    try {
        const std::int64_t schema = fields.at("schema").integer("schema");
        if (schema < 1 || schema > SCHEMA) {
            throw detail::model_error("The self-test " + path + " has schema " + std::to_string(schema) + ", this version reads up to " +
                                          std::to_string(SCHEMA) + ".",
                                      "Upgrade: pip install -U yolact-deploy");
        }
        return test_of(fields);
    } catch (const JsonError &error) {
        throw detail::model_error("The self-test " + path + " is damaged (" + error.what() + ").", mend);
    }
}

double box_iou(const Item &a, const Item &b) {
    const double wide = std::max(std::min(a.box[2], b.box[2]) - std::max(a.box[0], b.box[0]), 0.0);
    const double high = std::max(std::min(a.box[3], b.box[3]) - std::max(a.box[1], b.box[1]), 0.0);
    const auto area = [](const Item &item) { return (item.box[2] - item.box[0]) * (item.box[3] - item.box[1]); };
    const double together = area(a) + area(b) - wide * high;
    return together > 0 ? wide * high / together : 1;
}

std::string told(const std::vector<Item> &items, std::size_t place) {
    char text[80];
    std::snprintf(text, sizeof text, "detection %zu (label %lld, score %.4g)", place + 1, static_cast<long long>(items[place].label),
                  items[place].score);
    return text;
}

class Comparison {
public:
    Comparison(const Test &test, const std::vector<Item> &found) : test_(test), found_(found), partner_(test.expected.size(), NONE), taken_(found.size()) {
        for (std::size_t row = 0; row < test.expected.size(); ++row) {
            double best = -1;
            for (std::size_t column = 0; column < found.size(); ++column) {
                if (taken_[column] || !possible(row, column)) continue;
                const double masks = mask_iou(row, column);
                if (masks <= best) continue;
                best = masks;
                partner_[row] = column;
            }
            if (partner_[row] != NONE) taken_[partner_[row]] = true;
        }
    }

    SelftestResult result() const {
        SelftestResult result;
        result.checked = test_.wanted();
        for (std::size_t row = 0; row < test_.expected.size(); ++row) {
            if (test_.expected[row].score <= test_.limit() || partner_[row] != NONE) continue;
            result.problems.push_back("expected " + told(test_.expected, row) + " has no partner; nearest: " + nearest(row, NONE));
        }
        for (std::size_t column = 0; column < found_.size(); ++column) {
            if (found_[column].score <= test_.limit() || taken_[column]) continue;
            result.problems.push_back("found " + told(found_, column) + " is not expected; nearest: " + nearest(NONE, column));
        }
        result.passed = result.problems.empty();
        return result;
    }

private:
    static constexpr std::size_t NONE = static_cast<std::size_t>(-1);

    double mask_iou(std::size_t row, std::size_t column) const { return detail::mask_iou(test_.expected[row].mask, found_[column].mask); }
    double gap(std::size_t row, std::size_t column) const { return std::fabs(test_.expected[row].score - found_[column].score); }

    bool possible(std::size_t row, std::size_t column) const {
        const Item &expected = test_.expected[row], &found = found_[column];
        return expected.label == found.label && yolact::box_iou(expected, found) >= test_.box_iou && gap(row, column) <= test_.score_tolerance &&
               mask_iou(row, column) >= test_.mask_iou;
    }

    // What comes nearest to this row's or column's detection: of its label rather than of another, then by its box.
    std::string nearest(std::size_t row, std::size_t column) const {
        const bool to_row = column == NONE;
        const std::vector<Item> &others = to_row ? found_ : test_.expected;
        if (others.empty()) return to_row ? "nothing was found" : "nothing";
        const auto pair = [&](std::size_t other) { return to_row ? std::pair{row, other} : std::pair{other, column}; };
        const auto rank = [&](std::size_t other) {
            const auto [one, two] = pair(other);
            const double boxes = yolact::box_iou(test_.expected[one], found_[two]);
            return std::tuple{boxes > 0 && test_.expected[one].label == found_[two].label, boxes, -gap(one, two)};
        };
        std::size_t best = 0;
        for (std::size_t other = 1; other < others.size(); ++other)
            if (rank(other) > rank(best)) best = other;
        const auto [one, two] = pair(best);
        const double boxes = yolact::box_iou(test_.expected[one], found_[two]);
        if (!(boxes > 0)) return "nothing overlaps it";
        char text[200];
        std::snprintf(text, sizeof text, ", box IoU %.3f (least: %g), mask IoU %.3f (least: %g), score difference %.2g (most: %g)", boxes,
                      test_.box_iou, mask_iou(one, two), test_.mask_iou, gap(one, two), test_.score_tolerance);
        return told(others, best) + text;
    }

    const Test &test_;
    const std::vector<Item> &found_;
    std::vector<std::size_t> partner_;
    std::vector<bool> taken_;
};

std::vector<Item> items_of(const DetectionsView &view) {
    std::vector<Item> items;
    for (const Detection &one : view) {
        Item item;
        item.label = one.label;
        item.score = static_cast<double>(one.score);
        const float sides[] = {one.x1, one.y1, one.x2, one.y2};
        std::copy(std::begin(sides), std::end(sides), std::begin(item.box));
        detail::read_runs(std::string(one.rle), static_cast<std::int64_t>(view.width) * view.height, item.mask);
        items.push_back(std::move(item));
    }
    return items;
}

}  // namespace

SelftestResult selftest(const std::string &path, const Options &options) {
    return detail::translated([&] {
        Options made_for = options;  // the sidecar's settings, as the expected detections were found with
        made_for.masks = Masks::rle;
        made_for.nms.reset(), made_for.score_threshold.reset(), made_for.iou_threshold.reset();
        made_for.top_k.reset(), made_for.max_detections.reset();
        Detector detector = Detector::load(path, made_for);
        const std::optional<detail::Manifest> sidecar = detail::read_sidecar(path);
        if (!sidecar) throw detail::model_error(path + " lost its sidecar while it was loaded.", "Copy both files again.");
        const Test test = read_test(path, sidecar->target);
        for (const Item &item : test.expected) {
            if (static_cast<std::size_t>(item.label) < sidecar->names.size()) continue;
            throw detail::model_error("The self-test of " + path + " expects the label " + std::to_string(item.label) + ", its model has " +
                                          std::to_string(sidecar->names.size()) + " classes.",
                                      "Build the engine again.");
        }
        ImageView picture;
        picture.data = test.pixels.data();
        picture.width = test.width;
        picture.height = test.height;
        SelftestResult result;
        Results results;
        for (int run = 0; run < RUNS; ++run) {
            detector.detect({picture}, results);
            const std::vector<Item> found = items_of(results[0].above(static_cast<float>(test.score_threshold)));
            result = Comparison(test, found).result();
            if (!result.passed) break;
        }
        return result;
    });
}

}  // namespace yolact
