// Every check that is made of a plan before TensorRT gets it, because a plan is code that would run; as engines/sidecar.py makes them.
#pragma once

#include <string>

#include "manifest.hpp"

namespace yolact::detail {

// What runs engines here.
struct Machine {
    std::string backend;             // tensorrt or tensorrt-rtx
    std::vector<int> version;        // of the TensorRT that is loaded
    std::string gpu;
    Capability capability{};

    std::string title() const;       // "TensorRT 10.3.0.26"
};

// The bytes of the plan at `path`, which is whole and the one that its sidecar describes. Throws ErrorCode::model_file.
std::string read_plan(const std::string &path, const std::optional<Manifest> &sidecar);

// The mask-IoU engine's plan; empty for a variant without, or with the rescoring in the graph.
std::string read_mask_iou_plan(const std::string &path, const Manifest &manifest);

// That this TensorRT and this GPU run what was built. Throws ErrorCode::model_file with the command that rebuilds it.
void check_tensorrt(const std::string &path, const Target &target, const Machine &machine);
void check_gpu(const std::string &path, const Target &target, const Machine &machine);

}  // namespace yolact::detail
