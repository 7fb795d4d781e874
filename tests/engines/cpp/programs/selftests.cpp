// Runs the self-test of each engine that a line of text names, and answers with a line of JSON; the last line is what was left behind.
// With the argument "changed" under options that a self-test takes no notice of.
#include <iostream>

#include "harness.hpp"

namespace {

std::string answer(const std::string &path, const yolact::Options &options) {
    const long runs = standin_count(2), captured = standin_count(1);
    const yolact::SelftestResult result = yolact::selftest(path, options);
    std::string json = std::string("{\"passed\": ") + (result.passed ? "true" : "false") + ", \"checked\": " + std::to_string(result.checked);
    json += ", \"runs\": " + std::to_string(standin_count(2) - runs) + ", \"captured\": " + std::to_string(standin_count(1) - captured);
    json += ", \"problems\": [";
    for (std::size_t index = 0; index < result.problems.size(); ++index) json += (index ? ", " : "") + quoted(result.problems[index]);
    return json + "]}";
}

}  // namespace

int main(int count, char **) {
    yolact::Options options;
    if (count > 1) {
        options.masks = yolact::Masks::none;
        options.nms = yolact::Nms::cross_class;
        options.score_threshold = 0.99f;
        options.iou_threshold = 0.0f;
        options.top_k = 1;
        options.max_detections = 1;
    }
    for (std::string path; std::getline(std::cin, path);) {
        try {
            std::printf("%s\n", answer(path, options).c_str());
        } catch (const yolact::Error &error) {
            std::printf("{\"code\": %d, \"error\": %s}\n", static_cast<int>(error.code()), quoted(error.what()).c_str());
        }
    }
    std::printf("%s\n", quoted(left_behind()).c_str());
    return 0;
}
