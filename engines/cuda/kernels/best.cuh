// Stage 4: the best detections of a picture over all classes, and what the masks need of them.
#pragma once

#include "block.cuh"
#include "problem.cuh"
#include "suppress.cuh"

namespace yolact {

// The prototype samples j of one axis with min(a, b) * size - 1 <= j < max(a, b) * size + 1: first and end, both in 0 .. size.
__device__ inline int2 kept_samples(float a, float b, int size) {
    const float scale = static_cast<float>(size);
    a = __fmul_rn(a, scale);
    b = __fmul_rn(b, scale);
    const float low = ceilf(__fsub_rn(minimum(a, b), 1.0f)), high = ceilf(__fadd_rn(maximum(a, b), 1.0f));
    // NaN becomes 0 in both, which keeps nothing.
    return make_int2(static_cast<int>(fminf(fmaxf(low, 0.0f), scale)), static_cast<int>(fminf(fmaxf(high, 0.0f), scale)));
}

__device__ inline float coefficient_at(const Problem &p, size_t place) {
    if (p.half_inputs & 2) return to_float(static_cast<const Half *>(p.coefficients)[place]);
    return static_cast<const float *>(p.coefficients)[place];
}

// Grid: B.
__device__ inline void choose_best(const Problem &p) {
    __shared__ Largest shared;
    const int picture = blockIdx.x, foreground = p.classes - 1;
    const u64 *survivors = p.survivors + static_cast<size_t>(picture) * p.groups * p.top_k;
    const auto key_at = [survivors](int place) { return survivors[place]; };
    const int survivor_count = static_cast<int>(p.survivor_counts[picture]);
    const int count = rank_largest<BEST_THREADS>(key_at, survivor_count, p.max_detections, shared);
    if (threadIdx.x == 0) p.counts[picture] = count;

    const size_t slots = static_cast<size_t>(picture) * p.max_detections;
    for (int place = threadIdx.x; place < count; place += BEST_THREADS) {
        const u32 entry = entry_of(shared.sorted[place]), prior = entry / foreground;
        const float4 box = load_box(p, static_cast<size_t>(picture) * p.prior_count + prior);
        const int2 columns = kept_samples(box.x, box.z, p.width), rows = kept_samples(box.y, box.w, p.height);
        const size_t slot = slots + place;
        const float score = score_of(shared.sorted[place]);
        p.found_scores[slot] = score;
        p.mask_scores[slot] = score;
        p.labels[slot] = static_cast<int>(entry % foreground);
        p.priors[slot] = static_cast<int>(prior);
        float *found = p.found_boxes + 4 * slot;
        found[0] = box.x, found[1] = box.y, found[2] = box.z, found[3] = box.w;
        int *crop = p.crops + 4 * slot;
        crop[0] = columns.x, crop[1] = rows.x, crop[2] = columns.y, crop[3] = rows.y;
    }
    for (int place = threadIdx.x; place < count * p.prototype_count; place += BEST_THREADS) {
        const u32 prior = entry_of(shared.sorted[place / p.prototype_count]) / foreground;
        const size_t source = (static_cast<size_t>(picture) * p.prior_count + prior) * p.prototype_count + place % p.prototype_count;
        p.chosen_coefficients[slots * p.prototype_count + place] = coefficient_at(p, source);
    }
}

}  // namespace yolact

extern "C" __global__ void __launch_bounds__(yolact::BEST_THREADS) best(const yolact::Problem problem) {
    yolact::choose_best(problem);
}
