// Who is inside a detector, so that it ends when nobody is.
#pragma once

#include <condition_variable>
#include <mutex>

namespace yolact::detail {

class Calls {
public:
    // A call for as long as it lives.
    class Inside {
    public:
        explicit Inside(Calls &calls) : calls_(calls) {
            const std::lock_guard<std::mutex> guard(calls_.lock_);
            ++calls_.count_;
        }
        ~Inside() {
            const std::lock_guard<std::mutex> guard(calls_.lock_);
            if (--calls_.count_ == 0) calls_.changed_.notify_all();
        }
        Inside(const Inside &) = delete;
        Inside &operator=(const Inside &) = delete;

    private:
        Calls &calls_;
    };

    void wait_until_none() {
        std::unique_lock<std::mutex> guard(lock_);
        changed_.wait(guard, [this] { return count_ == 0; });
    }

private:
    std::mutex lock_;
    std::condition_variable changed_;
    int count_ = 0;
};

}  // namespace yolact::detail
