#include "files.hpp"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>

namespace yolact::detail {

std::string read_file(const std::string &path, std::uintmax_t most, std::string &content) {
    const std::unique_ptr<std::FILE, int (*)(std::FILE *)> file(std::fopen(path.c_str(), "rb"), std::fclose);
    if (!file) return std::strerror(errno);
    std::error_code unknown;
    const std::uintmax_t size = std::filesystem::file_size(path, unknown);
    if (unknown) return unknown.message();
    if (size > most) return TOO_LARGE;
    content.resize(static_cast<std::size_t>(size));
    const std::size_t read = content.empty() ? 0 : std::fread(content.data(), 1, content.size(), file.get());
    if (read != content.size() && std::ferror(file.get())) return std::strerror(errno);
    content.resize(read);
    return "";
}

std::string base_name(const std::string &path) { return std::filesystem::path(path).filename().string(); }

std::string beside(const std::string &path, const std::string &name) {
    return (std::filesystem::path(path).parent_path() / base_name(name)).string();
}

}  // namespace yolact::detail
