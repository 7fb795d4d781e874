// The least that it takes to run an engine: CUDA's driver opened by name, a logger that remembers, checks that tell their line.
#pragma once
#include <NvInferRuntime.h>
#include <dlfcn.h>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

extern "C" {
long standin_misuse(char *text, long size);
long standin_last_input(void *target, long size);
long standin_live(int kind);
long standin_count(int what);
void standin_forget(void);
}

#define CHECK(...)                                                                                                     \
    do {                                                                                                               \
        if (!(__VA_ARGS__)) {                                                                                          \
            std::fprintf(stderr, "%s:%d: not so: %s\n%s", __FILE__, __LINE__, #__VA_ARGS__, misuse().c_str());         \
            std::exit(1);                                                                                              \
        }                                                                                                              \
    } while (0)

inline std::string misuse() {
    std::string text(4096, '\0');
    standin_misuse(text.data(), static_cast<long>(text.size()));
    return text.c_str();
}
// Whether it was misused once since the last call, as `told`.
inline bool misused(const std::string &told) {
    const bool found = standin_misuse(nullptr, 0) == 1 && misuse().find(told) != std::string::npos;
    if (found) standin_forget();
    return found;
}

// Call a function of the driver's; CUDA's code.
template <typename... Arguments> int cuda(const char *name, Arguments... arguments) {
    static void *const library = dlopen("libcuda.so.1", RTLD_NOW);
    void *const function = library ? dlsym(library, name) : nullptr;
    if (!function) std::fprintf(stderr, "no %s\n", name), std::exit(1);
    return reinterpret_cast<int (*)(Arguments...)>(function)(arguments...);
}

class Logger final : public nvinfer1::ILogger {
  public:
    void log(Severity severity, char const *text) noexcept override {
        const std::lock_guard<std::mutex> held(lock_);
        (severity <= Severity::kERROR ? errors : others).push_back(text);
    }
    bool last(const std::string &part) const { return !errors.empty() && errors.back().find(part) != std::string::npos; }
    std::vector<std::string> errors, others;

  private:
    std::mutex lock_;
};

struct Gpu {
    void *context = nullptr;
    Gpu() {
        CHECK(cuda("cuInit", 0U) == 0 && cuda("cuDevicePrimaryCtxRetain", &context, 0) == 0);
        CHECK(cuda("cuCtxPushCurrent_v2", context) == 0);
    }
    ~Gpu() {
        cuda("cuCtxPopCurrent_v2", static_cast<void **>(nullptr));
        cuda("cuDevicePrimaryCtxRelease_v2", 0);
    }
    Gpu(const Gpu &) = delete;
    Gpu &operator=(const Gpu &) = delete;
};

struct Stream {
    cudaStream_t handle = nullptr;
    Stream() { CHECK(cuda("cuStreamCreate", &handle, 1U) == 0); }
    ~Stream() { cuda("cuStreamDestroy_v2", handle); }
    Stream(const Stream &) = delete;
    Stream &operator=(const Stream &) = delete;
    int wait() const { return cuda("cuStreamSynchronize", handle); }
};

struct Buffer {
    void *address = nullptr;
    std::size_t size;
    explicit Buffer(std::size_t bytes) : size(bytes) { CHECK(cuda("cuMemAlloc_v2", &address, bytes) == 0); }
    ~Buffer() { cuda("cuMemFree_v2", address); }
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;
    void fill(const std::vector<char> &bytes) const {
        CHECK(bytes.size() <= size && cuda("cuMemcpyHtoD_v2", address, static_cast<const void *>(bytes.data()), bytes.size()) == 0);
    }
    std::vector<char> read(std::size_t bytes) const {
        std::vector<char> found(bytes);
        CHECK(bytes <= size && cuda("cuMemcpyDtoH_v2", static_cast<void *>(found.data()), address, bytes) == 0);
        return found;
    }
};

inline std::vector<char> read_file(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

inline std::size_t type_bytes(nvinfer1::DataType type) {
    switch (type) {
    case nvinfer1::DataType::kFLOAT:
    case nvinfer1::DataType::kINT32: return 4;
    case nvinfer1::DataType::kHALF: return 2;
    default: return 1;
    }
}

// A runtime, an engine of `path`, and one context with buffers for its largest batch.
struct Session {
    Logger logger;
    std::unique_ptr<nvinfer1::IRuntime> runtime;
    std::unique_ptr<nvinfer1::ICudaEngine> engine;
    std::unique_ptr<nvinfer1::IExecutionContext> context;
    Stream stream;
    std::vector<std::string> names;
    std::vector<bool> inputs;
    std::vector<std::size_t> rows; // bytes of one picture
    std::vector<std::unique_ptr<Buffer>> buffers;
    nvinfer1::Dims shape{};

    explicit Session(const std::string &path) {
        using nvinfer1::OptProfileSelector;
        using nvinfer1::TensorIOMode;
        runtime.reset(nvinfer1::createInferRuntime(logger));
        CHECK(runtime);
        const std::vector<char> plan = read_file(path);
        engine.reset(runtime->deserializeCudaEngine(plan.data(), plan.size()));
        if (!engine) return;
        for (int32_t index = 0; index < engine->getNbIOTensors(); index++) {
            const char *const name = engine->getIOTensorName(index);
            const nvinfer1::Dims dims = engine->getTensorShape(name);
            names.emplace_back(name), inputs.push_back(engine->getTensorIOMode(name) == TensorIOMode::kINPUT);
            rows.push_back(type_bytes(engine->getTensorDataType(name)));
            for (int32_t axis = 1; axis < dims.nbDims; axis++) rows.back() *= static_cast<std::size_t>(dims.d[axis]);
        }
        CHECK(inputs[0]);
        shape = engine->getProfileShape(names[0].c_str(), 0, OptProfileSelector::kMAX);
        context = make_context();
        if (context) bind(*context);
    }
    std::unique_ptr<nvinfer1::IExecutionContext> make_context() {
        return std::unique_ptr<nvinfer1::IExecutionContext>(engine->createExecutionContext());
    }
    std::size_t largest() const { return static_cast<std::size_t>(shape.d[0]); }
    void bind(nvinfer1::IExecutionContext &target) {
        for (std::size_t index = 0; index < names.size(); index++) {
            if (buffers.size() <= index) buffers.push_back(std::make_unique<Buffer>(rows[index] * largest()));
            CHECK(target.setTensorAddress(names[index].c_str(), buffers[index]->address));
        }
        if (!target.setOptimizationProfileAsync(0, stream.handle)) CHECK(!"a profile");
        CHECK(stream.wait() == 0);
    }
    void set_batch(int batch) {
        nvinfer1::Dims dims = shape;
        dims.d[0] = batch;
        CHECK(context->setInputShape(names[0].c_str(), dims));
    }
    void enqueue() { CHECK(context->enqueueV3(stream.handle)); }
    // Capture one execution; null where that fails.
    void *capture() {
        void *graph = nullptr, *executable = nullptr;
        CHECK(cuda("cuStreamBeginCapture_v2", stream.handle, 0) == 0);
        const bool queued = context->enqueueV3(stream.handle);
        if (cuda("cuStreamEndCapture", stream.handle, &graph) != 0 || !queued) return nullptr;
        CHECK(cuda("cuGraphInstantiateWithFlags", &executable, graph, 0ULL) == 0 && cuda("cuGraphDestroy", graph) == 0);
        return executable;
    }
};
