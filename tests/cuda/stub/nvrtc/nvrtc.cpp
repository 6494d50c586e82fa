// A libnvrtc.so that keeps every source it is given, and compiles in one of three ways:
//
//   STUB_FAKE=1      not at all: a text with the kernels and their parameters, in no time (fake.cpp)
//   STUB_COMPUTE=1   by g++, for the CPU (emulate.cpp)
//   otherwise        by the real NVRTC: STUB_NVRTC, or libnvrtc.so.13
//
// STUB_DIR/src/NNNN.cu is a source, NNNN.log or NNNN.error what the compiler said; a line of STUB_DIR/compile.tsv is number,
// wall seconds, status, bytes of the log, options.
#include "nvrtc_stub.h"

#include <map>
#include <memory>
#include <mutex>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <dlfcn.h>
#include <sys/stat.h>
#include <time.h>

namespace {
struct Program {
    int number;
    std::string source, name;
    std::string log;
    std::string code; // PTX or a text in its place
    nvrtcProgram real = nullptr;
};

std::mutex lock;
int count;

Program *of(nvrtcProgram handle) { return reinterpret_cast<Program *>(handle); }
bool is_set(const char *name) {
    const char *text = getenv(name);
    return text && *text && strcmp(text, "0");
}
bool compiles_for_real() { return !is_set("STUB_FAKE") && !is_set("STUB_COMPUTE"); }
double seconds() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return double(t.tv_sec) + double(t.tv_nsec) * 1e-9;
}

// -- The real one -----------------------------------------------------------------------------------------------------------

void *real_library() {
    static void *library = [] {
        const char *name = getenv("STUB_NVRTC");
        void *opened = dlopen(name ? name : "libnvrtc.so.13", RTLD_NOW | RTLD_LOCAL);
        if (!opened) {
            fprintf(stderr, "[stub] the real NVRTC cannot be opened: %s\n", dlerror());
            abort();
        }
        return opened;
    }();
    return library;
}
#define REAL(function) (reinterpret_cast<decltype(&function)>(dlsym(real_library(), #function)))

// -- Records ------------------------------------------------------------------------------------------------------------------

FILE *record(const std::string &name, const char *mode) {
    const char *folder = getenv("STUB_DIR");
    if (!folder) return nullptr;
    mkdir(folder, 0755);
    mkdir((std::string(folder) + "/src").c_str(), 0755);
    return fopen((std::string(folder) + "/" + name).c_str(), mode);
}
void record_text(const Program &program, const char *ending, const std::string &text) {
    char name[32];
    snprintf(name, sizeof name, "src/%04d.%s", program.number, ending);
    if (FILE *file = record(name, "w")) {
        fwrite(text.data(), 1, text.size(), file);
        fclose(file);
    }
}
void record_compilation(const Program &program, double took, int status, int options, const char *const *option) {
    std::lock_guard<std::mutex> hold(lock);
    FILE *file = record("compile.tsv", "a");
    if (!file) return;
    fprintf(file, "%04d\t%.3f\t%d\t%zu\t", program.number, took, status, program.log.size());
    for (int i = 0; i < options; i++) fprintf(file, " %s", option[i]);
    fputc('\n', file);
    fclose(file);
}
} // namespace

STUB_EXPORT nvrtcResult nvrtcVersion(int *major, int *minor) {
    if (compiles_for_real()) return REAL(nvrtcVersion)(major, minor);
    *major = 13;
    *minor = 0;
    return NVRTC_SUCCESS;
}
STUB_EXPORT const char *nvrtcGetErrorString(nvrtcResult result) {
    switch (result) {
    case NVRTC_SUCCESS: return "NVRTC_SUCCESS";
    case NVRTC_ERROR_COMPILATION: return "NVRTC_ERROR_COMPILATION";
    case NVRTC_ERROR_INVALID_OPTION: return "NVRTC_ERROR_INVALID_OPTION";
    default: return "an error of NVRTC";
    }
}
STUB_EXPORT nvrtcResult nvrtcGetNumSupportedArchs(int *count) {
    *count = 4;
    return NVRTC_SUCCESS;
}
STUB_EXPORT nvrtcResult nvrtcGetSupportedArchs(int *archs) {
    const int all[] = {80, 86, 89, 90};
    memcpy(archs, all, sizeof all);
    return NVRTC_SUCCESS;
}

STUB_EXPORT nvrtcResult nvrtcCreateProgram(
    nvrtcProgram *out, const char *source, const char *name, int headers, const char *const *texts, const char *const *names) {
    auto program = std::make_unique<Program>();
    program->source = source;
    program->name = name ? name : "default_program";
    {
        std::lock_guard<std::mutex> hold(lock);
        program->number = count++;
    }
    record_text(*program, "cu", program->source);
    if (compiles_for_real())
        if (nvrtcResult result = REAL(nvrtcCreateProgram)(&program->real, source, name, headers, texts, names)) return result;
    *out = reinterpret_cast<nvrtcProgram>(program.release());
    return NVRTC_SUCCESS;
}
STUB_EXPORT nvrtcResult nvrtcDestroyProgram(nvrtcProgram *handle) {
    if (of(*handle)->real) REAL(nvrtcDestroyProgram)(&of(*handle)->real);
    delete of(*handle);
    *handle = nullptr;
    return NVRTC_SUCCESS;
}

STUB_EXPORT nvrtcResult nvrtcCompileProgram(nvrtcProgram handle, int options, const char *const *option) {
    Program &program = *of(handle);
    double began = seconds();
    nvrtcResult result = NVRTC_SUCCESS;
    if (program.real) {
        result = REAL(nvrtcCompileProgram)(program.real, options, option);
        size_t size = 0;
        REAL(nvrtcGetProgramLogSize)(program.real, &size);
        program.log.resize(size);
        if (size) REAL(nvrtcGetProgramLog)(program.real, &program.log[0]);
        if (size) program.log.resize(size - 1);
    } else if (is_set("STUB_FAKE")) {
        program.code = text_without_code(program.source);
    } else if (!emulate(program.source, program.name, options, option, &program.code, &program.log)) {
        result = NVRTC_ERROR_COMPILATION;
    }
    record_compilation(program, seconds() - began, int(result), options, option);
    if (!program.log.empty()) record_text(program, result ? "error" : "log", program.log);
    if (result && program.log.compare(0, 15, "no emulator for")) fprintf(stderr, "[stub] the compiler refuses program %04d (%s): %.600s\n", program.number, program.name.c_str(), program.log.c_str());
    return result;
}

STUB_EXPORT nvrtcResult nvrtcGetProgramLogSize(nvrtcProgram handle, size_t *size) {
    *size = of(handle)->log.size() + 1;
    return NVRTC_SUCCESS;
}
STUB_EXPORT nvrtcResult nvrtcGetProgramLog(nvrtcProgram handle, char *log) {
    memcpy(log, of(handle)->log.c_str(), of(handle)->log.size() + 1);
    return NVRTC_SUCCESS;
}

// PTX and machine code: of the real compiler, or in both cases the text that the stand-in for the driver reads.
STUB_EXPORT nvrtcResult nvrtcGetPTXSize(nvrtcProgram handle, size_t *size) {
    if (of(handle)->real) return REAL(nvrtcGetPTXSize)(of(handle)->real, size);
    *size = of(handle)->code.size() + 1;
    return NVRTC_SUCCESS;
}
STUB_EXPORT nvrtcResult nvrtcGetPTX(nvrtcProgram handle, char *out) {
    if (of(handle)->real) return REAL(nvrtcGetPTX)(of(handle)->real, out);
    memcpy(out, of(handle)->code.c_str(), of(handle)->code.size() + 1);
    return NVRTC_SUCCESS;
}
STUB_EXPORT nvrtcResult nvrtcGetCUBINSize(nvrtcProgram handle, size_t *size) {
    return of(handle)->real ? REAL(nvrtcGetCUBINSize)(of(handle)->real, size) : nvrtcGetPTXSize(handle, size);
}
STUB_EXPORT nvrtcResult nvrtcGetCUBIN(nvrtcProgram handle, char *out) {
    return of(handle)->real ? REAL(nvrtcGetCUBIN)(of(handle)->real, out) : nvrtcGetPTX(handle, out);
}
STUB_EXPORT nvrtcResult nvrtcAddNameExpression(nvrtcProgram handle, const char *name) {
    return of(handle)->real ? REAL(nvrtcAddNameExpression)(of(handle)->real, name) : NVRTC_ERROR_NO_NAME_EXPRESSIONS_AFTER_COMPILATION;
}
STUB_EXPORT nvrtcResult nvrtcGetLoweredName(nvrtcProgram handle, const char *name, const char **lowered) {
    return of(handle)->real ? REAL(nvrtcGetLoweredName)(of(handle)->real, name, lowered) : NVRTC_ERROR_NO_LOWERED_NAMES_BEFORE_COMPILATION;
}
