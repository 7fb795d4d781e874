#include "rle.hpp"

#include <algorithm>

namespace yolact::detail {

// Each number is written in groups of five bits, the lowest first, bit 5 telling that more come; from the fourth run on it is the
// difference to the run two before (cocoapi, common/maskApi.c).
bool read_runs(const std::string &counts, std::int64_t pixels, Runs &runs) {
    runs.clear();
    std::int64_t sum = 0;
    for (std::size_t place = 0; place < counts.size();) {
        std::int64_t number = 0;
        for (int shift = 0;; shift += 5) {
            if (place == counts.size() || shift > 30) return false;
            const int group = counts[place++] - 48;
            if (group < 0 || group > 63) return false;
            number |= static_cast<std::int64_t>(group & 31) << shift;
            if (group & 32) continue;
            if (group & 16) number -= std::int64_t{1} << (shift + 5);
            break;
        }
        if (runs.size() > 2) number += runs[runs.size() - 2];
        if (number < 0 || number > pixels - sum) return false;
        sum += number;
        runs.push_back(number);
    }
    return sum == pixels;
}

double mask_iou(const Runs &a, const Runs &b) {
    std::size_t places[2] = {};
    std::int64_t left[2] = {a.empty() ? 0 : a[0], b.empty() ? 0 : b[0]}, common = 0, together = 0;
    const Runs *const runs[2] = {&a, &b};
    while (places[0] < a.size() && places[1] < b.size()) {
        const std::int64_t step = std::min(left[0], left[1]);
        const bool in_a = places[0] % 2 != 0, in_b = places[1] % 2 != 0;
        common += in_a && in_b ? step : 0;
        together += in_a || in_b ? step : 0;
        for (int side = 0; side < 2; ++side) {
            left[side] -= step;
            if (left[side]) continue;
            if (++places[side] < runs[side]->size()) left[side] = (*runs[side])[places[side]];
        }
    }
    return together ? static_cast<double>(common) / static_cast<double>(together) : 1;
}

}  // namespace yolact::detail
