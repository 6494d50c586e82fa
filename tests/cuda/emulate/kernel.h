// How a compiled file describes its kernels: what whoever launches one has to know (`emulate_kernels(&count)` gives the table).
#pragma once

struct emulate_kernel {
    const char *name;
    void (*entry)();
    void (*call)(void (*entry)(), void **arguments); // `arguments[i]` points to the value of parameter i
    unsigned parameters;
    const unsigned *sizes; // of the parameters, bytes
    unsigned max_threads;  // __launch_bounds__, or 1024
    char *shared_begin, *shared_end; // static shared memory
};

// Runs `kernel` over the whole grid (libemulate.so).
extern "C" void emulate_run(
    const emulate_kernel *kernel, const unsigned grid[3], const unsigned block[3], unsigned shared_bytes, void **arguments);
