// A stand-in for libnvinfer, for tests without a GPU: it plays the plans of plan.hpp on the stand-in for libcuda.
//
// Failures are told as TensorRT tells them, by an ERROR to the logger and false or a null pointer. What TensorRT might not notice, but a
// test should, is misuse and counted as well. STANDIN_PAUSE_US: microseconds that each call on a context takes at least (200), so that
// calls that overlap meet. For tests alone, all extern "C":
//
//   long standin_misuse(char *text, long size)       how often it was misused; `text` gets what was told, a line each
//   long standin_last_input(void *target, long size) bytes of the first input of the last run (not of one that computes a mean)
//   long standin_live(int kind)                      0 runtimes, 1 engines, 2 contexts that are not deleted
//   long standin_count(int what)                     0 runs that were queued, 1 that were captured, 2 that ran
//   void standin_forget(void)                        misuse, counts and the last input start again
#include <NvInferRuntime.h>
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <new>
#include <sstream>
#include <thread>
#include "execution.hpp"

#define TEXT_OF(...) #__VA_ARGS__
#define TEXT(value) TEXT_OF(value)

namespace standin {
namespace {

using nvinfer1::Dims;
using nvinfer1::ILogger;
using Severity = ILogger::Severity;

constexpr char kVERSION[] =
    TEXT(NV_TENSORRT_MAJOR) "." TEXT(NV_TENSORRT_MINOR) "." TEXT(NV_TENSORRT_PATCH) "." TEXT(NV_TENSORRT_BUILD);
constexpr char kLEAN_RUNTIME[] = "yolact stand-in lean runtime 1";
constexpr std::uintptr_t kALIGNMENT = 256;
#ifdef TRT_MAJOR_RTX
const std::vector<std::string> kMARKS = {"vtrt"};
#else
const std::vector<std::string> kMARKS = {"ftrt", "ptrt"};
#endif

Dims to_dims(const Tensor &tensor, int64_t first) {
    Dims dims{};
    dims.nbDims = static_cast<int32_t>(tensor.sizes.size());
    for (std::size_t axis = 0; axis < tensor.sizes.size(); axis++)
        dims.d[axis] = static_cast<std::decay_t<decltype(dims.d[0])>>(axis ? tensor.sizes[axis] : first);
    return dims;
}

Dims no_dims() {
    Dims dims{};
    dims.nbDims = -1;
    return dims;
}

std::string text_of(const Dims &dims) {
    std::string text = "[";
    for (int32_t axis = 0; axis < std::clamp(dims.nbDims, 0, 8); axis++) text += (axis ? ", " : "") + std::to_string(dims.d[axis]);
    return text + "]";
}

// One thread's use of a context.
class Use {
  public:
    explicit Use(ContextState &state) : state_(state), alone_(!state.busy.exchange(true)) {
        if (!alone_) {
            state.engine->misuse("an execution context was used by two threads at once");
            return;
        }
        const char *const pause = std::getenv("STANDIN_PAUSE_US");
        std::this_thread::sleep_for(std::chrono::microseconds(pause ? std::atol(pause) : 200));
    }
    Use(const Use &) = delete;
    Use &operator=(const Use &) = delete;
    ~Use() {
        if (alone_) state_.busy = false;
    }
    explicit operator bool() const { return alone_; }

  private:
    ContextState &state_;
    bool alone_;
};

class Context final : public nvinfer1::IExecutionContext {
  public:
    // The first context of an engine has its first profile without being asked.
    Context(std::shared_ptr<EngineState> engine, std::unique_ptr<Memory> memory)
        : state_(std::make_shared<ContextState>()), memory_(std::move(memory)), addresses_(engine->plan.tensors.size()),
          batches_(engine->plan.tensors.size()) {
        has_profile_ = !engine->plan.dynamic() || engine->contexts_made++ == 0;
        engine->contexts++;
        state_->engine = std::move(engine);
        ledger().live[kCONTEXTS]++;
    }
    ~Context() noexcept override {
        if (state_->busy) engine().misuse("an execution context was destroyed while it was used");
        if (state_->queued > 0 && !memory_->failed()) engine().misuse("an execution context was destroyed before its queued runs were reached");
        state_->alive = false;
        engine().contexts--;
        ledger().live[kCONTEXTS]--;
    }

    bool setTensorAddress(char const *name, void *data) noexcept override {
        const Use use(*state_);
        if (!use) return false;
        const Tensor *const tensor = plan().find(name);
        if (!tensor) return engine().misuse(std::string("setTensorAddress: there is no tensor ") + (name ? name : "without a name"));
        if (!data || reinterpret_cast<std::uintptr_t>(data) % kALIGNMENT)
            return engine().misuse("setTensorAddress: the address of " + tensor->name + " is null or no multiple of 256");
        addresses_[index(*tensor)] = data;
        return true;
    }

    bool setInputShape(char const *name, Dims const &dims) noexcept override {
        const Use use(*state_);
        if (!use) return false;
        const Tensor *const tensor = plan().find(name);
        if (!tensor || !tensor->input) return engine().misuse(std::string("setInputShape: there is no input ") + (name ? name : ""));
        if (!has_profile_) return engine().misuse("setInputShape: no optimization profile is set");
        const auto batches = plan().profile(*tensor);
        const Dims wanted = to_dims(*tensor, dims.nbDims > 0 ? dims.d[0] : 0);
        const bool fits = dims.nbDims == wanted.nbDims && std::equal(dims.d, dims.d + wanted.nbDims, wanted.d);
        if (!fits || dims.d[0] < batches[0] || dims.d[0] > batches[2])
            return engine().misuse("setInputShape: " + text_of(dims) + " of " + tensor->name + " is outside the optimization profile");
        auto &batch = batches_[index(*tensor)];
        if (batch != static_cast<std::size_t>(dims.d[0])) settled_ = false;
        batch = static_cast<std::size_t>(dims.d[0]);
        return true;
    }

    bool setOptimizationProfileAsync(int32_t profile, cudaStream_t stream) noexcept override {
        const Use use(*state_);
        if (!use) return false;
        if (profile != 0) return engine().misuse("setOptimizationProfileAsync: there is no profile " + std::to_string(profile));
        if (const int code = queue_profile(state_, stream)) return told("setOptimizationProfileAsync", code);
        if (!has_profile_) settled_ = false;
        profile_stream_ = stream, has_profile_ = true;
        return true;
    }

    bool enqueueV3(cudaStream_t stream) noexcept override {
        const Use use(*state_);
        if (!use) return false;
        const long number = ++engine().enqueues;
        if (!state_->profile_reached && stream != profile_stream_)
            return engine().misuse("enqueueV3: the setting of the optimization profile is not reached on its own stream");
        for (const Tensor &tensor : plan().tensors) {
            if (!addresses_[index(tensor)]) return engine().misuse("enqueueV3: no address is set for " + tensor.name);
            if (tensor.input && tensor.dynamic() && !batches_[index(tensor)])
                return engine().misuse("enqueueV3: no shape is set for " + tensor.name);
        }
        if (plan().failing_enqueues.count(number)) {
            engine().error("enqueueV3: it fails because the plan says so");
            return false;
        }
        int recording = 0;
        if (const int code = driver().cuStreamIsCapturing(stream, &recording)) return told("enqueueV3", code);
        if (recording && !capturable(stream)) return false;
        auto job = std::make_unique<Job>();
        job->context = state_, job->addresses = addresses_, job->captured = recording != 0, job->batch = batch();
        if (const int code = queue(std::move(job), stream)) return told("enqueueV3", code);
        settled_ = true;
        return true;
    }

#ifdef TRT_MAJOR_RTX
    bool isStreamCapturable(cudaStream_t) noexcept override {
        const Use use(*state_);
        return use && plan().capturable;
    }
#endif

  private:
    EngineState &engine() const { return *state_->engine; }
    const Plan &plan() const { return state_->engine->plan; }
    std::size_t index(const Tensor &tensor) const { return static_cast<std::size_t>(&tensor - plan().tensors.data()); }
    std::size_t batch() const {
        const Tensor &input = plan().first_input();
        return input.dynamic() ? batches_[index(input)] : static_cast<std::size_t>(input.sizes[0]);
    }
    bool told(const char *what, int code) const {
        engine().error(std::string(what) + ": CUDA error " + std::to_string(code));
        return false;
    }
    // Where not, do what TensorRT then does: something that a capture forbids, which spoils it.
    bool capturable(cudaStream_t stream) const {
        if (plan().capturable && settled_) return true;
        driver().cuStreamSynchronize(stream);
        if (!settled_) return engine().misuse("enqueueV3: captured before a plain run with these shapes");
        engine().error("enqueueV3: a layer is not permitted when its stream is captured");
        return false;
    }

    std::shared_ptr<ContextState> state_;
    std::unique_ptr<Memory> memory_;
    std::vector<void *> addresses_;
    std::vector<std::size_t> batches_;
    bool has_profile_ = false, settled_ = false; // settled: it ran with its shapes since they changed
    cudaStream_t profile_stream_ = nullptr;
};

class Engine final : public nvinfer1::ICudaEngine {
  public:
    Engine(std::shared_ptr<EngineState> state, std::shared_ptr<std::atomic<long>> engines)
        : state_(std::move(state)), engines_(std::move(engines)) {
        ++*engines_;
        ledger().live[kENGINES]++;
    }
    ~Engine() noexcept override {
        if (state_->contexts > 0) state_->misuse("an engine was destroyed before its execution contexts");
        --*engines_;
        ledger().live[kENGINES]--;
    }

    int32_t getNbIOTensors() const noexcept override { return static_cast<int32_t>(state_->plan.tensors.size()); }
    char const *getIOTensorName(int32_t index) const noexcept override {
        if (index < 0 || index >= getNbIOTensors()) {
            state_->misuse("getIOTensorName: there is no tensor " + std::to_string(index));
            return nullptr;
        }
        return state_->plan.tensors[static_cast<std::size_t>(index)].name.c_str();
    }
    nvinfer1::TensorIOMode getTensorIOMode(char const *name) const noexcept override {
        const Tensor *const tensor = find("getTensorIOMode", name);
        if (!tensor) return nvinfer1::TensorIOMode::kNONE;
        return tensor->input ? nvinfer1::TensorIOMode::kINPUT : nvinfer1::TensorIOMode::kOUTPUT;
    }
    Dims getTensorShape(char const *name) const noexcept override {
        const Tensor *const tensor = find("getTensorShape", name);
        return tensor ? to_dims(*tensor, tensor->sizes[0]) : no_dims();
    }
    nvinfer1::DataType getTensorDataType(char const *name) const noexcept override {
        const Tensor *const tensor = find("getTensorDataType", name);
        return static_cast<nvinfer1::DataType>(tensor ? tensor->type : 0);
    }
    nvinfer1::TensorFormat getTensorFormat(char const *name) const noexcept override {
        const Tensor *const tensor = find("getTensorFormat", name);
        return static_cast<nvinfer1::TensorFormat>(tensor ? tensor->format : 0);
    }
    nvinfer1::TensorLocation getTensorLocation(char const *name) const noexcept override {
        const Tensor *const tensor = find("getTensorLocation", name);
        return tensor && tensor->host ? nvinfer1::TensorLocation::kHOST : nvinfer1::TensorLocation::kDEVICE;
    }
    Dims getProfileShape(char const *name, int32_t profile, nvinfer1::OptProfileSelector select) const noexcept override {
        const Tensor *const tensor = find("getProfileShape", name);
        if (!tensor || !tensor->input || profile != 0) {
            state_->misuse("getProfileShape: there is no such input or profile");
            return no_dims();
        }
        return to_dims(*tensor, state_->plan.profile(*tensor).at(static_cast<std::size_t>(select)));
    }
#if STANDIN_TENSORRT_8
    nvinfer1::IExecutionContext *createExecutionContext() noexcept override { return create(); }
#else
    nvinfer1::IExecutionContext *createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy) noexcept override { return create(); }
#endif

  private:
    const Tensor *find(const char *what, const char *name) const {
        const Tensor *const tensor = state_->plan.find(name);
        if (!tensor) state_->misuse(std::string(what) + ": there is no tensor " + (name ? name : "without a name"));
        return tensor;
    }
    nvinfer1::IExecutionContext *create() {
        auto memory = std::make_unique<Memory>();
        if (const int code = memory->take(state_->plan.memory)) {
            state_->error("Error in creating an execution context: CUDA error " + std::to_string(code) + " for " +
                          std::to_string(state_->plan.memory) + " bytes of memory.");
            return nullptr;
        }
        return new Context(state_, std::move(memory));
    }

    std::shared_ptr<EngineState> state_;
    std::shared_ptr<std::atomic<long>> engines_;
};

class Runtime final : public nvinfer1::IRuntime {
  public:
    Runtime(ILogger &logger, std::string version) : logger_(logger), version_(std::move(version)) { ledger().live[kRUNTIMES]++; }
    ~Runtime() noexcept override {
        if (*engines_ > 0) ledger().tell("a runtime was destroyed before its engines");
        ledger().live[kRUNTIMES]--;
    }

    nvinfer1::ICudaEngine *deserializeCudaEngine(void const *blob, std::size_t size) noexcept override {
        auto state = std::make_shared<EngineState>();
        state->logger = &logger_;
        try {
            state->plan = read_plan(blob, size, kMARKS);
        } catch (const std::exception &error) {
            return refuse(std::string("The plan cannot be read: ") + error.what() + ".");
        }
        const Plan &plan = state->plan;
        if (plan.version != version_)
            return refuse("The plan was made by version " + plan.version + ", version " + version_ + " was expected.");
        if (plan.host_code && !host_code_) return refuse("The plan holds host code, which setEngineHostCodeAllowed does not allow.");
        if (const int code = state->weights.take(plan.weights))
            return refuse("CUDA error " + std::to_string(code) + " for " + std::to_string(plan.weights) + " bytes of memory.");
        logger_.log(Severity::kINFO, ("Loaded engine size: " + std::to_string(size) + " bytes").c_str());
        for (const std::string &warning : plan.warnings) logger_.log(Severity::kWARNING, warning.c_str());
        return new Engine(std::move(state), engines_);
    }
    void setEngineHostCodeAllowed(bool allowed) noexcept override { host_code_ = allowed; }
    // A lean runtime is a text file: a line that says so, and a line with its version.
    nvinfer1::IRuntime *loadRuntime(char const *path) noexcept override {
        std::ifstream file(path ? path : "");
        std::string first, version;
        if (!std::getline(file, first) || first != kLEAN_RUNTIME || !std::getline(file, version)) {
            logger_.log(Severity::kERROR, (std::string("Unable to open library: ") + (path ? path : "")).c_str());
            return nullptr;
        }
        return new Runtime(logger_, version);
    }

  private:
    std::nullptr_t refuse(const std::string &text) {
        logger_.log(Severity::kERROR, text.c_str());
        return nullptr;
    }

    ILogger &logger_;
    std::string version_;
    bool host_code_ = false;
    std::shared_ptr<std::atomic<long>> engines_ = std::make_shared<std::atomic<long>>(0);
};

} // namespace
} // namespace standin

extern "C" {

void *createInferRuntime_INTERNAL(void *logger, int32_t version) noexcept {
    auto &log = *static_cast<nvinfer1::ILogger *>(logger);
    const auto &driver = standin::driver();
    std::string reason;
    if (!driver.missing.empty()) reason = driver.missing;
    else if (const int code = driver.cuInit(0)) reason = "CUDA initialization failure with error: " + std::to_string(code);
    else if (version != NV_TENSORRT_VERSION) reason = "The header's version " + std::to_string(version) + " is not this library's";
    if (!reason.empty()) {
        log.log(standin::Severity::kERROR, reason.c_str());
        return nullptr;
    }
    return static_cast<nvinfer1::IRuntime *>(new standin::Runtime(log, standin::kVERSION));
}
int32_t getInferLibVersion() noexcept { return NV_TENSORRT_VERSION; }
#if !STANDIN_TENSORRT_8
int32_t getInferLibMajorVersion() noexcept { return NV_TENSORRT_MAJOR; }
int32_t getInferLibMinorVersion() noexcept { return NV_TENSORRT_MINOR; }
int32_t getInferLibPatchVersion() noexcept { return NV_TENSORRT_PATCH; }
int32_t getInferLibBuildVersion() noexcept { return NV_TENSORRT_BUILD; }
#endif

TENSORRTAPI long standin_misuse(char *text, long size) {
    auto &ledger = standin::ledger();
    const std::lock_guard<std::mutex> held(ledger.lock);
    std::string told;
    for (const std::string &line : ledger.misuse) told += line + "\n";
    if (text && size > 0) {
        const std::size_t kept = std::min(told.size(), static_cast<std::size_t>(size - 1));
        std::memcpy(text, told.data(), kept);
        text[kept] = 0;
    }
    return static_cast<long>(ledger.misuse.size());
}
TENSORRTAPI long standin_last_input(void *target, long size) {
    auto &ledger = standin::ledger();
    const std::lock_guard<std::mutex> held(ledger.lock);
    const auto kept = std::min(ledger.last_input.size(), static_cast<std::size_t>(std::max(size, 0L)));
    if (target && kept) std::memcpy(target, ledger.last_input.data(), kept);
    return static_cast<long>(ledger.last_input.size());
}
TENSORRTAPI long standin_live(int kind) { return kind >= 0 && kind < standin::kKINDS ? standin::ledger().live[kind].load() : -1; }
TENSORRTAPI long standin_count(int what) { return what >= 0 && what < standin::kCOUNTS ? standin::ledger().counts[what].load() : -1; }
TENSORRTAPI void standin_forget(void) {
    auto &ledger = standin::ledger();
    const std::lock_guard<std::mutex> held(ledger.lock);
    ledger.misuse.clear(), ledger.last_input.clear();
    for (auto &count : ledger.counts) count = 0;
}

} // extern "C"
