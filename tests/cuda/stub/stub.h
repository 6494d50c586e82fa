// What the stand-in for the driver (libcuda.so) gives the stand-ins for CUDA's libraries. They look these functions up
// in the driver at their first call, because nothing links them; without a driver that has them, a stand-in computes,
// checks no memory and logs nothing.
#pragma once

// Whether results are computed (compute mode) or only calls are counted (count mode).
typedef int stub_computes_function(void);

// Whether `bytes` bytes from `at` on lie in one live allocation of device memory.
typedef int stub_holds_function(unsigned long at, unsigned long bytes);

// Appends a line to launches.tsv; the driver puts time and thread before it.
typedef void stub_log_function(const char *line);

// A call that a real device or library would refuse, or that would give a wrong result: counts and prints it, and ends
// the program in strict mode.
typedef void stub_refuse_function(const char *what);

// A library exchanges `bytes` bytes from `at` on with other devices on `stream`: the stream must have waited for what wrote them, and
// nothing may use them before another stream has waited for this one.
typedef void stub_exchange_function(void *stream, unsigned long at, unsigned long bytes);
