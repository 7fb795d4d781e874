// What happens at the end of detectors, results and threads: `endings NAME ENGINE`.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include "counting.hpp"
#include "harness.hpp"

using yolact::Detector;
using yolact::Error;
using yolact::ErrorCode;
using yolact::ImageView;
using yolact::Masks;
using yolact::Options;
using yolact::Results;

namespace {

std::string engine;

Options options(int contexts, Masks masks = Masks::rle) {
    Options made;
    made.contexts = contexts;
    made.masks = masks;
    return made;
}

ImageView grey() {
    static const std::vector<unsigned char> pixels(3 * 40 * 30, 90);
    ImageView view;
    view.data = pixels.data();
    view.width = 40;
    view.height = 30;
    return view;
}

void pause(int milliseconds) { std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds)); }

void refused(ErrorCode code, const std::function<void()> &work) {
    try {
        work();
    } catch (const Error &error) {
        CHECK(error.code() == code);
        return;
    }
    CHECK(!"an exception was wanted");
}

// Threads that wait for a context, or are between the batches of one call, are waited for too.
void a_detector_waits_for_every_call() {
    for (int round = 0; round < 3; ++round) {
        auto detector = std::make_unique<Detector>(Detector::load(engine, options(1)));
        std::atomic<int> entered{0}, done{0};
        std::vector<std::thread> threads;
        Detector *const own = detector.get();
        for (int index = 0; index < 4; ++index) {
            threads.emplace_back([&entered, &done, own] {
                const std::vector<ImageView> pictures(9, grey());
                Results results;
                ++entered;
                own->detect(pictures, results);
                CHECK(results.size() == 9);
                ++done;
            });
        }
        while (entered < 4) pause(1);
        pause(200);  // none may call a detector that has ended, and all they have left to do is call it
        detector.reset();
        for (std::thread &thread : threads) thread.join();
        CHECK(done == 4);
    }
}

// The last owner may be a callback, and later submissions still get theirs.
void a_callback_may_end_its_detector() {
    std::mutex lock;
    std::condition_variable changed;
    int told = 0;
    auto detector = std::make_shared<Detector>(Detector::load(engine, options(2)));
    const auto tell = [&](const Results &results, const std::exception_ptr &error) {
        CHECK(!error && results.size() == 1);
        const std::lock_guard<std::mutex> guard(lock);
        ++told;
        changed.notify_all();
    };
    std::atomic<bool> go{false};
    detector->submit({grey()}, [&go, detector, tell](Results results, std::exception_ptr error) mutable {
        while (!go) pause(1);
        detector.reset();
        tell(results, error);
    });
    detector->submit({grey()}, tell);
    detector.reset();
    go = true;
    {
        std::unique_lock<std::mutex> guard(lock);
        CHECK(changed.wait_for(guard, std::chrono::seconds(60), [&told] { return told == 2; }));
    }
    for (int wait = 0; wait < 1000 && !left_behind().empty(); ++wait) pause(5);  // the thread is on its way out
}

void a_callback_may_not_warm_up() {
    Detector detector = Detector::load(engine, options(2));
    std::promise<void> told;
    detector.submit({grey()}, [&](Results, std::exception_ptr) {
        refused(ErrorCode::config, [&] { detector.warm_up(10, 10); });
        told.set_value();
    });
    detector.submit({grey()}).get();
    told.get_future().get();
    refused(ErrorCode::config, [&] { detector.submit({grey()}, Detector::Callback()); });
}

void submissions_use_memory_again() {
    Detector detector = Detector::load(engine, options(1, Masks::rle | Masks::host_bits));
    for (int index = 0; index < 3; ++index) detector.submit({grey()}).get();
    const long before = calls("cuMemHostAlloc") + calls("cuMemAlloc_v2") + calls("cuMemFreeHost");
    for (int index = 0; index < 10; ++index) CHECK(detector.submit({grey()}).get().size() == 1);
    CHECK(calls("cuMemHostAlloc") + calls("cuMemAlloc_v2") + calls("cuMemFreeHost") == before);
    Results kept = detector.submit({grey()}).get();
    const Results other = detector.submit({grey()}).get();
    CHECK(kept[0].bits(0).data() != other[0].bits(0).data());
}

void nv12_allocates_nothing() {
#ifdef COUNTED
    const std::vector<unsigned char> planes(40 * 30 * 3 / 2, 128);
    ImageView view;
    view.data = planes.data();
    view.width = 40;
    view.height = 30;
    view.format = yolact::PixelFormat::nv12_bt709;
    Detector detector = Detector::load(engine, options(1));
    Results results;
    for (int index = 0; index < 3; ++index) detector.detect({view}, results);
    counting = true;
    for (int index = 0; index < 5; ++index) detector.detect({view}, results);
    counting = false;
    CHECK(counted == 0);
#endif
}

void what_was_moved_away_says_so() {
    Detector detector = Detector::load(engine, options(1));
    Detector other = std::move(detector);
    refused(ErrorCode::config, [&] { detector.detect({grey()}); });
    refused(ErrorCode::config, [&] { detector.submit({grey()}); });
    refused(ErrorCode::config, [&] { detector.warm_up(10, 10); });
    refused(ErrorCode::config, [&] { detector.info(); });
    ImageView two[2] = {grey(), grey()};
    const ImageView three[3] = {grey(), grey(), grey()};
    CHECK(other.detect(two).size() == 2 && other.detect(three).size() == 3);
    Results results = other.detect({grey()});
    CHECK(results.at(0).size() == results[0].size());
    refused(ErrorCode::config, [&] { results.at(1); });
    const std::vector<std::string> names = other.info().names;
    CHECK(!names.empty() && names == std::vector<std::string>(results[0].names.begin(), results[0].names.end()));
    Results moved = std::move(results);
    refused(ErrorCode::config, [&] { results.at(0); });
    other.detect({grey()}, results);
    CHECK(results.size() == 1 && moved.size() == 1);
}

// A program's own capture on another thread, in CUDA's strictest mode, neither stops a detector's first call nor is ended by it.
void captures_elsewhere_go_on() {
    const OwnStream stream;
    const Current current;
    CHECK(cuda("cuStreamBeginCapture_v2", static_cast<void *>(stream.get()), 0) == 0);
    std::thread([] {
        Detector detector = Detector::load(engine, options(1));
        CHECK(detector.detect({grey()}).size() == 1);
    }).join();
    void *graph = nullptr;
    CHECK(cuda("cuStreamEndCapture", static_cast<void *>(stream.get()), &graph) == 0 && graph);
    CHECK(cuda("cuGraphDestroy", graph) == 0);
}

void the_log_is_heard_while_a_detector_lives() {
    std::atomic<int> heard{0};
    Options hearing = options(1);
    hearing.log = [&heard](int, const char *) { ++heard; };
    {
        Detector detector = Detector::load(engine, hearing);
    }
    const int before = heard;
    CHECK(before > 0);
    Detector detector = Detector::load(engine, options(1));
    CHECK(heard == before);
}

const std::map<std::string, void (*)()> ENDINGS = {
    {"a_detector_waits_for_every_call", a_detector_waits_for_every_call},
    {"a_callback_may_end_its_detector", a_callback_may_end_its_detector},
    {"a_callback_may_not_warm_up", a_callback_may_not_warm_up},
    {"submissions_use_memory_again", submissions_use_memory_again},
    {"nv12_allocates_nothing", nv12_allocates_nothing},
    {"what_was_moved_away_says_so", what_was_moved_away_says_so},
    {"captures_elsewhere_go_on", captures_elsewhere_go_on},
    {"the_log_is_heard_while_a_detector_lives", the_log_is_heard_while_a_detector_lives},
};

}  // namespace

int main(int count, char **texts) {
    CHECK(count == 3);
    engine = texts[2];
    ENDINGS.at(texts[1])();
    const std::string left = left_behind();
    if (!left.empty()) std::fprintf(stderr, "left behind: %s\n", left.c_str());
    return left.empty() ? 0 : 1;
}
