// Engines with NMS in their graph, instead of stages 1 to 4: the detections that the graph gives, packed, as `best` leaves them; and where
// the graph assembles masks, these, instead of stage 5.
#pragma once

#include "best.cuh"
#include "block.cuh"
#include "problem.cuh"

namespace yolact {

// Grid: B. Labels are handed on as they are, since only the host can refuse one: nothing may be indexed by them unchecked.
__device__ inline void pack_given(const Problem &p) {
    __shared__ u32 scratch[GIVEN_THREADS / WARP];
    const int picture = blockIdx.x;
    const size_t slots = static_cast<size_t>(picture) * p.max_detections;
    u32 count = 0;
    for (int first = 0; first < p.max_detections; first += GIVEN_THREADS) {
        const int row = first + static_cast<int>(threadIdx.x);
        const size_t source = slots + row;
        const bool present = row < p.max_detections && p.given_labels[source] >= 0;
        u32 here;
        const size_t slot = slots + count + sum_before<GIVEN_THREADS>(present, scratch, here);
        count += here;
        if (!present) continue;
        const float4 box = load_box(p, source);
        const int2 columns = kept_samples(box.x, box.z, p.width), rows = kept_samples(box.y, box.w, p.height);
        p.candidates[slot] = row;
        p.found_scores[slot] = p.given_scores[source];
        p.mask_scores[slot] = p.given_mask_scores ? p.given_mask_scores[source] : p.given_scores[source];
        p.labels[slot] = p.given_labels[source];
        p.priors[slot] = -1;
        float *found = p.found_boxes + 4 * slot;
        found[0] = box.x, found[1] = box.y, found[2] = box.z, found[3] = box.w;
        int *crop = p.crops + 4 * slot;
        crop[0] = columns.x, crop[1] = rows.x, crop[2] = columns.y, crop[3] = rows.y;
    }
    if (threadIdx.x == 0) p.counts[picture] = count;
    __syncthreads();
    for (size_t place = threadIdx.x; place < static_cast<size_t>(count) * p.prototype_count; place += GIVEN_THREADS) {
        const size_t row = p.candidates[slots + place / p.prototype_count];
        const size_t source = (slots + row) * p.prototype_count + place % p.prototype_count;
        p.chosen_coefficients[slots * p.prototype_count + place] = coefficient_at(p, source);
    }
}

// Grid: any x D x B.
template <typename Sample>
__device__ inline void crop_given(const Problem &p, const Sample *masks) {
    const int picture = blockIdx.z, detection = blockIdx.y;
    if (detection >= static_cast<int>(p.counts[picture])) return;
    const size_t slots = static_cast<size_t>(picture) * p.max_detections, slot = slots + detection;
    const size_t plane = static_cast<size_t>(p.height) * p.width;
    const int *crop = p.crops + 4 * slot;
    const int wide = crop[2] - crop[0], samples = wide * (crop[3] - crop[1]);  // neither is ever negative
    const Sample *given = masks + (slots + p.candidates[slot]) * plane;
    float *probabilities = p.probabilities + slot * plane;
    for (int place = blockIdx.x * GIVEN_THREADS + threadIdx.x; place < samples; place += gridDim.x * GIVEN_THREADS) {
        const size_t sample = static_cast<size_t>(crop[1] + place / wide) * p.width + crop[0] + place % wide;
        probabilities[sample] = to_float(given[sample]);
    }
}

}  // namespace yolact

extern "C" __global__ void __launch_bounds__(yolact::GIVEN_THREADS) given(const yolact::Problem problem) { yolact::pack_given(problem); }

extern "C" __global__ void __launch_bounds__(yolact::GIVEN_THREADS) given_masks(const yolact::Problem problem) {
    if (problem.half_inputs & 4) {
        yolact::crop_given(problem, static_cast<const yolact::Half *>(problem.given_masks));
    } else {
        yolact::crop_given(problem, static_cast<const float *>(problem.given_masks));
    }
}
