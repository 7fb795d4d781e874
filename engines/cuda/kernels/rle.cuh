// Stage 6: compressed COCO run lengths of each mask, as pycocotools writes them, without the mask.
//
// A block walks the picture's columns of one detection, each thread one column at a time; where the mask changes sides is counted, put
// in order by prefix sums, and written as run lengths (cocoapi, common/maskApi.c: the difference to the run two before, in groups of five
// bits). The first round only counts bytes, to take that many of the arena; the second writes them.
#pragma once

#include "block.cuh"
#include "outline.cuh"

namespace yolact {

constexpr int RLE_WINDOW = 1024;  // places in shared memory at once
constexpr u32 NO_ROOM = 0xffffffffu;

struct RleShared {
    int places[RLE_WINDOW + 3];  // the first three are those before the window
    u32 scratch[RLE_THREADS / WARP];
    u32 start;
};

__device__ inline int characters_of(int number) {
    int count = 1;
    for (u32 size = number < 0 ? ~number : number; size >= 16; size >>= 5) ++count;
    return count;
}

__device__ inline void write_number(int number, int count, u8 *out) {
    for (int place = 0; place < count; ++place, number >>= 5) out[place] = static_cast<u8>((number & 31) + (place + 1 < count ? 80 : 48));
}

// Run `index` of a mask, which ends at places[3], as it is written.
__device__ inline int run_number(const int *places, u32 index) {
    const int run = places[3] - places[2];
    return index > 2 ? run - (places[1] - places[0]) : run;
}

// Bytes of one mask's counts; written to `out` unless that is null. All threads of the block get the same answer.
__device__ inline u32 encode_mask(const Outline &outline, RleShared &shared, u8 *out) {
    const Mask &mask = outline.mask;
    const int width = mask.columns.pixels, height = mask.rows.pixels;
    const bool empty = mask.left >= mask.right || mask.top >= mask.bottom;
    // Pixels that a kept sample reaches, and one column more, where a run that reaches the bottom ends.
    const int first = empty ? 0 : first_pixel(mask.columns, mask.left - 1);
    const int end = empty ? 0 : minimum(first_pixel(mask.columns, mask.right) + 1, width);
    if (threadIdx.x < 3) shared.places[threadIdx.x] = 0;
    u32 runs = 0, bytes = 0;
    for (int column = first; column < end; column += RLE_THREADS) {
        const int own = column + threadIdx.x;
        u32 count = 0, total, sum;
        if (own < end) outline.walk(own, [&count](int) { ++count; });
        const u32 before = sum_before<RLE_THREADS>(count, shared.scratch, total);
        for (u32 window = 0; window < total; window += RLE_WINDOW) {
            if (count && before < window + RLE_WINDOW && before + count > window) {
                u32 place = before - window;  // below the window it wraps to a large number
                int *places = shared.places + 3;
                outline.walk(own, [&place, places, own, height](int row) {
                    if (place < RLE_WINDOW) places[place] = own * height + row;
                    ++place;
                });
            }
            __syncthreads();
            const u32 here = total - window < RLE_WINDOW ? total - window : RLE_WINDOW;
            for (u32 start = 0; start < here; start += RLE_THREADS) {
                const u32 place = start + threadIdx.x;
                const int number = place < here ? run_number(shared.places + place, runs + place) : 0;
                const int length = place < here ? characters_of(number) : 0;
                const u32 offset = sum_before<RLE_THREADS>(length, shared.scratch, sum);
                if (out && place < here) write_number(number, length, out + bytes + offset);
                bytes += sum;
            }
            runs += here;
            const int kept = threadIdx.x < 3 ? shared.places[here + threadIdx.x] : 0;
            __syncthreads();
            if (threadIdx.x < 3) shared.places[threadIdx.x] = kept;
            __syncthreads();
        }
    }
    __syncthreads();
    const int last[4] = {shared.places[0], shared.places[1], shared.places[2], width * height};
    const int number = run_number(last, runs), length = characters_of(number);
    if (out && threadIdx.x == 0) write_number(number, length, out + bytes);
    __syncthreads();
    return bytes + length;
}

// Grid: D x B; dynamic shared memory: Outline::shared_bytes.
__device__ inline void encode_masks(const Problem &p, unsigned char *dynamic) {
    __shared__ RleShared shared;
    const int picture = blockIdx.y, detection = blockIdx.x;
    if (detection >= static_cast<int>(p.counts[picture])) return;
    const Outline outline = outline_of<RLE_THREADS>(mask_of(p, picture, detection), dynamic);
    const u32 bytes = encode_mask(outline, shared, nullptr);
    if (threadIdx.x == 0) {
        const u64 start = atomicAdd(p.arena_used, static_cast<u64>(bytes));
        shared.start = start + bytes <= p.arena_size ? static_cast<u32>(start) : NO_ROOM;
        const size_t slot = static_cast<size_t>(picture) * p.max_detections + detection;
        p.rle_starts[slot] = shared.start;
        p.rle_lengths[slot] = bytes;
    }
    __syncthreads();
    if (shared.start != NO_ROOM) encode_mask(outline, shared, p.arena + shared.start);
}

}  // namespace yolact

extern "C" __global__ void __launch_bounds__(yolact::RLE_THREADS) encode_rle(const yolact::Problem problem) {
    YOLACT_DYNAMIC_SHARED(dynamic);
    yolact::encode_masks(problem, dynamic);
}
