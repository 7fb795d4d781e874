// What the kernels need of a compiler: nvcc, NVRTC (which has no headers at hand), or a C++ compiler behind a shim that plays the GPU.
//
// Arithmetic whose last bit decides (IoU against a threshold, the side of a pixel) is written with the _rn intrinsics, which no
// compiler contracts into fused operations: so it equals float32 on the host.
#pragma once

#include "blocks.cuh"
#include "types.cuh"

#ifndef YOLACT_DYNAMIC_SHARED
#define YOLACT_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

namespace yolact {

constexpr u32 ALL_LANES = 0xffffffffu;

__device__ inline float to_float(float value) { return value; }

__device__ inline float to_float(Half value) {
    const u32 magnitude = static_cast<u32>(value.bits & 0x7fff) << 13;
    const u32 sign = static_cast<u32>(value.bits & 0x8000) << 16;
    // The exponents differ by 112 in their bias; the product also makes subnormal halves right. All ones are infinity or NaN.
    const u32 bits = magnitude < 0x0f800000u ? __float_as_uint(__fmul_rn(__uint_as_float(magnitude), 5.192296858534828e33f))
                                             : magnitude | 0x7f800000u;
    return __uint_as_float(bits | sign);
}

// The smaller and the larger of two; NaN where one is NaN, as NumPy's minimum and maximum have it.
__device__ inline float minimum(float a, float b) { return b < a || b != b ? b : a; }
__device__ inline float maximum(float a, float b) { return b > a || b != b ? b : a; }

__device__ inline int minimum(int a, int b) { return a < b ? a : b; }
__device__ inline int maximum(int a, int b) { return a > b ? a : b; }

}  // namespace yolact
