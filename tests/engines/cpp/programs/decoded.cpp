// The examples' reader of pictures: prints a picture's width and height, then its RGB bytes.
#include <cstdio>
#include <exception>

#include "picture_file.hpp"

int main(int, char **texts) {
    try {
        const PictureFile picture = read_picture(texts[1]);
        std::printf("%d %d\n", picture.width, picture.height);
        std::fwrite(picture.pixels.data(), 1, picture.pixels.size(), stdout);
        return 0;
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s", error.what());
        return 1;
    }
}
