#include "completer.hpp"

#include <utility>

namespace yolact::detail {

Completer::~Completer() {
    {
        const std::lock_guard<std::mutex> guard(lock_);
        closing_ = true;
    }
    changed_.notify_all();
    if (thread_.joinable()) thread_.join();
}

void Completer::add(std::function<void()> job) {
    const std::lock_guard<std::mutex> guard(lock_);
    jobs_.push_back(std::move(job));
    if (!thread_.joinable()) thread_ = std::thread([this] { work(); });
    changed_.notify_all();
}

bool Completer::is_own_thread() const {
    const std::lock_guard<std::mutex> guard(lock_);
    return thread_.get_id() == std::this_thread::get_id();
}

void Completer::work() noexcept {
    std::unique_lock<std::mutex> guard(lock_);
    for (;;) {
        changed_.wait(guard, [this] { return closing_ || !jobs_.empty(); });
        if (jobs_.empty()) return;
        std::function<void()> job = std::move(jobs_.front());
        jobs_.pop_front();
        guard.unlock();
        job();
        job = nullptr;  // what it holds ends here, not under the lock
        guard.lock();
    }
}

}  // namespace yolact::detail
