// Counts what the library takes with `new`; without sanitizers, which count themselves.
#pragma once
#include <link.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {

std::atomic<bool> counting{false};
std::atomic<long> counted{0};

// Where the library lies in memory: the stand-ins and the kernels, whose own memory is no concern of its, take some with `new` too.
struct Range {
    std::uintptr_t start = 0, end = 0;

    Range() {
        dl_iterate_phdr(
            [](dl_phdr_info *info, std::size_t, void *own) {
                if (!std::strstr(info->dlpi_name, "libyolact_deploy")) return 0;
                Range &range = *static_cast<Range *>(own);
                range.start = info->dlpi_addr;
                for (int index = 0; index < info->dlpi_phnum; ++index) {
                    const auto end = static_cast<std::uintptr_t>(info->dlpi_phdr[index].p_vaddr + info->dlpi_phdr[index].p_memsz);
                    range.end = std::max(range.end, range.start + end);
                }
                return 1;
            },
            this);
    }
    bool holds(const void *place) const { return start <= reinterpret_cast<std::uintptr_t>(place) && reinterpret_cast<std::uintptr_t>(place) < end; }
};

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define COUNTED 1
void *taken(std::size_t size, const void *caller) {
    static const Range library;
    if (counting && library.holds(caller)) ++counted;
    void *const memory = std::malloc(size ? size : 1);
    if (!memory) throw std::bad_alloc();
    return memory;
}
#endif

}  // namespace

#ifdef COUNTED
void *operator new(std::size_t size) { return taken(size, __builtin_return_address(0)); }
void *operator new[](std::size_t size) { return taken(size, __builtin_return_address(0)); }
void operator delete(void *memory) noexcept { std::free(memory); }
void operator delete[](void *memory) noexcept { std::free(memory); }
void operator delete(void *memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void *memory, std::size_t) noexcept { std::free(memory); }
#endif
