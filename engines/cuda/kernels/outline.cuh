// One detection's mask at the picture's size, from its probabilities at prototype size: bilinear(probability) > 0.5, outside its crop 0.
//
// Positions and weights are those of torch.nn.functional.interpolate with align_corners false, every step rounded to float32, as in
// postprocess/interpolation.py; a pixel is mixed across first, then down. Rounding is monotone and carries no pixel between two samples
// of one side to the other side (postprocess/contours.py says why), so only cells with samples on both sides have to be looked into.
#pragma once

#include "platform.cuh"
#include "problem.cuh"

namespace yolact {

// `samples` prototype samples over `pixels` pixels.
struct Axis {
    float scale;
    int samples, pixels;
};

__device__ inline Axis axis_over(int samples, int pixels) {
    return Axis{__fdiv_rn(static_cast<float>(samples), static_cast<float>(pixels)), samples, pixels};
}

// A pixel is lower * sample + upper * next.
struct Mix {
    int sample, next;
    float lower, upper;
};

__device__ inline Mix mix_of(const Axis &axis, int pixel) {
    const float centre = __fmul_rn(__fadd_rn(static_cast<float>(pixel), 0.5f), axis.scale);
    const float source = maximum(__fsub_rn(centre, 0.5f), 0.0f);
    const int sample = minimum(static_cast<int>(source), axis.samples - 1);
    const float upper = __fsub_rn(source, static_cast<float>(sample));
    return Mix{sample, minimum(sample + 1, axis.samples - 1), __fsub_rn(1.0f, upper), upper};
}

// The first pixel whose sample is `sample` or a later one; `pixels` if there is none.
__device__ inline int first_pixel(const Axis &axis, int sample) {
    if (sample <= 0) return 0;
    if (sample >= axis.samples) return axis.pixels;
    const float guess = __fsub_rn(__fdiv_rn(__fadd_rn(static_cast<float>(sample), 0.5f), axis.scale), 0.5f);
    int pixel = minimum(static_cast<int>(guess), axis.pixels);
    while (pixel > 0 && mix_of(axis, pixel - 1).sample >= sample) --pixel;
    while (pixel < axis.pixels && mix_of(axis, pixel).sample < sample) ++pixel;
    return pixel;
}

struct Mask {
    const float *probabilities;  // [h, w]
    int left, top, right, bottom;
    Axis columns, rows;

    __device__ float sample(int row, int column) const {
        const bool kept = column >= left && column < right && row >= top && row < bottom;
        return kept ? probabilities[static_cast<size_t>(row) * columns.samples + column] : 0.0f;
    }
    // A sample row at a pixel column.
    __device__ float across(int row, const Mix &column) const {
        return __fadd_rn(__fmul_rn(column.lower, sample(row, column.sample)), __fmul_rn(column.upper, sample(row, column.next)));
    }
    __device__ static bool inside(const Mix &row, float above, float below) {
        return __fadd_rn(__fmul_rn(row.lower, above), __fmul_rn(row.upper, below)) > 0.5f;
    }
    __device__ bool inside(const Mix &row, const Mix &column) const {
        return inside(row, across(row.sample, column), across(row.next, column));
    }
};

__device__ inline Mask mask_of(const Problem &p, int picture, int detection) {
    const size_t slot = static_cast<size_t>(picture) * p.max_detections + detection;
    const int *crop = p.crops + 4 * slot, *size = p.pictures + 2 * picture;
    const float *probabilities = p.probabilities + slot * p.height * p.width;
    return Mask{probabilities, crop[0], crop[1], crop[2], crop[3], axis_over(p.width, size[0]), axis_over(p.height, size[1])};
}

// A mask with what its columns are walked by: which samples are inside, and where each sample row's pixels begin. In shared memory.
struct Outline {
    Mask mask;
    u32 *inside;  // [w, words] a column's samples, row r in bit r % 32 of word r / 32
    int *firsts;  // [h + 1]
    int words;
    float least_step;  // by how much of `change` two pixel rows of a cell differ at least

    __device__ static size_t shared_bytes(int height, int width) {
        return 4 * (static_cast<size_t>(width) * ((height + 31) / 32) + height + 1);
    }

    // Whether samples (row, column) and so on are inside, 32 rows from 32 * word on.
    __device__ u32 column_word(int column, int word) const { return word < words ? inside[column * words + word] : 0; }

    // Cells of 2 x 2 samples, from row 32 * word on, that may have samples on both sides; of the last row all that have one inside.
    __device__ u32 mixed_cells(const Mix &column, int word) const {
        const u32 a = column_word(column.sample, word), b = column_word(column.next, word);
        const u32 a_below = a >> 1 | column_word(column.sample, word + 1) << 31, b_below = b >> 1 | column_word(column.next, word + 1) << 31;
        return (a | b | a_below | b_below) & ~(a & b & a_below & b_below);
    }

    // Calls `emit(row)` for each pixel row of column `pixel` that is on another side than the pixel before it, which for the first row is
    // the last one of the column before.
    template <typename Emit>
    __device__ void walk(int pixel, const Emit &emit) const {
        const int last = mask.rows.pixels - 1;
        const Mix column = mix_of(mask.columns, pixel);
        bool state = pixel > 0 && mask.inside(mix_of(mask.rows, last), mix_of(mask.columns, pixel - 1));
        int next = 0;  // the first cell that is not looked at
        for (int word = 0; word < words; ++word) {
            for (u32 mixed = mixed_cells(column, word); mixed; mixed &= mixed - 1) {
                const int cell = 32 * word + __ffs(mixed) - 1;
                pass(column.sample, next, cell, state, emit);
                look_into(column, cell, state, emit);
                next = cell + 1;
            }
        }
        pass(column.sample, next, mask.rows.samples, state, emit);
    }

    // The cells `from` .. `to` - 1, all of one side.
    template <typename Emit>
    __device__ void pass(int column, int from, int to, bool &state, const Emit &emit) const {
        if (from >= to || firsts[from] >= firsts[to]) return;
        const bool side = inside[column * words + from / 32] >> from % 32 & 1;
        if (side != state) emit(firsts[from]);
        state = side;
    }

    template <typename Emit>
    __device__ void look_into(const Mix &column, int cell, bool &state, const Emit &emit) const {
        const int first = firsts[cell], last = firsts[cell + 1] - 1;
        if (first > last) return;
        const float above = mask.across(cell, column), below = mask.across(minimum(cell + 1, mask.rows.samples - 1), column);
        const float change = fabsf(__fsub_rn(below, above));
        if ((above > 0.5f) == (below > 0.5f)) {  // NaN is outside, and so is what is mixed with it
            if ((above > 0.5f) != state) emit(first);
            state = above > 0.5f;
            return;
        }
        // Rounding moves a pixel by less than 2.4e-7; where neighbouring rows differ by more than twice that, sides change once.
        const bool monotone = __fmul_rn(change, least_step) > 1e-6f;
        if (!monotone) {
            for (int row = first; row <= last; ++row) step(row, above, below, state, emit);
            return;
        }
        step(first, above, below, state, emit);
        int low = first, high = last;
        if (Mask::inside(mix_of(mask.rows, last), above, below) == state) return;
        while (high - low > 1) {  // `low` is on this side, `high` on the other
            const int middle = low + (high - low) / 2;
            (Mask::inside(mix_of(mask.rows, middle), above, below) == state ? low : high) = middle;
        }
        emit(high);
        state = !state;
    }

    template <typename Emit>
    __device__ void step(int row, float above, float below, bool &state, const Emit &emit) const {
        const bool side = Mask::inside(mix_of(mask.rows, row), above, below);
        if (side != state) emit(row);
        state = side;
    }
};

// Fills the shared memory of an outline; all threads of the block.
template <int THREADS>
__device__ inline Outline outline_of(const Mask &mask, unsigned char *shared) {
    const int height = mask.rows.samples, width = mask.columns.samples, words = (height + 31) / 32;
    u32 *inside = reinterpret_cast<u32 *>(shared);
    int *firsts = reinterpret_cast<int *>(inside + width * words);
    for (int place = threadIdx.x; place < width * words; place += THREADS) inside[place] = 0;
    for (int row = threadIdx.x; row <= height; row += THREADS) firsts[row] = first_pixel(mask.rows, row);
    __syncthreads();
    const int wide = maximum(mask.right - mask.left, 0), high = maximum(mask.bottom - mask.top, 0);
    for (int place = threadIdx.x; place < wide * high; place += THREADS) {
        const int row = mask.top + place / wide, column = mask.left + place % wide;
        if (mask.sample(row, column) > 0.5f) atomicOr(&inside[column * words + row / 32], 1u << row % 32);
    }
    __syncthreads();
    // Float32 positions up to h are off by at most h * 2^-23 each.
    const float least_step = __fsub_rn(mask.rows.scale, __fmul_rn(static_cast<float>(height), 2.3841858e-07f));
    return Outline{mask, inside, firsts, words, least_step};
}

}  // namespace yolact
