// YUV4MPEG2: uncompressed video as ffmpeg and others pipe it, `ffmpeg -i IN -pix_fmt yuv420p -f yuv4mpegpipe -`.
#pragma once

#include <cstddef>
#include <cstdio>
#include <string>
#include <vector>

// A picture as decoders give it: luma, then interleaved pairs of Cb and Cr.
struct Nv12Frame {
    int width = 0, height = 0;
    std::vector<unsigned char> luma, chroma;

    std::size_t chroma_width() const { return (static_cast<std::size_t>(width) + 1) / 2; }
    std::size_t chroma_height() const { return (static_cast<std::size_t>(height) + 1) / 2; }
};

class Y4mReader {
public:
    // Reads the header. Throws std::runtime_error for anything but 4:2:0 of 8 bits.
    explicit Y4mReader(std::FILE *file);

    // False at the end. Throws std::runtime_error for a frame that is cut short.
    bool read(Nv12Frame &frame);

    const std::string &header() const { return header_; }  // for the writer, without its end of line

private:
    std::string line();

    std::FILE *file_;
    std::string header_;
    int width_ = 0, height_ = 0;
    std::vector<unsigned char> planes_;
};

// Throws std::runtime_error where it cannot write.
void write_y4m_header(std::FILE *file, const std::string &header);
void write_y4m_frame(std::FILE *file, const Nv12Frame &frame);
