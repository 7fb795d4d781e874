// Memory of results that ended, for the results of later submissions.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "storage.hpp"

namespace yolact::detail {

// Thread-safe. Results know it by a weak pointer, so that they do not keep it.
class Shelf : public std::enable_shared_from_this<Shelf> {
public:
    // Empty results, with memory of earlier ones where there is some.
    Results take();

    void put(std::unique_ptr<Results::Storage> storage) noexcept;

private:
    static constexpr std::size_t MOST = 16;

    std::mutex lock_;
    std::vector<std::unique_ptr<Results::Storage>> kept_;
};

}  // namespace yolact::detail
