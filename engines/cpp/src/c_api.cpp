#include "yolact_deploy/yolact.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "errors.hpp"
#include "translated.hpp"
#include "version.hpp"
#include "yolact_deploy/yolact.hpp"

struct yolact_detector {
    yolact::Detector detector;
    yolact::Info info;
};

struct yolact_results {
    yolact::Results results;
    std::string json;
};

namespace {

using yolact::detail::config_error;

thread_local std::string last_error;

void remember(const char *text) noexcept {
    try {
        last_error = text;
    } catch (...) {
        last_error.clear();  // the host's memory ran out
    }
}

// The code of what `work` throws, which is kept for yolact_last_error.
template <typename Work>
int guarded(const Work &work) noexcept {
    try {
        yolact::detail::translated(work);
        return YOLACT_OK;
    } catch (const yolact::Error &error) {
        remember(error.what());
        return static_cast<int>(error.code());
    } catch (...) {
        remember("A mistake in yolact_deploy. Please report it.");
        return YOLACT_INTERNAL;
    }
}

template <typename Pointer>
void want(const Pointer *pointer, const char *name) {
    if (!pointer) throw config_error(std::string(name) + " is null.", "Give the address of one.");
}

// What a caller's structure, perhaps of an earlier version, has; the rest is 0.
template <typename Structure>
Structure completed(const Structure &given, const char *name) {
    constexpr std::size_t FIRST = sizeof(Structure);  // version 1 is the first
    if (given.size != FIRST) {
        throw config_error(std::string(name) + ".size is " + std::to_string(given.size) + ", " + std::to_string(FIRST) + " was wanted.",
                           std::string("Set it to sizeof(") + name + ") of this version's header.");
    }
    return given;
}

yolact::Options options_of(const yolact_options *given) {
    yolact::Options options;
    if (!given) return options;
    const yolact_options own = completed(*given, "yolact_options");
    options.device = own.device;
    if (own.contexts) options.contexts = own.contexts;
    options.graphs = own.graphs != 0;
    options.masks = static_cast<yolact::Masks>(own.masks);
    if (own.nms >= 0) options.nms = static_cast<yolact::Nms>(own.nms);
    if (!(own.score_threshold < 0)) options.score_threshold = own.score_threshold;
    if (!(own.iou_threshold < 0)) options.iou_threshold = own.iou_threshold;
    if (own.top_k >= 0) options.top_k = own.top_k;
    if (own.max_detections >= 0) options.max_detections = own.max_detections;
    if (own.rle_bytes) options.rle_bytes = own.rle_bytes;
    if (own.lean_runtime) options.lean_runtime = own.lean_runtime;
    return options;
}

yolact::ImageView view_of(const yolact_image &given) {
    const yolact_image own = completed(given, "yolact_image");
    yolact::ImageView view;
    view.data = own.data;
    view.width = own.width;
    view.height = own.height;
    view.pitch = own.pitch;
    view.format = static_cast<yolact::PixelFormat>(own.format);
    view.space = static_cast<yolact::MemorySpace>(own.space);
    view.chroma = own.chroma;
    view.chroma_pitch = own.chroma_pitch;
    return view;
}

yolact::DetectionsView picture_of(const yolact_results *results, std::size_t picture) {
    want(results, "results");
    if (picture >= results->results.size()) {
        throw config_error("Picture " + std::to_string(picture) + " of " + std::to_string(results->results.size()) + " was asked for.",
                           "Count from 0.");
    }
    return results->results[picture];
}

const yolact::Detection &detection_of(const yolact::DetectionsView &view, std::size_t index) {
    if (index < view.size()) return view[index];
    throw config_error("Detection " + std::to_string(index) + " of " + std::to_string(view.size()) + " was asked for.", "Count from 0.");
}

}  // namespace

const char *yolact_version(void) { return yolact::detail::VERSION; }

const char *yolact_last_error(void) { return last_error.c_str(); }

int yolact_load(const char *path, const yolact_options *options, yolact_detector **detector) {
    return guarded([&] {
        want(detector, "detector");
        *detector = nullptr;
        want(path, "path");
        yolact::Detector loaded = yolact::Detector::load(path, options_of(options));
        const yolact::Info info = loaded.info();
        *detector = new yolact_detector{std::move(loaded), info};
    });
}

void yolact_free(yolact_detector *detector) { delete detector; }

int yolact_detect(yolact_detector *detector, const yolact_image *images, size_t count, cudaStream_t stream, yolact_results **results) {
    return guarded([&] {
        want(results, "results");
        if (*results) (*results)->results.clear();
        want(detector, "detector");
        if (count) want(images, "images");
        static thread_local std::vector<yolact::ImageView> views;  // keeps its memory from call to call
        views.clear();
        for (std::size_t index = 0; index < count; ++index) views.push_back(view_of(images[index]));
        if (!*results) *results = new yolact_results{};
        detector->detector.detect(views, (*results)->results, stream);
    });
}

int yolact_warm_up(yolact_detector *detector, int width, int height, int batch) {
    return guarded([&] {
        want(detector, "detector");
        detector->detector.warm_up(width, height, batch);
    });
}

void yolact_results_free(yolact_results *results) { delete results; }

size_t yolact_pictures(const yolact_results *results) { return results ? results->results.size() : 0; }

size_t yolact_count(const yolact_results *results, size_t picture) {
    return picture < yolact_pictures(results) ? results->results[picture].size() : 0;
}

int yolact_get(const yolact_results *results, size_t picture, size_t index, yolact_detection *detection) {
    return guarded([&] {
        want(detection, "detection");
        const yolact::Detection &own = detection_of(picture_of(results, picture), index);
        *detection = {own.x1, own.y1, own.x2, own.y2, own.score, own.mask_score, own.label, own.prior, own.rle.data(), own.rle.size()};
    });
}

int yolact_bits(const yolact_results *results, size_t picture, size_t index, const uint32_t **bits, size_t *words) {
    return guarded([&] {
        want(bits, "bits");
        want(words, "words");
        const yolact::Span<const std::uint32_t> own = picture_of(results, picture).bits(index);
        *bits = own.data();
        *words = own.size();
    });
}

int yolact_device_bits(const yolact_results *results, size_t picture, const uint32_t **bits, size_t *mask_words) {
    return guarded([&] {
        want(bits, "bits");
        want(mask_words, "mask_words");
        const yolact::DeviceMasksView own = picture_of(results, picture).device_masks;
        if (!own.bits) throw config_error("Masks as bits on the device were not asked for.", "Load with masks = YOLACT_DEVICE_BITS.");
        *bits = own.bits;
        *mask_words = own.mask_words;
    });
}

const char *yolact_coco_json(yolact_results *results, size_t picture, const char *image_id) {
    const int code = guarded([&] {
        want(image_id, "image_id");
        const yolact::DetectionsView view = picture_of(results, picture);
        results->json = view.coco_json(image_id);
    });
    return code == YOLACT_OK ? results->json.c_str() : nullptr;
}

const char *yolact_class_name(const yolact_detector *detector, int label) {
    if (!detector || label < 0 || static_cast<std::size_t>(label) >= detector->info.names.size()) return nullptr;
    return detector->info.names[static_cast<std::size_t>(label)].c_str();
}

int64_t yolact_category_id(const yolact_detector *detector, int label) {
    if (!detector || label < 0 || static_cast<std::size_t>(label) >= detector->info.categories.size()) return -1;
    return detector->info.categories[static_cast<std::size_t>(label)];
}

int yolact_largest_batch(const yolact_detector *detector) { return detector ? detector->info.largest_batch : 0; }

int yolact_input_size(const yolact_detector *detector) { return detector ? detector->info.input_size : 0; }

int yolact_selftest(const char *path, const yolact_options *options, int *passed) {
    return guarded([&] {
        want(passed, "passed");
        *passed = 0;
        want(path, "path");
        const yolact::SelftestResult result = yolact::selftest(path, options_of(options));
        std::string problems;
        for (const std::string &problem : result.problems) problems += (problems.empty() ? "" : "\n") + problem;
        remember(problems.c_str());
        *passed = result.passed;
    });
}
