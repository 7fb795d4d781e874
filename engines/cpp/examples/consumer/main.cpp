#include <cstdio>
#include <vector>

#include <yolact_deploy/yolact.hpp>

int main(int count, char **arguments) try {
    if (count != 2) return 2;
    yolact::Detector detector = yolact::Detector::load(arguments[1]);
    const std::vector<unsigned char> frame(640 * 480 * 3, 128);  // your picture: rows of RGB, or BGR, or a decoder's NV12 on the GPU
    yolact::ImageView picture;
    picture.data = frame.data();
    picture.width = 640;
    picture.height = 480;
    const yolact::Results results = detector.detect({picture});
    for (const yolact::Detection &one : results[0].above(0.15f)) {
        std::printf("%s %.3f %.0f %.0f %.0f %.0f %.*s\n", results[0].names[static_cast<std::size_t>(one.label)].c_str(),
                    static_cast<double>(one.score), static_cast<double>(one.x1), static_cast<double>(one.y1), static_cast<double>(one.x2),
                    static_cast<double>(one.y2), static_cast<int>(one.rle.size()), one.rle.data());
    }
    return 0;
} catch (const yolact::Error &error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
