// The thread that waits for submissions and tells of their results.
#pragma once

#include <functional>
#include <memory>
#include <thread>

namespace yolact::detail {

// Jobs in the order in which they came, one after the other. The thread starts with the first.
class Completer {
public:
    Completer();
    // When all jobs are done. Where a job itself ends its completer, the thread goes on with the jobs that are left, by itself.
    ~Completer();
    Completer(const Completer &) = delete;
    Completer &operator=(const Completer &) = delete;

    // Takes the job, or throws and leaves it.
    void add(std::function<void()> job);

    // Whether this is the thread that runs jobs.
    bool is_own_thread() const;

private:
    struct State;
    static void work(const std::shared_ptr<State> &state) noexcept;

    std::shared_ptr<State> state_;
    std::thread thread_;
};

}  // namespace yolact::detail
