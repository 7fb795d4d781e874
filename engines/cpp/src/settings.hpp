// What post-processing is told, and the sizes of what it works on; as Python's PostprocessSettings and HeadShapes.
#pragma once

#include <cstddef>
#include <string>

#include "manifest.hpp"
#include "tensorrt.hpp"
#include "yolact_deploy/detector.hpp"

namespace yolact::detail {

struct Settings {
    Nms nms = Nms::fast;
    float score_threshold = 0, iou_threshold = 0;
    int top_k = 0, max_detections = 0;

    // The sidecar's thresholds with what `options` change. Throws ErrorCode::config for values out of range, or for any of an engine that has its
    // NMS inside.
    static Settings of(const Manifest &manifest, const Options &options);
};

// What an engine's graph does of the post-processing itself.
enum class GraphKind { none, nms, masks };

// The sizes of an engine's outputs, the batch left out: P priors, or the detections that a graph with NMS inside gives; C classes with
// background; K prototypes of h x w, none of a graph that assembles masks.
struct HeadShapes {
    GraphKind graph = GraphKind::none;
    int priors = 0, classes = 0, prototypes = 0, height = 0, width = 0;

    // Throws ErrorCode::model_file for outputs that are missing or do not fit each other, ErrorCode::config for sizes that the kernels do not
    // take.
    static HeadShapes of(const Engine &engine, const Manifest &manifest);

    // Dynamic shared memory of a block that walks outlines.
    unsigned outline_bytes() const { return 4u * static_cast<unsigned>(width * ((height + 31) / 32) + height + 1); }

    // D, the detections that a picture can have.
    int slots(const Settings &settings) const;
};

}  // namespace yolact::detail
