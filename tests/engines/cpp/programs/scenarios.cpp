// Scenarios of the C++ interface that Python cannot play: `scenarios NAME ENGINE NUMBER [ENGINE]`. What a picture has to give is what a detector
// of its own (of the second engine, where there is one) with one context and no graphs gives; that this is right is told by other tests.
#include <chrono>
#include <condition_variable>
#include <functional>
#include <future>
#include <map>
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

std::string engine, sound_engine;
int number = 0;

struct Picture {
    std::vector<unsigned char> pixels;
    ImageView view;

    Picture(int width, int height, int level) : pixels(static_cast<std::size_t>(3 * width * height), static_cast<unsigned char>(level)) {
        view.data = pixels.data();
        view.width = width;
        view.height = height;
    }
};

// Of different sizes, so that no two have the same masks, and of different brightness, so that they get different rows.
const std::vector<Picture> &pictures() {
    static const std::vector<Picture> list = [] {
        std::vector<Picture> made;
        for (int index = 0; index < 8; ++index) made.emplace_back(20 + 7 * index, 41 - 3 * index, 37 * index);
        return made;
    }();
    return list;
}

const ImageView &view(std::size_t index) { return pictures()[index % 8].view; }

Options options(int contexts, Masks masks = Masks::rle, bool graphs = true) {
    Options made;
    made.contexts = contexts;
    made.masks = masks;
    made.graphs = graphs;
    return made;
}

const std::vector<std::string> &truth() {
    static const std::vector<std::string> list = [] {
        Detector detector = Detector::load(sound_engine, options(1, Masks::rle, false));
        std::vector<std::string> made;
        Results results;
        for (std::size_t index = 0; index < 8; ++index) {
            detector.detect({view(index)}, results);
            made.push_back(results[0].coco_json("1"));
        }
        return made;
    }();
    return list;
}

bool right(const Results &results, std::size_t index) { return results.size() == 1 && results[0].coco_json("1") == truth()[index % 8]; }

// The message of what `work` throws, of this code.
std::string refused(ErrorCode code, const std::function<void()> &work) {
    try {
        work();
    } catch (const Error &error) {
        CHECK(error.code() == code);
        return error.what();
    }
    return "";
}

bool has(const std::string &text, const char *part) { return text.find(part) != std::string::npos; }

struct Gate {
    std::mutex lock;
    std::condition_variable changed;
    bool open = false;

    void wait() {
        std::unique_lock<std::mutex> guard(lock);
        changed.wait(guard, [this] { return open; });
    }
    void let() {
        const std::lock_guard<std::mutex> guard(lock);
        open = true;
        changed.notify_all();
    }
};

void pause(int milliseconds) { std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds)); }

// Submissions

void callbacks_come_in_order() {
    truth();
    std::vector<std::size_t> order;
    std::vector<std::thread::id> threads;
    {
        Detector detector = Detector::load(engine, options(number));
        for (std::size_t index = 0; index < 30; ++index) {
            detector.submit({view(index)}, [&, index](Results results, const std::exception_ptr &error) {
                CHECK(!error && right(results, index));
                order.push_back(index);
                threads.push_back(std::this_thread::get_id());
            });
        }
    }  // which waits for them all
    CHECK(order.size() == 30);
    for (std::size_t index = 0; index < 30; ++index) CHECK(order[index] == index && threads[index] == threads[0]);
    CHECK(threads[0] != std::this_thread::get_id());
}

void futures_give_results() {
    truth();
    Detector detector = Detector::load(engine, options(number));
    std::vector<std::future<Results>> futures;
    for (std::size_t index = 0; index < 12; ++index) {
        Picture own(pictures()[index % 8]);
        own.view.data = own.pixels.data();
        futures.push_back(detector.submit({own.view}));
        std::fill(own.pixels.begin(), own.pixels.end(), std::uint8_t{255});  // pictures on the host are free when it returns
    }
    for (std::size_t index = 0; index < 12; ++index) CHECK(right(futures[11 - index].get(), 11 - index));
    const Results four = detector.submit({view(3), view(1), view(2), view(0)}).get();
    for (const std::size_t place : {0, 1, 2, 3}) CHECK(four[place].coco_json("1") == truth()[std::vector<std::size_t>{3, 1, 2, 0}[place]]);
}

void threads_submit_and_detect() {
    truth();
    Detector detector = Detector::load(engine, options(number));
    std::atomic<int> told{0};
    std::vector<std::thread> threads;
    for (std::size_t thread = 0; thread < 4; ++thread) {
        threads.emplace_back([&, thread] {
            Results kept;
            OwnStream stream;
            for (std::size_t round = 0; round < 6; ++round) {
                const std::size_t index = thread + 3 * round;
                const cudaStream_t chosen = round % 2 ? stream.get() : nullptr;
                detector.detect({view(index)}, kept, chosen);
                CHECK(right(kept, index));
                std::future<Results> future = detector.submit({view(index + 1)}, chosen);
                detector.submit({view(index + 2)}, [&told, index](Results results, const std::exception_ptr &error) {
                    CHECK(!error && right(results, index + 2));
                    ++told;
                }, chosen);
                const Results both = detector.detect({view(index), view(index + 5)});
                CHECK(both[0].coco_json("1") == truth()[index % 8] && both[1].coco_json("1") == truth()[(index + 5) % 8]);
                CHECK(right(future.get(), index + 1));
                if (round == 3 && thread == 0) detector.warm_up(30, 30, 2);
                CHECK(detector.info().largest_batch == 4);
            }
            while (told < 24) pause(1);  // the caller's stream has to live as long as work is on it
        });
    }
    for (std::thread &thread : threads) thread.join();
}

void a_detector_ends_when_its_work_is_done() {
    truth();
    int told = 0;
    const auto slowly = [&told](Results results, const std::exception_ptr &error) {
        pause(10);
        CHECK(!error && results.size() == 1);
        ++told;
    };
    {
        Detector detector = Detector::load(engine, options(number));
        for (std::size_t index = 0; index < 5; ++index) detector.submit({view(index)}, slowly);
    }
    CHECK(told == 5);
    Detector detector = Detector::load(engine, options(number));
    for (std::size_t index = 0; index < 3; ++index) detector.submit({view(index)}, slowly);
    detector = Detector::load(engine, options(1));
    CHECK(told == 8);
    detector.submit({view(0)}, slowly);
    Detector moved = std::move(detector);
    CHECK(right(moved.submit({view(5)}).get(), 5));
    CHECK(told == 9);
    std::future<Results> late = moved.submit({view(6)});
    { const Detector ended = std::move(moved); }
    CHECK(right(late.get(), 6));
}

void callbacks_may_not_call() {
    truth();
    Detector detector = Detector::load(engine, options(number));
    std::promise<std::string> one, two, three;
    detector.submit({view(0)}, [&](const Results &, const std::exception_ptr &) {
        one.set_value(refused(ErrorCode::config, [&] { detector.detect({view(1)}); }));
        two.set_value(refused(ErrorCode::config, [&] { detector.submit({view(1)}); }));
        CHECK(detector.info().largest_batch == 4);
        Results results = Results();
        three.set_value(refused(ErrorCode::config, [&] { detector.detect({view(1)}, results); }));
    });
    for (std::promise<std::string> *each : {&one, &two, &three}) CHECK(has(each->get_future().get(), "called from a callback"));
    CHECK(right(detector.detect({view(1)}), 1));
    Detector other = Detector::load(engine, options(1));
    std::promise<bool> found;
    detector.submit({view(0)}, [&](const Results &, const std::exception_ptr &) { found.set_value(right(other.detect({view(2)}), 2)); });
    CHECK(found.get_future().get());
}

// The engine's run or call number `number` fails.
void a_failure_of_the_gpu_reaches_everybody() {
    Detector detector = Detector::load(engine, options(2));
    Results kept;
    detector.detect({view(0)}, kept);
    std::future<Results> future = detector.submit({view(1)});
    const std::string first = refused(ErrorCode::device, [&] { future.get(); });
    CHECK(has(first, "CUDA_ERROR_LAUNCH_FAILED") && has(first, "start the program again"));
    CHECK(refused(ErrorCode::device, [&] { detector.detect({view(0)}, kept); }) == first && kept.size() == 0);
    CHECK(refused(ErrorCode::device, [&] { detector.submit({view(0)}); }) == first);
    CHECK(refused(ErrorCode::device, [&] { Detector::load(engine); }) == first);
    std::_Exit(0);  // what a lost GPU holds cannot be given back
}

void a_failed_call_changes_nothing() {
    truth();
    Detector detector = Detector::load(engine, options(1, Masks::rle, number == 1));
    Results kept;
    CHECK((detector.detect({view(0)}, kept), right(kept, 0)));
    const std::string told = refused(ErrorCode::device, [&] { detector.detect({view(1), view(2)}, kept); });
    CHECK(has(told, "failed to run") && kept.size() == 0);
    for (std::size_t index = 0; index < 8; ++index) CHECK((detector.detect({view(index)}, kept), right(kept, index)));
}

void errors_reach_callbacks() {
    Detector detector = Detector::load(engine, options(1));
    std::promise<bool> found;
    detector.submit({view(0)}, [&](const Results &results, const std::exception_ptr &error) {
        bool as_told = results.size() == 0 && error;
        try {
            if (error) std::rethrow_exception(error);
        } catch (const Error &own) {
            as_told = as_told && own.code() == ErrorCode::model_file && has(own.what(), "finds the label 99") && has(own.mend(), "Export");
        }
        found.set_value(as_told);
    });
    CHECK(found.get_future().get());
    CHECK(has(refused(ErrorCode::model_file, [&] { detector.submit({view(0)}).get(); }), "its manifest names 4 classes"));
    for (int round = 0; round < 4; ++round) CHECK(has(refused(ErrorCode::model_file, [&] { detector.detect({view(0)}); }), "label 99"));
}

// Results

void results_hold_contexts() {
    truth();
    Detector detector = Detector::load(engine, options(2, Masks::rle | Masks::device_bits));
    Results one = detector.detect({view(0)}), two = detector.detect({view(1)}), three;
    CHECK(right(one, 0) && right(two, 1) && one[0].device_masks.bits != two[0].device_masks.bits);
    CHECK(has(refused(ErrorCode::config, [&] { detector.detect({view(2)}, three); }), "All 2 contexts are held"));
    CHECK(has(refused(ErrorCode::config, [&] { detector.submit({view(2)}); }), "All 2 contexts are held"));
    CHECK((detector.detect({view(2)}, one), right(one, 2)));
    two.clear();
    CHECK(two.size() == 0 && (detector.detect({view(3)}, three), right(three, 3)));
    three = Results();
    CHECK((detector.detect({view(4)}, three), right(three, 4)));
    Results moved = std::move(three);
    CHECK(right(moved, 4) && three.size() == 0);
    CHECK(has(refused(ErrorCode::config, [&] { detector.detect({view(2)}, three); }), "All 2 contexts are held"));
    moved.clear();
    moved = detector.submit({view(5)}).get();
    CHECK(right(moved, 5));
    CHECK(has(refused(ErrorCode::config, [&] { detector.detect({view(2)}, three); }), "All 2 contexts are held"));
    detector.warm_up(10, 10);  // of none: all are held
}

void moved_results_keep_their_views() {
    truth();
    Detector detector = Detector::load(engine, options(2, Masks::rle | Masks::host_bits));
    Results first = detector.detect({view(0), view(1)});
    const yolact::DetectionsView shown = first[1];
    const std::string mask(reinterpret_cast<const char *>(shown.bits(0).data()), 4 * shown.bits(0).size());
    Results second = std::move(first);
    CHECK(first.size() == 0 && second.size() == 2 && shown.coco_json("1") == truth()[1]);
    CHECK(std::memcmp(shown.bits(0).data(), mask.data(), mask.size()) == 0);
    first.clear();
    CHECK((detector.detect({view(2)}, first), right(first, 2)));
    CHECK(second[1].coco_json("1") == truth()[1]);
    first = std::move(second);
    CHECK(first.size() == 2 && first[0].coco_json("1") == truth()[0] && first[0].begin() + first[0].size() == first[0].end());
    CHECK(!first[0].empty() && refused(ErrorCode::config, [&] { first[0].bits(first[0].size()); }).size());
    second.clear();
    {
        const Detector ended = std::move(detector);
    }
    CHECK(first[1].coco_json("1") == truth()[1] && first[0].names[0].size());
    CHECK(standin_live(1) == 0 && cuda<long>("stub_cuda_live", 0) == 0);  // results keep nothing of the GPU's
    Results outlives;
    {
        Detector other = Detector::load(engine, options(1, Masks::rle | Masks::device_bits));
        other.detect({view(3)}, outlives);
    }
    CHECK(right(outlives, 3) && outlives[0].names.size() == 4);
    const Current current;
    std::uint32_t word = 0;
    CHECK(cuda("cuMemcpyDtoH_v2", static_cast<void *>(&word), static_cast<const void *>(outlives[0].device_masks.bits), std::size_t{4}) == 0);
}

// Whoever waits for a context hears that results hold them all from then on.
void waiting_ends_where_all_are_held() {
    Detector detector = Detector::load(engine, options(2, Masks::rle | Masks::device_bits));
    Gate called, go;
    Results kept;
    detector.submit({view(0)}, [&](Results results, const std::exception_ptr &) {
        kept = std::move(results);
        called.let();
        go.wait();
    });
    called.wait();
    std::future<Results> second = detector.submit({view(1)});  // at work: its end comes after the callback's
    std::string told;
    std::thread waiting([&] { told = refused(ErrorCode::config, [&] { detector.detect({view(2)}); }); });
    pause(50);
    go.let();
    const Results held = second.get();
    waiting.join();
    CHECK(has(told, "All 2 contexts are held"));
}

// A call waits for one of the contexts, and no longer.
void calls_wait_for_contexts() {
    truth();
    Detector detector = Detector::load(engine, options(1));
    Gate called, go;
    detector.submit({view(0)}, [&](const Results &, const std::exception_ptr &) { called.let(), go.wait(); });
    called.wait();
    CHECK(right(detector.detect({view(1)}), 1));  // the callback that blocks keeps no context
    std::future<Results> second = detector.submit({view(2)});
    std::atomic<bool> ended{false};
    std::thread third([&] {
        CHECK(right(detector.detect({view(3)}), 3));
        ended = true;
    });
    pause(50);
    CHECK(!ended);
    go.let();
    third.join();
    CHECK(right(second.get(), 2));
}

// Memory

// `number`: forms of masks, and 8 without graphs.
void nothing_is_allocated_once_it_has_grown() {
    Detector detector = Detector::load(engine, options(2, static_cast<Masks>(number & 7), number < 8));
    Results results;
    const ImageView views[] = {view(0), view(1), view(2)};
    const OwnStream stream;
    const auto work = [&](int rounds) {
        for (int round = 0; round < rounds; ++round) {
            detector.detect(yolact::Span<const ImageView>(views, 3), results, round % 2 ? stream.get() : nullptr);
            CHECK(results.size() == 3);
        }
    };
    work(3);
    const char *const names[] = {"cuMemAlloc_v2", "cuMemHostAlloc", "cuEventCreate", "cuStreamCreate", "cuGraphInstantiateWithFlags"};
    long before[5];
    for (int index = 0; index < 5; ++index) before[index] = calls(names[index]);
    counting = true;
    work(20);
    counting = false;
    std::printf("%ld", counted.load());
    for (int index = 0; index < 5; ++index) std::printf(" %ld", calls(names[index]) - before[index]);
}

const std::map<std::string, void (*)()> SCENARIOS = {
#define S(name) {#name, name}
    S(callbacks_come_in_order), S(futures_give_results), S(threads_submit_and_detect), S(a_detector_ends_when_its_work_is_done),
    S(callbacks_may_not_call), S(a_failure_of_the_gpu_reaches_everybody), S(a_failed_call_changes_nothing), S(errors_reach_callbacks),
    S(results_hold_contexts), S(moved_results_keep_their_views), S(waiting_ends_where_all_are_held), S(calls_wait_for_contexts),
    S(nothing_is_allocated_once_it_has_grown),
};

}  // namespace

int main(int count, char **texts) {
    CHECK(count >= 4 && SCENARIOS.count(texts[1]));
    engine = texts[2];
    number = std::atoi(texts[3]);
    sound_engine = count > 4 ? texts[4] : engine;
    SCENARIOS.at(texts[1])();
    const std::string left = left_behind();
    if (!left.empty()) std::fprintf(stderr, "left behind: %s\n", left.c_str());
    return left.empty() ? 0 : 1;
}
