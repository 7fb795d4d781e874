#include "driver.hpp"

#include <map>
#include <mutex>

#include "driver_calls.hpp"
#include "errors.hpp"
#include "kernel_images.hpp"

namespace yolact::detail {

namespace {

// Numbers of CUDA's enumerations (cuda.h).
constexpr int INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_IMAGE = 200, NO_BINARY_FOR_GPU = 209, UNSUPPORTED_PTX = 222;
constexpr int CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76;  // CUdevice_attribute
constexpr int MEMORY_TYPE = 2, IS_MANAGED = 8, DEVICE_ORDINAL = 9;  // CUpointer_attribute
constexpr unsigned DEVICE_MEMORY = 2;                                // CUmemorytype
constexpr unsigned PORTABLE = 1, NONBLOCKING = 1, NO_TIMING = 2;
constexpr int RELAXED = 2;      // CUstreamCaptureMode
constexpr int MOST_SHARED = 8;  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
constexpr int OLDEST_CUDA = 12;
const char *const ELSEWHERE = "Run it on a machine with a GPU; yolact-deploy doctor tells what is here.";
const char *const RESTART = "The GPU's state is lost for this process: start the program again.";

// After these errors CUDA refuses everything else in the process.
bool is_lost(int code) {
    switch (code) {
        case 214: case 220: case 226:                                // ECC_UNCORRECTABLE, NVLINK_UNCORRECTABLE, CONTAINED
        case 700: case 702: case 710:                                // ILLEGAL_ADDRESS, LAUNCH_TIMEOUT, ASSERT
        case 714: case 715: case 716: case 717: case 718: case 719:  // HARDWARE_STACK_ERROR … LAUNCH_FAILED
        case 721:                                                    // TENSOR_MEMORY_LEAK
            return true;
        default: return false;
    }
}

std::string name_of(const DriverCalls &calls, int code) {
    const char *name = nullptr;
    return calls.cuGetErrorName(code, &name) == 0 && name ? name : "CUDA error " + std::to_string(code);
}

std::mutex lost_lock;
std::map<int, std::string> lost_messages;  // of each GPU: its primary context is the process's

}  // namespace

std::shared_ptr<Driver> Driver::open(int device, const std::string &who) {
    const DriverCalls *const calls = driver_calls();
    if (!calls) throw device_error(who + " needs a GPU, no NVIDIA driver was found.", ELSEWHERE);
    return std::shared_ptr<Driver>(new Driver(*calls, device, who));
}

Driver::Driver(const DriverCalls &calls, int device, const std::string &who)
    : calls_(&calls), device_(device), where_("GPU " + std::to_string(device)) {
    const int code = calls.cuInit(0);
    if (code == NO_DEVICE) throw device_error(who + " needs a GPU, the driver shows no GPU.", ELSEWHERE);
    if (code) {
        throw device_error("NVIDIA's driver does not start (cuInit: " + name_of(calls, code) + ").",
                           "See `nvidia-smi`; after a driver's update, restart.");
    }
    int version = 0, count = 0;
    check(calls.cuDriverGetVersion(&version), "cuDriverGetVersion");
    if (version < 1000 * OLDEST_CUDA) {
        throw device_error("NVIDIA's driver supports CUDA " + std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10) +
                               "; " + who + " needs " + std::to_string(OLDEST_CUDA) + ".0.",
                           "Update NVIDIA's driver.");
    }
    check(calls.cuDeviceGetCount(&count), "cuDeviceGetCount");
    if (count == 0) throw device_error(who + " needs a GPU, the driver shows no GPU.", ELSEWHERE);
    if (device < 0 || device >= count) {
        const std::string numbers = count == 1 ? "GPU 0" : "GPU 0 to " + std::to_string(count - 1);
        throw device_error("GPU " + std::to_string(device) + " was asked for, this machine shows " + numbers + ".",
                           "See `nvidia-smi` and CUDA_VISIBLE_DEVICES.");
    }
    char name[128] = {};
    check(calls.cuDeviceGet(&handle_, device), "cuDeviceGet");
    check(calls.cuDeviceGetName(name, sizeof name - 1, handle_), "cuDeviceGetName");
    check(calls.cuDeviceGetAttribute(&major_, CAPABILITY_MAJOR, handle_), "cuDeviceGetAttribute");
    check(calls.cuDeviceGetAttribute(&minor_, CAPABILITY_MINOR, handle_), "cuDeviceGetAttribute");
    name_ = name;
    where_ += " (" + name_ + ")";
    check(calls.cuDevicePrimaryCtxRetain(&context_, handle_), "cuDevicePrimaryCtxRetain");
}

Driver::~Driver() {
    if (context_) calls_->cuDevicePrimaryCtxRelease_v2(handle_);
}

std::string Driver::told(int code, const char *call) const {
    std::string message = where_ + ": " + call + " failed with " + name_of(*calls_, code);
    if (code == OUT_OF_MEMORY) {
        std::size_t available = 0, all = 0;
        if (calls_->cuMemGetInfo_v2(&available, &all) == 0) {
            message += ", " + std::to_string(available) + " of its " + std::to_string(all) + " bytes are free";
        }
    }
    return message + ".";
}

void Driver::check(int code, const char *call) const {
    if (code == 0) return;
    note(code, call);
    check_not_lost();
    throw device_error(told(code, call), code == OUT_OF_MEMORY ? "Close other programs, or use a smaller batch." : "");
}

void Driver::note(int code, const char *call) const noexcept {
    if (!is_lost(code)) return;
    try {
        const std::lock_guard<std::mutex> guard(lost_lock);
        lost_messages.emplace(device_, told(code, call));
    } catch (...) {
        return;  // the host's memory ran out; the next call tells
    }
}

void Driver::check_not_lost() const {
    const std::lock_guard<std::mutex> guard(lost_lock);
    const auto found = lost_messages.find(device_);
    if (found != lost_messages.end()) throw device_error(found->second, RESTART);
}

std::size_t Driver::free_memory() const {
    const Active active(*this);
    std::size_t available = 0, all = 0;
    check(calls_->cuMemGetInfo_v2(&available, &all), "cuMemGetInfo");
    return available;
}

bool Driver::is_device_memory(DevicePointer pointer) const {
    const Active active(*this);
    int owner = -1;
    const int code = calls_->cuPointerGetAttribute(&owner, DEVICE_ORDINAL, pointer);
    if (code == INVALID_VALUE) return false;  // of memory that CUDA does not know
    check(code, "cuPointerGetAttribute");
    return owner == handle_;
}

bool Driver::is_device_only(const void *pointer) const {
    const Active active(*this);
    const auto address = static_cast<DevicePointer>(reinterpret_cast<std::uintptr_t>(pointer));
    unsigned type = 0, managed = 0;
    const int code = calls_->cuPointerGetAttribute(&type, MEMORY_TYPE, address);
    if (code == INVALID_VALUE) return false;
    check(code, "cuPointerGetAttribute");
    if (type != DEVICE_MEMORY) return false;
    return calls_->cuPointerGetAttribute(&managed, IS_MANAGED, address) != 0 || !managed;
}

Active::Active(const Driver &driver) : driver_(driver), mode_(RELAXED) {
    void *current = nullptr;
    driver.check(driver.calls().cuCtxGetCurrent(&current), "cuCtxGetCurrent");
    pushed_ = current != driver.context();
    if (pushed_) driver.check(driver.calls().cuCtxPushCurrent_v2(driver.context()), "cuCtxPushCurrent");
    if (driver.calls().cuThreadExchangeStreamCaptureMode(&mode_) != 0) mode_ = RELAXED;
}

Active::~Active() {
    void *ignored = nullptr;
    if (mode_ != RELAXED) driver_.calls().cuThreadExchangeStreamCaptureMode(&mode_);  // as it was
    if (pushed_) driver_.calls().cuCtxPopCurrent_v2(&ignored);
}

namespace {

// For destructors, which tell nothing: an error there is one of the GPU's earlier work.
template <typename Call>
void quietly(const Driver &driver, const Call &call) noexcept {
    try {
        const Active active(driver);
        call(driver.calls());
    } catch (...) {
        return;  // the context is gone, and everything of it with it
    }
}

}  // namespace

Buffer::Buffer(std::shared_ptr<Driver> driver, Kind kind, std::size_t size) : driver_(std::move(driver)), kind_(kind), size_(size) {
    if (!size) return;
    const Active active(*driver_);
    void *host = nullptr;
    const bool pinned = kind == Kind::pinned;
    const int code = pinned ? driver_->calls().cuMemHostAlloc(&host, size, PORTABLE) : driver_->calls().cuMemAlloc_v2(&pointer_, size);
    if (pinned) pointer_ = static_cast<DevicePointer>(reinterpret_cast<std::uintptr_t>(host));
    if (code == OUT_OF_MEMORY) {
        std::size_t available = 0, all = 0;
        const bool told = !pinned && driver_->calls().cuMemGetInfo_v2(&available, &all) == 0;
        const std::string room = told ? ", " + std::to_string(available) + " of its " + std::to_string(all) + " bytes are free" : "";
        throw device_error(driver_->where() + ": " + std::to_string(size) + " bytes of " + (pinned ? "page-locked host memory" : "GPU memory") +
                               " were asked for: " + name_of(driver_->calls(), code) + room + ".",
                           "Close other programs, or use a smaller batch.");
    }
    driver_->check(code, pinned ? "cuMemHostAlloc" : "cuMemAlloc");
}

Buffer::~Buffer() {
    if (!pointer_) return;
    quietly(*driver_, [this](const DriverCalls &calls) {
        return kind_ == Kind::pinned ? calls.cuMemFreeHost(as<void>()) : calls.cuMemFree_v2(pointer_);
    });
}

Buffer::Buffer(Buffer &&other) noexcept
    : driver_(std::move(other.driver_)), kind_(other.kind_), pointer_(std::exchange(other.pointer_, 0)), size_(std::exchange(other.size_, 0)) {}

Buffer &Buffer::operator=(Buffer &&other) noexcept {
    if (this != &other) {
        Buffer old(std::move(*this));
        driver_ = std::move(other.driver_);
        kind_ = other.kind_;
        pointer_ = std::exchange(other.pointer_, 0);
        size_ = std::exchange(other.size_, 0);
    }
    return *this;
}

Event::Event(std::shared_ptr<Driver> driver) : driver_(std::move(driver)) {
    const Active active(*driver_);
    driver_->check(driver_->calls().cuEventCreate(&handle_, NO_TIMING), "cuEventCreate");
}

Event::~Event() {
    quietly(*driver_, [this](const DriverCalls &calls) { return calls.cuEventDestroy_v2(handle_); });
}

void Event::record(cudaStream_t stream) { driver_->check(driver_->calls().cuEventRecord(handle_, stream), "cuEventRecord"); }

void Event::synchronize() const { driver_->check(driver_->calls().cuEventSynchronize(handle_), "cuEventSynchronize"); }

Stream::Stream(std::shared_ptr<Driver> driver) : driver_(std::move(driver)) {
    const Active active(*driver_);
    driver_->check(driver_->calls().cuStreamCreate(&handle_, NONBLOCKING), "cuStreamCreate");
}

Stream::~Stream() {
    quietly(*driver_, [this](const DriverCalls &calls) { return calls.cuStreamDestroy_v2(handle_); });
}

Graph::~Graph() {
    quietly(*driver_, [this](const DriverCalls &calls) { return handle_ ? calls.cuGraphExecDestroy(handle_) : 0; });
}

void Graph::begin(cudaStream_t stream) {
    // Other threads may allocate meanwhile, TensorRT among them, which the stricter modes forbid.
    driver_->check(driver_->calls().cuStreamBeginCapture_v2(stream, RELAXED), "cuStreamBeginCapture");
}

void Graph::abandon(cudaStream_t stream) noexcept {
    void *graph = nullptr;
    if (driver_->calls().cuStreamEndCapture(stream, &graph) == 0 && graph) driver_->calls().cuGraphDestroy(graph);
}

void Graph::end(cudaStream_t stream) {
    void *graph = nullptr;
    driver_->check(driver_->calls().cuStreamEndCapture(stream, &graph), "cuStreamEndCapture");
    const int code = driver_->calls().cuGraphInstantiateWithFlags(&handle_, graph, 0);
    driver_->calls().cuGraphDestroy(graph);
    driver_->check(code, "cuGraphInstantiate");
}

void Graph::launch(cudaStream_t stream) const { driver_->check(driver_->calls().cuGraphLaunch(handle_, stream), "cuGraphLaunch"); }

void Kernel::launch(const Driver &driver, Blocks blocks, unsigned threads, unsigned shared, cudaStream_t stream, const void *argument) const {
    void *parameters[] = {const_cast<void *>(argument)};
    const int code =
        driver.calls().cuLaunchKernel(handle_, blocks.x, blocks.y, blocks.z, threads, 1, 1, shared, stream, parameters, nullptr);
    driver.check(code, name_);
}

Module::Module(std::shared_ptr<Driver> driver) : driver_(std::move(driver)) {
    const Active active(*driver_);
    int code = NO_BINARY_FOR_GPU;
    for (std::size_t index = 0; index < kernel_image_count && code != 0; ++index) {
        code = driver_->calls().cuModuleLoadData(&handle_, kernel_images[index].data);
        const bool foreign = code == NO_BINARY_FOR_GPU || code == INVALID_IMAGE || code == UNSUPPORTED_PTX;
        if (!foreign) driver_->check(code, "cuModuleLoadData");
    }
    if (code == 0) return;
    const std::string architecture = std::to_string(driver_->major()) + std::to_string(driver_->minor());
    throw device_error(driver_->where() + ": this library holds no kernels for compute capability " + std::to_string(driver_->major()) + "." +
                           std::to_string(driver_->minor()) + " (cuModuleLoadData: " + name_of(driver_->calls(), code) + ").",
                       "Build it with CMAKE_CUDA_ARCHITECTURES=" + architecture + ".");
}

Module::~Module() {
    quietly(*driver_, [this](const DriverCalls &calls) { return handle_ ? calls.cuModuleUnload(handle_) : 0; });
}

Kernel Module::kernel(const char *name, unsigned shared) const {
    const Active active(*driver_);
    Kernel found;
    found.name_ = name;
    driver_->check(driver_->calls().cuModuleGetFunction(&found.handle_, handle_, name), "cuModuleGetFunction");
    if (shared > (48u << 10)) {
        driver_->check(driver_->calls().cuFuncSetAttribute(found.handle_, MOST_SHARED, static_cast<int>(shared)), "cuFuncSetAttribute");
    }
    return found;
}

void copy_to_device(const Driver &driver, DevicePointer target, const void *source, std::size_t size, cudaStream_t stream) {
    driver.check(driver.calls().cuMemcpyHtoDAsync_v2(target, source, size, stream), "cuMemcpyHtoDAsync");
}

void copy_to_host(const Driver &driver, void *target, DevicePointer source, std::size_t size, cudaStream_t stream) {
    driver.check(driver.calls().cuMemcpyDtoHAsync_v2(target, source, size, stream), "cuMemcpyDtoHAsync");
}

void copy_on_device(const Driver &driver, DevicePointer target, DevicePointer source, std::size_t size, cudaStream_t stream) {
    driver.check(driver.calls().cuMemcpyDtoDAsync_v2(target, source, size, stream), "cuMemcpyDtoDAsync");
}

void clear(const Driver &driver, DevicePointer target, std::size_t size, cudaStream_t stream) {
    driver.check(driver.calls().cuMemsetD8Async(target, 0, size, stream), "cuMemsetD8Async");
}

void wait_for(const Driver &driver, cudaStream_t later, const Event &event) {
    driver.check(driver.calls().cuStreamWaitEvent(later, event.handle(), 0), "cuStreamWaitEvent");
}

void synchronize(const Driver &driver, cudaStream_t stream) {
    driver.check(driver.calls().cuStreamSynchronize(stream), "cuStreamSynchronize");
}

}  // namespace yolact::detail
