// float32 to half, in integers, so that every compiler and the CPU shim round alike.
#pragma once

#include "platform.cuh"

namespace yolact {

// Rounded to nearest, ties to even; from 65520 on infinity. A NaN stays one, quiet, and loses its payload.
__device__ inline Half to_half(float value) {
    const u32 bits = __float_as_uint(value), magnitude = bits & 0x7fffffffu;
    u32 result;
    if (magnitude >= 0x38800000u) {  // 2^-14, the smallest normal half
        const u32 rebiased = magnitude - 0x38000000u;
        const u32 rounded = (rebiased + 0xfffu + (rebiased >> 13 & 1)) >> 13;
        result = magnitude > 0x7f800000u ? 0x7e00u : rounded < 0x7c00u ? rounded : 0x7c00u;
    } else if (magnitude >= 0x33000000u) {  // 2^-25, half of the smallest subnormal half
        const u32 shift = 126 - (magnitude >> 23), significand = (magnitude & 0x7fffffu) | 0x800000u;
        const u32 kept = significand >> shift, rest = significand & ((1u << shift) - 1), middle = 1u << (shift - 1);
        result = kept + (rest > middle || (rest == middle && (kept & 1)));
    } else {
        result = 0;
    }
    return Half{static_cast<u16>((bits >> 16 & 0x8000u) | result)};
}

}  // namespace yolact
