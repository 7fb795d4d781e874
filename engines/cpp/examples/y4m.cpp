#include "y4m.hpp"

#include <cstdlib>
#include <sstream>
#include <stdexcept>

namespace {

constexpr std::size_t LONGEST_LINE = 1024;
constexpr int LARGEST_SIDE = 1 << 15;

void write_all(std::FILE *file, const void *data, std::size_t size) {
    if (std::fwrite(data, 1, size, file) != size) throw std::runtime_error("The video cannot be written.");
}

}  // namespace

Y4mReader::Y4mReader(std::FILE *file) : file_(file), header_(line()) {
    std::istringstream words(header_);
    std::string word;
    words >> word;
    if (word != "YUV4MPEG2") throw std::runtime_error("The video is no YUV4MPEG2: pipe it through ffmpeg -f yuv4mpegpipe.");
    while (words >> word) {
        if (word[0] == 'W') width_ = std::atoi(word.c_str() + 1);
        if (word[0] == 'H') height_ = std::atoi(word.c_str() + 1);
        const bool planar420 = word.compare(0, 4, "C420") == 0 && word.find('p', 4) == std::string::npos;
        const bool named = word == "C420paldv" || word == "C420jpeg" || word == "C420mpeg2";
        if (word[0] == 'C' && !planar420 && !named) throw std::runtime_error("The video is " + word + ": convert it with -pix_fmt yuv420p.");
    }
    if (width_ < 1 || height_ < 1 || width_ > LARGEST_SIDE || height_ > LARGEST_SIDE) throw std::runtime_error("The video tells no size.");
}

std::string Y4mReader::line() {
    std::string text;
    for (int letter; (letter = std::fgetc(file_)) != EOF && letter != '\n';) {
        if (text.size() == LONGEST_LINE) throw std::runtime_error("The video is no YUV4MPEG2.");
        text += static_cast<char>(letter);
    }
    return text;
}

bool Y4mReader::read(Nv12Frame &frame) {
    const int first = std::fgetc(file_);
    if (std::ferror(file_)) throw std::runtime_error("The video cannot be read.");
    if (first == EOF) return false;
    std::ungetc(first, file_);
    const std::string start = line();
    if (start.compare(0, 5, "FRAME") != 0) throw std::runtime_error("The video is damaged: a frame does not begin with FRAME.");
    frame.width = width_;
    frame.height = height_;
    const std::size_t samples = frame.chroma_width() * frame.chroma_height();
    frame.luma.resize(static_cast<std::size_t>(width_) * static_cast<std::size_t>(height_));
    frame.chroma.resize(2 * samples);
    planes_.resize(2 * samples);
    if (std::fread(frame.luma.data(), 1, frame.luma.size(), file_) != frame.luma.size() ||
        std::fread(planes_.data(), 1, planes_.size(), file_) != planes_.size()) {
        throw std::runtime_error("The video is cut short in a frame.");
    }
    for (std::size_t index = 0; index < samples; ++index) {
        frame.chroma[2 * index] = planes_[index];
        frame.chroma[2 * index + 1] = planes_[samples + index];
    }
    return true;
}

void write_y4m_header(std::FILE *file, const std::string &header) { write_all(file, (header + "\n").data(), header.size() + 1); }

void write_y4m_frame(std::FILE *file, const Nv12Frame &frame) {
    const std::size_t samples = frame.chroma_width() * frame.chroma_height();
    std::vector<unsigned char> planes(2 * samples);
    for (std::size_t index = 0; index < samples; ++index) {
        planes[index] = frame.chroma[2 * index];
        planes[samples + index] = frame.chroma[2 * index + 1];
    }
    write_all(file, "FRAME\n", 6);
    write_all(file, frame.luma.data(), frame.luma.size());
    write_all(file, planes.data(), planes.size());
}
