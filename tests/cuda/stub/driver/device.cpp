// Devices and their contexts.
#include "stub.h"

#include <cstdio>
#include <cstring>

using namespace stub;

namespace {
// A context is the address of one of these.
char contexts[MAX_DEVICES];
thread_local int current = -1;
bool peers[MAX_DEVICES][MAX_DEVICES];

int device_of(CUcontext context) {
    const char *at = reinterpret_cast<const char *>(context);
    return at >= contexts && at < contexts + settings().devices ? int(at - contexts) : -1;
}
bool exists(CUdevice device) { return device >= 0 && device < settings().devices; }
} // namespace

namespace stub {
int current_device() { return current; }
CUcontext context_of(int device) { return reinterpret_cast<CUcontext>(&contexts[device]); }
bool may_access(int device, int memory_of) { return device == memory_of || peers[device][memory_of]; }
} // namespace stub

STUB_EXPORT CUresult cuInit(unsigned) { return settings().devices > 0 ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE; }
STUB_EXPORT CUresult cuDriverGetVersion(int *version) {
    *version = 13000;
    return CUDA_SUCCESS;
}
STUB_EXPORT CUresult cuDeviceGetCount(int *count) {
    *count = settings().devices;
    return CUDA_SUCCESS;
}
STUB_EXPORT CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    if (!exists(ordinal)) return CUDA_ERROR_INVALID_DEVICE;
    *device = ordinal;
    return CUDA_SUCCESS;
}
STUB_EXPORT CUresult cuDeviceGetName(char *name, int bytes, CUdevice device) {
    if (!exists(device)) return CUDA_ERROR_INVALID_DEVICE;
    snprintf(name, size_t(bytes), "%s", settings().name);
    return CUDA_SUCCESS;
}
STUB_EXPORT CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device) {
    memset(uuid, 0, sizeof *uuid);
    uuid->bytes[0] = char(device + 1);
    return CUDA_SUCCESS;
}
STUB_EXPORT CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice) {
    *bytes = settings().memory;
    return CUDA_SUCCESS;
}
STUB_EXPORT CUresult cuDeviceGetPCIBusId(char *id, int bytes, CUdevice device) {
    snprintf(id, size_t(bytes), "0000:%02x:00.0", device + 1);
    return CUDA_SUCCESS;
}

// Those of an H100 (SXM) where the environment says nothing else.
STUB_EXPORT CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    if (!exists(device)) return CUDA_ERROR_INVALID_DEVICE;
    switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = settings().capability / 10; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = settings().capability % 10; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = settings().processors; break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: *value = 48 * 1024; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = MAX_SHARED; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = MAX_SHARED + 1024; break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; break;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X: *value = 1024; break;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y: *value = 1024; break;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z: *value = 64; break;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X: *value = 2147483647; break;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y: *value = 65535; break;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z: *value = 65535; break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: *value = 2048; break;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR: *value = 32; break;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; break;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: *value = 50 << 20; break;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: *value = 1980000; break;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: *value = 2619000; break;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: *value = 5120; break;
    case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED: *value = 1; break;
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING: *value = 1; break;
    case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY: *value = 1; break;
    default: *value = 0; log("attribute\t%d", int(attribute));
    }
    return CUDA_SUCCESS;
}

STUB_EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    if (!exists(device)) return CUDA_ERROR_INVALID_DEVICE;
    *context = context_of(device);
    return CUDA_SUCCESS;
}
STUB_EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice) { return CUDA_SUCCESS; }
STUB_EXPORT CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned *flags, int *active) {
    *flags = 0;
    *active = 1;
    return CUDA_SUCCESS;
}
STUB_EXPORT CUresult cuCtxSetCurrent(CUcontext context) {
    if (context && device_of(context) < 0) return refuse(CUDA_ERROR_INVALID_CONTEXT, "cuCtxSetCurrent: %p is no context", (void *)context);
    current = context ? device_of(context) : -1;
    return CUDA_SUCCESS;
}
STUB_EXPORT CUresult cuCtxGetCurrent(CUcontext *context) {
    *context = current < 0 ? nullptr : context_of(current);
    return CUDA_SUCCESS;
}
STUB_EXPORT CUresult cuCtxGetDevice(CUdevice *device) {
    if (current < 0) return CUDA_ERROR_INVALID_CONTEXT;
    *device = current;
    return CUDA_SUCCESS;
}
STUB_EXPORT CUresult cuCtxGetApiVersion(CUcontext, unsigned *version) {
    *version = 13000;
    return CUDA_SUCCESS;
}
STUB_EXPORT CUresult cuCtxSynchronize() {
    totals.context_waits.add(0);
    log("ctxsync");
    finish();
    return current < 0 ? CUDA_ERROR_INVALID_CONTEXT : CUDA_SUCCESS;
}

STUB_EXPORT CUresult cuDeviceCanAccessPeer(int *can, CUdevice device, CUdevice peer) {
    *can = exists(device) && exists(peer) && device != peer;
    return CUDA_SUCCESS;
}
STUB_EXPORT CUresult cuCtxEnablePeerAccess(CUcontext context, unsigned) {
    int peer = device_of(context);
    if (current < 0 || peer < 0 || peer == current) return CUDA_ERROR_INVALID_CONTEXT;
    if (peers[current][peer]) return CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED;
    peers[current][peer] = true;
    return CUDA_SUCCESS;
}

STUB_EXPORT CUresult cuGetErrorName(CUresult error, const char **name) {
    switch (error) {
    case CUDA_SUCCESS: *name = "CUDA_SUCCESS"; break;
    case CUDA_ERROR_INVALID_VALUE: *name = "CUDA_ERROR_INVALID_VALUE"; break;
    case CUDA_ERROR_OUT_OF_MEMORY: *name = "CUDA_ERROR_OUT_OF_MEMORY"; break;
    case CUDA_ERROR_NO_DEVICE: *name = "CUDA_ERROR_NO_DEVICE"; break;
    case CUDA_ERROR_INVALID_DEVICE: *name = "CUDA_ERROR_INVALID_DEVICE"; break;
    case CUDA_ERROR_INVALID_IMAGE: *name = "CUDA_ERROR_INVALID_IMAGE"; break;
    case CUDA_ERROR_INVALID_CONTEXT: *name = "CUDA_ERROR_INVALID_CONTEXT"; break;
    case CUDA_ERROR_INVALID_HANDLE: *name = "CUDA_ERROR_INVALID_HANDLE"; break;
    case CUDA_ERROR_NOT_FOUND: *name = "CUDA_ERROR_NOT_FOUND"; break;
    case CUDA_ERROR_NOT_READY: *name = "CUDA_ERROR_NOT_READY"; break;
    case CUDA_ERROR_NOT_SUPPORTED: *name = "CUDA_ERROR_NOT_SUPPORTED"; break;
    case CUDA_ERROR_ILLEGAL_ADDRESS: *name = "CUDA_ERROR_ILLEGAL_ADDRESS"; break;
    default: *name = "an error of the stub";
    }
    return CUDA_SUCCESS;
}
STUB_EXPORT CUresult cuGetErrorString(CUresult error, const char **text) { return cuGetErrorName(error, text); }
