// Failures of a GPU that Python's commands cannot play: `failures NAME ENGINE [ENGINE]`. What was learnt is printed, a line each.
#include <algorithm>
#include <atomic>
#include <future>
#include <map>

#include "harness.hpp"

using yolact::Detector;
using yolact::Error;
using yolact::ErrorCode;
using yolact::ImageView;
using yolact::Masks;
using yolact::Results;

namespace {

std::string engine, second;

struct Picture {
    std::vector<unsigned char> pixels;
    ImageView view;
    Picture(int width, int height) : pixels(static_cast<std::size_t>(3 * width * height), static_cast<unsigned char>(90)) {
        view.data = pixels.data();
        view.width = width;
        view.height = height;
    }
};

yolact::Options options_of(int contexts, Masks masks = Masks::rle, std::size_t rle_bytes = std::size_t{1} << 16) {
    yolact::Options options;
    options.contexts = contexts;
    options.masks = masks;
    options.rle_bytes = rle_bytes;
    return options;
}

// The message of an ErrorCode::device; empty where nothing is thrown.
template <typename Work>
std::string refused(const Work &work) {
    try {
        work();
    } catch (const Error &error) {
        CHECK(error.code() == ErrorCode::device);
        return error.what();
    }
    return "";
}

std::string json(const Results &results) { return results[0].coco_json("1"); }

bool has(const std::string &text, const std::string &part) { return text.find(part) != std::string::npos; }

void set(const char *name, std::size_t value) { CHECK(setenv(name, std::to_string(value).c_str(), 1) == 0); }

std::size_t number_before(const std::string &text, const std::string &words) {
    const std::size_t end = text.find(words), start = text.find_last_not_of("0123456789", end - 1) + 1;
    CHECK(end != std::string::npos && start < end);
    return std::stoull(text.substr(start, end - start));
}

// Loading and nothing else, where the stand-in's own functions are not there.
void load() {
    try {
        Detector::load(engine);
        std::printf("loaded\n");
    } catch (const Error &error) {
        std::printf("%d %s\n", static_cast<int>(error.code()), error.what());
    }
}

// What is detected with as much memory as it takes, from nothing on: each step has room for just the block that the last one lacked.
void step_by_step(const char *setting, const std::string &words) {
    const Picture picture(40, 30);
    std::string truth, told;
    const Masks masks = Masks::rle | Masks::host_bits;
    truth = json(Detector::load(engine, options_of(2, masks, 16)).detect({picture.view}));
    std::size_t room = 0, steps = 0;
    for (set(setting, 0);; set(setting, room)) {
        std::string found;
        told = refused([&] { found = json(Detector::load(engine, options_of(2, masks, 16)).detect({picture.view})); });
        if (!left_behind().empty()) std::printf("left behind with %zu bytes: %s\n", room, left_behind().c_str()), std::exit(1);
        if (told.empty()) {
            CHECK(found == truth);
            break;
        }
        CHECK(++steps < 500);
        const std::size_t wanted = has(told, words) ? number_before(told, words) : 0;
        const bool given = wanted && has(told, "bytes are free");
        if (given) CHECK(number_before(told, " of its ") < wanted);
        room = !wanted ? room + 4096 : given ? room - number_before(told, " of its ") + wanted : room + wanted;
        std::printf("%s\n", told.c_str());
    }
    std::printf("%zu bytes do\n", room);
}

void device_memory() { step_by_step("STUB_CUDA_MEMORY", " bytes of GPU memory were asked for"); }
void pinned_memory() { step_by_step("STUB_CUDA_HOST_MEMORY", " bytes of page-locked host memory were asked for"); }

std::size_t used() {
    const Current current;
    std::size_t available = 0, all = 0;
    CHECK(cuda("cuMemGetInfo_v2", &available, &all) == 0);
    return all - available;
}

// A detector that has run wants more: a second context, room for larger pictures, longer masks. Whatever of it cannot be had, however often
// it is tried, the detector then is as usable as before.
void growing(const char *setting, const std::string &words, int contexts, std::size_t rle_bytes) {
    constexpr std::size_t PLENTY = std::size_t{1} << 32;
    const Picture small(12, 9), large(110, 80);
    const yolact::Options options = options_of(contexts, contexts > 1 ? Masks::rle | Masks::device_bits : Masks::rle, rle_bytes);
    set(setting, PLENTY);
    const std::string truth_small = json(Detector::load(engine, options_of(1)).detect({small.view}));
    const std::string truth_large = json(Detector::load(engine, options_of(1)).detect({large.view}));
    const bool device = has(words, "GPU memory");
    std::size_t room = 0, locked = 0;  // page-locked memory that such a detector has when it ran
    for (std::string told = "more"; !device && !told.empty(); locked += told.empty() ? 0 : number_before(told, words)) {
        set(setting, locked);
        told = refused([&] { Detector::load(engine, options).detect({small.view}); });
    }
    for (int step = 0;; ++step) {
        CHECK(step < 60);
        set(setting, PLENTY);
        Detector detector = Detector::load(engine, options);
        for (int run = 0; run < step % 3; ++run) detector.detect({small.view});
        Results first = detector.detect({small.view}), other;
        if (contexts == 1) first.clear();
        const std::size_t before = device ? used() : locked;
        set(setting, before + room);
        std::string told;
        for (int again = 0; again <= step % 4; ++again) {
            told = refused([&] { detector.detect({large.view}, other); });
            CHECK(other.size() == (told.empty() ? 1u : 0u));
            if (told.empty()) break;
            if (!has(told, words) || !has(told, "CUDA_ERROR_OUT_OF_MEMORY")) std::printf("%s\n", told.c_str()), std::exit(1);
        }
        CHECK(first.size() == 0 || json(first) == truth_small);
        set(setting, PLENTY);
        const bool done = told.empty();
        CHECK(!done || json(other) == truth_large);
        if (step % 2) CHECK((detector.detect({small.view}, other), json(other) == truth_small));
        for (int run = 0; run < 4; ++run) CHECK((detector.detect({large.view}, other), json(other) == truth_large));
        detector.detect({small.view}, other);
        CHECK(json(other) == truth_small);
        if (done) return static_cast<void>(std::printf("%d\n", step));
        const std::size_t wanted = number_before(told, words);
        room += device ? wanted - number_before(told, " of its ") : wanted;
    }
}

void growing_device_memory() {
    growing("STUB_CUDA_MEMORY", " bytes of GPU memory were asked for", 2, 1 << 16);
    growing("STUB_CUDA_MEMORY", " bytes of GPU memory were asked for", 1, 16);
}
void growing_pinned_memory() {
    growing("STUB_CUDA_HOST_MEMORY", " bytes of page-locked host memory were asked for", 2, 1 << 16);
    growing("STUB_CUDA_HOST_MEMORY", " bytes of page-locked host memory were asked for", 1, 16);
}

// A fault: the call that meets it and every later one throw the same, and so does loading.
void fault() {
    {
        Detector detector = Detector::load(engine, options_of(2, Masks::rle | Masks::host_bits));
        const Picture picture(20, 20);
        Results kept;
        std::string first;
        int good = 0;
        for (; first.empty(); ++good) {
            CHECK(good < 20);
            first = refused([&] { detector.detect({picture.view}, kept); });
        }
        CHECK(kept.size() == 0);
        for (int round = 0; round < 3; ++round) {
            CHECK(refused([&] { detector.detect({picture.view}, kept); }) == first && kept.size() == 0);
            CHECK(refused([&] { detector.submit({picture.view}); }) == first);
            CHECK(refused([&] { detector.submit({picture.view}, [](Results, std::exception_ptr) { std::abort(); }); }) == first);
            CHECK(refused([&] { detector.warm_up(30, 30); }).size());
            CHECK(refused([&] { Detector::load(engine); }) == first);
            CHECK(refused([&] { yolact::selftest(engine); }) == first);
        }
        CHECK(detector.info().largest_batch > 0);
        Detector moved = std::move(detector);
        CHECK(refused([&] { moved.detect({picture.view}); }) == first);
        std::printf("%d\n%s\n", good, first.c_str());
    }
    CHECK(!has(left_behind(), "execution contexts") && !has(left_behind(), "engines") && !has(left_behind(), "runtimes"));
}

// Submissions under way when a fault comes: every future gets an exception or what it should, every callback is called once.
void fault_under_way() {
    std::atomic<int> called{0}, failed{0};
    {
        Detector detector = Detector::load(engine, options_of(3));
        const Picture picture(20, 20);
        std::vector<std::future<Results>> futures;
        int queued = 0, refusals = 0;
        for (int index = 0; index < 12; ++index) {
            const std::string told = refused([&] {
                if (index % 2) {
                    futures.push_back(detector.submit({picture.view}));
                } else {
                    detector.submit({picture.view}, [&](Results results, std::exception_ptr error) {
                        ++called;
                        CHECK((results.size() == 1) == !error);
                        if (error) ++failed;
                    });
                    ++queued;
                }
            });
            if (!told.empty()) ++refusals;
        }
        int lost = 0;
        for (std::future<Results> &future : futures) lost += refused([&] { CHECK(future.get().size() == 1); }).empty() ? 0 : 1;
        { const Detector ended = std::move(detector); }
        CHECK(called == queued);
        std::printf("%d\n", lost + failed + refusals);
    }
    CHECK(!has(left_behind(), "execution contexts"));
}

// GPU 0 fails, GPU 1 goes on.
void other_gpu() {
    {
        yolact::Options options = options_of(1);
        Detector broken = Detector::load(engine, options);
        options.device = 1;
        Detector good = Detector::load(second, options);
        const Picture picture(20, 20);
        const std::string truth = json(good.detect({picture.view}));
        const std::string first = refused([&] { broken.detect({picture.view}); });
        CHECK(has(first, "GPU 0 (Stub GPU 0)") && has(first, "start the program again"));
        for (int round = 0; round < 3; ++round) {
            CHECK(json(good.detect({picture.view})) == truth);
            CHECK(json(good.submit({picture.view}).get()) == truth);
            CHECK(json(Detector::load(second, options).detect({picture.view})) == truth);
            CHECK(refused([&] { broken.detect({picture.view}); }) == first);
        }
        CHECK(good.info().device == "Stub GPU 1");
        const ImageView given = picture.view;
        const OnDevice there(std::string(reinterpret_cast<const char *>(picture.pixels.data()), picture.pixels.size()), 1);
        ImageView device = given;
        device.data = there.get(), device.space = yolact::MemorySpace::device;
        CHECK(json(good.detect({device})) == truth);
    }
    CHECK(!has(left_behind(), "execution contexts"));
}

// A call of TensorRT's fails: that call throws, the next one is as before.
void refused_runs() {
    {
        Detector detector = Detector::load(engine, options_of(1));
        const Picture picture(20, 20);
        std::string truth, told;
        for (int round = 0; round < 9; ++round) {
            std::string text;
            const std::string now = refused([&] { text = json(detector.detect({picture.view})); });
            if (now.empty() && truth.empty()) truth = text;
            CHECK(!now.empty() || text == truth);
            if (!now.empty()) std::printf("%d %s\n", round, now.c_str());
        }
    }
    CHECK(left_behind().empty());
}

const std::map<std::string, void (*)()> SCENARIOS = {
#define S(name) {#name, name}
    S(load), S(device_memory), S(pinned_memory), S(growing_device_memory), S(growing_pinned_memory), S(fault),
    S(fault_under_way), S(other_gpu), S(refused_runs),
};

}  // namespace

int main(int count, char **texts) {
    CHECK(count >= 3 && SCENARIOS.count(texts[1]));
    engine = texts[2];
    second = texts[count - 1];
    SCENARIOS.at(texts[1])();
    return 0;
}
