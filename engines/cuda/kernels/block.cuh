// Work that the threads of a block do together: sums, the k largest of many keys, sorting.
//
// A key is a 64-bit number whose order is the ranking: higher score first, then lower prior, then lower class. Keys are unique.
#pragma once

#include "platform.cuh"

namespace yolact {

// The rank of a score among floats, NaN excluded; -0 counts as 0.
__device__ inline u32 ordered(float score) {
    const u32 bits = __float_as_uint(__fadd_rn(score, 0.0f));
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ inline float score_of_rank(u32 rank) { return __uint_as_float(rank & 0x80000000u ? rank & 0x7fffffffu : ~rank); }

// `entry` is prior * foreground classes + class.
__device__ inline u64 key_of(float score, u32 entry) { return static_cast<u64>(ordered(score)) << 32 | static_cast<u32>(~entry); }
__device__ inline u32 entry_of(u64 key) { return ~static_cast<u32>(key); }
__device__ inline float score_of(u64 key) { return score_of_rank(static_cast<u32>(key >> 32)); }

// The exclusive sum over the threads before this one; `total` becomes the sum over all. `scratch` holds one number a warp and may be
// used again at once.
template <int THREADS>
__device__ inline u32 sum_before(u32 value, u32 *scratch, u32 &total) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u32 sum = value;
    for (int step = 1; step < WARP; step *= 2) {
        const u32 below = __shfl_up_sync(ALL_LANES, sum, step);
        if (lane >= step) sum += below;
    }
    if (lane == WARP - 1) scratch[warp] = sum;
    __syncthreads();
    u32 before = 0;
    total = 0;
    for (int other = 0; other < THREADS / WARP; ++other) {
        if (other < warp) before += scratch[other];
        total += scratch[other];
    }
    __syncthreads();
    return before + sum - value;
}

// Sorts `size` keys, a power of two, in shared memory, largest first (Batcher's bitonic sorter).
template <int THREADS>
__device__ inline void sort_descending(u64 *keys, int size) {
    for (int length = 2; length <= size; length *= 2) {
        for (int stride = length / 2; stride > 0; stride /= 2) {
            __syncthreads();
            for (int pair = threadIdx.x; pair < size / 2; pair += THREADS) {
                const int low = 2 * pair - (pair & (stride - 1)), high = low + stride;
                const bool descending = (low & length) == 0;
                const u64 a = keys[low], b = keys[high];
                if ((a < b) == descending) {
                    keys[low] = b;
                    keys[high] = a;
                }
            }
        }
    }
    __syncthreads();
}

constexpr int CACHED_KEYS = 2048;
constexpr int KEYS_AHEAD = 4;

// Shared memory of `rank_largest`.
struct Largest {
    u64 sorted[LARGEST_K];
    u64 cache[CACHED_KEYS];
    u32 histogram[256];
    u32 scratch[32];
    u32 digit, above, found;
};

// Counts a digit of each lane that has one. Scores begin alike, so most of a warp counts the same digit: one of them does it for all.
__device__ inline void count_digit(u32 digit, bool counts, u32 *histogram) {
    const u32 counting = __ballot_sync(ALL_LANES, counts);
    const u32 common = __shfl_sync(ALL_LANES, digit, counting ? __ffs(counting) - 1 : 0);
    const u32 alike = __ballot_sync(ALL_LANES, counts && digit == common);
    if (counts && digit != common) {
        atomicAdd(&histogram[digit], 1u);
    } else if (counts && static_cast<int>(threadIdx.x % WARP) == __ffs(alike) - 1) {
        atomicAdd(&histogram[digit], static_cast<u32>(__popc(alike)));
    }
}

// The smallest key among the `k` largest of `n` > k keys, or a number between it and the next smaller key: digit by digit, as radix sort
// would order them. `key_at(i)` gives key i.
template <int THREADS, typename KeyAt>
__device__ inline u64 bound_of_largest(const KeyAt &key_at, int n, int k, Largest &shared) {
    u64 prefix = 0;
    u32 wanted = k;
    for (int shift = 56;; shift -= 8) {
        const u64 decided = shift == 56 ? 0 : ~0ull << (shift + 8);
        for (int digit = threadIdx.x; digit < 256; digit += THREADS) shared.histogram[digit] = 0;
        __syncthreads();
        for (int first = 0; first < n; first += KEYS_AHEAD * THREADS) {
            u64 keys[KEYS_AHEAD];  // all on their way before the first is looked at
#pragma unroll
            for (int ahead = 0; ahead < KEYS_AHEAD; ++ahead) {
                const int place = first + ahead * THREADS + static_cast<int>(threadIdx.x);
                keys[ahead] = place < n ? key_at(place) : 0;
            }
#pragma unroll
            for (int ahead = 0; ahead < KEYS_AHEAD; ++ahead) {
                const int place = first + ahead * THREADS + static_cast<int>(threadIdx.x);
                const bool counts = place < n && (keys[ahead] & decided) == prefix;
                count_digit(static_cast<u32>(keys[ahead] >> shift) & 255, counts, shared.histogram);
            }
        }
        __syncthreads();
        // Digits from the largest on: the one that holds the last wanted key.
        static_assert(THREADS >= 256, "a thread for each digit");
        const u32 count = threadIdx.x < 256 ? shared.histogram[255 - threadIdx.x] : 0;
        u32 total;
        const u32 above = sum_before<THREADS>(count, shared.scratch, total);
        if (above < wanted && wanted <= above + count) {
            shared.digit = 255 - threadIdx.x;
            shared.above = above;
            shared.found = count;
        }
        __syncthreads();
        prefix |= static_cast<u64>(shared.digit) << shift;
        wanted -= shared.above;
        const bool whole = shared.found == wanted;  // the next digits do not matter
        __syncthreads();
        if (whole || shift == 0) return prefix;
    }
}

// The `k` largest of `n` keys (all if there are fewer), largest first, in `shared.sorted`; returns how many. `k` is at most LARGEST_K.
template <int THREADS, typename KeyAt>
__device__ inline int rank_largest(const KeyAt &key_at, int n, int k, Largest &shared) {
    const bool cached = n <= CACHED_KEYS;
    const auto cached_key = [&shared](int place) { return shared.cache[place]; };
    if (cached) {
        for (int place = threadIdx.x; place < n; place += THREADS) shared.cache[place] = key_at(place);
        __syncthreads();
    }
    u64 bound = 0;
    if (n > k) {
        bound = cached ? bound_of_largest<THREADS>(cached_key, n, k, shared) : bound_of_largest<THREADS>(key_at, n, k, shared);
    }
    const int count = minimum(n, k);
    int size = 1;
    while (size < count) size *= 2;
    if (threadIdx.x == 0) shared.found = 0;
    for (int place = threadIdx.x; place < size; place += THREADS) shared.sorted[place] = 0;
    __syncthreads();
    for (int place = threadIdx.x; place < n; place += THREADS) {
        const u64 key = cached ? shared.cache[place] : key_at(place);
        if (key >= bound) shared.sorted[atomicAdd(&shared.found, 1u)] = key;
    }
    sort_descending<THREADS>(shared.sorted, size);
    return count;
}

}  // namespace yolact
