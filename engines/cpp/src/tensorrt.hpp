// The part of TensorRT that runs engines: 8.6, 10.x, 11.x and TensorRT-RTX, whichever the library is built with. No other file includes its headers.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "driver.hpp"
#include "manifest.hpp"
#include "plan.hpp"

namespace nvinfer1 {
class ICudaEngine;
class IExecutionContext;
class IRuntime;
}  // namespace nvinfer1

namespace yolact::detail {

// The backend and version of the TensorRT library that is loaded.
Machine tensorrt_here();

using LogListener = std::function<void(int severity, const char *text)>;

// An input or output: its dtype by NumPy's name, and its shape with the batch axis left out.
struct EngineTensor {
    std::string name, dtype;
    std::vector<std::int64_t> shape;
    bool input = false;

    std::size_t item_size() const;
    std::size_t bytes(std::size_t batch) const;
};

// For its life `listener` hears what TensorRT says, on any thread and of any engine.
class Listening {
public:
    explicit Listening(LogListener listener);
    ~Listening();
    Listening(const Listening &) = delete;
    Listening &operator=(const Listening &) = delete;
};

// A plan on one GPU, shared by any number of contexts. What throws and what it says is as of Python's Engine (engines/session.py).
class Engine {
public:
    // The plan must have passed the checks of plan.hpp: deserializing runs what is in it. Host code inside a plan stays forbidden.
    Engine(std::shared_ptr<Driver> driver, const std::string &plan, const std::string &name, const std::string &lean_runtime,
           LogListener listener);
    ~Engine();
    Engine(const Engine &) = delete;
    Engine &operator=(const Engine &) = delete;

    const std::shared_ptr<Driver> &driver() const noexcept { return driver_; }
    const std::string &name() const noexcept { return name_; }
    const std::vector<EngineTensor> &tensors() const noexcept { return tensors_; }  // inputs first
    const EngineTensor *find(const std::string &name) const noexcept;
    const BatchRange &batch() const noexcept { return batch_; }
    bool dynamic() const noexcept { return dynamic_; }
    std::vector<TensorSpec> specs() const;  // as a sidecar writes them

private:
    friend class ExecutionContext;
    EngineTensor tensor(const char *name) const;
    void read_batch();

    std::shared_ptr<Driver> driver_;
    std::string name_;
    Listening listening_;
    std::unique_ptr<nvinfer1::IRuntime> outer_, runtime_;  // `outer_` loaded a lean runtime
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::vector<EngineTensor> tensors_;
    BatchRange batch_;
    bool dynamic_ = false;
};

// One execution context; for one thread at a time.
class ExecutionContext {
public:
    // `stream` is only used here, to choose the optimization profile. Throws ErrorCode::device where GPU memory does not suffice.
    ExecutionContext(std::shared_ptr<const Engine> engine, cudaStream_t stream);
    ~ExecutionContext();
    ExecutionContext(const ExecutionContext &) = delete;
    ExecutionContext &operator=(const ExecutionContext &) = delete;

    const Engine &engine() const noexcept { return *engine_; }
    void set_address(const EngineTensor &tensor, DevicePointer address);
    void set_batch(int batch);
    void enqueue(cudaStream_t stream);

    // Whether it may be captured into a CUDA graph; TensorRT only fails to capture, TensorRT-RTX tells. Where the shapes of TensorRT-RTX are
    // dynamic it puts better kernels into later runs, which a captured graph would never see.
    bool can_capture(cudaStream_t stream) const;

private:
    std::shared_ptr<const Engine> engine_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    int batch_ = 0;
};

}  // namespace yolact::detail
