// The one argument of every post-processing kernel: what comes in, the buffers between the stages, what goes out.
//
// B pictures, P priors, C classes with background in column 0, K prototypes of h x w samples, D detections of a picture at most,
// G groups that NMS works on: C - 1 classes, 1 for cross-class Fast NMS, none for a graph with NMS inside. Of the latter P is how many
// detections it gives of a picture, as many as D. yolact_deploy/engines/cuda/problem.py mirrors this layout.
#pragma once

#include "types.cuh"

namespace yolact {

struct Problem {
    // Head outputs; float32, or half where the kernel's name says so for scores and prototypes, and by `half_inputs` for the others.
    const void *boxes;         // [B, P, 4] x1, y1, x2, y2 relative to the picture
    const void *scores;        // [B, P, C]
    const void *coefficients;  // [B, P, K]
    const void *prototypes;    // [B, K, h, w]
    const int *pictures;       // [B, 2] width, height in pixels; width * height < 2^31

    // Between the stages. The counters lie in one piece and are zero when `select` starts.
    u32 *candidate_counts;  // [B]
    u32 *survivor_counts;   // [B]
    u64 *arena_used;        // [1] bytes of `arena` that were asked for, perhaps more than there are
    u32 *candidates;        // [B, P] priors above the threshold, in no order; of a graph with NMS inside the places of its detections
    u64 *best_keys;         // [B, P] of the same, the key of their best class
    u64 *ranked;            // [B, G, top_k] keys, best first
    u32 *ranked_counts;     // [B, G]
    u64 *survivors;         // [B, G * top_k] keys, in no order
    float *chosen_coefficients;  // [B, D, K]
    int *crops;             // [B, D, 4] prototype samples kept: left, top, right, bottom, the last two exclusive
    float *probabilities;   // [B, D, h, w], written where the crop keeps them, everywhere with `fill`

    // Results, best first.
    u32 *counts;            // [B] detections
    float *found_boxes;     // [B, D, 4] relative
    float *found_scores;    // [B, D]
    float *mask_scores;     // [B, D] times the predicted mask IoU for variants with mask rescoring
    int *labels;            // [B, D] 0-based without background
    int *priors;            // [B, D], -1 of a graph with NMS inside
    u32 *rle_starts;        // [B, D] first byte in `arena`, 0xffffffff where it had no room
    u32 *rle_lengths;       // [B, D] bytes
    u8 *arena;              // [arena_size] compressed COCO counts
    u8 *delivered;          // [arena_size] page-locked host memory that `deliver` copies the used part of `arena` to
    const float *mask_iou;  // [B * D, C - 1] what the mask-IoU net says of `probabilities`
    u32 *bits;              // [B, D, bits_stride] rows of ceil(width / 32) words, pixel x in bit x % 32 of word x / 32

    // Between the stages of traditional NMS.
    u32 *removed;           // [B, G, ceil(P / 32)] candidates that a class is done with: place i in bit i % 32 of word i / 32

    // What a graph with NMS inside gives, beside `boxes`, `coefficients` and `prototypes`.
    const float *given_scores;       // [B, P]
    const int *given_labels;         // [B, P] 0-based without background, negative where there is no detection
    const void *given_masks;         // [B, P, h, w] float32 or half probabilities, for graphs that assemble masks
    const float *given_mask_scores;  // [B, P], null where the graph has none

    int batch, prior_count, classes, groups, prototype_count, height, width;
    int top_k, max_detections;  // the most that a list hands on, which for traditional NMS is D too; D
    float score_threshold, iou_threshold;
    int half_inputs;        // bit 0: boxes, bit 1: coefficients, bit 2: given_masks are half
    int fill;
    u32 arena_size;         // a multiple of 16
    u32 bits_stride;        // words of one mask
    int input_size;         // pixels of the network's input, which traditional NMS measures boxes in
};

}  // namespace yolact
