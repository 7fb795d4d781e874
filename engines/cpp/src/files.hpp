// Reading files whole.
#pragma once

#include <cstdint>
#include <string>

namespace yolact::detail {

inline constexpr const char *TOO_LARGE = "too large";

// Reads the file into `content`; empty, or why it cannot be read: TOO_LARGE for more than `most` bytes, else the system's words.
std::string read_file(const std::string &path, std::uintmax_t most, std::string &content);

// A file name without the folders that it may carry.
std::string base_name(const std::string &path);

// The file `name`, its folders left out, in the folder of `path`.
std::string beside(const std::string &path, const std::string &name);

}  // namespace yolact::detail
