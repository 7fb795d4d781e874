// Pictures from files, for the examples.
#pragma once

#include <string>
#include <vector>

struct PictureFile {
    int width = 0, height = 0;
    std::vector<unsigned char> pixels;  // RGB, rows without gaps
};

// A binary PPM, and JPEG, PNG and others where stb or OpenCV was found when this was built. Throws std::runtime_error.
PictureFile read_picture(const std::string &path);

// A file of width * height * 3 bytes and nothing else.
PictureFile read_raw_picture(const std::string &path, int width, int height);
