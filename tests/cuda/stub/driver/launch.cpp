// Launches: what a device would refuse is refused; an emulated kernel runs.
#include "stub.h"

#include <cstdio>
#include <cstring>

using namespace stub;

namespace {
// Numbers below this are not taken for addresses.
constexpr uint64_t NO_ADDRESS = uint64_t(1) << 40;

CUresult check_sizes(const Function &f, const unsigned grid[3], const unsigned block[3], unsigned shared) {
    const char *name = f.name.c_str();
    if (!grid[0] || !grid[1] || !grid[2] || grid[0] > 2147483647u || grid[1] > 65535 || grid[2] > 65535)
        return refuse(CUDA_ERROR_INVALID_VALUE, "%s: a grid of %u x %u x %u", name, grid[0], grid[1], grid[2]);
    uint64_t threads = uint64_t(block[0]) * block[1] * block[2];
    if (!threads || threads > 1024 || block[2] > 64)
        return refuse(CUDA_ERROR_INVALID_VALUE, "%s: a block of %u x %u x %u", name, block[0], block[1], block[2]);
    if (threads > f.max_threads)
        return refuse(CUDA_ERROR_INVALID_VALUE, "%s: %lu threads in a block, compiled for %u", name, (unsigned long)threads, f.max_threads);
    if (shared > f.dynamic_shared_limit)
        return refuse(CUDA_ERROR_INVALID_VALUE, "%s: %u bytes of dynamic shared memory, allowed are %u", name, shared, f.dynamic_shared_limit);
    if (shared <= 48 * 1024 && f.static_shared + shared > 48 * 1024 && f.dynamic_shared_limit <= 48 * 1024)
        return refuse(CUDA_ERROR_INVALID_VALUE, "%s: %u bytes of dynamic and %u of static shared memory without leave for more than 48 KiB", name,
            shared, f.static_shared);
    return CUDA_SUCCESS;
}

// Every parameter of 8 bytes that looks like an address must be one of live memory that the device may use.
CUresult check_parameters(const Function &f, void **values) {
    if (!f.parameters.empty() && !values) return refuse(CUDA_ERROR_INVALID_VALUE, "%s: launched without parameters", f.name.c_str());
    for (size_t i = 0; i < f.parameters.size(); i++) {
        if (!values[i]) return refuse(CUDA_ERROR_INVALID_VALUE, "%s: parameter %zu is missing", f.name.c_str(), i);
        if (f.parameters[i].size != 8) continue;
        uint64_t address;
        memcpy(&address, values[i], 8);
        if (address < NO_ADDRESS) {
            if (f.parameters[i].is_pointer && address)
                return refuse(CUDA_ERROR_ILLEGAL_ADDRESS, "%s: parameter %zu is %lx, no address", f.name.c_str(), i, address);
            continue;
        }
        Allocation found;
        if (!find_allocation(address, &found)) {
            if (f.parameters[i].is_pointer || address >> 47 == 0)
                return refuse(CUDA_ERROR_ILLEGAL_ADDRESS, "%s: parameter %zu is %lx, outside memory", f.name.c_str(), i, address);
        } else if (found.kind == Memory::Device && !may_access(f.device, found.device)) {
            return refuse(CUDA_ERROR_ILLEGAL_ADDRESS, "%s on device %d: parameter %zu is memory of device %d, which it may not use", f.name.c_str(),
                f.device, i, found.device);
        }
    }
    return CUDA_SUCCESS;
}

// No address among the parameters, nor in the tables that they hold, may be of memory that another stream still exchanges.
CUresult check_exchanges(const Function &f, void **values, CUstream stream) {
    for (size_t i = 0; i < f.parameters.size(); i++)
        for (unsigned at = 0; at + 8 <= f.parameters[i].size; at += 8) {
            uint64_t address;
            memcpy(&address, static_cast<const char *>(values[i]) + at, 8);
            if (address >= NO_ADDRESS && is_exchanged(stream, address, 1))
                return refuse(CUDA_ERROR_INVALID_VALUE, "%s: memory at %lx (parameter %zu) is used while it is exchanged", f.name.c_str(), address, i);
        }
    return CUDA_SUCCESS;
}

// The parameters are copied at the launch, as a driver does: the caller may use their memory again.
void run(const Function &f, const unsigned grid[3], const unsigned block[3], unsigned shared, void **values) {
    std::vector<std::vector<char>> copies;
    for (size_t i = 0; i < f.parameters.size(); i++) {
        const char *value = static_cast<const char *>(values[i]);
        copies.emplace_back(value, value + f.parameters[i].size);
    }
    unsigned sizes[6] = {grid[0], grid[1], grid[2], block[0], block[1], block[2]};
    submit([&f, sizes, shared, copies = std::move(copies)]() mutable {
        std::vector<void *> pointers;
        for (auto &copy : copies) pointers.push_back(copy.data());
        f.run(f.kernel, sizes, sizes + 3, shared, pointers.data());
    });
}

// The parameters for the log: addresses and words.
std::string describe(const Function &f, void **values) {
    std::string out;
    char piece[64];
    for (size_t i = 0; i < f.parameters.size() && out.size() < 4096; i++) {
        unsigned size = f.parameters[i].size;
        if (size == 8) {
            uint64_t v;
            memcpy(&v, values[i], 8);
            snprintf(piece, sizeof piece, v >= NO_ADDRESS ? " p%lx" : " %lu", (unsigned long)v);
            out += piece;
            continue;
        }
        if (size < 4) continue;
        out += size == 4 ? " " : " {";
        for (unsigned w = 0; w < size / 4 && w < 64; w++) {
            unsigned v;
            memcpy(&v, static_cast<const char *>(values[i]) + 4 * w, 4);
            snprintf(piece, sizeof piece, "%s%u", w ? "," : "", v);
            out += piece;
        }
        if (size != 4) out += "}";
    }
    return out;
}
} // namespace

STUB_EXPORT CUresult cuLaunchKernel(CUfunction handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
    unsigned block_z, unsigned shared, CUstream stream, void **values, void **) {
    Function &f = *reinterpret_cast<Function *>(handle);
    const unsigned grid[3] = {grid_x, grid_y, grid_z}, block[3] = {block_x, block_y, block_z};
    totals.launches.add(0);
    f.launches++;
    int device = device_of_stream(stream);
    if (device < 0) return refuse(CUDA_ERROR_INVALID_HANDLE, "%s: launched in an unknown stream %p", f.name.c_str(), static_cast<void *>(stream));
    if (device != f.device) return refuse(CUDA_ERROR_INVALID_HANDLE, "%s of device %d launched in a stream of device %d", f.name.c_str(), f.device, device);
    CUresult checked = check_sizes(f, grid, block, shared);
    if (!checked && f.parameters_known) checked = check_parameters(f, values);
    if (!checked && f.parameters_known) checked = check_exchanges(f, values, stream);
    launched(stream);
    if (logging())
        log("launch\t%04d\t%s\t%u,%u,%u\t%u,%u,%u\t%u\t%p\t%zu\t%s", f.module, f.name.c_str(), grid_x, grid_y, grid_z, block_x, block_y, block_z,
            shared, static_cast<void *>(stream), f.parameters.size(),
            !checked && settings().params && f.parameters_known ? describe(f, values).c_str() : "");
    if (!checked && f.kernel) run(f, grid, block, shared, values);
    return checked;
}

STUB_EXPORT CUresult cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction f, void **values, void **extra) {
    return cuLaunchKernel(f, c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX, c->blockDimY, c->blockDimZ, c->sharedMemBytes, c->hStream, values, extra);
}

// Tensor maps are checked by the rules of the driver's manual and otherwise empty: no emulated kernel reads one.
STUB_EXPORT CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType, cuuint32_t rank, void *address, const cuuint64_t *sizes,
    const cuuint64_t *strides, const cuuint32_t *box, const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
    CUtensorMapFloatOOBfill) {
    memset(map, 0, sizeof *map);
    bool right = rank >= 1 && rank <= 5 && uint64_t(address) % 16 == 0;
    for (unsigned i = 0; right && i < rank; i++) right = sizes[i] > 0 && box[i] > 0 && box[i] <= 256;
    for (unsigned i = 0; right && i + 1 < rank; i++) right = strides[i] % 16 == 0;
    std::string text;
    for (unsigned i = 0; i < rank && i < 5; i++)
        text += " " + std::to_string(sizes[i]) + "/" + std::to_string(box[i]) + (i + 1 < rank ? "/" + std::to_string(strides[i]) : "");
    log("tensormap\t%d\trank %u\t%s", right ? 0 : 1, rank, text.c_str());
    // Without a word: CubeCL's tuner tries boxes that are too large, and goes on with other candidates.
    return right ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
STUB_EXPORT CUresult cuTensorMapEncodeIm2col(CUtensorMap *map, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *, const cuuint64_t *, const int *,
    const int *, cuuint32_t, cuuint32_t, const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
    memset(map, 0, sizeof *map);
    log("tensormap im2col");
    return CUDA_SUCCESS;
}
