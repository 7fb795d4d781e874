#include "pool.hpp"

#include <algorithm>
#include <utility>

#include "errors.hpp"

namespace yolact::detail {

Pool::Pool(std::shared_ptr<const Model> model, int contexts) : model_(std::move(model)), slots_(static_cast<std::size_t>(contexts)) {}

Lease::Lease(std::shared_ptr<Pool> pool, std::size_t index)
    : pool_(std::move(pool)), index_(index), context_(pool_->slots_[index].context.get()) {}

Lease::~Lease() {
    if (pool_) pool_->release(index_);
}

Lease::Lease(Lease &&other) noexcept
    : pool_(std::move(other.pool_)), index_(other.index_), context_(std::exchange(other.context_, nullptr)) {}

Lease &Lease::operator=(Lease &&other) noexcept {
    if (this != &other) {
        Lease old(std::move(*this));
        pool_ = std::move(other.pool_);
        index_ = other.index_;
        context_ = std::exchange(other.context_, nullptr);
    }
    return *this;
}

void Lease::hold() noexcept {
    const std::lock_guard<std::mutex> guard(pool_->lock_);
    pool_->slots_[index_].state = Pool::State::held;
    pool_->changed_.notify_all();
}

Lease Pool::acquire() {
    model_->driver->check_not_lost();
    std::unique_lock<std::mutex> guard(lock_);
    const auto made_first = [](const Slot &a, const Slot &b) { return a.state == State::free && (b.state != State::free || (a.context && !b.context)); };
    for (;;) {
        const auto slot = std::min_element(slots_.begin(), slots_.end(), made_first);
        if (slot->state != State::free) {
            if (std::all_of(slots_.begin(), slots_.end(), [](const Slot &each) { return each.state == State::held; })) {
                throw config_error("All " + std::to_string(slots_.size()) + " contexts are held by Results with masks on the device.",
                                   "Clear, reuse or destroy one of them, or load with more contexts.");
            }
            changed_.wait(guard);
            continue;
        }
        slot->state = State::working;
        const auto index = static_cast<std::size_t>(slot - slots_.begin());
        guard.unlock();
        return lease(index);
    }
}

std::vector<Lease> Pool::acquire_all() {
    std::vector<std::size_t> indices;
    {
        std::unique_lock<std::mutex> guard(lock_);
        changed_.wait(guard, [this] { return none_works(); });
        for (std::size_t index = 0; index < slots_.size(); ++index) {
            if (slots_[index].state != State::free) continue;
            slots_[index].state = State::working;
            indices.push_back(index);
        }
    }
    std::vector<Lease> leases;
    for (std::size_t place = 0; place < indices.size(); ++place) {
        try {
            leases.push_back(lease(indices[place]));
        } catch (...) {
            for (std::size_t rest = place + 1; rest < indices.size(); ++rest) release(indices[rest]);
            throw;
        }
    }
    return leases;
}

// Of a slot that was made this caller's; its context is made now, if it has none.
Lease Pool::lease(std::size_t index) {
    if (!slots_[index].context) {
        try {
            const Active active(*model_->driver);
            slots_[index].context = std::make_unique<Context>(model_);
        } catch (...) {
            release(index);
            throw;
        }
    }
    return Lease(shared_from_this(), index);
}

bool Pool::none_works() const {
    return std::none_of(slots_.begin(), slots_.end(), [](const Slot &each) { return each.state == State::working; });
}

void Pool::release(std::size_t index) noexcept {
    const std::lock_guard<std::mutex> guard(lock_);
    slots_[index].state = State::free;
    changed_.notify_all();
}

std::size_t Pool::device_bytes() const {
    const std::lock_guard<std::mutex> guard(lock_);
    std::size_t size = 0;
    for (const Slot &each : slots_)
        if (each.state != State::working && each.context) size += each.context->device_bytes();
    return size;
}

}  // namespace yolact::detail
