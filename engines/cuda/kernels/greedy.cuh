// Stages 2 and 3 of traditional NMS (Fast R-CNN's): of each class the best box that is left stays and removes those that overlap with it,
// until nothing is left or as many stay as there can be detections.
//
// A class keeps a bit for each candidate of the picture. One pass over the bits takes away what the last survivor removes and finds the
// best of the rest at once; a warp takes a word, so that bits are written without atomics and words that are done cost one load. The first
// pass takes away what does not score above the threshold: for most classes that is all, and there is no second one.
#pragma once

#include "block.cuh"
#include "problem.cuh"
#include "suppress.cuh"

namespace yolact {

__device__ inline float4 pixel_box(const Problem &p, int picture, u32 prior) {
    const float size = static_cast<float>(p.input_size);
    const float4 box = load_box(p, static_cast<size_t>(picture) * p.prior_count + prior);
    return make_float4(__fmul_rn(box.x, size), __fmul_rn(box.y, size), __fmul_rn(box.z, size), __fmul_rn(box.w, size));
}

// A side from a to b counts both ends.
__device__ inline float pixels_between(float a, float b) { return __fadd_rn(__fsub_rn(b, a), 1.0f); }

__device__ inline float pixel_area(float4 box) { return __fmul_rn(pixels_between(box.x, box.z), pixels_between(box.y, box.w)); }

// As the reference in postprocess/suppression.py rounds it.
__device__ inline float pixel_iou(float4 better, float4 worse) {
    const float wide = maximum(pixels_between(maximum(better.x, worse.x), minimum(better.z, worse.z)), 0.0f);
    const float high = maximum(pixels_between(maximum(better.y, worse.y), minimum(better.w, worse.w)), 0.0f);
    const float common = __fmul_rn(wide, high);
    return __fdiv_rn(common, __fsub_rn(__fadd_rn(pixel_area(better), pixel_area(worse)), common));
}

// Grid: G x B.
template <typename Score>
__device__ inline void suppress_greedily(const Problem &p) {
    constexpr int WARPS = GREEDY_THREADS / WARP;
    __shared__ u64 kept[LARGEST_K];
    __shared__ u64 bests[2][WARPS];  // of each warp, in turns: who is slow still reads the last one
    __shared__ u32 start;
    const int group = blockIdx.x, picture = blockIdx.y, foreground = p.classes - 1, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const size_t priors = static_cast<size_t>(picture) * p.prior_count, list = static_cast<size_t>(picture) * p.groups + group;
    const int n = static_cast<int>(p.candidate_counts[picture]), words = (n + WARP - 1) / WARP;
    const u32 *candidates = p.candidates + priors;
    const Score *column = static_cast<const Score *>(p.scores) + priors * p.classes + 1 + group;
    u32 *removed = p.removed + list * ((p.prior_count + WARP - 1) / WARP);

    int count = 0;
    u32 last = 0;  // the prior that stayed last
    float4 box = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    while (count < p.max_detections) {
        u64 best = 0;
        for (int word = warp; word < words; word += WARPS) {
            const u32 gone = count ? removed[word] : 0;
            if (gone == ALL_LANES) continue;
            const int place = word * WARP + lane;
            bool stays = place < n && !(gone >> lane & 1);
            if (stays) {
                const u32 prior = candidates[place];
                const float score = to_float(column[static_cast<size_t>(prior) * p.classes]);
                // An IoU of NaN removes nothing, not even the box itself.
                stays = count ? prior != last && !(pixel_iou(box, pixel_box(p, picture, prior)) >= p.iou_threshold)
                              : score > p.score_threshold;
                const u64 key = key_of(score, prior * foreground + group);
                if (stays && key > best) best = key;
            }
            const u32 left = __ballot_sync(ALL_LANES, stays);
            if (lane == 0) removed[word] = ~left;
        }
        for (int step = WARP / 2; step > 0; step /= 2) {
            const u64 other = __shfl_xor_sync(ALL_LANES, best, step);
            if (other > best) best = other;
        }
        if (lane == 0) bests[count % 2][warp] = best;
        __syncthreads();
        for (int other = 0; other < WARPS; ++other) {
            if (bests[count % 2][other] > best) best = bests[count % 2][other];
        }
        if (!best) break;  // nothing is left: the keys of scores above the threshold are not 0
        last = entry_of(best) / foreground;
        box = pixel_box(p, picture, last);
        if (threadIdx.x == 0) kept[count] = best;
        ++count;
    }
    if (threadIdx.x == 0 && count) start = atomicAdd(&p.survivor_counts[picture], static_cast<u32>(count));
    __syncthreads();
    u64 *survivors = p.survivors + static_cast<size_t>(picture) * p.groups * p.top_k;
    for (int place = threadIdx.x; place < count; place += GREEDY_THREADS) survivors[start + place] = kept[place];
}

}  // namespace yolact

extern "C" __global__ void __launch_bounds__(yolact::GREEDY_THREADS) greedy_float(const yolact::Problem problem) {
    yolact::suppress_greedily<float>(problem);
}

extern "C" __global__ void __launch_bounds__(yolact::GREEDY_THREADS) greedy_half(const yolact::Problem problem) {
    yolact::suppress_greedily<yolact::Half>(problem);
}
