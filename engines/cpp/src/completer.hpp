// The thread that waits for submissions and tells of their results.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace yolact::detail {

// Jobs in the order in which they came, one after the other. The thread starts with the first.
class Completer {
public:
    Completer() = default;
    ~Completer();  // when all jobs are done
    Completer(const Completer &) = delete;
    Completer &operator=(const Completer &) = delete;

    void add(std::function<void()> job);

    // Whether this is the thread that runs jobs.
    bool is_own_thread() const;

private:
    void work() noexcept;

    mutable std::mutex lock_;
    std::condition_variable changed_;
    std::deque<std::function<void()>> jobs_;
    bool closing_ = false;
    std::thread thread_;
};

}  // namespace yolact::detail
