// An engine, ready to find instances in pictures.
#ifndef YOLACT_DEPLOY_DETECTOR_HPP
#define YOLACT_DEPLOY_DETECTOR_HPP

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "error.hpp"
#include "export.h"
#include "image.hpp"
#include "results.hpp"
#include "span.hpp"

namespace yolact {

// Which boxes of a ranking stay; see the Python package's PostprocessSettings.
enum class Nms : int {
    fast = 0,         // Fast NMS for each class (YOLACT, section 3.2)
    cross_class = 1,  // Fast NMS once over all classes; up to top_k detections
    traditional = 2,  // greedy NMS for each class
};

// Forms of masks; combine with |.
enum class Masks : unsigned {
    none = 0,
    rle = 1,          // COCO's compressed run lengths, made on the GPU: a few KB a picture cross the bus
    host_bits = 2,    // a bit a pixel, copied to the host
    device_bits = 4,  // a bit a pixel, left on the GPU: the Results keep the context that made them
};
constexpr Masks operator|(Masks a, Masks b) noexcept { return static_cast<Masks>(static_cast<unsigned>(a) | static_cast<unsigned>(b)); }
constexpr bool operator&(Masks a, Masks b) noexcept { return (static_cast<unsigned>(a) & static_cast<unsigned>(b)) != 0; }

// What `Detector::load` may be told; what is left out is as the engine's sidecar says.
struct Options {
    int device = 0;    // GPU, counted as CUDA does (CUDA_VISIBLE_DEVICES applies)
    int contexts = 2;  // calls that run at the same time, each with buffers of its own, made when it is first needed
    bool graphs = true;  // replay CUDA graphs where the batch stays the same
    Masks masks = Masks::rle;
    std::optional<Nms> nms;                // fast
    std::optional<float> score_threshold;  // a prior is a candidate where its best class is above; 0 … 1
    std::optional<float> iou_threshold;    // 0 … 1
    std::optional<int> top_k;              // boxes ranked for each class, 1 … 1024
    std::optional<int> max_detections;     // of a picture, 1 … 1024
    std::size_t rle_bytes = std::size_t{4} << 20;  // room for the compressed masks of a picture; it grows where it does not do
    std::string lean_runtime;  // for a version-compatible engine: its libnvinfer_lean.so
    // Hears TensorRT, of whatever it does in the process: 0 internal error, 1 error, 2 warning, 3 info; from any thread. It may not load engines.
    std::function<void(int severity, const char *text)> log;
};

// What an engine is.
struct Info {
    std::string variant, precision, device, tensorrt;  // "yolact_resnet50", "fp16", "NVIDIA H200", "TensorRT 10.16.1.11"
    int input_size = 0;                                // pixels a side
    int smallest_batch = 0, largest_batch = 0;         // pictures that the engine takes at once; calls take any number
    std::vector<std::string> names;                    // of the classes
    std::vector<std::int64_t> categories;              // COCO category ids of these
    std::size_t device_bytes = 0;                      // GPU memory of the buffers of idle contexts, TensorRT's own left out
};

// A loaded engine. Move-only; every method but the destructor and moving may be called from any number of threads: calls beyond
// Options::contexts wait for each other. After an error of the GPU itself every call throws ErrorCode::device with the same message; after
// any other error the detector is as usable as before.
class YOLACT_API Detector {
public:
    // Checks the plan and its sidecar as the Python package does, with its messages, then deserializes the plan on the GPU.
    // Throws ErrorCode::model_file for a file that is missing, damaged, foreign or made for another machine, ErrorCode::config for options that
    // contradict it, ErrorCode::device without such a GPU or without memory for it.
    static Detector load(const std::string &path, const Options &options = {});

    // Waits for calls and submissions under way; in a callback, for calls alone.
    ~Detector();
    Detector(Detector &&other) noexcept;
    Detector &operator=(Detector &&other) noexcept;
    Detector(const Detector &) = delete;
    Detector &operator=(const Detector &) = delete;

    // The instances in each picture, any number of pictures of any sizes; returns when they are there. Work goes to `stream`, which may have
    // pictures still being made on it, or, for nullptr, to one of the detector's own, which waits for the default stream if a picture is on
    // the device. Throws ErrorCode::picture for a picture that does not do, before anything runs, and ErrorCode::device where the GPU fails.
    Results detect(Span<const ImageView> pictures, cudaStream_t stream = nullptr);

    // The same into Results that are kept from call to call: after the first calls with such pictures nothing is allocated, on the host or GPU.
    // If it throws, `results` are empty.
    void detect(Span<const ImageView> pictures, Results &results, cudaStream_t stream = nullptr);

    // Queue the work and return at once, or when one of Options::contexts is free. At most Info::largest_batch pictures.
    std::future<Results> submit(Span<const ImageView> pictures, cudaStream_t stream = nullptr);

    // The same with a function that is called once, on a thread of the detector's, with the results or with what went wrong (std::exception_ptr
    // that is not null). Callbacks come in the order of the calls; one that blocks keeps the others back, and it must not call detect or
    // submit, or warm_up; it may end the detector. What it throws ends the program.
    using Callback = std::function<void(Results results, std::exception_ptr error)>;
    void submit(Span<const ImageView> pictures, Callback callback, cudaStream_t stream = nullptr);

    // Make all contexts and run each on `batch` grey pictures of this size until nothing more is allocated or captured. Calls with as many
    // pictures up to this size then cost what they always will; a call with another number of pictures than the one before on its context
    // sets the batch and, the time after, captures a graph anew.
    void warm_up(int width, int height, int batch = 1);

    Info info() const;

private:
    struct Implementation;
    explicit Detector(std::unique_ptr<Implementation> implementation);
    Implementation &implementation() const;
    std::unique_ptr<Implementation> implementation_;
};

}  // namespace yolact

#endif
