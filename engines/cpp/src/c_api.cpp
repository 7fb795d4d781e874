#include "yolact_deploy/yolact.h"

#include <algorithm>
#include <memory>
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

// This version's structures are the first: there are no smaller ones that have to be understood yet.
void check_size(std::size_t given, std::size_t wanted, const char *name) {
    if (given == wanted) return;
    throw config_error(std::string(name) + ".size is " + std::to_string(given) + ", " + std::to_string(wanted) + " was wanted.",
                       std::string("Set it to sizeof(") + name + ") of this version's header.");
}

yolact::Options options_of(const yolact_options *given) {
    yolact::Options options;
    if (!given) return options;
    check_size(given->size, sizeof *given, "yolact_options");
    options.device = given->device;
    if (given->contexts) options.contexts = given->contexts;
    options.graphs = !given->no_graphs;
    if (given->masks) options.masks = static_cast<yolact::Masks>(given->masks);
    if (given->settings & YOLACT_SET_NMS) options.nms = static_cast<yolact::Nms>(given->nms);
    if (given->settings & YOLACT_SET_SCORE) options.score_threshold = given->score_threshold;
    if (given->settings & YOLACT_SET_IOU) options.iou_threshold = given->iou_threshold;
    if (given->settings & YOLACT_SET_TOP_K) options.top_k = given->top_k;
    if (given->settings & YOLACT_SET_MAX_DETECTIONS) options.max_detections = given->max_detections;
    if (given->rle_bytes) options.rle_bytes = given->rle_bytes;
    if (given->lean_runtime) options.lean_runtime = given->lean_runtime;
    return options;
}

yolact::ImageView view_of(const yolact_image &given) {
    check_size(given.size, sizeof given, "yolact_image");
    yolact::ImageView view;
    view.data = given.data;
    view.width = given.width;
    view.height = given.height;
    view.pitch = given.pitch;
    view.format = static_cast<yolact::PixelFormat>(given.format);
    view.space = static_cast<yolact::MemorySpace>(given.space);
    view.chroma = given.chroma;
    view.chroma_pitch = given.chroma_pitch;
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
        std::unique_ptr<yolact_results> made(*results ? nullptr : new yolact_results{});
        detector->detector.detect(views, (made ? made.get() : *results)->results, stream);
        if (made) *results = made.release();
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
        check_size(detection->size, sizeof *detection, "yolact_detection");
        const yolact::Detection &own = detection_of(picture_of(results, picture), index);
        *detection = {sizeof *detection, own.x1, own.y1, own.x2, own.y2, own.score, own.mask_score, own.label, own.prior, own.rle.data(), own.rle.size()};
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

int yolact_device_bits(const yolact_results *results, size_t picture, const uint32_t **bits, size_t *mask_words, const int32_t **labels) {
    return guarded([&] {
        want(bits, "bits");
        want(mask_words, "mask_words");
        const yolact::DeviceMasksView own = picture_of(results, picture).device_masks;
        if (!own.bits) throw config_error("Masks as bits on the device were not asked for.", "Load with masks = YOLACT_DEVICE_BITS.");
        *bits = own.bits;
        *mask_words = own.mask_words;
        if (labels) *labels = own.labels;
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
