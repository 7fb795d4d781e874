#include "tensorrt.hpp"

#include <NvInferRuntime.h>

#include <algorithm>
#include <cctype>
#include <map>

#include "errors.hpp"
#include "text.hpp"

#if !defined(YOLACT_DEPLOY_TENSORRT_RTX)
#define YOLACT_DEPLOY_TENSORRT_RTX 0
#endif

namespace yolact::detail {

namespace {

constexpr std::size_t LONGEST_REASON = 300;  // letters
const char *const DOCTOR = "yolact-deploy doctor tells what is here.";

std::vector<int> loaded_version() {
#if NV_TENSORRT_MAJOR >= 10 || YOLACT_DEPLOY_TENSORRT_RTX
    return {getInferLibMajorVersion(), getInferLibMinorVersion(), getInferLibPatchVersion(), getInferLibBuildVersion()};
#else
    const int number = getInferLibVersion();  // 8601
    return {number / 1000, number % 1000 / 100, number % 100};
#endif
}

std::string dtype_name(nvinfer1::DataType type) {
    switch (type) {
        case nvinfer1::DataType::kFLOAT: return "float32";
        case nvinfer1::DataType::kHALF: return "float16";
        case nvinfer1::DataType::kUINT8: return "uint8";
        case nvinfer1::DataType::kINT8: return "int8";
        case nvinfer1::DataType::kINT32: return "int32";
        case nvinfer1::DataType::kBOOL: return "bool";
        default: return "";
    }
}

std::vector<std::int64_t> sizes_of(const nvinfer1::Dims &dims) {
    std::vector<std::int64_t> sizes;
    for (int axis = 0; axis < dims.nbDims; ++axis) sizes.push_back(dims.d[axis]);
    return sizes;
}

// What an IExecutionContext that can tell says; where the headers have no such function, a capture that fails has to tell.
template <typename Context>
auto is_capturable(Context &context, cudaStream_t stream, int) -> decltype(bool(context.isStreamCapturable(stream))) {
    return context.isStreamCapturable(stream);
}

template <typename Context>
bool is_capturable(Context &, cudaStream_t, long) {
    return true;
}

std::string megabytes(std::size_t bytes) { return with_commas((bytes + (std::size_t{1} << 19)) >> 20); }

}  // namespace

Machine tensorrt_here() {
    Machine machine;
    machine.backend = YOLACT_DEPLOY_TENSORRT_RTX ? "tensorrt-rtx" : "tensorrt";
    machine.version = loaded_version();
    return machine;
}

namespace {

// What TensorRT logged last as an error on this thread.
thread_local std::string last_error;

// TensorRT keeps the logger of its first runtime for the whole process, so there is one, which never ends and tells all who listen.
class ProcessLog : public nvinfer1::ILogger {
public:
    static ProcessLog &instance() {
        static ProcessLog *const log = new ProcessLog;
        return *log;
    }

    void log(Severity severity, const char *text) noexcept override {
        const int number = static_cast<int>(severity);  // 0 internal error, 1 error, 2 warning, 3 info, 4 verbose
        try {
            if (number <= 1) last_error = text;
            if (number > 3) return;
            const std::lock_guard<std::mutex> guard(lock_);
            for (const auto &[owner, listener] : listeners_) listener(number, text);
        } catch (...) {
            return;  // nothing may be thrown into TensorRT
        }
    }

    void add(const void *owner, LogListener listener) {
        const std::lock_guard<std::mutex> guard(lock_);
        listeners_.emplace(owner, std::move(listener));
    }

    void remove(const void *owner) noexcept {
        const std::lock_guard<std::mutex> guard(lock_);
        listeners_.erase(owner);
    }

private:
    ProcessLog() = default;

    std::mutex lock_;
    std::map<const void *, LogListener> listeners_;
};

// The latest error in a few words; empty where there is none.
std::string latest() {
    const std::size_t start = last_error.find_first_not_of(" \n\r\t"), end = last_error.find_last_not_of(" \n\r\t");
    return start == std::string::npos ? "" : last_error.substr(start, std::min(end + 1 - start, LONGEST_REASON));
}

std::string reason() {
    const std::string text = latest();
    return text.empty() ? "it gives no reason" : text;
}

}  // namespace

Listening::Listening(LogListener listener) {
    if (listener) ProcessLog::instance().add(this, std::move(listener));
}

Listening::~Listening() { ProcessLog::instance().remove(this); }

std::size_t EngineTensor::item_size() const { return dtype == "float32" || dtype == "int32" ? 4 : dtype == "float16" ? 2 : 1; }

std::size_t EngineTensor::bytes(std::size_t batch) const {
    std::size_t size = batch * item_size();
    for (const std::int64_t axis : shape) size *= static_cast<std::size_t>(axis);
    return size;
}

Engine::Engine(std::shared_ptr<Driver> driver, const std::string &plan, const std::string &name, const std::string &lean_runtime,
               LogListener listener)
    : driver_(std::move(driver)), name_(name), listening_(std::move(listener)) {
    const std::string title = tensorrt_here().title();
    const Active active(*driver_);
    last_error.clear();
    runtime_.reset(nvinfer1::createInferRuntime(ProcessLog::instance()));
    if (!runtime_) throw device_error(title + " cannot start: " + reason() + ".", DOCTOR);
    runtime_->setEngineHostCodeAllowed(false);
    if (!lean_runtime.empty()) {
        outer_ = std::move(runtime_);
        runtime_.reset(outer_->loadRuntime(lean_runtime.c_str()));
        if (!runtime_) throw model_error(title + " cannot load the lean runtime " + lean_runtime + ": " + reason(), "Check its path.");
    }
    engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
    if (!engine_) {
        const std::string told = reason();
        std::string small = told;
        std::transform(small.begin(), small.end(), small.begin(), [](unsigned char letter) { return static_cast<char>(std::tolower(letter)); });
        if (small.find("memory") != std::string::npos) {
            throw device_error(title + " cannot load " + name + " with " + megabytes(driver_->free_memory()) + " MiB free: " + told,
                               "Free memory of the GPU.");
        }
        throw model_error(title + " refuses the engine " + name + ": " + told, "Rebuild it on this machine.");
    }
    for (int index = 0; index < engine_->getNbIOTensors(); ++index) tensors_.push_back(tensor(engine_->getIOTensorName(index)));
    std::stable_sort(tensors_.begin(), tensors_.end(), [](const EngineTensor &a, const EngineTensor &b) { return a.input && !b.input; });
    read_batch();
}

Engine::~Engine() {
    try {
        const Active active(*driver_);
        engine_.reset();
        runtime_.reset();
        outer_.reset();
    } catch (const Error &) {
        static_cast<void>(engine_.release()), static_cast<void>(runtime_.release()), static_cast<void>(outer_.release());  // as the GPU is lost
    }
}

EngineTensor Engine::tensor(const char *name) const {
    const std::vector<std::int64_t> sizes = sizes_of(engine_->getTensorShape(name));
    if (sizes.empty() || std::any_of(sizes.begin() + 1, sizes.end(), [](std::int64_t size) { return size < 0; })) {
        throw model_error(name_ + ": the tensor " + name + " has the shape " + shape_text(sizes) + ", only its batch may vary.", "Rebuild it.");
    }
    if (engine_->getTensorFormat(name) != nvinfer1::TensorFormat::kLINEAR || engine_->getTensorLocation(name) != nvinfer1::TensorLocation::kDEVICE) {
        throw model_error(name_ + ": the tensor " + name + " is not plain rows in device memory.",
                          "Build it without input and output formats of its own.");
    }
    EngineTensor found;
    found.name = name;
    found.dtype = dtype_name(engine_->getTensorDataType(name));
    if (found.dtype.empty()) throw model_error(name_ + ": the tensor " + name + " is of a type that is not taken.", "Build it again.");
    found.shape.assign(sizes.begin() + 1, sizes.end());
    found.input = engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
    return found;
}

void Engine::read_batch() {
    std::vector<std::string> told;
    bool alike = !tensors_.empty() && tensors_[0].input;
    std::int64_t first = 0;
    for (const EngineTensor &each : tensors_) {
        const std::int64_t size = engine_->getTensorShape(each.name.c_str()).d[0];
        if (told.empty()) first = size;
        alike = alike && size == first;
        told.push_back(each.name + " " + std::to_string(size));
    }
    if (!alike || first == 0) {
        throw model_error(name_ + ": the tensors begin with different sizes (" + joined(told) + "), one batch was wanted.", "Rebuild it.");
    }
    dynamic_ = first < 0;
    if (!dynamic_) {
        batch_ = {static_cast<int>(first), static_cast<int>(first), static_cast<int>(first)};
        return;
    }
    const auto profile = [this](nvinfer1::OptProfileSelector which) {
        const nvinfer1::Dims dims = engine_->getProfileShape(tensors_[0].name.c_str(), 0, which);
        return dims.nbDims > 0 ? static_cast<int>(dims.d[0]) : 0;
    };
    batch_ = {profile(nvinfer1::OptProfileSelector::kMIN), profile(nvinfer1::OptProfileSelector::kOPT), profile(nvinfer1::OptProfileSelector::kMAX)};
    if (batch_.smallest < 1 || batch_.largest < batch_.smallest) throw model_error(name_ + " has no optimization profile.", "Rebuild it.");
}

const EngineTensor *Engine::find(const std::string &name) const noexcept {
    for (const EngineTensor &each : tensors_)
        if (each.name == name) return &each;
    return nullptr;
}

std::vector<TensorSpec> Engine::specs() const {
    std::vector<TensorSpec> found;
    for (const EngineTensor &each : tensors_) {
        TensorSpec spec{each.name, each.dtype, {batch_.fixed() ? batch_.smallest : -1}};
        spec.shape.insert(spec.shape.end(), each.shape.begin(), each.shape.end());
        found.push_back(std::move(spec));
    }
    return found;
}

namespace {

Error failure(const Engine &engine, const std::string &what, const char *mend = DOCTOR) {
    std::string told = latest();
    while (!told.empty() && told.back() == '.') told.pop_back();
    return device_error(tensorrt_here().title() + " " + what + ", engine " + engine.name() + (told.empty() ? "" : ": " + told) + ".", mend);
}

}  // namespace

ExecutionContext::ExecutionContext(std::shared_ptr<const Engine> engine, cudaStream_t stream) : engine_(std::move(engine)) {
    const Active active(*engine_->driver_);
    last_error.clear();
    context_.reset(engine_->engine_->createExecutionContext());
    if (!context_) {
        throw failure(*engine_,
                      "cannot make an execution context with " + megabytes(engine_->driver_->free_memory()) + " MiB of GPU memory free",
                      "Free memory of the GPU, use fewer contexts, or rebuild it with a smaller --batch.");
    }
    if (!engine_->dynamic_) return;
    if (!context_->setOptimizationProfileAsync(0, stream)) throw failure(*engine_, "refuses the engine's optimization profile");
    synchronize(*engine_->driver_, stream);
}

ExecutionContext::~ExecutionContext() {
    try {
        const Active active(*engine_->driver_);
        context_.reset();
    } catch (const Error &) {
        static_cast<void>(context_.release());  // as the GPU is lost
    }
}

void ExecutionContext::set_address(const EngineTensor &tensor, DevicePointer address) {
    if (!context_->setTensorAddress(tensor.name.c_str(), reinterpret_cast<void *>(static_cast<std::uintptr_t>(address)))) {
        throw failure(*engine_, "refuses a buffer for " + tensor.name);
    }
}

void ExecutionContext::set_batch(int batch) {
    if (batch == batch_ || !engine_->dynamic_) return;
    batch_ = 0;
    for (const EngineTensor &tensor : engine_->tensors_) {
        if (!tensor.input) continue;
        nvinfer1::Dims dims{};
        dims.nbDims = static_cast<std::int32_t>(tensor.shape.size()) + 1;
        dims.d[0] = batch;
        for (std::size_t axis = 0; axis < tensor.shape.size(); ++axis) dims.d[axis + 1] = static_cast<std::remove_reference_t<decltype(dims.d[0])>>(tensor.shape[axis]);
        if (!context_->setInputShape(tensor.name.c_str(), dims)) {
            throw failure(*engine_, "refuses the shape " + shape_text(sizes_of(dims)) + " of " + tensor.name);
        }
    }
    batch_ = batch;
}

void ExecutionContext::enqueue(cudaStream_t stream) {
    last_error.clear();
    if (!context_->enqueueV3(stream)) throw failure(*engine_, "failed to run");
}

bool ExecutionContext::can_capture(cudaStream_t stream) const {
    if (YOLACT_DEPLOY_TENSORRT_RTX && engine_->dynamic_) return false;
    return is_capturable(*context_, stream, 0);
}

}  // namespace yolact::detail
