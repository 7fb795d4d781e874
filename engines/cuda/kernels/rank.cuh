// Stage 2: of each class the `top_k` best candidates, in order; for cross-class Fast NMS once over all, each prior with its best class.
//
// A candidate takes part with all its classes, whatever their scores (YOLACT, section 3.2): only the final ranking leaves the low ones out.
#pragma once

#include "block.cuh"
#include "problem.cuh"

namespace yolact {

// Grid: G x B.
template <typename Score>
__device__ inline void rank_candidates(const Problem &p) {
    __shared__ Largest shared;
    const int group = blockIdx.x, picture = blockIdx.y, foreground = p.classes - 1;
    const size_t priors = static_cast<size_t>(picture) * p.prior_count;
    const int n = static_cast<int>(p.candidate_counts[picture]);
    int count;
    if (p.groups == 1) {
        const u64 *keys = p.best_keys + priors;
        count = rank_largest<RANK_THREADS>([keys](int place) { return keys[place]; }, n, p.top_k, shared);
    } else {
        const u32 *candidates = p.candidates + priors;
        const Score *column = static_cast<const Score *>(p.scores) + priors * p.classes + 1 + group;
        const auto key_at = [candidates, column, group, foreground, &p](int place) {
            const u32 prior = candidates[place];
            return key_of(to_float(column[static_cast<size_t>(prior) * p.classes]), prior * foreground + group);
        };
        count = rank_largest<RANK_THREADS>(key_at, n, p.top_k, shared);
    }
    const size_t list = static_cast<size_t>(picture) * p.groups + group;
    for (int place = threadIdx.x; place < count; place += RANK_THREADS) p.ranked[list * p.top_k + place] = shared.sorted[place];
    if (threadIdx.x == 0) p.ranked_counts[list] = count;
}

}  // namespace yolact

extern "C" __global__ void __launch_bounds__(yolact::RANK_THREADS) rank_float(const yolact::Problem problem) {
    yolact::rank_candidates<float>(problem);
}

extern "C" __global__ void __launch_bounds__(yolact::RANK_THREADS) rank_half(const yolact::Problem problem) {
    yolact::rank_candidates<yolact::Half>(problem);
}
