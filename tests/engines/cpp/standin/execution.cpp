#include "execution.hpp"
#include <algorithm>
#include <cstring>
#include <unordered_map>

namespace standin {
namespace {

constexpr int kILLEGAL_ADDRESS = 700, kLAUNCH_FAILED = 719;

// Owns what is queued: a stream or a graph may be destroyed without telling.
template <typename T> struct Registry {
    std::mutex lock;
    std::unordered_map<void *, std::shared_ptr<T>> owned;

    void *add(std::shared_ptr<T> one) {
        const std::lock_guard<std::mutex> held(lock);
        void *const key = one.get();
        owned[key] = std::move(one);
        return key;
    }
    std::shared_ptr<T> get(void *key, bool keep) {
        const std::lock_guard<std::mutex> held(lock);
        const auto found = owned.find(key);
        std::shared_ptr<T> one = found->second;
        if (!keep) owned.erase(found);
        return one;
    }
};

Registry<Job> &jobs() {
    static auto *const made = new Registry<Job>;
    return *made;
}

struct Reached {
    std::shared_ptr<ContextState> context;
};
Registry<Reached> &profiles() {
    static auto *const made = new Registry<Reached>;
    return *made;
}

void run_job(void *key) {
    std::shared_ptr<Job> job = jobs().get(key, true);
    if (!job->captured) jobs().get(key, false);
    job->run();
}

void reach_profile(void *key) { profiles().get(key, false)->context->profile_reached = true; }

// float32 of a float64 sum from first to last, divided by the count, times (1 + column), divided by the columns.
void write_means(const Plan &plan, const unsigned char *input, unsigned char *output, std::size_t batch) {
    const Tensor &given = plan.first_input();
    const Tensor &made = *std::find_if(plan.tensors.begin(), plan.tensors.end(), [](const Tensor &one) { return !one.input; });
    const std::size_t count = given.row_bytes() / sizeof(float), columns = made.row_bytes() / sizeof(float);
    for (std::size_t index = 0; index < batch; index++) {
        double sum = 0;
        for (std::size_t at = 0; at < count; at++) {
            float value = 0;
            std::memcpy(&value, input + (index * count + at) * sizeof value, sizeof value);
            sum += static_cast<double>(value);
        }
        const float mean = static_cast<float>(sum / static_cast<double>(count));
        for (std::size_t column = 0; column < columns; column++) {
            const float answer = mean * static_cast<float>(1 + column) / static_cast<float>(columns);
            std::memcpy(output + (index * columns + column) * sizeof answer, &answer, sizeof answer);
        }
    }
}

} // namespace

void EngineState::error(const std::string &text) const { logger->log(nvinfer1::ILogger::Severity::kERROR, text.c_str()); }

bool EngineState::misuse(const std::string &text) const {
    ledger().tell(text);
    error(text);
    return false;
}

void Job::run() const {
    const Plan &plan = context->engine->plan;
    const long number = ++context->engine->runs;
    ledger().counts[kRUN]++;
    if (!captured) context->queued--;
    const auto failed = [](int code, const std::string &text) {
        if (!text.empty()) ledger().tell(text);
        driver().stub_cuda_fail(code);
    };
    if (!context->alive) return failed(kILLEGAL_ADDRESS, "a run was reached after its execution context had been destroyed");
    if (plan.failing_runs.count(number)) return failed(kLAUNCH_FAILED, "");
    const unsigned char *input = nullptr;
    for (std::size_t index = 0; index < plan.tensors.size(); index++) {
        const Tensor &tensor = plan.tensors[index];
        if (!driver().stub_cuda_accessible(addresses[index], batch * tensor.row_bytes()))
            return failed(kILLEGAL_ADDRESS, "the memory of " + tensor.name + " was gone or too small when its run was reached");
        if (!input && tensor.input) input = static_cast<const unsigned char *>(addresses[index]);
    }
    const std::size_t input_row = plan.first_input().row_bytes();
    if (!plan.mean) {
        const std::lock_guard<std::mutex> held(ledger().lock);
        ledger().last_input.assign(input, input + batch * input_row);
    }
    for (std::size_t index = 0; index < plan.tensors.size(); index++) {
        const Tensor &tensor = plan.tensors[index];
        if (tensor.input) continue;
        auto *const output = static_cast<unsigned char *>(addresses[index]);
        if (plan.mean) write_means(plan, input, output, batch);
        for (std::size_t picture = 0; picture < batch && !plan.mean; picture++) {
            const std::size_t row = plan.row(picture, input + picture * input_row), bytes = tensor.row_bytes();
            std::memcpy(output + picture * bytes, plan.data.data() + tensor.data + row * bytes, bytes);
        }
    }
}

int queue(std::unique_ptr<Job> job, cudaStream_t stream) {
    ContextState &context = *job->context;
    const bool captured = job->captured;
    if (!captured) context.queued++;
    void *const key = jobs().add(std::move(job));
    const int code = driver().cuLaunchHostFunc(stream, run_job, key);
    if (code == 0) {
        ledger().counts[captured ? kCAPTURED : kENQUEUED]++;
    } else {
        if (!captured) context.queued--;
        jobs().get(key, false);
    }
    return code;
}

int queue_profile(std::shared_ptr<ContextState> context, cudaStream_t stream) {
    context->profile_reached = false;
    auto reached = std::make_shared<Reached>();
    reached->context = context;
    void *const key = profiles().add(std::move(reached));
    const int code = driver().cuLaunchHostFunc(stream, reach_profile, key);
    if (code != 0) profiles().get(key, false);
    return code;
}

} // namespace standin
