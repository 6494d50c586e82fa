// Stacks and the switch between them (x86-64 and AArch64).
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <sys/mman.h>

namespace fibre {

constexpr size_t STACK_BYTES = 256 * 1024, GUARD_BYTES = 4096;

struct Stack {
    unsigned char *top;
    Stack *next;
};

inline Stack *free_stacks;

// A stack above a page that cannot be touched. Only pages that are used take memory.
inline Stack *take_stack() {
    if (free_stacks) {
        Stack *stack = free_stacks;
        free_stacks = stack->next;
        return stack;
    }
    void *memory = mmap(nullptr, STACK_BYTES + GUARD_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        fprintf(stderr, "CUDA emulator: no memory for the stack of a thread\n");
        abort();
    }
    mprotect(memory, GUARD_BYTES, PROT_NONE);
    Stack *stack = new Stack;
    stack->top = static_cast<unsigned char *>(memory) + STACK_BYTES + GUARD_BYTES;
    return stack;
}

inline void give_stack(Stack *stack) {
    stack->next = free_stacks;
    free_stacks = stack;
}

// void fibre_switch(void **save, void *resume): keeps what a function must keep on the stack, stores the stack pointer
// in *save, takes `resume` as the stack pointer and goes on where that stack left off.
extern "C" void fibre_switch(void **save, void *resume);

#if defined(__x86_64__)
asm(R"(
    .text
    .globl fibre_switch
    .hidden fibre_switch
    .type fibre_switch, @function
fibre_switch:
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
    ret
    .size fibre_switch, . - fibre_switch
)");

inline void *prepare(Stack *stack, void (*start)()) {
    // `ret` takes `start`. Above it stands what a call would have left there, a return address: without it the stack
    // would not be aligned as functions expect. `start` never returns.
    uint64_t *at = reinterpret_cast<uint64_t *>(stack->top) - 1;
    *at = 0;
    *--at = reinterpret_cast<uint64_t>(start);
    for (int i = 0; i < 6; i++) *--at = 0;
    return at;
}
#elif defined(__aarch64__)
asm(R"(
    .text
    .globl fibre_switch
    .hidden fibre_switch
    .type fibre_switch, %function
fibre_switch:
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
    .size fibre_switch, . - fibre_switch
)");

inline void *prepare(Stack *stack, void (*start)()) {
    uint64_t *at = reinterpret_cast<uint64_t *>(stack->top) - 20;
    for (int i = 0; i < 20; i++) at[i] = 0;
    at[11] = reinterpret_cast<uint64_t>(start); // x30
    return at;
}
#else
#error "fibre.h knows x86-64 and AArch64 only"
#endif

inline void hand_over(void **save, void *resume) { fibre_switch(save, resume); }

} // namespace fibre
