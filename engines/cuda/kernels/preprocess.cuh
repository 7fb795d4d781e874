// Pictures of any sizes to the network's input: bilinear resizing as float, then normalisation, or rounding to uint8.
//
// RGB and BGR give, bit for bit, what yolact_deploy/preprocess.py computes: the same operations in the same order, each rounded to
// float32. NV12 becomes uint8 RGB first, as a decoder's picture would on the host, and each chroma sample serves its 2 x 2 pixels.
//
// Cost: memory, as long as there are pixels enough to hide its latency. A warp writes 32 neighbours of an output row, which makes whole
// sectors in every plane: 12 S^2 bytes a picture as float, half of that as half, a quarter as uint8, and an enlargement is bound by
// these. A reduction by f reads two neighbouring samples every 3 f bytes, of two rows in f: up to f = 10 that is every sector of those
// rows, once, since a pixel's other bytes and a neighbour's lie in lines that the block has in L1 by then; so from f = 2 on (1080p to 550)
// it is bound by reading the picture, and beyond f = 10 by a sector of 32 bytes for each 6 that are used.
#pragma once

#include "half.cuh"
#include "outline.cuh"  // positions and weights along an axis
#include "pictures.cuh"

namespace yolact {

struct Rgb {
    float channel[3];
};

// Limited range YCbCr to R'G'B', in units of 2^-20. BT.601 has OpenCV's numbers, which are the factors rounded to three decimals; BT.709's
// are 255 / 219 and, with Kr = 0.2126 and Kb = 0.0722 (ITU-R BT.709-6, 3.2), 2 (1 - Kr) 255 / 224 and so on, not rounded.
__device__ inline Rgb rgb_of(int luma, int cb, int cr, bool bt709) {
    const int y = maximum(luma - 16, 0) * (bt709 ? 1220945 : 1220542) + (1 << 19), u = cb - 128, v = cr - 128;
    const int red = y + (bt709 ? 1879825 : 1673527) * v;
    const int green = y - (bt709 ? 558796 : 852492) * v - (bt709 ? 223607 : 409993) * u;
    const int blue = y + (bt709 ? 2215014 : 2116026) * u;
    const auto saturated = [](int value) { return static_cast<float>(minimum(maximum(value >> 20, 0), 255)); };
    return Rgb{{saturated(red), saturated(green), saturated(blue)}};
}

__device__ inline Rgb load_rgb(const SourcePicture &picture, int row, int column) {
    const u8 *line = picture.data + static_cast<size_t>(row) * picture.pitch;
    if (picture.format >= FORMAT_NV12_BT601) {
        const u8 *pair = picture.chroma + static_cast<size_t>(row / 2) * picture.chroma_pitch + column / 2 * 2;
        return rgb_of(line[column], pair[0], pair[1], picture.format == FORMAT_NV12_BT709);
    }
    const u8 *pixel = line + static_cast<size_t>(column) * 3;
    const float first = pixel[0], second = pixel[1], third = pixel[2];
    return picture.format == FORMAT_BGR ? Rgb{{third, second, first}} : Rgb{{first, second, third}};
}

__device__ inline float between(float a, float b, float weight) { return __fadd_rn(a, __fmul_rn(__fsub_rn(b, a), weight)); }

// The output pixel: across first, then down.
__device__ inline Rgb resized(const SourcePicture &picture, int size, int row, int column) {
    const Mix across = mix_of(axis_over(picture.width, size), column), down = mix_of(axis_over(picture.height, size), row);
    const Rgb corners[4] = {load_rgb(picture, down.sample, across.sample), load_rgb(picture, down.sample, across.next),
                            load_rgb(picture, down.next, across.sample), load_rgb(picture, down.next, across.next)};
    Rgb result;
    for (int channel = 0; channel < 3; ++channel) {
        const float above = between(corners[0].channel[channel], corners[1].channel[channel], across.upper);
        const float below = between(corners[2].channel[channel], corners[3].channel[channel], across.upper);
        result.channel[channel] = between(above, below, down.upper);
    }
    return result;
}

__device__ inline void store(float *place, float value) { *place = value; }
__device__ inline void store(Half *place, float value) { *place = to_half(value); }

__device__ inline int preprocess_row() { return blockIdx.y * PREPROCESS_HEIGHT + threadIdx.x / PREPROCESS_WIDTH; }
__device__ inline int preprocess_column() { return blockIdx.x * PREPROCESS_WIDTH + threadIdx.x % PREPROCESS_WIDTH; }

// Grid: ceil(S / PREPROCESS_WIDTH) x ceil(S / PREPROCESS_HEIGHT) x B.
template <typename Output>
__device__ inline void normalise_picture(const Preprocess &p) {
    const int row = preprocess_row(), column = preprocess_column();
    if (row >= p.size || column >= p.size) return;
    const Rgb pixel = resized(p.pictures[blockIdx.z], p.size, row, column);
    const size_t plane = static_cast<size_t>(p.size) * p.size;
    Output *target = static_cast<Output *>(p.target) + blockIdx.z * 3 * plane + static_cast<size_t>(row) * p.size + column;
    for (int channel = 0; channel < 3; ++channel) {
        store(target + channel * plane, __fdiv_rn(__fsub_rn(pixel.channel[channel], p.mean[channel]), p.std[channel]));
    }
}

// Grid: as above.
__device__ inline void round_picture(const Preprocess &p) {
    const int row = preprocess_row(), column = preprocess_column();
    if (row >= p.size || column >= p.size) return;
    const Rgb pixel = resized(p.pictures[blockIdx.z], p.size, row, column);
    u8 *target = static_cast<u8 *>(p.target) + ((static_cast<size_t>(blockIdx.z) * p.size + row) * p.size + column) * 3;
    for (int channel = 0; channel < 3; ++channel) {
        const int value = __float2int_rn(pixel.channel[channel]);  // to the nearest, ties to even
        target[p.swapped ? 2 - channel : channel] = static_cast<u8>(minimum(maximum(value, 0), 255));
    }
}

}  // namespace yolact

extern "C" __global__ void __launch_bounds__(yolact::PREPROCESS_THREADS) preprocess_float(const yolact::Preprocess preprocess) {
    yolact::normalise_picture<float>(preprocess);
}

extern "C" __global__ void __launch_bounds__(yolact::PREPROCESS_THREADS) preprocess_half(const yolact::Preprocess preprocess) {
    yolact::normalise_picture<yolact::Half>(preprocess);
}

extern "C" __global__ void __launch_bounds__(yolact::PREPROCESS_THREADS) preprocess_raw(const yolact::Preprocess preprocess) {
    yolact::round_picture(preprocess);
}
