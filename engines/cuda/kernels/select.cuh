// Stage 1: the priors that take part, those whose best foreground score is above the threshold.
//
// Reads every score once, [B, P, C]: 6.2 MB for 19,248 priors of 81 classes; nothing else of this stage moves as much. Eight lanes share a
// row, so a warp's loads touch four runs of 32 bytes, and its rows' remainders are in the cache when the next step asks for them.
#pragma once

#include "block.cuh"
#include "problem.cuh"

namespace yolact {

// Grid: ceil(P / SELECT_PRIORS) x B.
template <typename Score>
__device__ inline void select_candidates(const Problem &p) {
    const int lane = threadIdx.x % SELECT_LANES, picture = blockIdx.y;
    const int prior = blockIdx.x * SELECT_PRIORS + threadIdx.x / SELECT_LANES;
    const bool present = prior < p.prior_count;
    const size_t row = static_cast<size_t>(picture) * p.prior_count + (present ? prior : 0);
    const Score *scores = static_cast<const Score *>(p.scores) + row * p.classes;

    float best = -__uint_as_float(0x7f800000u);
    int label = 0;
    bool complete = present;  // no NaN, which would leave the prior without a best class
    if (present) {
        for (int column = 1 + lane; column < p.classes; column += SELECT_LANES) {
            const float score = to_float(scores[column]);
            complete = complete && score == score;
            if (score > best) {
                best = score;
                label = column - 1;
            }
        }
    }
    u64 key = key_of(best, static_cast<u32>(label));  // of equal scores the lower class
    for (int step = SELECT_LANES / 2; step > 0; step /= 2) {
        const u64 other = __shfl_xor_sync(ALL_LANES, key, step);
        if (other > key) key = other;
    }
    const u32 group = ((1u << SELECT_LANES) - 1) << (threadIdx.x % WARP / SELECT_LANES * SELECT_LANES);
    const bool row_complete = (__ballot_sync(ALL_LANES, complete) & group) == group;
    const bool chosen = lane == 0 && row_complete && score_of(key) > p.score_threshold;

    const u32 all = __ballot_sync(ALL_LANES, chosen);
    if (!all) return;
    const int leader = __ffs(all) - 1, own = threadIdx.x % WARP;
    u32 place = 0;
    if (own == leader) place = atomicAdd(&p.candidate_counts[picture], static_cast<u32>(__popc(all)));
    place = __shfl_sync(ALL_LANES, place, leader) + __popc(all & ((1u << own) - 1));
    if (chosen) {
        const size_t slot = static_cast<size_t>(picture) * p.prior_count + place;
        p.candidates[slot] = prior;
        p.best_keys[slot] = key_of(score_of(key), static_cast<u32>(prior) * (p.classes - 1) + entry_of(key));
    }
}

}  // namespace yolact

extern "C" __global__ void __launch_bounds__(yolact::SELECT_THREADS) select_float(const yolact::Problem problem) {
    yolact::select_candidates<float>(problem);
}

extern "C" __global__ void __launch_bounds__(yolact::SELECT_THREADS) select_half(const yolact::Problem problem) {
    yolact::select_candidates<yolact::Half>(problem);
}
