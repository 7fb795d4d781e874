// Kernels for the tests of the shim itself, mistakes included.
#pragma once
namespace yolact {

struct Call {
    const int *in;
    int *out;
    int count, extra;
};

// extern "C" __global__ void in_a_comment(const Call call)
extern "C" __global__ void __launch_bounds__(256) scan(const Call call) {
    __shared__ int sums[256];
    const int index = threadIdx.x;
    sums[index] = call.in[blockIdx.x * blockDim.x + index];
    __syncthreads();
    for (int step = 1; step < 256; step *= 2) {
        const int add = index >= step ? sums[index - step] : 0;
        __syncthreads();
        sums[index] += add;
        __syncthreads();
    }
    call.out[blockIdx.x * blockDim.x + index] = sums[index];
}

__device__ __forceinline__ int warp_sum(int value) {
#pragma unroll
    for (int step = 16; step; step >>= 1) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}

// The warps do different numbers of collectives before they meet.
extern "C" __global__ void reduce(const yolact::Call call) {
    __shared__ int sums[32];
    const int warp = threadIdx.x / 32;
    int sum = 0;
    for (int turn = 0; turn <= warp; ++turn) sum = warp_sum(call.in[threadIdx.x]);
    if (threadIdx.x % 32 == 0) sums[warp] = sum;
    __syncthreads();
    if (warp == 0) {
        const int total = warp_sum(threadIdx.x < blockDim.x / 32 ? sums[threadIdx.x] : 0);
        if (threadIdx.x == 0) call.out[0] = total;
    }
}

extern "C" __global__ void histogram(const Call call) {
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index < call.count) atomicAdd(&call.out[call.in[index]], 1);
}

extern "C" __global__ void collectives(const Call call) {
    const int lane = threadIdx.x, value = call.in[lane];
    int *out = call.out + lane * 12;
    const unsigned all = 0xffffffffu;
    out[0] = __shfl_sync(all, value, (lane * 7 + 3) % 32);
    out[1] = __shfl_up_sync(all, value, 3u);
    out[2] = __shfl_down_sync(all, value, 5u, 16);
    out[3] = __shfl_xor_sync(all, value, 9);
    out[4] = __shfl_sync(all, value, 1, 8);
    out[5] = static_cast<int>(__ballot_sync(all, value % 3 == 0));
    out[6] = __any_sync(all, value == call.extra) * 2 + __all_sync(all, value != call.extra);
    const unsigned long long wide = (static_cast<unsigned long long>(value) << 32) | static_cast<unsigned>(lane);
    const unsigned long long turned = __shfl_sync(all, wide, 31 - lane);
    out[7] = static_cast<int>(turned >> 32);
    out[8] = static_cast<int>(turned & 0xffffffffu);
    __syncwarp();
    out[9] = __float_as_int(__shfl_down_sync(all, static_cast<float>(value) / 3.0f, 1u));
    out[10] = __shfl_up_sync(all, value, 2u, 8);
    out[11] = __shfl_sync(all, value, __shfl_sync(all, lane, 4));
}

extern "C" __global__ void intrinsics(const Call call) {
    int *out = call.out;
    const float infinity = __int_as_float(0x7f800000);
    *out++ = __popc(0xf0f0u) + __popcll(~0ull), *out++ = __clz(0), *out++ = __clz(1), *out++ = __clzll(1);
    *out++ = __ffs(0), *out++ = __ffs(8), *out++ = __ffsll(1ll << 40), *out++ = static_cast<int>(__brev(1u) >> 1);
    *out++ = static_cast<int>(__umulhi(0x80000000u, 6u)), *out++ = __float2int_rn(2.5f), *out++ = __float2int_rn(3.5f);
    *out++ = __float2int_rd(-0.5f), *out++ = __float2int_ru(-0.5f), *out++ = __float2int_rz(-1.5f);
    *out++ = __float2int_rn(3e9f), *out++ = __float2int_rn(-infinity), *out++ = __float2int_rn(infinity - infinity);
    *out++ = __float_as_int(__fadd_rn(__fmul_rn(1.0000001f, 1.0000001f), -1.0000002f)), *out++ = __ldg(call.in);
    unsigned word = 5;
    unsigned long long wide = 1;
    float number = 1.5f;
    *out++ = atomicOr(&word, 2u), *out++ = atomicAnd(&word, 6u), *out++ = atomicMax(&word, 9u), *out++ = atomicMin(&word, 4u);
    *out++ = atomicExch(&word, 8u), *out++ = atomicCAS(&word, 8u, 3u), *out++ = atomicCAS(&word, 8u, 1u), *out++ = word;
    *out++ = atomicAdd(&wide, 1ull << 33), *out++ = wide >> 32;
    *out++ = __float_as_int(atomicAdd(&number, 2.0f)), *out++ = __float_as_int(number);
}

extern "C" __global__ void lacks_a_barrier(const Call call) {
    __shared__ int values[64];
    values[threadIdx.x] = -1;
    __syncthreads();
    values[threadIdx.x] = threadIdx.x;
    call.out[threadIdx.x] = values[63 - threadIdx.x];
}

extern "C" __global__ void who_is_first(const Call call) {
    call.out[atomicAdd(&call.out[call.count], 1)] = blockIdx.x * 1000 + threadIdx.x;
}

extern "C" __global__ void where(const Call call) {
    const uint3 at = blockIdx;
    if (threadIdx.x == 0) call.out[(at.z * gridDim.y + at.y) * gridDim.x + at.x] = at.x + 10 * at.y + 100 * at.z + threadIdx.y;
}

extern "C" __global__ void fresh_memory(const Call call) {
    YOLACT_DYNAMIC_SHARED(raw);
    const int found = raw[threadIdx.x];
    raw[threadIdx.x] = 1;
    atomicOr(call.out, found ^ 0xa5);
}

// Mistakes; `extra` tells which.
extern "C" __global__ void mistakes(const Call call) {
    const unsigned lane = threadIdx.x % 32;
    if (call.extra == 0 && threadIdx.x == 40) return;
    if (call.extra == 1) {
        if (threadIdx.x < 32) {
            __syncthreads();  // site A
        } else {
            __syncthreads();  // site B
        }
    }
    if (call.extra == 2 && lane < 30) __syncwarp();
    if (call.extra == 3) __shfl_sync(0xffffu, 1, 0);
    if (call.extra == 4) __shfl_sync(0xffffffffu, 1, 0, 12);
    if (call.extra == 5) {
        if (lane == 3) __syncthreads();
        __syncwarp();
    }
    __syncthreads();
    call.out[threadIdx.x] = 1;
}

__device__ inline int write_shared(int index) {
    __shared__ int values[64];
    values[index] = index;
    __syncthreads();
    return values[0];
}

extern "C" __global__ void overruns(const Call call) {
    YOLACT_DYNAMIC_SHARED(raw);
    __shared__ int values[64];
    int own[4] = {1, 2, 3, 4};
    __syncthreads();
    const int index = threadIdx.x + (threadIdx.x == 63 ? call.count : 0);
    if (call.extra == 0) call.out[index] = 1;
    if (call.extra == 1) raw[index] = 1;
    if (call.extra == 2) values[index] = 1;
    if (call.extra == 3) own[index % 64 ? 1 : 3 + call.count] = 5;
    if (call.extra == 4) own[0] = write_shared(index);
    __syncthreads();
    if (call.extra == 5 && threadIdx.x == 0) call.out[0] = 0x7fffffff + call.count;
    if (threadIdx.x == 1) call.out[1] = own[call.count & 3] + values[0] + raw[0];
}

}  // namespace yolact
