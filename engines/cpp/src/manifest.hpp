// What an engine's sidecar says; the Python package writes it (yolact_deploy/manifest.py, engines/sidecar.py).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "json.hpp"

namespace yolact::detail {

using Capability = std::array<int, 2>;  // major, minor

// "8.9".
std::string capability_text(const Capability &capability);

struct BatchRange {
    int smallest = 1, best = 1, largest = 1;
    bool fixed() const noexcept { return smallest == largest; }
    std::string text() const;  // "1:4:8"
};

struct TensorSpec {
    std::string name, dtype;
    std::vector<std::int64_t> shape;  // -1: the batch, where it varies
    std::string text() const;         // "float32 ['batch', 3, 550, 550]", as Python prints it
    bool operator==(const TensorSpec &other) const { return name == other.name && dtype == other.dtype && shape == other.shape; }
};

struct InputSpec {
    int size = 0;
    bool raw = false;  // uint8 [B, S, S, 3], else normalised [B, 3, S, S]
    bool bgr = false;
    std::array<float, 3> mean{}, std{};  // RGB, in 0 … 255
};

struct Thresholds {
    double score = 0, iou = 0;
    int top_k = 0, max_detections = 0;
};

struct NamedFile {
    std::string file, sha256;  // empty: there is none
};

// What the engine was built for and how.
struct Target {
    std::string backend, tensorrt_version, precision, sha256, gpu, hardware_level, rebuild;
    std::uint64_t size = 0;  // bytes of the plan
    BatchRange batch;
    std::vector<Capability> capabilities;
    bool version_compatible = false;
    NamedFile selftest;

    std::string title() const;  // "TensorRT 10.3.0"
    std::string where() const;  // the GPUs that it runs on
};

struct Manifest {
    std::string variant;
    bool mask_rescoring = false;
    std::vector<std::string> names;
    std::vector<std::int64_t> categories;
    InputSpec input;
    std::string postprocess;  // none, nms or masks
    Thresholds thresholds;
    std::vector<TensorSpec> inputs, outputs;
    NamedFile mask_iou;
    Target target;
};

// "TensorRT" or "TensorRT-RTX".
std::string backend_title(const std::string &backend);

// The sidecar of `engine`; nothing where there is none. Throws ErrorCode::model_file for a damaged one.
std::optional<Manifest> read_sidecar(const std::string &engine);

// Where it is: name.engine.json beside name.engine.
std::string sidecar_path(const std::string &engine);

}  // namespace yolact::detail
