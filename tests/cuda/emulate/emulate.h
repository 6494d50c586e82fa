// CUDA C for g++: what a kernel file may use, so that it runs on the CPU.
//
//     g++ -std=c++17 -O1 -DBEIT2_EMULATE -include emulate.h …        (`compile.py` knows the other flags and appends the table of kernels)
//
// Threads of a block are fibres of one thread of the process; blocks run one after another (`scheduler.cpp`).
// What a GPU leaves undefined is an error here where that is cheap: see tests/cuda/README.md.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "kernel.h"
#include "types.h"

#define __CUDA_ARCH__ 900

// -- Words of the language --------------------------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __grid_constant__
#define __restrict__ __restrict
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __cluster_dims__(...)

// All static shared memory of a file lies in one section, which is filled with NaN before each block. `extern __shared__`
// does not reach the compiler: `compile.py` turns it into a pointer to the dynamic memory of the launch.
#define __shared__ static __attribute__((section("emulate_shared")))

extern "C" {

// Where the running thread is. The scheduler sets them before it resumes a fibre.
extern uint3 emulate_thread, emulate_block;
extern dim3 emulate_block_size, emulate_grid_size;

// Dynamic shared memory of the running block; its end is followed by a page that cannot be touched.
extern unsigned char *emulate_dynamic_shared;

// Says what is wrong, in which kernel, block and thread, and ends the process.
[[noreturn]] void emulate_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Waits until all threads of the block have arrived. Returns how many of them came with `predicate`.
int emulate_barrier(bool predicate);
}

#define threadIdx emulate_thread
#define blockIdx emulate_block
#define blockDim emulate_block_size
#define gridDim emulate_grid_size
#define warpSize 32

inline void __syncthreads() { emulate_barrier(false); }
inline int __syncthreads_count(int predicate) { return emulate_barrier(predicate != 0); }
inline int __syncthreads_or(int predicate) { return emulate_barrier(predicate != 0) != 0; }
inline int __syncthreads_and(int predicate) { return emulate_barrier(predicate == 0) == 0; }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __trap() { emulate_fail("__trap() was called"); }
inline void __nanosleep(unsigned) {}
inline long long clock64() {
    static long long ticks;
    return ticks += 16;
}

#include "atomics.h"
#include "intrinsics.h"
#include "warp.h"

// -- The table of kernels in a compiled file --------------------------------------------------------------------------

extern "C" {
// Static shared memory of this file (symbols that the linker makes of the section's name).
extern char __start_emulate_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_emulate_shared[] __attribute__((weak, visibility("hidden")));
}

namespace emulate {

template <size_t...> struct Indices {};
template <size_t N, size_t... Rest> struct IndicesUpTo : IndicesUpTo<N - 1, N - 1, Rest...> {};
template <size_t... All> struct IndicesUpTo<0, All...> { using Type = Indices<All...>; };

template <class T> struct Value { using Type = T; };
template <class T> struct Value<const T> { using Type = T; };

template <class Entry> struct Signature;
template <class... Parameter> struct Signature<void (*)(Parameter...)> {
    static constexpr unsigned count = sizeof...(Parameter);
    static constexpr unsigned sizes[sizeof...(Parameter) + 1] = {unsigned(sizeof(Parameter))..., 0};

    template <size_t... I> static void call_with(void (*entry)(Parameter...), void **arguments, Indices<I...>) {
        entry(*static_cast<typename Value<Parameter>::Type *>(arguments[I])...);
    }
    static void call(void (*entry)(), void **arguments) {
        call_with(reinterpret_cast<void (*)(Parameter...)>(entry), arguments, typename IndicesUpTo<count>::Type());
    }
};

template <class Entry> emulate_kernel describe(const char *name, Entry entry, unsigned max_threads) {
    using S = Signature<Entry>;
    return {name, reinterpret_cast<void (*)()>(entry), S::call, S::count, S::sizes, max_threads, __start_emulate_shared, __stop_emulate_shared};
}

} // namespace emulate

// `compile.py` ends each file with EMULATE_KERNELS(EMULATE_KERNEL(a, 256) EMULATE_KERNEL(b, 1024)).
#define EMULATE_KERNEL(name, max_threads) emulate::describe(#name, &name, max_threads),
#define EMULATE_KERNELS(...)                                                                                                      \
    static const emulate_kernel emulate_table[] = {__VA_ARGS__};                                                                  \
    extern "C" __attribute__((visibility("default"))) const emulate_kernel *emulate_kernels(unsigned *count) {                    \
        *count = sizeof emulate_table / sizeof *emulate_table;                                                                    \
        return emulate_table;                                                                                                     \
    }                                                                                                                             \
    /* Runs the kernel at this address, for a harness in C++ or Python. */                                                       \
    extern "C" __attribute__((visibility("default"))) void emulate_launch(                                                        \
        void (*entry)(), const unsigned *grid, const unsigned *block, unsigned shared_bytes, void **arguments) {                  \
        for (const emulate_kernel &kernel : emulate_table)                                                                        \
            if (kernel.entry == entry) return emulate_run(&kernel, grid, block, shared_bytes, arguments);                         \
        emulate_fail("emulate_launch: no kernel of this file has this address");                                                  \
    }
