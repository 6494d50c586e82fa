// What the stand-ins for CUDA's libraries ask of the driver's (../stub.h).
#include "stub.h"

using namespace stub;

STUB_EXPORT int stub_computes() { return settings().compute; }

// Asked before a library reads or writes the memory, so what came before must be done.
STUB_EXPORT int stub_holds(unsigned long at, unsigned long bytes) {
    finish();
    if (is_exchanged(nullptr, at, bytes)) refuse(CUDA_ERROR_INVALID_VALUE, "%lu bytes from %lx are used while they are exchanged", bytes, at);
    Allocation found;
    return find_allocation(at, &found) && found.kind == Memory::Device && at + bytes <= found.at + found.size;
}

STUB_EXPORT void stub_exchange(void *stream, unsigned long at, unsigned long bytes) {
    CUstream handle = static_cast<CUstream>(stream);
    if (is_exchanged(handle, at, bytes)) refuse(CUDA_ERROR_INVALID_VALUE, "%lu bytes from %lx are exchanged on two streams at once", bytes, at);
    if (!begin_exchange(handle, at, bytes))
        refuse(CUDA_ERROR_INVALID_VALUE, "%lu bytes from %lx are exchanged on a stream that has not waited for the kernels before", bytes, at);
}

STUB_EXPORT void stub_log(const char *line) { log("%s", line); }

STUB_EXPORT void stub_refuse(const char *what) { refuse(CUDA_ERROR_INVALID_VALUE, "%s", what); }
