// Stage 3: Fast NMS (YOLACT, section 3.2): of each ranking those stay whose IoU with every better one is at most the threshold.
//
// A suppressed box still suppresses, so all pairs are independent of each other: a warp takes a box and its lanes the better ones. An IoU
// of NaN (0 / 0 of boxes without area, NaN or infinite corners) is not at most the threshold.
#pragma once

#include "block.cuh"
#include "problem.cuh"

namespace yolact {

__device__ inline float4 load_box(const Problem &p, size_t place) {
    if (p.half_inputs & 1) {
        const Half *box = static_cast<const Half *>(p.boxes) + 4 * place;
        return make_float4(to_float(box[0]), to_float(box[1]), to_float(box[2]), to_float(box[3]));
    }
    const float *box = static_cast<const float *>(p.boxes) + 4 * place;
    return make_float4(box[0], box[1], box[2], box[3]);
}

__device__ inline float area_of(float4 box) { return __fmul_rn(__fsub_rn(box.z, box.x), __fsub_rn(box.w, box.y)); }

// intersection / (area + area - intersection), the better box's area first, as the reference in postprocess/suppression.py rounds it.
__device__ inline float iou(float4 better, float4 worse) {
    const float wide = maximum(__fsub_rn(minimum(better.z, worse.z), maximum(better.x, worse.x)), 0.0f);
    const float high = maximum(__fsub_rn(minimum(better.w, worse.w), maximum(better.y, worse.y)), 0.0f);
    const float common = __fmul_rn(wide, high);
    return __fdiv_rn(common, __fsub_rn(__fadd_rn(area_of(better), area_of(worse)), common));
}

// Grid: G x B.
__device__ inline void suppress_ranked(const Problem &p) {
    __shared__ float4 boxes[LARGEST_K];
    __shared__ u32 kept[LARGEST_K / WARP];
    const int group = blockIdx.x, picture = blockIdx.y, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const size_t list = static_cast<size_t>(picture) * p.groups + group;
    const int count = static_cast<int>(p.ranked_counts[list]);
    const u64 *keys = p.ranked + list * p.top_k;
    for (int place = threadIdx.x; place < count; place += SUPPRESS_THREADS) {
        const u32 prior = entry_of(keys[place]) / (p.classes - 1);
        boxes[place] = load_box(p, static_cast<size_t>(picture) * p.prior_count + prior);
    }
    if (threadIdx.x < LARGEST_K / WARP) kept[threadIdx.x] = 0;
    __syncthreads();
    for (int worse = warp; worse < count; worse += SUPPRESS_THREADS / WARP) {
        bool stays = true;
        for (int first = 0; first < worse && stays; first += WARP) {
            const int better = first + lane;
            const bool passes = better >= worse || iou(boxes[better], boxes[worse]) <= p.iou_threshold;
            stays = __all_sync(ALL_LANES, passes);
        }
        if (lane == 0 && stays) atomicOr(&kept[worse / WARP], 1u << worse % WARP);
    }
    __syncthreads();
    for (int first = warp * WARP; first < count; first += SUPPRESS_THREADS) {
        // Of one ranking no more than `max_detections` can be among the best of all.
        int before = 0;
        for (int word = 0; word < first / WARP; ++word) before += __popc(kept[word]);
        const bool own = kept[first / WARP] >> lane & 1;
        const bool possible = own && before + __popc(kept[first / WARP] & ((1u << lane) - 1)) < p.max_detections;
        const u32 stay = __ballot_sync(ALL_LANES, possible);
        u32 start = 0;
        if (lane == 0 && stay) start = atomicAdd(&p.survivor_counts[picture], static_cast<u32>(__popc(stay)));
        start = __shfl_sync(ALL_LANES, start, 0);
        if (possible) {
            const u32 place = start + __popc(stay & ((1u << lane) - 1));
            p.survivors[static_cast<size_t>(picture) * p.groups * p.top_k + place] = keys[first + lane];
        }
    }
}

}  // namespace yolact

extern "C" __global__ void __launch_bounds__(yolact::SUPPRESS_THREADS) suppress(const yolact::Problem problem) {
    yolact::suppress_ranked(problem);
}
