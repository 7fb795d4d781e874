// CUDA's language for a C++ compiler, so that kernels run on the CPU in tests: included before every kernel source with `-include`.
//
// Each CUDA thread is a fiber that gives way at barriers and warp collectives, and nowhere else; `launch.cpp` schedules them. So what the
// threads of a block do between two barriers happens in the order that the launch asks for, and a result that depends on the order has a
// missing barrier. Real races, memory ordering and FP16 units are not modelled.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <math.h>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
// Blocks run one after the other, so that one copy does for all; it keeps what the block before left.
#define __shared__ static
#define YOLACT_DYNAMIC_SHARED(name) unsigned char *const name = ::shim::dynamic_shared

#define SHIM_VECTOR2(name, type)                             \
    struct alignas(2 * sizeof(type)) name {                  \
        type x, y;                                           \
    };                                                       \
    inline name make_##name(type x, type y) { return {x, y}; }
#define SHIM_VECTOR4(name, type)                                                                         \
    struct alignas(sizeof(type) == 8 ? 16 : 4 * sizeof(type)) name {                                     \
        type x, y, z, w;                                                                                 \
    };                                                                                                   \
    inline name make_##name(type x, type y, type z, type w) { return {x, y, z, w}; }
SHIM_VECTOR2(float2, float)
SHIM_VECTOR2(int2, int)
SHIM_VECTOR2(uint2, unsigned)
SHIM_VECTOR2(uchar2, unsigned char)
SHIM_VECTOR2(ushort2, unsigned short)
SHIM_VECTOR2(ulonglong2, unsigned long long)
SHIM_VECTOR4(float4, float)
SHIM_VECTOR4(int4, int)
SHIM_VECTOR4(uint4, unsigned)
SHIM_VECTOR4(uchar4, unsigned char)
SHIM_VECTOR4(ushort4, unsigned short)
#undef SHIM_VECTOR2
#undef SHIM_VECTOR4

struct uint3 {
    unsigned x, y, z;
};
using dim3 = uint3;
constexpr int warpSize = 32;

namespace shim {

constexpr unsigned LANES = 32;

// A place in the source where threads meet; `id` tells two on one line apart.
struct Site {
    const char *file;
    int line;
    int id;
};

enum class State { RUNNING, BARRIER, COLLECTIVE, ENDED };

struct alignas(64) Fiber {
    void *context;  // the stack pointer, or a ucontext_t
    Fiber *warp;    // lane 0 of its warp
    uint3 thread;
    unsigned lane;
    State state;
    // Results of collectives alternate between two slots: no lane gets two collectives ahead of one that has yet to read.
    unsigned phase;
    unsigned long long values[2];
    unsigned ballots[2];  // of the warp, in lane 0
    Site site;
    const void *stack_bottom;
    std::size_t stack_size;
    void *fake_stack;  // AddressSanitizer's
};

extern Fiber *current;
extern uint3 block_index, block_size, grid_size;
extern unsigned char *dynamic_shared;

void wait_for_block(Site site);
void wait_for_warp(Site site, unsigned mask);
[[noreturn]] void fail(Site site, const char *reason);

struct Entry {
    const char *name;
    void (*run)(const void *argument);
    std::size_t size;
};
extern const Entry entries[];
extern const unsigned entry_count;

template <class To, class From>
inline To bit_cast(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To result;
    std::memcpy(&result, &value, sizeof result);
    return result;
}

template <class Value>
inline auto exchange(Site site, unsigned mask, Value given, unsigned source) {
    auto value = +given;  // as CUDA's overloads: what is smaller than an int becomes one
    static_assert(sizeof value == 4 || sizeof value == 8);
    Fiber *self = current;
    const unsigned phase = self->phase ^= 1;
    std::memcpy(&self->values[phase], &value, sizeof value);
    wait_for_warp(site, mask);
    std::memcpy(&value, &self->warp[source].values[phase], sizeof value);
    return value;
}

inline unsigned segment(Site site, int width) {
    if (width < 1 || width > 32 || (width & (width - 1))) fail(site, "a shuffle's width is a power of two up to 32");
    return current->lane & ~static_cast<unsigned>(width - 1);
}

template <class Value>
inline auto shuffle(Site site, unsigned mask, Value value, int source, int width = 32) {
    return exchange(site, mask, value, segment(site, width) + (static_cast<unsigned>(source) & static_cast<unsigned>(width - 1)));
}

template <class Value>
inline auto shuffle_up(Site site, unsigned mask, Value value, unsigned delta, int width = 32) {
    const unsigned lane = current->lane, first = segment(site, width);
    return exchange(site, mask, value, delta <= lane - first ? lane - delta : lane);
}

template <class Value>
inline auto shuffle_down(Site site, unsigned mask, Value value, unsigned delta, int width = 32) {
    const unsigned lane = current->lane, last = segment(site, width) + static_cast<unsigned>(width) - 1;
    return exchange(site, mask, value, delta <= last - lane ? lane + delta : lane);
}

template <class Value>
inline auto shuffle_xor(Site site, unsigned mask, Value value, int bits, int width = 32) {
    const unsigned lane = current->lane, last = segment(site, width) + static_cast<unsigned>(width) - 1;
    const unsigned source = lane ^ (static_cast<unsigned>(bits) & 31u);
    return exchange(site, mask, value, source <= last ? source : lane);  // a segment below may be read, as on a GPU
}

inline unsigned ballot(Site site, unsigned mask, int predicate) {
    Fiber *self = current;
    const unsigned phase = self->phase ^= 1, bit = 1u << self->lane;
    unsigned &votes = self->warp->ballots[phase];
    votes = predicate ? votes | bit : votes & ~bit;
    wait_for_warp(site, mask);
    return votes;
}

// An object, as a macro cannot leave out the comma before arguments that are not there.
struct SyncWarp {
    Site site;
    void operator()(unsigned mask = 0xffffffffu) const { wait_for_warp(site, mask); }
};

template <class Integer>
inline Integer saturated(float value) {
    if (value != value) return 0;
    const double wide = value;
    if (wide <= static_cast<double>(std::numeric_limits<Integer>::min())) return std::numeric_limits<Integer>::min();
    if (wide >= static_cast<double>(std::numeric_limits<Integer>::max())) return std::numeric_limits<Integer>::max();
    return static_cast<Integer>(value);
}

}  // namespace shim

#define threadIdx (::shim::current->thread)
#define blockIdx (::shim::block_index)
#define blockDim (::shim::block_size)
#define gridDim (::shim::grid_size)

#define SHIM_SITE (::shim::Site{__FILE__, __LINE__, __COUNTER__})
#define SHIM_CALL(function, ...) ::shim::function(SHIM_SITE, __VA_ARGS__)
#define __syncthreads() ::shim::wait_for_block(SHIM_SITE)
#define __syncwarp(...) (::shim::SyncWarp{SHIM_SITE}(__VA_ARGS__))
#define __shfl_sync(...) SHIM_CALL(shuffle, __VA_ARGS__)
#define __shfl_up_sync(...) SHIM_CALL(shuffle_up, __VA_ARGS__)
#define __shfl_down_sync(...) SHIM_CALL(shuffle_down, __VA_ARGS__)
#define __shfl_xor_sync(...) SHIM_CALL(shuffle_xor, __VA_ARGS__)
#define __ballot_sync(...) SHIM_CALL(ballot, __VA_ARGS__)
#define __any_sync(...) static_cast<int>(SHIM_CALL(ballot, __VA_ARGS__) != 0u)
#define __all_sync(...) static_cast<int>(SHIM_CALL(ballot, __VA_ARGS__) == 0xffffffffu)

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

// Fibers never interrupt each other, so that atomics are plain.
#define SHIM_ATOMIC(name, type, result)             \
    inline type name(type *address, type value) {   \
        const type old = *address;                  \
        *address = (result);                        \
        return old;                                 \
    }
#define SHIM_ATOMICS(type)                                          \
    SHIM_ATOMIC(atomicOr, type, old | value)                        \
    SHIM_ATOMIC(atomicAnd, type, old & value)                       \
    SHIM_ATOMIC(atomicXor, type, old ^ value)                       \
    SHIM_ATOMIC(atomicMax, type, old > value ? old : value)         \
    SHIM_ATOMIC(atomicMin, type, old < value ? old : value)         \
    SHIM_ATOMIC(atomicExch, type, value)                            \
    inline type atomicCAS(type *address, type wanted, type value) { \
        const type old = *address;                                  \
        if (old == wanted) *address = value;                        \
        return old;                                                 \
    }
SHIM_ATOMICS(int)
SHIM_ATOMICS(unsigned)
SHIM_ATOMICS(unsigned long long)
SHIM_ATOMIC(atomicAdd, int, static_cast<int>(static_cast<unsigned>(old) + static_cast<unsigned>(value)))
SHIM_ATOMIC(atomicAdd, unsigned, old + value)
SHIM_ATOMIC(atomicAdd, unsigned long long, old + value)
SHIM_ATOMIC(atomicAdd, float, old + value)
SHIM_ATOMIC(atomicAdd, double, old + value)
SHIM_ATOMIC(atomicSub, int, static_cast<int>(static_cast<unsigned>(old) - static_cast<unsigned>(value)))
SHIM_ATOMIC(atomicSub, unsigned, old - value)
SHIM_ATOMIC(atomicExch, float, value)
#undef SHIM_ATOMICS
#undef SHIM_ATOMIC

// The build forbids contraction, so that each of these rounds once.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return ::fmaf(a, b, c); }
inline float __fsqrt_rn(float value) { return ::sqrtf(value); }

inline int __float2int_rn(float value) { return shim::saturated<int>(::rintf(value)); }
inline int __float2int_rd(float value) { return shim::saturated<int>(::floorf(value)); }
inline int __float2int_ru(float value) { return shim::saturated<int>(::ceilf(value)); }
inline int __float2int_rz(float value) { return shim::saturated<int>(::truncf(value)); }
inline unsigned __float2uint_rn(float value) { return shim::saturated<unsigned>(::rintf(value)); }
inline unsigned __float2uint_rd(float value) { return shim::saturated<unsigned>(::floorf(value)); }
inline unsigned __float2uint_ru(float value) { return shim::saturated<unsigned>(::ceilf(value)); }
inline unsigned __float2uint_rz(float value) { return shim::saturated<unsigned>(::truncf(value)); }
inline float __int2float_rn(int value) { return static_cast<float>(value); }
inline float __uint2float_rn(unsigned value) { return static_cast<float>(value); }
inline unsigned __float_as_uint(float value) { return shim::bit_cast<unsigned>(value); }
inline int __float_as_int(float value) { return shim::bit_cast<int>(value); }
inline float __uint_as_float(unsigned value) { return shim::bit_cast<float>(value); }
inline float __int_as_float(int value) { return shim::bit_cast<float>(value); }

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __ffsll(long long value) { return __builtin_ffsll(value); }
inline int __clz(int value) { return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value)); }
inline int __clzll(long long value) { return value == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(value)); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((static_cast<unsigned long long>(a) * b) >> 32); }
inline unsigned __brev(unsigned value) {
    unsigned result = 0;
    for (int bit = 0; bit < 32; ++bit) result |= ((value >> bit) & 1u) << (31 - bit);
    return result;
}

template <class Value>
inline Value __ldg(const Value *address) {
    return *address;
}
