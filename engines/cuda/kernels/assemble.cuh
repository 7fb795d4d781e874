// Stage 5: mask probabilities at prototype size, sigmoid(P C^T), only where a detection's crop keeps them (YOLACT, section 3.1).
//
// A thread holds one sample of all K prototypes and meets one detection after another, whose coefficients lie in shared memory. So the
// prototypes are read once for 32 detections, 2.4 MB at 550 px, and not once for each (77 MB for boxes of 30 %): that is why the product
// does not stand in the kernel that walks the outlines, though its result then goes through the cache.
#pragma once

#include "platform.cuh"
#include "problem.cuh"

namespace yolact {

// Grid: tiles x ceil(D / ASSEMBLE_DETECTIONS) x B; K is prototype_count rounded up.
template <typename Sample, int K>
__device__ inline void assemble_masks(const Problem &p) {
    __shared__ float4 coefficients[ASSEMBLE_DETECTIONS][K / 4];
    __shared__ int4 crops[ASSEMBLE_DETECTIONS];
    const int picture = blockIdx.z, first = blockIdx.y * ASSEMBLE_DETECTIONS;
    const int count = minimum(static_cast<int>(p.counts[picture]) - first, ASSEMBLE_DETECTIONS);
    if (count <= 0) return;
    const size_t slot = static_cast<size_t>(picture) * p.max_detections + first;
    for (int place = threadIdx.x; place < count * K; place += ASSEMBLE_THREADS) {
        const int detection = place / K, k = place % K;
        const float *own = p.chosen_coefficients + (slot + detection) * p.prototype_count;
        reinterpret_cast<float *>(coefficients[detection])[k] = k < p.prototype_count ? own[k] : 0.0f;
    }
    for (int place = threadIdx.x; place < count; place += ASSEMBLE_THREADS) {
        const int *own = p.crops + 4 * (slot + place);
        crops[place] = make_int4(own[0], own[1], own[2], own[3]);
    }

    const int tiles = (p.width + ASSEMBLE_WIDTH - 1) / ASSEMBLE_WIDTH, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int left = blockIdx.x % tiles * ASSEMBLE_WIDTH + warp % 2 * 8, top = blockIdx.x / tiles * ASSEMBLE_HEIGHT + warp / 2 * 4;
    const int column = left + lane % 8, row = top + lane / 8;
    const bool present = column < p.width && row < p.height;
    const size_t plane = static_cast<size_t>(p.height) * p.width, place = static_cast<size_t>(row) * p.width + column;
    float samples[K];
    const Sample *prototypes = static_cast<const Sample *>(p.prototypes) + static_cast<size_t>(picture) * p.prototype_count * plane + place;
#pragma unroll
    for (int k = 0; k < K; ++k) samples[k] = present && k < p.prototype_count ? to_float(prototypes[k * plane]) : 0.0f;
    __syncthreads();

    for (int detection = 0; detection < count; ++detection) {
        const int4 crop = crops[detection];
        const bool meets = left < crop.z && left + 8 > crop.x && top < crop.w && top + 4 > crop.y;  // the same for a warp
        if (!meets && !p.fill) continue;
        float sum = 0.0f;
        if (meets) {
#pragma unroll
            for (int k = 0; k < K / 4; ++k) {
                const float4 four = coefficients[detection][k];
                sum = __fmaf_rn(four.x, samples[4 * k], sum);
                sum = __fmaf_rn(four.y, samples[4 * k + 1], sum);
                sum = __fmaf_rn(four.z, samples[4 * k + 2], sum);
                sum = __fmaf_rn(four.w, samples[4 * k + 3], sum);
            }
        }
        const bool kept = column >= crop.x && column < crop.z && row >= crop.y && row < crop.w;
        if (present && (kept || p.fill)) {
            p.probabilities[(slot + detection) * plane + place] = kept ? __fdiv_rn(1.0f, 1.0f + expf(-sum)) : 0.0f;
        }
    }
}

}  // namespace yolact

extern "C" __global__ void __launch_bounds__(yolact::ASSEMBLE_THREADS) assemble_float_32(const yolact::Problem problem) {
    yolact::assemble_masks<float, 32>(problem);
}

extern "C" __global__ void __launch_bounds__(yolact::ASSEMBLE_THREADS) assemble_float_64(const yolact::Problem problem) {
    yolact::assemble_masks<float, 64>(problem);
}

extern "C" __global__ void __launch_bounds__(yolact::ASSEMBLE_THREADS) assemble_half_32(const yolact::Problem problem) {
    yolact::assemble_masks<yolact::Half, 32>(problem);
}

extern "C" __global__ void __launch_bounds__(yolact::ASSEMBLE_THREADS) assemble_half_64(const yolact::Problem problem) {
    yolact::assemble_masks<yolact::Half, 64>(problem);
}
