// A context of a detector in somebody's hands: a call's, a submission's, or results' whose masks lie in it.
#pragma once

#include <cstddef>
#include <memory>

namespace yolact::detail {

class Context;
class Pool;

// A context of its own for as long as it lives. Move-only.
class Lease {
public:
    Lease() noexcept = default;
    ~Lease();
    Lease(Lease &&other) noexcept;
    Lease &operator=(Lease &&other) noexcept;

    Context &operator*() const noexcept { return *context_; }
    Context *operator->() const noexcept { return context_; }

    // From now on it is held by results: whoever waits for a context is told so, where there is no other.
    void hold() noexcept;

private:
    friend class Pool;
    Lease(std::shared_ptr<Pool> pool, std::size_t index);

    std::shared_ptr<Pool> pool_;
    std::size_t index_ = 0;
    Context *context_ = nullptr;
};

}  // namespace yolact::detail
