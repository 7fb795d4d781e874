// Runs the kernels of a generated table: one block after the other, each thread of a block a fiber on a stack of its own.
//
// A round lets the fibers of some warps go on until each waits or ends; each hands over to the next itself, the last one to the scheduler.
// After a round all of them wait or have ended, so that a barrier or collective which cannot be passed is seen at once.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "switch.h"

namespace shim {

Fiber *current;
uint3 block_index, block_size, grid_size;
unsigned char *dynamic_shared;

namespace {

constexpr unsigned MOST_THREADS = 1024;
constexpr unsigned MOST_DYNAMIC_SHARED = 99 * 1024;  // of compute capability 8.9, with the opt-in
constexpr std::size_t MOST_ARGUMENT = 4096;
constexpr std::size_t STACK = SHIM_ASAN ? std::size_t{256} << 10 : std::size_t{64} << 10;
constexpr unsigned char UNDEFINED = 0xa5;

enum Order { FORWARD, REVERSE, SHUFFLED };

std::mutex launching;  // there is one set of shared arrays
Fiber scheduler{};
Fiber *fibers;
Fiber *const *cursor;  // the fiber of this round that comes next
const Entry *kernel;
alignas(64) unsigned char kernel_argument[MOST_ARGUMENT];
std::string error;
bool stacks_abandoned;

struct Random {
    unsigned long long state;

    unsigned below(unsigned bound) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        return static_cast<unsigned>(((state >> 32) * bound) >> 32);
    }

    template <class Value>
    void shuffle(std::vector<Value> &values) {
        for (std::size_t left = values.size(); left > 1; --left) std::swap(values[left - 1], values[below(static_cast<unsigned>(left))]);
    }
};

void give_way(Fiber *next) {
    Fiber *self = current;
    current = next;
    change(self, next, &scheduler);
}

[[noreturn]] void fiber_main() {
    arrive(current, &scheduler);
    kernel->run(kernel_argument);
    current->state = State::ENDED;
    give_way(*cursor++);
    std::abort();  // nobody continues a fiber that ended
}

void allocate_fibers() {
    if (fibers) return;
    // A page without access below each stack; it also keeps the tops of the stacks from sharing the same few sets of the cache.
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE)), stride = STACK + page;
    void *memory = mmap(nullptr, stride * MOST_THREADS, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    fibers = new Fiber[MOST_THREADS]{};
    for (unsigned index = 0; index < MOST_THREADS; ++index) {
        unsigned char *bottom = static_cast<unsigned char *>(memory) + index * stride + page;
        if (mprotect(bottom, STACK, PROT_READ | PROT_WRITE) != 0) std::abort();
        Fiber &fiber = fibers[index];
        fiber.stack_bottom = bottom;
        fiber.stack_size = STACK - index % 16 * 256;
        fiber.warp = fibers + index / LANES * LANES;
        fiber.thread = {index, 0, 0};
        fiber.lane = index % LANES;
    }
}

std::string place(const Site &site) {
    const std::string path = site.file;
    return path.substr(path.rfind('/') + 1) + ":" + std::to_string(site.line);
}

std::string where() {
    const uint3 &at = block_index;
    return std::string("kernel ") + kernel->name + ", block (" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " +
           std::to_string(at.z) + "): ";
}

// Which threads are where: "31 threads (0 first) wait at a.cuh:7, 1 thread (31 first) has ended".
std::string states(const Fiber *first, unsigned count) {
    std::map<std::pair<State, int>, std::pair<const Fiber *, unsigned>> groups;
    for (unsigned index = 0; index < count; ++index) {
        const Fiber *fiber = first + index;
        auto &group = groups[{fiber->state, fiber->state == State::ENDED ? 0 : fiber->site.id}];
        if (!group.second++) group.first = fiber;
    }
    std::string text;
    for (const auto &[key, group] : groups) {
        const bool one = group.second == 1;
        text += (text.empty() ? "" : ", ") + std::to_string(group.second) + (one ? " thread (" : " threads (") +
                std::to_string(group.first->thread.x) + (one ? ") " : " first) ");
        if (key.first == State::ENDED) {
            text += one ? "has ended" : "have ended";
        } else {
            text += (one ? "waits at the " : "wait at the ");
            text += (key.first == State::BARRIER ? "barrier " : "warp collective ") + place(group.first->site);
        }
    }
    return text;
}

// Which of the warps that can go on do so next. One goes as far as it can before another starts, or some do, by chance: warps that went in
// step would hide that a barrier is missing.
std::vector<unsigned> choose(const std::vector<unsigned> &able, Order order, Random &random) {
    if (order == FORWARD) return {able.front()};
    if (order == REVERSE) return {able.back()};
    std::vector<unsigned> chosen;
    for (const unsigned warp : able)
        if (random.below(2)) chosen.push_back(warp);
    if (chosen.empty()) chosen.push_back(able[random.below(static_cast<unsigned>(able.size()))]);
    return chosen;
}

void run_block(unsigned threads, Order order, Random &random) {
    const unsigned warps = threads / LANES;
    std::vector<unsigned> all(warps), able;
    std::vector<Fiber *> round;
    for (unsigned warp = 0; warp < warps; ++warp) all[warp] = warp;
    for (unsigned index = 0; index < threads; ++index) {
        fibers[index].state = State::RUNNING;
        fibers[index].phase = 0;
        forget_first_calls(fibers[index]);
        prepare(&fibers[index], fiber_main);
    }
    able = all;
    for (;;) {
        const std::vector<unsigned> chosen = choose(able, order, random);
        round.clear();
        for (const unsigned warp : chosen)
            for (unsigned lane = 0; lane < LANES; ++lane) round.push_back(&fibers[warp * LANES + lane]);
        if (order == REVERSE) std::reverse(round.begin(), round.end());
        if (order == SHUFFLED) random.shuffle(round);
        round.push_back(&scheduler);
        cursor = round.data();
        give_way(*cursor++);
        if (!error.empty()) return;

        for (const unsigned warp : chosen) {
            const Fiber *lanes = &fibers[warp * LANES];
            bool some = false, all_here = true;
            for (unsigned lane = 0; lane < LANES; ++lane) {
                const bool here = lanes[lane].state == State::COLLECTIVE;
                some |= here;
                all_here &= here && lanes[lane].site.id == lanes[0].site.id;
            }
            if (all_here) continue;
            if (some) {
                error = where() + "not all lanes of warp " + std::to_string(warp) + " reach a collective: " + states(lanes, LANES);
                return;
            }
            able.erase(std::find(able.begin(), able.end(), warp));
        }
        if (able.empty()) {
            bool ended = true, waiting = true;
            for (unsigned index = 0; index < threads; ++index) {
                ended &= fibers[index].state == State::ENDED;
                waiting &= fibers[index].state == State::BARRIER && fibers[index].site.id == fibers[0].site.id;
            }
            if (ended) return;
            if (!waiting) {
                error = where() + "not all threads reach a barrier: " + states(fibers, threads);
                return;
            }
            able = all;
        }
    }
}

const Entry *find(const char *name) {
    for (unsigned index = 0; index < entry_count; ++index)
        if (!std::strcmp(entries[index].name, name)) return &entries[index];
    return nullptr;
}

std::string refusal(const char *name, const uint3 &grid, unsigned threads, unsigned shared_bytes, int order) {
    const std::string prefix = std::string("kernel ") + name + ": ";
    if (!find(name)) return prefix + "there is none of this name";
    if (find(name)->size > MOST_ARGUMENT) return prefix + "an argument of more than 4096 bytes";
    if (!grid.x || grid.x > 0x7fffffffu || !grid.y || grid.y > 65535u || !grid.z || grid.z > 65535u)
        return prefix + "a grid of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " + std::to_string(grid.z) + " blocks";
    if (!threads || threads % LANES || threads > MOST_THREADS)
        return prefix + std::to_string(threads) + " threads, wanted a multiple of 32 up to 1024";
    if (shared_bytes > MOST_DYNAMIC_SHARED) return prefix + std::to_string(shared_bytes) + " bytes of dynamic shared memory";
    return order < FORWARD || order > SHUFFLED ? prefix + "no such order" : "";
}

}  // namespace

void wait_for_block(Site site) {
    current->site = site;
    current->state = State::BARRIER;
    give_way(*cursor++);
}

void wait_for_warp(Site site, unsigned mask) {
    if (mask != 0xffffffffu) fail(site, "the mask of a warp collective is not 0xffffffff");
    current->site = site;
    current->state = State::COLLECTIVE;
    give_way(*cursor++);
}

void fail(Site site, const char *reason) {
    error = where() + "thread " + std::to_string(current->thread.x) + " at " + place(site) + ": " + reason;
    give_way(&scheduler);
    std::abort();  // nobody continues a launch that failed
}

}  // namespace shim

#define SHIM_EXPORT extern "C" __attribute__((visibility("default")))

// Bytes of the kernel's argument; -1 where there is no such kernel.
SHIM_EXPORT long shim_argument_size(const char *name) {
    const shim::Entry *entry = shim::find(name);
    return entry ? static_cast<long>(entry->size) : -1;
}

// Null, or what went wrong, valid until the calling thread's next launch. `order` is 0 forward, 1 reverse, 2 shuffled by `seed`.
SHIM_EXPORT const char *shim_launch(const char *name, unsigned gx, unsigned gy, unsigned gz, unsigned threads, unsigned shared_bytes,
                                    int order, unsigned seed, const void *argument) {
    using namespace shim;
    static thread_local std::string told;
    const std::lock_guard<std::mutex> guard(launching);
    told = refusal(name, {gx, gy, gz}, threads, shared_bytes, order);
    if (!told.empty()) return told.c_str();

    allocate_fibers();
    if (stacks_abandoned) forget_stacks(fibers, MOST_THREADS);
    stacks_abandoned = false;
    error.clear();
    kernel = find(name);
    std::memcpy(kernel_argument, argument, kernel->size);
    block_size = {threads, 1, 1};
    grid_size = {gx, gy, gz};
    // Of exactly the size asked for, so that AddressSanitizer sees what lies beyond.
    dynamic_shared = static_cast<unsigned char *>(std::malloc(shared_bytes));
    Random random{(seed + 1ull) * 0x9e3779b97f4a7c15ull};
    std::vector<unsigned long long> blocks(static_cast<std::size_t>(gx) * gy * gz);
    for (std::size_t index = 0; index < blocks.size(); ++index) blocks[index] = index;
    if (order == REVERSE) std::reverse(blocks.begin(), blocks.end());
    if (order == SHUFFLED) random.shuffle(blocks);
    current = &scheduler;
    for (const unsigned long long index : blocks) {
        block_index = {static_cast<unsigned>(index % gx), static_cast<unsigned>(index / gx % gy),
                       static_cast<unsigned>(index / gx / gy)};
        if (shared_bytes) std::memset(dynamic_shared, UNDEFINED, shared_bytes);
        run_block(threads, static_cast<Order>(order), random);
        if (!error.empty()) break;
    }
    std::free(dynamic_shared);
    dynamic_shared = nullptr;
    stacks_abandoned = !error.empty();
    told = error;
    return told.empty() ? nullptr : told.c_str();
}
