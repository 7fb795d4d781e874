#include "settings.hpp"

#include "blocks.cuh"
#include "errors.hpp"
#include "text.hpp"

namespace yolact::detail {

namespace {

constexpr std::int64_t MOST_OUTLINE_BYTES = 40'000;  // dynamic shared memory that every GPU has beside the static part
constexpr std::int64_t MOST_GIVEN = 65'535;          // blocks of a grid in y
constexpr std::int64_t MOST_PRIORS = std::int64_t{1} << 31, MOST_SCORES = std::int64_t{1} << 32;

void check_share(const char *name, float value) {
    if (value >= 0 && value <= 1) return;
    throw config_error(std::string(name) + " is " + python_float(value) + ", a number from 0 to 1 was wanted.",
                       std::string("Set ") + name + " to a value in that range.");
}

void check_count(const char *name, int value, bool limited) {
    if (value < 1) {
        throw config_error(std::string(name) + " is " + std::to_string(value) + ", a whole number from 1 on was wanted.",
                           std::string("Set ") + name + " to 1 or more.");
    }
    if (limited && value > LARGEST_K) {
        throw config_error(std::string(name) + " is " + std::to_string(value) + ", the GPU ranks at most " + std::to_string(LARGEST_K) + ".",
                           std::string("Set ") + name + " to " + std::to_string(LARGEST_K) + " or less.");
    }
}

const EngineTensor &output(const Engine &engine, const std::string &name, std::size_t axes) {
    const EngineTensor *found = engine.find(name);
    if (!found || found->input) throw model_error(engine.name() + " has no output " + name + ".", "Export and build it again.");
    if (found->shape.size() != axes) {
        throw model_error("The output " + name + " of " + engine.name() + " is [B, " + shape_text(found->shape).substr(1) + ", " +
                              std::to_string(axes) + " axes after the batch were wanted.",
                          "Export and build it again.");
    }
    return *found;
}

void check_dtype(const EngineTensor &tensor, bool half_too) {
    if (tensor.dtype == "float32" || (half_too && tensor.dtype == "float16")) return;
    throw config_error(tensor.name + " is " + tensor.dtype + ", float32" + (half_too ? " or float16" : "") + " was wanted.", "Build it again.");
}

void check_shape(const Engine &engine, const EngineTensor &tensor, const std::vector<std::int64_t> &wanted) {
    if (tensor.shape == wanted) return;
    throw model_error("The output " + tensor.name + " of " + engine.name() + " is " + shape_text(tensor.shape) + " a picture, " +
                          shape_text(wanted) + " would fit the others.",
                      "Export and build it again.");
}

struct Sizes {
    std::int64_t priors = 0, classes = 0, prototypes = 0, height = 0, width = 0;
};

Sizes head_sizes(const Engine &engine) {
    const EngineTensor &boxes = output(engine, "boxes", 2), &scores = output(engine, "scores", 2);
    const EngineTensor &coefficients = output(engine, "coefficients", 2), &prototypes = output(engine, "prototypes", 3);
    for (const EngineTensor *each : {&boxes, &scores, &coefficients, &prototypes}) check_dtype(*each, true);
    check_shape(engine, boxes, {scores.shape[0], 4});
    check_shape(engine, coefficients, {scores.shape[0], prototypes.shape[0]});
    return {scores.shape[0], scores.shape[1], prototypes.shape[0], prototypes.shape[1], prototypes.shape[2]};
}

Sizes given_sizes(const Engine &engine, bool masks, std::int64_t classes) {
    const EngineTensor &boxes = output(engine, "detections_boxes", 2), &scores = output(engine, "detections_scores", 1);
    const EngineTensor &labels = output(engine, "detections_labels", 1);
    const std::int64_t rows = labels.shape[0];
    if (labels.dtype != "int32") throw config_error(labels.name + " is " + labels.dtype + ", int32 was wanted.", "Build it again.");
    check_dtype(boxes, true);
    check_dtype(scores, false);
    check_shape(engine, boxes, {rows, 4});
    check_shape(engine, scores, {rows});
    if (masks) {
        const EngineTensor &samples = output(engine, "detections_masks", 3);
        check_dtype(samples, true);
        check_shape(engine, samples, {rows, samples.shape[1], samples.shape[2]});
        if (const EngineTensor *rescored = engine.find("detections_mask_scores")) {
            check_dtype(*rescored, false);
            check_shape(engine, *rescored, {rows});
        }
        return {rows, classes, 0, samples.shape[1], samples.shape[2]};
    }
    const EngineTensor &coefficients = output(engine, "detections_coefficients", 2), &prototypes = output(engine, "prototypes", 3);
    check_dtype(coefficients, true);
    check_dtype(prototypes, true);
    check_shape(engine, coefficients, {rows, prototypes.shape[0]});
    return {rows, classes, prototypes.shape[0], prototypes.shape[1], prototypes.shape[2]};
}

}  // namespace

Settings Settings::of(const Manifest &manifest, const Options &options) {
    const Thresholds &made_for = manifest.thresholds;
    Settings found;
    found.nms = options.nms.value_or(Nms::fast);
    found.score_threshold = options.score_threshold.value_or(static_cast<float>(made_for.score));
    found.iou_threshold = options.iou_threshold.value_or(static_cast<float>(made_for.iou));
    found.top_k = options.top_k.value_or(made_for.top_k);
    found.max_detections = options.max_detections.value_or(made_for.max_detections);
    if (manifest.postprocess != "none") {
        if (options.nms || options.score_threshold || options.iou_threshold || options.top_k || options.max_detections) {
            throw config_error("The graph has its NMS inside (--postprocess " + manifest.postprocess + "), so its settings cannot be changed.",
                               "Export with --postprocess none.");
        }
        return found;
    }
    if (found.nms != Nms::fast && found.nms != Nms::cross_class && found.nms != Nms::traditional) {
        throw config_error("nms is " + std::to_string(static_cast<int>(found.nms)) + ", one of fast, cross-class, traditional was wanted.",
                           "Choose one of these.");
    }
    check_share("score_threshold", found.score_threshold);
    check_share("iou_threshold", found.iou_threshold);
    check_count("top_k", found.top_k, found.nms != Nms::traditional);
    check_count("max_detections", found.max_detections, true);
    return found;
}

HeadShapes HeadShapes::of(const Engine &engine, const Manifest &manifest) {
    const GraphKind graph = manifest.postprocess == "none"  ? GraphKind::none
                            : manifest.postprocess == "nms" ? GraphKind::nms
                                                            : GraphKind::masks;
    const std::int64_t named = static_cast<std::int64_t>(manifest.names.size()) + 1;
    const Sizes sizes = graph == GraphKind::none ? head_sizes(engine) : given_sizes(engine, graph == GraphKind::masks, named);
    if (sizes.classes != named) {
        throw model_error("The output scores of " + engine.name() + " has " + std::to_string(sizes.classes) +
                              " classes with background, its sidecar names " + std::to_string(named - 1) + " without.",
                          "Export and build it again.");
    }
    const bool empty = sizes.priors < 1 || sizes.height < 1 || sizes.width < 1 || (graph != GraphKind::masks && sizes.prototypes < 1);
    if (empty) throw model_error("The outputs of " + engine.name() + " are empty.", "Export and build it again.");
    const std::string mend = "Use the Python package, with postprocess='cpu'.";
    if (sizes.priors >= MOST_PRIORS || sizes.priors * (sizes.classes - 1) >= MOST_SCORES) {
        throw config_error(std::to_string(sizes.priors) + " priors of " + std::to_string(sizes.classes) + " classes are 2^32 scores or more.", mend);
    }
    if (graph != GraphKind::none && sizes.priors > MOST_GIVEN) {
        throw config_error("The graph gives " + std::to_string(sizes.priors) + " detections, at most " + std::to_string(MOST_GIVEN) + " were wanted.",
                           mend);
    }
    if (sizes.prototypes > MOST_PROTOTYPES) {
        throw config_error(std::to_string(sizes.prototypes) + " prototypes were given, the GPU's mask assembly takes " +
                               std::to_string(MOST_PROTOTYPES) + ".",
                           mend);
    }
    const std::int64_t outline = sizes.height > 100'000 || sizes.width > 100'000 ? MOST_OUTLINE_BYTES + 1
                                                                                 : 4 * (sizes.width * ((sizes.height + 31) / 32) + sizes.height + 1);
    if (outline > MOST_OUTLINE_BYTES) {
        throw config_error("Prototypes of " + std::to_string(sizes.height) + " x " + std::to_string(sizes.width) +
                               " samples need more shared memory than the " + with_commas(MOST_OUTLINE_BYTES) + " bytes that can be had.",
                           mend);
    }
    return {graph,
            static_cast<int>(sizes.priors),
            static_cast<int>(sizes.classes),
            static_cast<int>(sizes.prototypes),
            static_cast<int>(sizes.height),
            static_cast<int>(sizes.width)};
}

int HeadShapes::slots(const Settings &settings) const {
    if (graph != GraphKind::none) return priors;
    return settings.nms == Nms::cross_class ? settings.top_k : settings.max_detections;
}

}  // namespace yolact::detail
