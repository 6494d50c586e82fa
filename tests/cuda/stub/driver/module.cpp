// Modules: PTX (of NVRTC, or of its stand-in without code), machine code (a cubin), or a note that names an emulated file.
// Of each, what a launch must agree with: kernels, parameters, bounds, static shared memory.
#include "stub.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include <dlfcn.h>
#include <elf.h>

using namespace stub;

namespace {
struct Module {
    int id;
    std::vector<std::unique_ptr<Function>> kernels;
};

std::mutex lock;
// Never unloaded, so that handles stay valid for the summary, and never destroyed: other threads may call when the process ends.
std::vector<Module *> &modules = *new std::vector<Module *>;

Function *add(Module *module, std::string name) {
    module->kernels.push_back(std::make_unique<Function>());
    Function *f = module->kernels.back().get();
    f->name = std::move(name);
    f->module = module->id;
    f->device = current_device();
    return f;
}

// -- PTX --------------------------------------------------------------------------------------------------------------------

// Bytes of a parameter such as ".param .align 8 .b8 name[24]" or ".param .u64 .ptr .align 16 name".
Parameter parameter_of_ptx(const std::string &text) {
    size_t bracket = text.find('[');
    if (bracket != std::string::npos) return {unsigned(atoi(text.c_str() + bracket + 1)), false};
    static const struct { const char *type; unsigned size; } TYPES[] = {{"64 ", 8}, {"32 ", 4}, {"16 ", 2}, {"8 ", 1}};
    for (const auto &t : TYPES) {
        size_t at = text.find(t.type);
        if (at != std::string::npos && at > 0 && strchr("usbf", text[at - 1])) return {t.size, text.find(".ptr") != std::string::npos};
    }
    return {0, false};
}

void read_ptx(Module *module, const char *image) {
    for (const char *at = image; (at = strstr(at, ".entry "));) {
        at += strlen(".entry ");
        size_t length = strcspn(at, " (\n{");
        Function *f = add(module, std::string(at, length));
        f->parameters_known = true;
        const char *open = at + strcspn(at, "({");
        const char *body = strchr(at, '{');
        if (*open == '(') {
            const char *close = strchr(open, ')');
            std::string list(open + 1, close);
            for (size_t from = 0; (from = list.find(".param", from)) != std::string::npos;) {
                size_t comma = std::min(list.find(',', from), list.size());
                f->parameters.push_back(parameter_of_ptx(list.substr(from, comma - from)));
                from = comma;
            }
        }
        const char *bound = strstr(open, ".maxntid");
        if (bound && body && bound < body) {
            unsigned x = 1, y = 1, z = 1;
            sscanf(bound + strlen(".maxntid"), "%u, %u, %u", &x, &y, &z);
            f->max_threads = x * y * z;
        }
        // Static shared memory of this kernel alone; of functions that it calls nothing is known.
        const char *next = strstr(at, ".entry ");
        for (const char *s = at; (s = strstr(s, ".shared ")) && (!next || s < next); s++) {
            const char *bracket = strpbrk(s, "[;");
            if (bracket && *bracket == '[' && !strncmp(s + 8, ".align", 6)) f->static_shared += unsigned(atoi(bracket + 1));
        }
    }
}

// -- Machine code -------------------------------------------------------------------------------------------------------------

// The attributes that NVIDIA's tools keep in the section .nv.info.KERNEL: a format, a code, and 2 bytes that are the value
// or, in format 4, the size of what follows.
void read_attributes(Function *f, const unsigned char *at, size_t size) {
    constexpr unsigned char SIZED = 4, PARAMETER = 0x17, MAX_THREADS = 0x05;
    std::vector<std::pair<unsigned, unsigned>> parameters; // position, bytes
    for (size_t i = 0; i + 4 <= size;) {
        unsigned char format = at[i], code = at[i + 1];
        uint16_t value;
        memcpy(&value, at + i + 2, 2);
        const unsigned char *data = at + i + 4;
        if (format == SIZED) {
            if (i + 4 + value > size) break;
            if (code == PARAMETER && value >= 12) {
                uint16_t position;
                uint32_t flags;
                memcpy(&position, data + 4, 2);
                memcpy(&flags, data + 8, 4);
                parameters.push_back({position, flags >> 18});
            }
            if (code == MAX_THREADS && value >= 12) {
                uint32_t threads[3];
                memcpy(threads, data, 12);
                f->max_threads = threads[0] * threads[1] * threads[2];
            }
        }
        i += 4u + (format == SIZED ? value : 0u);
    }
    std::sort(parameters.begin(), parameters.end());
    for (const auto &p : parameters) f->parameters.push_back({p.second, false});
    f->parameters_known = true;
}

void read_cubin(Module *module, const unsigned char *image) {
    Elf64_Ehdr head;
    memcpy(&head, image, sizeof head);
    auto section = [&](unsigned i) {
        Elf64_Shdr s;
        memcpy(&s, image + head.e_shoff + i * sizeof s, sizeof s);
        return s;
    };
    const char *names = reinterpret_cast<const char *>(image) + section(head.e_shstrndx).sh_offset;
    for (unsigned i = 0; i < head.e_shnum; i++) {
        const char *name = names + section(i).sh_name;
        if (strncmp(name, ".text.", 6)) continue;
        std::string kernel = name + 6, info = ".nv.info." + kernel, shared = ".nv.shared." + kernel;
        Function *f = add(module, kernel);
        for (unsigned j = 0; j < head.e_shnum; j++) {
            Elf64_Shdr s = section(j);
            if (info == names + s.sh_name) read_attributes(f, image + s.sh_offset, s.sh_size);
            if (shared == names + s.sh_name) f->static_shared = unsigned(s.sh_size);
        }
    }
}

// -- Emulated files -------------------------------------------------------------------------------------------------------------

constexpr char EMULATED[] = "//emulated ";

CUresult read_emulated(Module *module, const char *image) {
    std::string path(image + strlen(EMULATED));
    path.resize(std::min(path.find('\n'), path.size()));
    void *file = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!file) return refuse(CUDA_ERROR_INVALID_IMAGE, "the compiled kernels cannot be opened (%s): empty the program's kernel cache", dlerror());
    auto table = reinterpret_cast<const emulate_kernel *(*)(unsigned *)>(dlsym(file, "emulate_kernels"));
    auto run = reinterpret_cast<decltype(&emulate_run)>(dlsym(file, "emulate_run"));
    if (!table || !run) return refuse(CUDA_ERROR_INVALID_IMAGE, "%s holds no emulated kernels", path.c_str());
    unsigned count = 0;
    const emulate_kernel *kernels = table(&count);
    for (unsigned i = 0; i < count; i++) {
        Function *f = add(module, kernels[i].name);
        f->kernel = &kernels[i];
        f->run = run;
        f->parameters_known = true;
        for (unsigned p = 0; p < kernels[i].parameters; p++) f->parameters.push_back({kernels[i].sizes[p], false});
        f->max_threads = kernels[i].max_threads;
        f->static_shared = unsigned(kernels[i].shared_end - kernels[i].shared_begin);
    }
    return CUDA_SUCCESS;
}
} // namespace

namespace stub {
std::vector<const Function *> functions() {
    std::lock_guard<std::mutex> hold(lock);
    std::vector<const Function *> all;
    for (const Module *m : modules)
        for (const auto &f : m->kernels) all.push_back(f.get());
    return all;
}
} // namespace stub

STUB_EXPORT CUresult cuModuleLoadData(CUmodule *out, const void *image) {
    if (current_device() < 0) return refuse(CUDA_ERROR_INVALID_CONTEXT, "a module loaded by a thread without a context");
    Module *module = new Module{int(totals.modules.calls++), {}};
    const char *text = static_cast<const char *>(image);
    CUresult result = CUDA_SUCCESS;
    if (!memcmp(image, ELFMAG, SELFMAG))
        read_cubin(module, static_cast<const unsigned char *>(image));
    else if (!strncmp(text, EMULATED, strlen(EMULATED)))
        result = read_emulated(module, text);
    else
        read_ptx(module, text);
    if (!result && module->kernels.empty()) result = refuse(CUDA_ERROR_INVALID_IMAGE, "a module without kernels");
    log("module\t%d\t%s\t%zu", module->id, module->kernels.empty() ? "?" : module->kernels[0]->name.c_str(), module->kernels.size());
    std::lock_guard<std::mutex> hold(lock);
    modules.push_back(module);
    *out = reinterpret_cast<CUmodule>(module);
    return result;
}
STUB_EXPORT CUresult cuModuleLoadDataEx(CUmodule *out, const void *image, unsigned, CUjit_option *, void **) { return cuModuleLoadData(out, image); }
STUB_EXPORT CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }
STUB_EXPORT CUresult cuModuleGetFunction(CUfunction *out, CUmodule handle, const char *name) {
    std::lock_guard<std::mutex> hold(lock);
    const Module *module = reinterpret_cast<const Module *>(handle);
    if (std::find(modules.begin(), modules.end(), module) == modules.end()) return CUDA_ERROR_INVALID_HANDLE;
    for (const auto &f : module->kernels)
        if (f->name == name) {
            *out = reinterpret_cast<CUfunction>(f.get());
            return CUDA_SUCCESS;
        }
    return refuse(CUDA_ERROR_NOT_FOUND, "module %d has no kernel %s", module->id, name);
}

STUB_EXPORT CUresult cuFuncSetAttribute(CUfunction handle, CUfunction_attribute attribute, int value) {
    totals.attributes.add(0);
    Function *f = reinterpret_cast<Function *>(handle);
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_SUCCESS;
    if (value < 0 || unsigned(value) + f->static_shared > MAX_SHARED)
        return refuse(CUDA_ERROR_INVALID_VALUE, "%s: %d bytes of dynamic and %u of static shared memory", f->name.c_str(), value, f->static_shared);
    f->dynamic_shared_limit = unsigned(value);
    return CUDA_SUCCESS;
}
STUB_EXPORT CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction handle) {
    const Function *f = reinterpret_cast<const Function *>(handle);
    switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = int(f->max_threads); break;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: *value = int(f->static_shared); break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: *value = int(f->dynamic_shared_limit); break;
    default: *value = 0;
    }
    return CUDA_SUCCESS;
}
STUB_EXPORT CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction, int threads, size_t shared) {
    *blocks = std::max(1, std::min(2048 / std::max(threads, 1), int((MAX_SHARED + 1024) / (shared + 1024))));
    return CUDA_SUCCESS;
}
