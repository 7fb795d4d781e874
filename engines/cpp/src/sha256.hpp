// SHA-256 (FIPS 180-4).
#pragma once

#include <cstddef>
#include <string>

namespace yolact::detail {

// 64 hexadecimal digits.
std::string sha256(const void *data, std::size_t size);

}  // namespace yolact::detail
