// Stage 7: the used part of the RLE arena to page-locked host memory. The host's size is not known when the work is queued, and a copy of
// the whole arena would be a hundred times too long, so the GPU writes to the host itself.
#pragma once

#include "platform.cuh"
#include "problem.cuh"

namespace yolact {

// Grid: any.
__device__ inline void deliver_bytes(const Problem &p) {
    const u64 used = *p.arena_used < p.arena_size ? *p.arena_used : p.arena_size;
    const u64 words = (used + 15) / 16;
    const uint4 *source = reinterpret_cast<const uint4 *>(p.arena);
    uint4 *target = reinterpret_cast<uint4 *>(p.delivered);
    for (u64 place = blockIdx.x * DELIVER_THREADS + threadIdx.x; place < words; place += gridDim.x * DELIVER_THREADS) {
        target[place] = source[place];
    }
}

}  // namespace yolact

extern "C" __global__ void __launch_bounds__(yolact::DELIVER_THREADS) deliver(const yolact::Problem problem) {
    yolact::deliver_bytes(problem);
}
