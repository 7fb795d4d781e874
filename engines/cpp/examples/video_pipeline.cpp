// A video with its instances tinted: reading, detection and writing overlap.
//
//   ffmpeg -i in.mp4 -pix_fmt yuv420p -f yuv4mpegpipe - | video_pipeline ENGINE - - | ffmpeg -i - out.mp4
//
// Frames stay NV12 from the decoder to the network: the GPU resizes and converts them. While one frame is detected, the next one is read and
// the one before is tinted and written, each by a thread of its own; two contexts let the GPU begin a frame before the last one is over.
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <deque>
#include <exception>
#include <future>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>

#include <yolact_deploy/yolact.hpp>

#include "y4m.hpp"

namespace {

constexpr std::size_t FRAMES_AHEAD = 4;
constexpr float SCORE = 0.15f;

struct Job {
    Nv12Frame frame;
    std::future<yolact::Results> results;
};

// Hands jobs from one thread to the next, a few at a time.
class Queue {
public:
    bool push(Job job) {
        std::unique_lock<std::mutex> guard(lock_);
        changed_.wait(guard, [this] { return closed_ || jobs_.size() < FRAMES_AHEAD; });
        if (closed_) return false;
        jobs_.push_back(std::move(job));
        changed_.notify_all();
        return true;
    }

    bool pop(Job &job) {
        std::unique_lock<std::mutex> guard(lock_);
        changed_.wait(guard, [this] { return closed_ || !jobs_.empty(); });
        if (jobs_.empty()) return false;
        job = std::move(jobs_.front());
        jobs_.pop_front();
        changed_.notify_all();
        return true;
    }

    // No more will be pushed; what is there can still be popped.
    void close() {
        const std::lock_guard<std::mutex> guard(lock_);
        closed_ = true;
        changed_.notify_all();
    }

private:
    std::mutex lock_;
    std::condition_variable changed_;
    std::deque<Job> jobs_;
    bool closed_ = false;
};

// Half of each covered pair of chroma becomes the class's colour; the luma stays.
void tint(Nv12Frame &frame, const yolact::DetectionsView &found) {
    const std::size_t row_words = (static_cast<std::size_t>(frame.width) + 31) / 32;
    for (std::size_t index = found.size(); index-- > 0;) {  // the best on top
        const yolact::Span<const std::uint32_t> bits = found.bits(index);
        const auto hue = static_cast<unsigned>(found[index].label) * 83u;
        const unsigned char colour[2] = {static_cast<unsigned char>(hue % 256), static_cast<unsigned char>(hue * 7 % 256)};
        for (std::size_t row = 0; row < frame.chroma_height(); ++row) {
            for (std::size_t column = 0; column < frame.chroma_width(); ++column) {
                if (!(bits[2 * row * row_words + 2 * column / 32] >> 2 * column % 32 & 1)) continue;
                unsigned char *const pair = &frame.chroma[2 * (row * frame.chroma_width() + column)];
                for (int channel = 0; channel < 2; ++channel) pair[channel] = static_cast<unsigned char>((pair[channel] + colour[channel]) / 2);
            }
        }
    }
}

yolact::ImageView view_of(const Nv12Frame &frame) {
    yolact::ImageView view;
    view.data = frame.luma.data();
    view.width = frame.width;
    view.height = frame.height;
    view.format = yolact::PixelFormat::nv12_bt709;
    view.chroma = frame.chroma.data();
    view.chroma_pitch = 2 * frame.chroma_width();
    return view;
}

int run(const std::string &engine, std::FILE *in, std::FILE *out) {
    yolact::Options options;
    options.masks = yolact::Masks::host_bits;
    yolact::Detector detector = yolact::Detector::load(engine, options);
    Y4mReader reader(in);
    write_y4m_header(out, reader.header());
    Queue read, submitted;
    std::exception_ptr failures[2];
    const auto start = std::chrono::steady_clock::now();
    long frames = 0, instances = 0;

    std::thread reading([&] {
        try {
            for (Job job; reader.read(job.frame) && read.push(std::move(job)); job = Job()) continue;
        } catch (...) {
            failures[0] = std::current_exception();
        }
        read.close();
    });
    std::thread writing([&] {
        try {
            for (Job job; submitted.pop(job);) {
                const yolact::Results results = job.results.get();
                const yolact::DetectionsView found = results[0].above(SCORE);
                tint(job.frame, found);
                write_y4m_frame(out, job.frame);
                ++frames;
                instances += static_cast<long>(found.size());
            }
        } catch (...) {
            failures[1] = std::current_exception();
            submitted.close();
        }
    });
    std::exception_ptr failure;
    try {
        for (Job job; read.pop(job);) {
            job.results = detector.submit({view_of(job.frame)});
            if (!submitted.push(std::move(job))) break;
        }
    } catch (...) {
        failure = std::current_exception();
    }
    read.close();
    submitted.close();
    reading.join();
    writing.join();
    for (const std::exception_ptr &each : {failure, failures[1], failures[0]})
        if (each) std::rethrow_exception(each);
    if (std::fflush(out) != 0) throw std::runtime_error("The video cannot be written.");
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::fprintf(stderr, "%ld frames with %ld instances, %.1f frames a second\n", frames, instances, static_cast<double>(frames) / seconds);
    return 0;
}

std::FILE *opened(const char *path, bool write) {
    if (!std::strcmp(path, "-")) return write ? stdout : stdin;
    std::FILE *const file = std::fopen(path, write ? "wb" : "rb");
    if (!file) throw std::runtime_error(std::string(path) + " cannot be opened.");
    return file;
}

}  // namespace

int main(int count, char **texts) {
    if (count != 4) {
        std::fprintf(stderr, "usage: video_pipeline ENGINE IN.y4m OUT.y4m (- for standard input and output)\n");
        return 2;
    }
    try {
        std::FILE *const in = opened(texts[2], false);
        return run(texts[1], in, opened(texts[3], true));
    } catch (const std::exception &error) {
        std::fprintf(stderr, "video_pipeline: %s\n", error.what());
        return 1;
    }
}
