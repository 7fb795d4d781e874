#include "picture_file.hpp"

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <stdexcept>

#if defined(PICTURES_BY_STB)
#define STB_IMAGE_IMPLEMENTATION
#include <stb_image.h>
#elif defined(PICTURES_BY_OPENCV)
#include <opencv2/imgcodecs.hpp>
#endif

namespace {

constexpr int LARGEST_SIDE = 1 << 15;

std::vector<unsigned char> bytes_of(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error(path + " cannot be read.");
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

PictureFile with_pixels(const std::string &path, int width, int height, const std::vector<unsigned char> &bytes, std::size_t first) {
    if (width < 1 || height < 1 || width > LARGEST_SIDE || height > LARGEST_SIDE) throw std::runtime_error(path + " has a strange size.");
    const std::size_t size = std::size_t{3} * static_cast<std::size_t>(width) * static_cast<std::size_t>(height);
    const std::size_t found = bytes.size() - std::min(first, bytes.size());
    if (found != size) {
        throw std::runtime_error(path + " has " + std::to_string(found) + " bytes of pixels, " + std::to_string(size) + " were wanted.");
    }
    return {width, height, {bytes.begin() + static_cast<std::ptrdiff_t>(first), bytes.end()}};
}

// P6: width, height and 255 in decimal, comments behind #, one white space, the pixels.
PictureFile read_ppm(const std::string &path, const std::vector<unsigned char> &bytes) {
    std::size_t place = 2;
    int numbers[3] = {};
    for (int &number : numbers) {
        while (place < bytes.size() && (std::isspace(bytes[place]) || bytes[place] == '#')) {
            if (bytes[place] != '#') {
                ++place;
                continue;
            }
            while (place < bytes.size() && bytes[place] != '\n') ++place;
        }
        for (; place < bytes.size() && std::isdigit(bytes[place]) && number < 1 << 20; ++place) number = number * 10 + (bytes[place] - '0');
    }
    if (numbers[2] != 255) throw std::runtime_error(path + " is a PPM of " + std::to_string(numbers[2]) + " levels, 255 were wanted.");
    return with_pixels(path, numbers[0], numbers[1], bytes, place + 1);
}

}  // namespace

PictureFile read_picture(const std::string &path) {
    const std::vector<unsigned char> bytes = bytes_of(path);
    if (bytes.size() > 2 && bytes[0] == 'P' && bytes[1] == '6') return read_ppm(path, bytes);
#if defined(PICTURES_BY_STB)
    int width = 0, height = 0, channels = 0;
    unsigned char *const pixels = stbi_load_from_memory(bytes.data(), static_cast<int>(bytes.size()), &width, &height, &channels, 3);
    if (!pixels) throw std::runtime_error(path + " is no picture that stb reads: " + stbi_failure_reason() + ".");
    PictureFile picture{width, height, {pixels, pixels + std::size_t{3} * static_cast<std::size_t>(width) * static_cast<std::size_t>(height)}};
    stbi_image_free(pixels);
    return picture;
#elif defined(PICTURES_BY_OPENCV)
    const cv::Mat decoded = cv::imdecode(bytes, cv::IMREAD_COLOR);
    if (decoded.empty()) throw std::runtime_error(path + " is no picture that OpenCV reads.");
    PictureFile picture{decoded.cols, decoded.rows, {}};
    for (int row = 0; row < decoded.rows; ++row) {
        for (int column = 0; column < decoded.cols; ++column) {
            const cv::Vec3b pixel = decoded.at<cv::Vec3b>(row, column);
            picture.pixels.insert(picture.pixels.end(), {pixel[2], pixel[1], pixel[0]});
        }
    }
    return picture;
#else
    throw std::runtime_error(path + " is no binary PPM; for other formats build the examples where stb_image.h or OpenCV is found.");
#endif
}

PictureFile read_raw_picture(const std::string &path, int width, int height) { return with_pixels(path, width, height, bytes_of(path), 0); }
