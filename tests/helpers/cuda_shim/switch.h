// The change from one fiber's stack to another's: by hand where that is written down, which takes a few nanoseconds, else by ucontext.
#pragma once

#include "shim.h"

#if defined(__SANITIZE_ADDRESS__)
#define SHIM_ASAN 1
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define SHIM_ASAN 0
#endif

#if !defined(SHIM_UCONTEXT) && !defined(__x86_64__) && !defined(__aarch64__)
#define SHIM_UCONTEXT
#endif
#ifdef SHIM_UCONTEXT
#include <ucontext.h>
#endif

namespace shim {

using Main = void (*)();

#ifdef SHIM_UCONTEXT

inline ucontext_t *context_of(Fiber *fiber) {
    if (!fiber->context) fiber->context = new ucontext_t;
    return static_cast<ucontext_t *>(fiber->context);
}

inline void switch_stacks(Fiber *from, Fiber *to) { swapcontext(context_of(from), context_of(to)); }

inline void prepare(Fiber *fiber, Main start) {
    ucontext_t *context = context_of(fiber);
    getcontext(context);
    context->uc_stack.ss_sp = const_cast<void *>(fiber->stack_bottom);
    context->uc_stack.ss_size = fiber->stack_size;
    context->uc_link = nullptr;
    makecontext(context, start, 0);
}

#else

// Stores the stack pointer at *from and goes on where `to` left off; what a called function must keep lies on the stacks.
extern "C" void shim_switch(void **from, void *to) __attribute__((visibility("hidden")));

#ifdef __x86_64__
constexpr std::size_t SAVED = 8, START = 6;  // words of a new stack, and which of them is the place to start at
// A jump rather than a return, whose target the processor would guess from its own stack of calls.
asm(R"(
    .text
    .hidden shim_switch
    .globl shim_switch
    .type shim_switch, @function
shim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    popq %rcx
    jmp *%rcx
    .size shim_switch, . - shim_switch
)");
#else
constexpr std::size_t SAVED = 20, START = 11;
asm(R"(
    .text
    .hidden shim_switch
    .globl shim_switch
    .type shim_switch, %function
shim_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
    .size shim_switch, . - shim_switch
)");
#endif

inline void switch_stacks(Fiber *from, Fiber *to) { shim_switch(&from->context, to->context); }

inline void prepare(Fiber *fiber, Main start) {
    const std::uintptr_t top = (reinterpret_cast<std::uintptr_t>(fiber->stack_bottom) + fiber->stack_size) & ~std::uintptr_t{15};
    std::uintptr_t *words = reinterpret_cast<std::uintptr_t *>(top) - SAVED;
    for (std::size_t index = 0; index < SAVED; ++index) words[index] = 0;
    words[START] = reinterpret_cast<std::uintptr_t>(start);
    fiber->context = words;
}

#endif

// To be called first thing on a stack: tells AddressSanitizer, and learns from it where the scheduler's stack lies.
inline void arrive([[maybe_unused]] Fiber *self, [[maybe_unused]] Fiber *scheduler) {
#if SHIM_ASAN
    const void *bottom = nullptr;
    std::size_t size = 0;
    __sanitizer_finish_switch_fiber(self->fake_stack, &bottom, &size);
    // A round's first fiber comes from the scheduler, which has no bounds until then.
    if (!scheduler->stack_bottom) scheduler->stack_bottom = bottom, scheduler->stack_size = size;
#endif
}

inline void change(Fiber *from, Fiber *to, [[maybe_unused]] Fiber *scheduler) {
#if SHIM_ASAN
    const bool last = from->state == State::ENDED;
    if (from == scheduler) from->stack_bottom = nullptr;  // launches come from several threads
    __sanitizer_start_switch_fiber(last ? nullptr : &from->fake_stack, to->stack_bottom, to->stack_size);
#endif
    switch_stacks(from, to);
    arrive(from, scheduler);
}

// Stacks that were left in the middle of a call still have AddressSanitizer's marks.
inline void forget_stacks([[maybe_unused]] Fiber *fibers, [[maybe_unused]] unsigned count) {
#if SHIM_ASAN
    for (unsigned index = 0; index < count; ++index)
        __asan_unpoison_memory_region(fibers[index].stack_bottom, fibers[index].stack_size);
#endif
}

// A fiber that ended left its first calls without returning from them; their marks would lie in the frames of its next start.
inline void forget_first_calls([[maybe_unused]] const Fiber &fiber) {
#if SHIM_ASAN
    constexpr std::size_t FIRST_CALLS = 4096;
    __asan_unpoison_memory_region(static_cast<const unsigned char *>(fiber.stack_bottom) + fiber.stack_size - FIRST_CALLS, FIRST_CALLS);
#endif
}

}  // namespace shim
