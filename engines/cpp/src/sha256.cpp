#include "sha256.hpp"

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace yolact::detail {

namespace {

using Words = std::array<std::uint32_t, 8>;

// The first 32 bits of the fractional parts of the cube roots of the first 64 primes, and of the square roots of the first eight (4.2.2,
// 5.3.3): a double has three bits before the point and all 32 behind it.
struct Constants {
    std::array<std::uint32_t, 64> rounds{};
    Words start{};

    Constants() {
        int count = 0;
        for (int number = 2; count < 64; ++number) {
            bool prime = true;
            for (int divisor = 2; divisor * divisor <= number; ++divisor) prime = prime && number % divisor != 0;
            if (!prime) continue;
            if (count < 8) start[static_cast<std::size_t>(count)] = fraction(std::sqrt(static_cast<double>(number)));
            rounds[static_cast<std::size_t>(count++)] = fraction(std::cbrt(static_cast<double>(number)));
        }
    }

    static std::uint32_t fraction(double root) { return static_cast<std::uint32_t>((root - std::floor(root)) * 4294967296.0); }
};

std::uint32_t rotated(std::uint32_t word, int bits) { return word >> bits | word << (32 - bits); }

void add_block(Words &state, const unsigned char *block, const Constants &constants) {
    std::array<std::uint32_t, 64> w;
    for (std::size_t t = 0; t < 16; ++t) {
        w[t] = static_cast<std::uint32_t>(block[4 * t]) << 24 | static_cast<std::uint32_t>(block[4 * t + 1]) << 16 |
               static_cast<std::uint32_t>(block[4 * t + 2]) << 8 | block[4 * t + 3];
    }
    for (std::size_t t = 16; t < 64; ++t) {
        const std::uint32_t a = w[t - 15], b = w[t - 2];
        w[t] = w[t - 16] + (rotated(a, 7) ^ rotated(a, 18) ^ a >> 3) + w[t - 7] + (rotated(b, 17) ^ rotated(b, 19) ^ b >> 10);
    }
    auto [a, b, c, d, e, f, g, h] = state;
    for (std::size_t t = 0; t < 64; ++t) {
        const std::uint32_t first = h + (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)) + ((e & f) ^ (~e & g)) + constants.rounds[t] + w[t];
        const std::uint32_t second = (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + first, d = c, c = b, b = a, a = first + second;
    }
    const Words sums{a, b, c, d, e, f, g, h};
    for (std::size_t index = 0; index < 8; ++index) state[index] += sums[index];
}

}  // namespace

std::string sha256(const void *data, std::size_t size) {
    static const Constants constants;
    Words state = constants.start;
    const unsigned char *bytes = static_cast<const unsigned char *>(data);
    std::size_t place = 0;
    for (; size - place >= 64; place += 64) add_block(state, bytes + place, constants);
    unsigned char last[128] = {};
    const std::size_t rest = size - place, end = rest < 56 ? 64 : 128;
    if (rest) std::memcpy(last, bytes + place, rest);
    last[rest] = 0x80;
    const std::uint64_t bits = static_cast<std::uint64_t>(size) * 8;
    for (std::size_t index = 0; index < 8; ++index) last[end - 1 - index] = static_cast<unsigned char>(bits >> 8 * index);
    for (std::size_t block = 0; block < end; block += 64) add_block(state, last + block, constants);
    std::string text;
    for (const std::uint32_t word : state)
        for (int shift = 28; shift >= 0; shift -= 4) text += "0123456789abcdef"[word >> shift & 15];
    return text;
}

}  // namespace yolact::detail
