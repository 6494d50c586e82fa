// Parts of the stand-in for libcuda.so: a driver without a GPU.
#pragma once

#include <cuda.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "../../emulate/kernel.h"

// Calls of the driver that programs make.
#define STUB_EXPORT extern "C" __attribute__((visibility("default")))

namespace stub {

// -- log.cpp: what the environment asks for, what happened, what was wrong ------------------------------------------------

struct Settings {
    const char *folder;    // STUB_DIR: where files go; none if null
    bool log, cpu, params, strict;
    bool compute; // STUB_COMPUTE
    bool lazy;    // STUB_LAZY
    int devices, capability, processors;
    size_t memory; // of each device, bytes
    const char *name;
};
const Settings &settings();

// A line of STUB_DIR/launches.tsv: fields are separated by tabs.
void log(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Whether lines are written, so that nobody prepares one for nothing.
bool logging();

// Says on stderr what a device would refuse, counts it, ends the process if STUB_STRICT=1, and gives back `code`.
CUresult refuse(CUresult code, const char *format, ...) __attribute__((format(printf, 2, 3)));

struct Counter {
    std::atomic<uint64_t> calls{0}, bytes{0};
    void add(size_t n) {
        calls++;
        bytes += n;
    }
};
struct Totals {
    Counter launches, to_device, from_device, within_device, between_devices, fills;
    Counter allocations, frees, pinned_allocations;
    Counter event_waits, stream_waits, context_waits, stream_orders, events;
    Counter modules, attributes, refused;
};
extern Totals totals;

// A file of STUB_DIR for writing, or null.
FILE *open_file(const std::string &name);

// -- device.cpp -----------------------------------------------------------------------------------------------------------

constexpr int MAX_DEVICES = 16;

// The device whose context is current on this thread; -1 if none is.
int current_device();
CUcontext context_of(int device);

// -- memory.cpp -----------------------------------------------------------------------------------------------------------

enum class Memory { Device, Pinned };
struct Allocation {
    uint64_t at, size;
    Memory kind;
    int device;
};
// The live allocation that holds the address. False if there is none.
bool find_allocation(uint64_t address, Allocation *found);
// Bytes of device memory in use, and the most there have been, over all devices.
size_t live_bytes(), peak_bytes(), peak_pinned_bytes();
// Whether kernels of one device may use the memory of another.
bool may_access(int device, int memory_of);

// -- stream.cpp -----------------------------------------------------------------------------------------------------------

// Does `work` now; with STUB_LAZY=1 when somebody waits or asks, so that what the host does too early shows.
void submit(std::function<void()> work);
// Does all that was put off.
void finish();

// A kernel was launched in the stream.
void launched(CUstream stream);
// A library exchanges this memory with other devices on the stream. False if there are kernels on other streams of
// the device, and the stream has waited for the last one of none of them.
bool begin_exchange(CUstream stream, uint64_t at, size_t bytes);
// Whether the memory is exchanged on another stream that nobody has waited for since.
bool is_exchanged(CUstream stream, uint64_t at, size_t bytes);

// The device of a stream: the current one for the default stream; -1 if the handle is unknown.
int device_of_stream(CUstream stream);

// -- module.cpp -----------------------------------------------------------------------------------------------------------

struct Parameter {
    unsigned size;   // bytes; 0 if not known
    bool is_pointer; // known to be one
};
struct Function {
    std::string name;
    int module = 0, device = 0;
    bool parameters_known = false;
    std::vector<Parameter> parameters;
    unsigned static_shared = 0, max_threads = 1024;
    unsigned dynamic_shared_limit = 48 * 1024;
    std::atomic<uint64_t> launches{0};
    // What runs it, for an emulated kernel.
    const emulate_kernel *kernel = nullptr;
    decltype(&emulate_run) run = nullptr;
};
// All functions, for the summary.
std::vector<const Function *> functions();

constexpr unsigned MAX_SHARED = 232448; // of a block of an H100, bytes

} // namespace stub
