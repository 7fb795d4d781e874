// The contexts of a detector: who works with which.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

#include "context.hpp"
#include "lease.hpp"

namespace yolact::detail {

// Thread-safe. It outlives its detector as long as results hold a context.
class Pool : public std::enable_shared_from_this<Pool> {
public:
    Pool(std::shared_ptr<const Model> model, int contexts);

    // Waits for a free context. Throws ErrorCode::config where results hold them all, ErrorCode::device where a new one finds no memory or
    // the GPU is lost.
    Lease acquire();

    // All that results do not hold, once none is at work.
    std::vector<Lease> acquire_all();

    const Model &model() const noexcept { return *model_; }
    std::size_t size() const noexcept { return slots_.size(); }
    std::size_t device_bytes() const;

private:
    friend class Lease;
    enum class State { free, working, held };
    struct Slot {
        State state = State::free;
        std::unique_ptr<Context> context;
    };

    bool none_works() const;
    Lease lease(std::size_t index);
    void release(std::size_t index) noexcept;

    std::shared_ptr<const Model> model_;
    mutable std::mutex lock_;
    std::condition_variable changed_;
    std::vector<Slot> slots_;
};

}  // namespace yolact::detail
