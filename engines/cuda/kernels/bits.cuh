// Instead of run lengths, or beside them: the masks at the picture's size, a bit a pixel.
#pragma once

#include "outline.cuh"

namespace yolact {

// 32 pixels of a row from `first` on, fewer at its end.
__device__ inline u32 mask_word(const Mask &mask, int row, int first) {
    const Mix down = mix_of(mask.rows, row);
    if (down.next < mask.top || down.sample >= mask.bottom) return 0;
    const int end = minimum(first + 32, mask.columns.pixels);
    const Mix left = mix_of(mask.columns, first), right = mix_of(mask.columns, end - 1);
    if (right.next < mask.left || left.sample >= mask.right) return 0;
    bool all = true, any = false;
    for (int column = left.sample; column <= right.next; ++column) {
        const bool above = mask.sample(down.sample, column) > 0.5f, below = mask.sample(down.next, column) > 0.5f;
        all = all && above && below;
        any = any || above || below;
    }
    const u32 present = end - first == 32 ? ~0u : (1u << (end - first)) - 1;
    if (all) return present;
    u32 word = 0;
    for (int pixel = first; any && pixel < end; ++pixel) {
        word |= static_cast<u32>(mask.inside(down, mix_of(mask.columns, pixel))) << (pixel - first);
    }
    return word;
}

// Grid: any x D x B.
__device__ inline void pack_masks(const Problem &p) {
    const int picture = blockIdx.z, detection = blockIdx.y;
    if (detection >= static_cast<int>(p.counts[picture])) return;
    const Mask mask = mask_of(p, picture, detection);
    const u32 row_words = (mask.columns.pixels + 31) / 32, words = row_words * mask.rows.pixels;
    u32 *bits = p.bits + (static_cast<size_t>(picture) * p.max_detections + detection) * p.bits_stride;
    for (u32 place = blockIdx.x * BITS_THREADS + threadIdx.x; place < words; place += gridDim.x * BITS_THREADS) {
        bits[place] = mask_word(mask, place / row_words, place % row_words * 32);
    }
}

}  // namespace yolact

extern "C" __global__ void __launch_bounds__(yolact::BITS_THREADS) pack_bits(const yolact::Problem problem) {
    yolact::pack_masks(problem);
}
