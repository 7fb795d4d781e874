// An execution context with preprocessing before it and post-processing behind it, both with buffers of their own; as engines/detecting.py.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "driver.hpp"
#include "manifest.hpp"
#include "postprocessor.hpp"
#include "preprocessor.hpp"
#include "settings.hpp"
#include "storage.hpp"
#include "tensorrt.hpp"

namespace yolact::detail {

// What all contexts of a detector share.
struct Model {
    std::shared_ptr<Driver> driver;
    Manifest manifest;
    std::shared_ptr<const Manifest> shown;  // the same for results, which may outlive the engine and do not keep it
    Settings settings;
    HeadShapes shapes;
    Masks masks = Masks::rle;
    bool graphs = true;
    std::size_t rle_bytes = 0;
    std::unique_ptr<Module> module;
    std::shared_ptr<const Engine> engine, mask_iou;
};

// The mask-IoU net between mask assembly and the final scores. How many masks there are is known on the GPU alone, so it runs on all slots, in
// pieces of its largest batch.
class Rescoring {
public:
    Rescoring(const std::shared_ptr<const Engine> &engine, int slots, cudaStream_t stream);

    DevicePointer enqueue(DevicePointer masks, int count, cudaStream_t stream);
    bool can_capture(cudaStream_t stream) const { return context_.can_capture(stream); }
    std::size_t device_bytes() const { return given_.size() + found_.size() + answers_.size(); }

private:
    const Engine &engine_;
    ExecutionContext context_;
    const EngineTensor &masks_, &ious_;
    Buffer given_, found_, answers_;
};

// For one thread at a time. After an exception nothing of it is under way.
class Context {
public:
    explicit Context(std::shared_ptr<const Model> model);
    ~Context();
    Context(const Context &) = delete;
    Context &operator=(const Context &) = delete;

    // Queue everything for pictures that were checked, up to the engine's largest batch of them; for no stream on the context's own.
    void enqueue(Span<const ImageView> pictures, cudaStream_t stream);

    // Wait for it and add what was found to `results`.
    void finish(Storage &results);

    // Wait for it, for nobody.
    void discard() noexcept;

    std::size_t device_bytes() const;

private:
    void start(Span<const ImageView> pictures, cudaStream_t stream);
    void wait_for_default_stream();
    void prepare(int batch);
    void capture();
    void execute(cudaStream_t stream);
    void drop_graph();
    void abandon(cudaStream_t stream) noexcept;
    void collect(int picture, Storage &results);
    void copy_bits(int picture, Storage &results);
    const EngineTensor &tensor(const char *name) const;
    Outputs outputs() const;

    std::shared_ptr<const Model> model_;
    Stream own_;
    Event done_, default_done_;
    ExecutionContext context_;
    std::vector<Buffer> buffers_;  // of the engine's tensors, in their order
    std::unique_ptr<Rescoring> rescoring_;
    Postprocessor post_;
    Preprocessor pre_;
    MaskIouNet net_;
    std::optional<Graph> graph_;
    bool graphs_;
    int batch_ = 0, runs_ = 0;
    std::vector<std::pair<int, int>> sizes_;
};

}  // namespace yolact::detail
