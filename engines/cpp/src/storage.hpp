// The memory of Results.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "driver.hpp"
#include "lease.hpp"
#include "manifest.hpp"
#include "yolact_deploy/results.hpp"

namespace yolact::detail {

class Shelf;

// One picture's share of a Storage.
struct FoundPicture {
    int width = 0, height = 0;
    std::size_t first = 0, count = 0;     // of `detections`
    std::size_t bits = 0, mask_words = 0;  // first word in `bits`, words of one mask
    DeviceMasksView device_masks;
};

struct Storage {
    std::shared_ptr<const Manifest> manifest;  // whose names the views show
    std::vector<FoundPicture> pictures;
    std::vector<Detection> detections;
    std::vector<std::pair<std::size_t, std::size_t>> places;  // of each detection's text: start and length
    std::vector<char> text;
    Buffer bits;                      // page-locked words
    std::size_t bits_used = 0;        // words
    Lease lease;                      // of the context that the device masks lie in
    bool has_text = false;            // whether RLE was made
    std::weak_ptr<Shelf> home;        // where it goes at its end

    void clear() noexcept;
    void seal() noexcept;  // all is there: let the detections show their texts
};

}  // namespace yolact::detail

namespace yolact {

struct Results::Storage : detail::Storage {};

}  // namespace yolact
