// NVIDIA's driver, opened when it is first needed, so that programs with this library start where there is none; and owners of what it gives.
//
// The driver interface rather than the runtime: one library for every CUDA from 12 on, and a context that TensorRT shares, the primary one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "yolact_deploy/export.h"

namespace yolact::detail {

using DevicePointer = std::uint64_t;

struct DriverCalls;

// One GPU's primary context. Its handles are owned by the classes below, each of which keeps the Driver.
class Driver {
public:
    // For `who`, as messages name it. Throws ErrorCode::device where there is no driver, it is older than CUDA 12, or there is no such GPU.
    static std::shared_ptr<Driver> open(int device, const std::string &who);
    ~Driver();
    Driver(const Driver &) = delete;
    Driver &operator=(const Driver &) = delete;

    const DriverCalls &calls() const noexcept { return *calls_; }
    const std::string &where() const noexcept { return where_; }  // "GPU 0 (NVIDIA H200)"
    const std::string &name() const noexcept { return name_; }
    int major() const noexcept { return major_; }
    int minor() const noexcept { return minor_; }
    int device() const noexcept { return device_; }
    void *context() const noexcept { return context_; }

    // Throws ErrorCode::device unless `code` is 0; `call` names the function that gave it.
    void check(int code, const char *call) const;

    // Throws what failed before where that cannot be mended in this process; every later call of CUDA would fail in other words.
    void check_not_lost() const;

    // Remember `code` of `call`, where that is such an error, without throwing.
    void note(int code, const char *call) const noexcept;

    std::size_t free_memory() const;

    // Whether these addresses can be read where they are said to be.
    bool is_device_memory(DevicePointer pointer) const;
    bool is_device_only(const void *pointer) const;

private:
    Driver(const DriverCalls &calls, int device, const std::string &who);
    std::string told(int code, const char *call) const;

    const DriverCalls *calls_;
    int device_;
    int handle_ = 0, major_ = 0, minor_ = 0;
    void *context_ = nullptr;
    std::string where_, name_;
};

// For its life the driver's context is the thread's current one, and captures by other threads, of the program's own streams for example, do not
// forbid this thread to allocate.
class Active {
public:
    explicit Active(const Driver &driver);
    ~Active();
    Active(const Active &) = delete;
    Active &operator=(const Active &) = delete;

private:
    const Driver &driver_;
    bool pushed_;
    int mode_;
};

// Memory of the GPU, or page-locked memory of the host that the GPU reaches under the same address. Empty when made without a size.
class Buffer {
public:
    enum class Kind { device, pinned };

    Buffer() noexcept = default;
    Buffer(std::shared_ptr<Driver> driver, Kind kind, std::size_t size);
    ~Buffer();
    Buffer(Buffer &&other) noexcept;
    Buffer &operator=(Buffer &&other) noexcept;

    DevicePointer pointer() const noexcept { return pointer_; }
    std::size_t size() const noexcept { return size_; }
    template <typename T>
    T *as() const noexcept {
        return reinterpret_cast<T *>(static_cast<std::uintptr_t>(pointer_));
    }

private:
    std::shared_ptr<Driver> driver_;
    Kind kind_ = Kind::device;
    DevicePointer pointer_ = 0;
    std::size_t size_ = 0;
};

class Event {
public:
    explicit Event(std::shared_ptr<Driver> driver);
    ~Event();
    Event(const Event &) = delete;
    Event &operator=(const Event &) = delete;

    void record(cudaStream_t stream);
    void synchronize() const;  // throws what the work before it met
    void *handle() const noexcept { return handle_; }

private:
    std::shared_ptr<Driver> driver_;
    void *handle_ = nullptr;
};

class Stream {
public:
    explicit Stream(std::shared_ptr<Driver> driver);
    ~Stream();
    Stream(const Stream &) = delete;
    Stream &operator=(const Stream &) = delete;

    cudaStream_t get() const noexcept { return handle_; }

private:
    std::shared_ptr<Driver> driver_;
    cudaStream_t handle_ = nullptr;
};

// Work recorded on a stream, to be launched as a whole.
class Graph {
public:
    // Records what `work` queues on `stream`. Throws what it throws; nothing of the recording stays then.
    template <typename Work>
    Graph(std::shared_ptr<Driver> driver, cudaStream_t stream, const Work &work) : driver_(std::move(driver)) {
        begin(stream);
        try {
            work();
        } catch (...) {
            abandon(stream);
            throw;
        }
        end(stream);
    }
    ~Graph();
    Graph(const Graph &) = delete;
    Graph &operator=(const Graph &) = delete;

    void launch(cudaStream_t stream) const;

private:
    void begin(cudaStream_t stream);
    void abandon(cudaStream_t stream) noexcept;
    void end(cudaStream_t stream);

    std::shared_ptr<Driver> driver_;
    void *handle_ = nullptr;
};

struct Blocks {
    unsigned x = 1, y = 1, z = 1;
};

class Module;

class Kernel {
public:
    Kernel() noexcept = default;
    // `argument` is the kernel's one argument, read before this returns.
    void launch(const Driver &driver, Blocks blocks, unsigned threads, unsigned shared, cudaStream_t stream, const void *argument) const;

private:
    friend class Module;
    void *handle_ = nullptr;
    const char *name_ = "";
};

// The library's kernels on one GPU.
class Module {
public:
    // Throws ErrorCode::device where no image that was built in runs on this GPU.
    explicit Module(std::shared_ptr<Driver> driver);
    ~Module();
    Module(const Module &) = delete;
    Module &operator=(const Module &) = delete;

    // `name` has to outlive the kernel; `shared` bytes of dynamic shared memory are allowed for.
    Kernel kernel(const char *name, unsigned shared = 0) const;

private:
    std::shared_ptr<Driver> driver_;
    void *handle_ = nullptr;
};

// Queue a copy or a fill.
void copy_to_device(const Driver &driver, DevicePointer target, const void *source, std::size_t size, cudaStream_t stream);
void copy_to_host(const Driver &driver, void *target, DevicePointer source, std::size_t size, cudaStream_t stream);
void copy_on_device(const Driver &driver, DevicePointer target, DevicePointer source, std::size_t size, cudaStream_t stream);
void clear(const Driver &driver, DevicePointer target, std::size_t size, cudaStream_t stream);

// What `later` gets from now on comes after all that `event` stands behind.
void wait_for(const Driver &driver, cudaStream_t later, const Event &event);
void synchronize(const Driver &driver, cudaStream_t stream);

}  // namespace yolact::detail
