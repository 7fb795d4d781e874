// COCO's compressed run lengths, read again; the kernels write them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace yolact::detail {

// Lengths of the runs of a mask, column by column, the first outside.
using Runs = std::vector<std::int64_t>;

// Whether `counts` are those of a mask of `pixels` pixels.
bool read_runs(const std::string &counts, std::int64_t pixels, Runs &runs);

// Of two masks of one size; 1 for two that are empty.
double mask_iou(const Runs &a, const Runs &b);

}  // namespace yolact::detail
