// What the stand-in keeps for tests, and the driver that it works on.
#pragma once
#include <atomic>
#include <cstddef>
#include <mutex>
#include <string>
#include <vector>

namespace standin {

enum Kind { kRUNTIMES, kENGINES, kCONTEXTS, kKINDS };
enum Count { kENQUEUED, kCAPTURED, kRUN, kCOUNTS };

struct Ledger {
    std::mutex lock;
    std::vector<std::string> misuse;
    std::vector<unsigned char> last_input;
    std::atomic<long> live[kKINDS] = {};
    std::atomic<long> counts[kCOUNTS] = {};

    void tell(const std::string &text) {
        const std::lock_guard<std::mutex> held(lock);
        misuse.push_back(text);
    }
};

// Never destroyed: objects may outlive the end of main.
inline Ledger &ledger() {
    static Ledger *const made = new Ledger;
    return *made;
}

// libcuda.so.1 as the process finds it; tests let it find the stand-in, whose own functions are needed too.
struct Driver {
    std::string missing; // what could not be found; empty where all is there
    int (*cuInit)(unsigned) = nullptr;
    int (*cuCtxGetCurrent)(void **) = nullptr;
    int (*cuCtxPushCurrent_v2)(void *) = nullptr;
    int (*cuCtxPopCurrent_v2)(void **) = nullptr;
    int (*cuMemAlloc_v2)(void **, std::size_t) = nullptr;
    int (*cuMemFree_v2)(void *) = nullptr;
    int (*cuStreamIsCapturing)(void *, int *) = nullptr;
    int (*cuStreamSynchronize)(void *) = nullptr;
    int (*cuLaunchHostFunc)(void *, void (*)(void *), void *) = nullptr;
    int (*stub_cuda_accessible)(const void *, std::size_t) = nullptr;
    int (*stub_cuda_fail)(int) = nullptr;
};

const Driver &driver();

// GPU memory in the CUDA context that is current when it is taken.
class Memory {
  public:
    Memory() = default;
    Memory(const Memory &) = delete;
    Memory &operator=(const Memory &) = delete;
    ~Memory();
    // CUDA's code.
    int take(std::size_t size);
    // Whether its GPU has failed, after which queued work is not reached any more.
    bool failed() const;

  private:
    void *address_ = nullptr, *context_ = nullptr;
};

} // namespace standin
