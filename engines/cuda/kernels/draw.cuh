// Masks as tints over a frame, in place: from the worst detection to the best, which ends on top.
//
// A block has 256 pixels of one row, so that a mask's share of it is 8 words, one sector: masks are read once, with no byte in vain, 26 MB
// for 100 of 1080p, and that is what the kernel costs. The frame is read and written only where a mask covers it. 32 detections at a time
// come into shared memory; a warp has one word of each, its own 32 pixels', and goes in order through those that are not zero.
#pragma once

#include "pictures.cuh"
#include "platform.cuh"

namespace yolact {

constexpr int DRAW_WORDS = DRAW_THREADS / WARP;  // of one mask
constexpr int DRAW_DETECTIONS = 32;              // at a time: a thread loads one word
static_assert(DRAW_WORDS * DRAW_DETECTIONS == DRAW_THREADS && DRAW_DETECTIONS == WARP, "a thread for each word, a lane for each detection");

struct DrawShared {
    u32 words[DRAW_WORDS][DRAW_DETECTIONS + 4];  // 4 more, so that what a warp writes lies in 32 different banks
    u32 colours[DRAW_DETECTIONS];                // in the frame's order, the first in the lowest byte
};

// As cv2.addWeighted computes it on processors with fused multiply-add: where frame and colour mix to a half, the last bit decides.
__device__ inline int tinted(int value, int colour, const Drawing &p) {
    const float mixed = __fmaf_rn(static_cast<float>(value), p.keep, __fmul_rn(static_cast<float>(colour), p.alpha));
    return minimum(maximum(__float2int_rn(mixed), 0), 255);
}

__device__ inline u32 colour_of(const Drawing &p, int detection) {
    const u8 *colour = p.colours + static_cast<u32>(p.labels[detection]) % static_cast<u32>(p.colour_count) * 3;
    const u32 red = colour[0], green = colour[1], blue = colour[2];
    return p.swapped ? red << 16 | green << 8 | blue : blue << 16 | green << 8 | red;
}

// Grid: height x ceil(width / DRAW_THREADS); rows come first, since there may be more than 65,535 of them.
__device__ inline void draw_row(const Drawing &p, DrawShared &shared) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, row = blockIdx.x;
    const int column = blockIdx.y * DRAW_THREADS + threadIdx.x;
    const int count = static_cast<int>(*p.count < static_cast<u32>(p.detections) ? *p.count : p.detections);
    const int row_words = (p.width + 31) / 32, own_word = threadIdx.x % DRAW_WORDS, own_detection = threadIdx.x / DRAW_WORDS;
    const int place = blockIdx.y * DRAW_WORDS + own_word;  // in a mask's row
    u8 *pixel = p.frame + static_cast<size_t>(row) * p.pitch + static_cast<size_t>(column) * p.channels;
    int first = 0, second = 0, third = 0;
    bool covered = false;
    for (int start = 0; start < count; start += DRAW_DETECTIONS) {
        const int left = count - start;  // detections left - 1 … 0 are to come
        u32 word = 0;
        if (own_detection < left && place < row_words) {
            word = p.masks[static_cast<size_t>(left - 1 - own_detection) * p.mask_words + static_cast<size_t>(row) * row_words + place];
        }
        shared.words[own_word][own_detection] = word;
        if (warp == 0 && lane < left) shared.colours[lane] = colour_of(p, left - 1 - lane);
        __syncthreads();
        u32 found = __ballot_sync(ALL_LANES, shared.words[warp][lane] != 0);
        for (; found; found &= found - 1) {
            const int index = __ffs(found) - 1;
            if (column >= p.width || !(shared.words[warp][index] >> lane & 1)) continue;
            if (!covered) {
                covered = true;
                first = pixel[0];
                second = pixel[1];
                third = pixel[2];
            }
            const u32 colour = shared.colours[index];
            first = tinted(first, colour & 255, p);
            second = tinted(second, colour >> 8 & 255, p);
            third = tinted(third, colour >> 16, p);
        }
        __syncthreads();
    }
    if (covered) {
        pixel[0] = static_cast<u8>(first);
        pixel[1] = static_cast<u8>(second);
        pixel[2] = static_cast<u8>(third);
    }
}

}  // namespace yolact

extern "C" __global__ void __launch_bounds__(yolact::DRAW_THREADS) draw_masks(const yolact::Drawing drawing) {
    __shared__ yolact::DrawShared shared;
    yolact::draw_row(drawing, shared);
}
