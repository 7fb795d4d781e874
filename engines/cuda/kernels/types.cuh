// The numbers that kernels and their arguments are made of. This file, blocks.cuh, problem.cuh and pictures.cuh are plain C++17: the C++
// library includes them too, so that it launches what was compiled here.
#pragma once

namespace yolact {

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

// An IEEE half as it lies in memory.
struct Half {
    u16 bits;
};

}  // namespace yolact
