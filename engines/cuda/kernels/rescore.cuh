// Mask rescoring of the plus variants (YOLACT++, section 4.3): the predicted IoU of a detection's own class times its score.
#pragma once

#include "platform.cuh"
#include "problem.cuh"

namespace yolact {

// Grid: ceil(D / RESCORE_THREADS) x B.
__device__ inline void rescore_masks(const Problem &p) {
    const u32 place = blockIdx.x * RESCORE_THREADS + threadIdx.x;
    if (place >= p.counts[blockIdx.y]) return;
    const size_t slot = static_cast<size_t>(blockIdx.y) * p.max_detections + place;
    // A graph with NMS inside may give a label that there is no class for; the host refuses it, but only afterwards.
    const int label = minimum(p.labels[slot], p.classes - 2);
    p.mask_scores[slot] = __fmul_rn(p.found_scores[slot], p.mask_iou[slot * (p.classes - 1) + label]);
}

}  // namespace yolact

extern "C" __global__ void __launch_bounds__(yolact::RESCORE_THREADS) rescore(const yolact::Problem problem) {
    yolact::rescore_masks(problem);
}
