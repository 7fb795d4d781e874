// Engines and contexts as their queued work sees them, which may run when the objects of TensorRT's interface are gone.
#pragma once
#include <NvInferRuntime.h>
#include <atomic>
#include <memory>
#include <vector>
#include "ledger.hpp"
#include "plan.hpp"

namespace standin {

struct EngineState {
    Plan plan;
    nvinfer1::ILogger *logger = nullptr;
    Memory weights;
    std::atomic<long> runs{0}, enqueues{0}, contexts{0}, contexts_made{0};

    void error(const std::string &text) const;
    // An error that is the caller's own fault; always false.
    bool misuse(const std::string &text) const;
};

struct ContextState {
    std::shared_ptr<EngineState> engine;
    std::atomic<bool> alive{true}, busy{false}, profile_reached{true};
    std::atomic<long> queued{0};
};

// One execution, with the addresses and the batch of when it was queued.
struct Job {
    std::shared_ptr<ContextState> context;
    std::vector<void *> addresses; // of the plan's tensors, in their order
    std::size_t batch = 0;
    bool captured = false;         // into a graph, which may run it any number of times

    void run() const;
};

// Queue on a stream; CUDA's code.
int queue(std::unique_ptr<Job> job, cudaStream_t stream);
// Queue that the profile's setting is reached.
int queue_profile(std::shared_ptr<ContextState> context, cudaStream_t stream);

} // namespace standin
