#include "completer.hpp"

#include <condition_variable>
#include <deque>
#include <mutex>
#include <utility>

namespace yolact::detail {

struct Completer::State {
    std::mutex lock;
    std::condition_variable changed;
    std::deque<std::function<void()>> jobs;
    std::thread::id thread;
    bool closing = false;
};

Completer::Completer() : state_(std::make_shared<State>()) {}

Completer::~Completer() {
    const bool own = is_own_thread();
    {
        const std::lock_guard<std::mutex> guard(state_->lock);
        state_->closing = true;
    }
    state_->changed.notify_all();
    if (!thread_.joinable()) return;
    if (own) {
        thread_.detach();
    } else {
        thread_.join();
    }
}

void Completer::add(std::function<void()> job) {
    const std::lock_guard<std::mutex> guard(state_->lock);
    if (!thread_.joinable()) {
        thread_ = std::thread([state = state_] { work(state); });
        state_->thread = thread_.get_id();
    }
    state_->jobs.push_back(std::move(job));
    state_->changed.notify_all();
}

bool Completer::is_own_thread() const {
    const std::lock_guard<std::mutex> guard(state_->lock);
    return state_->thread == std::this_thread::get_id();
}

void Completer::work(const std::shared_ptr<State> &state) noexcept {
    std::unique_lock<std::mutex> guard(state->lock);
    for (;;) {
        state->changed.wait(guard, [&state] { return state->closing || !state->jobs.empty(); });
        if (state->jobs.empty()) return;
        std::function<void()> job = std::move(state->jobs.front());
        state->jobs.pop_front();
        guard.unlock();
        job();
        job = nullptr;  // what it holds ends here, not under the lock
        guard.lock();
    }
}

}  // namespace yolact::detail
