// Memory: device memory is host memory that is only reserved until it is touched. A page that cannot be touched stands
// before and after each allocation, and freed memory can never be touched again. Unless kernels compute (STUB_COMPUTE=1),
// fills and copies within the device leave it alone: it may be larger than the memory that the machine has.
#include "stub.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>

#include <sys/mman.h>

using namespace stub;

namespace {
constexpr size_t PAGE = 4096, ALIGNMENT = 512;

std::mutex lock;
// By address. Never destroyed: other threads may still call when the process ends.
std::map<uint64_t, Allocation> &live = *new std::map<uint64_t, Allocation>;
size_t live_of[MAX_DEVICES], live_total, peak, live_pinned, peak_pinned;

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

CUresult allocate(uint64_t *at, size_t bytes, Memory kind) {
    int device = current_device();
    if (device < 0) return refuse(CUDA_ERROR_INVALID_CONTEXT, "an allocation of %zu bytes by a thread without a context", bytes);
    if (!bytes) return CUDA_ERROR_INVALID_VALUE;
    size_t size = round_up(bytes, ALIGNMENT), pages = round_up(size, PAGE);
    std::lock_guard<std::mutex> hold(lock);
    if (kind == Memory::Device && live_of[device] + size > settings().memory) {
        log("oom\t%zu", bytes);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    void *area = mmap(nullptr, pages + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
    char *inside = static_cast<char *>(area) + PAGE;
    mprotect(inside, pages, PROT_READ | PROT_WRITE);
    // At the end of its pages, so that the first byte behind it faults (as far as the alignment allows).
    Allocation made = {uint64_t(inside) + pages - size, size, kind, device};
    live[made.at] = made;
    if (kind == Memory::Device) {
        totals.allocations.add(size);
        live_of[device] += size;
        peak = std::max(peak, live_total += size);
    } else {
        totals.pinned_allocations.add(size);
        peak_pinned = std::max(peak_pinned, live_pinned += size);
    }
    *at = made.at;
    log("%s\t%zu\tlive\t%.1f MB", kind == Memory::Device ? "alloc" : "allochost", bytes, double(live_total) / 1e6);
    return CUDA_SUCCESS;
}

CUresult release(uint64_t at, Memory kind) {
    finish();
    std::lock_guard<std::mutex> hold(lock);
    auto found = live.find(at);
    if (found == live.end() || found->second.kind != kind)
        return refuse(CUDA_ERROR_INVALID_VALUE, "free of %lx, which is no live %s allocation", at, kind == Memory::Device ? "device" : "pinned");
    Allocation old = found->second;
    live.erase(found);
    uint64_t first = old.at / PAGE * PAGE;
    size_t pages = old.at + old.size - first;
    madvise(reinterpret_cast<void *>(first), pages, MADV_DONTNEED);
    mprotect(reinterpret_cast<void *>(first), pages, PROT_NONE);
    if (kind == Memory::Device) {
        totals.frees.add(old.size);
        live_of[old.device] -= old.size;
        live_total -= old.size;
    } else {
        live_pinned -= old.size;
    }
    log("%s\t%lu", kind == Memory::Device ? "free" : "freehost", old.size);
    return CUDA_SUCCESS;
}

// Refuses a range that is not inside one live allocation of device memory.
CUresult check_range(const char *call, uint64_t at, size_t bytes) {
    Allocation found;
    if (!bytes) return CUDA_SUCCESS;
    if (!find_allocation(at, &found) || found.kind != Memory::Device)
        return refuse(CUDA_ERROR_INVALID_VALUE, "%s: %lx is outside device memory", call, at);
    if (at + bytes > found.at + found.size)
        return refuse(CUDA_ERROR_INVALID_VALUE, "%s: %zu bytes from %lx end %lu bytes behind the allocation", call, bytes, at,
            at + bytes - found.at - found.size);
    return CUDA_SUCCESS;
}

// "pinned" or "pageable": a copy of pageable memory makes the host wait on a real device.
bool is_pinned(const void *at) {
    Allocation found;
    return find_allocation(uint64_t(at), &found) && found.kind == Memory::Pinned;
}
const char *kind_of_host(const void *at) { return is_pinned(at) ? "pinned" : "pageable"; }

// What the first read of 4 bytes gives (STUB_FIRST_F32): where nothing computes, the program's check of the device still passes.
bool answer_first_read(void *to, size_t bytes) {
    static std::atomic<bool> asked{false};
    const char *text = getenv("STUB_FIRST_F32");
    if (!text || bytes != 4 || asked.exchange(true)) return false;
    float value = float(atof(text));
    memcpy(to, &value, 4);
    return true;
}
} // namespace

namespace stub {
bool find_allocation(uint64_t address, Allocation *found) {
    std::lock_guard<std::mutex> hold(lock);
    auto after = live.upper_bound(address);
    if (after == live.begin()) return false;
    *found = std::prev(after)->second;
    return address < found->at + found->size;
}
size_t live_bytes() { return live_total; }
size_t peak_bytes() { return peak; }
size_t peak_pinned_bytes() { return peak_pinned; }
} // namespace stub

// -- Allocations ----------------------------------------------------------------------------------------------------------

STUB_EXPORT CUresult cuMemAlloc_v2(CUdeviceptr *at, size_t bytes) { return allocate(reinterpret_cast<uint64_t *>(at), bytes, Memory::Device); }
STUB_EXPORT CUresult cuMemAllocAsync(CUdeviceptr *at, size_t bytes, CUstream) { return cuMemAlloc_v2(at, bytes); }
STUB_EXPORT CUresult cuMemFree_v2(CUdeviceptr at) { return at ? release(at, Memory::Device) : CUDA_SUCCESS; }
STUB_EXPORT CUresult cuMemFreeAsync(CUdeviceptr at, CUstream) { return cuMemFree_v2(at); }
STUB_EXPORT CUresult cuMemAllocHost_v2(void **at, size_t bytes) { return allocate(reinterpret_cast<uint64_t *>(at), bytes, Memory::Pinned); }
STUB_EXPORT CUresult cuMemHostAlloc(void **at, size_t bytes, unsigned) { return cuMemAllocHost_v2(at, bytes); }
STUB_EXPORT CUresult cuMemFreeHost(void *at) { return release(uint64_t(at), Memory::Pinned); }
STUB_EXPORT CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    if (current_device() < 0) return CUDA_ERROR_INVALID_CONTEXT;
    *total = settings().memory;
    *free_bytes = settings().memory - live_of[current_device()];
    return CUDA_SUCCESS;
}
STUB_EXPORT CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr at) {
    Allocation found;
    if (!find_allocation(at, &found)) return CUDA_ERROR_INVALID_VALUE;
    switch (attribute) {
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        *static_cast<unsigned *>(value) = found.kind == Memory::Device ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *static_cast<int *>(value) = found.device; return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_CONTEXT: *static_cast<CUcontext *>(value) = context_of(found.device); return CUDA_SUCCESS;
    default: return CUDA_ERROR_NOT_SUPPORTED;
    }
}

// -- Copies -------------------------------------------------------------------------------

STUB_EXPORT CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream) {
    totals.to_device.add(bytes);
    log("h2d\t%zu\t%s", bytes, kind_of_host(from));
    CUresult checked = check_range("copy to the device", to, bytes);
    if (!checked) {
        if (is_pinned(from))
            submit([=] { memcpy(reinterpret_cast<void *>(to), from, bytes); });
        else // a driver has read pageable memory when the call returns
            submit([to, copy = std::vector<char>(static_cast<const char *>(from), static_cast<const char *>(from) + bytes)] {
                memcpy(reinterpret_cast<void *>(to), copy.data(), copy.size());
            });
    }
    return checked;
}
STUB_EXPORT CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes) { return cuMemcpyHtoDAsync_v2(to, from, bytes, nullptr); }

STUB_EXPORT CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream) {
    totals.from_device.add(bytes);
    log("d2h\t%zu\t%s", bytes, kind_of_host(to));
    CUresult checked = check_range("copy from the device", from, bytes);
    if (checked || answer_first_read(to, bytes)) return checked;
    submit([=] { memcpy(to, reinterpret_cast<const void *>(from), bytes); });
    if (!is_pinned(to)) finish();
    return CUDA_SUCCESS;
}
STUB_EXPORT CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes) { return cuMemcpyDtoHAsync_v2(to, from, bytes, nullptr); }

STUB_EXPORT CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream) {
    totals.within_device.add(bytes);
    log("d2d\t%zu", bytes);
    if (CUresult checked = check_range("copy within the device, from", from, bytes)) return checked;
    if (CUresult checked = check_range("copy within the device, to", to, bytes)) return checked;
    if (settings().compute) submit([=] { memmove(reinterpret_cast<void *>(to), reinterpret_cast<const void *>(from), bytes); });
    return CUDA_SUCCESS;
}
STUB_EXPORT CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) { return cuMemcpyDtoDAsync_v2(to, from, bytes, nullptr); }

STUB_EXPORT CUresult cuMemcpyPeerAsync(CUdeviceptr to, CUcontext, CUdeviceptr from, CUcontext, size_t bytes, CUstream) {
    totals.between_devices.add(bytes);
    log("p2p\t%zu", bytes);
    if (CUresult checked = check_range("copy between devices, from", from, bytes)) return checked;
    if (CUresult checked = check_range("copy between devices, to", to, bytes)) return checked;
    if (settings().compute) submit([=] { memcpy(reinterpret_cast<void *>(to), reinterpret_cast<const void *>(from), bytes); });
    return CUDA_SUCCESS;
}

STUB_EXPORT CUresult cuMemcpy2DAsync_v2(const CUDA_MEMCPY2D *c, CUstream) {
    bool from_host = c->srcMemoryType == CU_MEMORYTYPE_HOST, to_host = c->dstMemoryType == CU_MEMORYTYPE_HOST;
    const char *from = from_host ? static_cast<const char *>(c->srcHost) : reinterpret_cast<const char *>(c->srcDevice);
    char *to = to_host ? static_cast<char *>(c->dstHost) : reinterpret_cast<char *>(c->dstDevice);
    from += c->srcY * c->srcPitch + c->srcXInBytes;
    to += c->dstY * c->dstPitch + c->dstXInBytes;
    size_t bytes = c->WidthInBytes * c->Height;
    if (!bytes) return CUDA_SUCCESS;
    if (c->srcPitch < c->WidthInBytes || c->dstPitch < c->WidthInBytes)
        return refuse(CUDA_ERROR_INVALID_VALUE, "copy of rows of %zu bytes with pitches %zu and %zu", c->WidthInBytes, c->srcPitch, c->dstPitch);
    const char *kind = from_host ? "h2d2d" : to_host ? "d2h2d" : "d2d2d";
    (from_host ? totals.to_device : to_host ? totals.from_device : totals.within_device).add(bytes);
    log("%s\t%zu\t%zux%zu\t%s", kind, bytes, c->Height, c->WidthInBytes, from_host ? kind_of_host(from) : to_host ? kind_of_host(to) : "");
    if (!from_host)
        if (CUresult checked = check_range("copy of rows, from", uint64_t(from), c->srcPitch * (c->Height - 1) + c->WidthInBytes)) return checked;
    if (!to_host)
        if (CUresult checked = check_range("copy of rows, to", uint64_t(to), c->dstPitch * (c->Height - 1) + c->WidthInBytes)) return checked;
    if (!from_host && !to_host && !settings().compute) return CUDA_SUCCESS;
    finish();
    for (size_t row = 0; row < c->Height; row++) memcpy(to + row * c->dstPitch, from + row * c->srcPitch, c->WidthInBytes);
    return CUDA_SUCCESS;
}

STUB_EXPORT CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes, CUstream) {
    totals.fills.add(bytes);
    log("memset\t%zu", bytes);
    CUresult checked = check_range("fill", to, bytes);
    if (!checked && settings().compute) submit([=] { memset(reinterpret_cast<void *>(to), value, bytes); });
    return checked;
}
STUB_EXPORT CUresult cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t bytes) { return cuMemsetD8Async(to, value, bytes, nullptr); }
STUB_EXPORT CUresult cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t count, CUstream) {
    totals.fills.add(count * 4);
    log("memset\t%zu", count * 4);
    CUresult checked = check_range("fill", to, count * 4);
    if (!checked && settings().compute) submit([=] { std::fill_n(reinterpret_cast<unsigned *>(to), count, value); });
    return checked;
}
