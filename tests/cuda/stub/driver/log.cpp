// Settings, log and summary.
#include "stub.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

namespace stub {

Totals totals;

static double seconds(clockid_t clock) {
    timespec t;
    clock_gettime(clock, &t);
    return double(t.tv_sec) + double(t.tv_nsec) * 1e-9;
}

static int number(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text && *text ? atoi(text) : otherwise;
}

static double start_of_process;
static FILE *log_file;
static std::mutex log_lock;

static void write_summaries();

const Settings &settings() {
    static const Settings all = [] {
        Settings s = {};
        s.folder = getenv("STUB_DIR");
        s.log = number("STUB_LOG", 0) != 0;
        s.cpu = number("STUB_CPU", 0) != 0;
        s.params = number("STUB_PARAMS", 1) != 0;
        s.strict = number("STUB_STRICT", 0) != 0;
        s.compute = number("STUB_COMPUTE", 0) != 0;
        s.lazy = number("STUB_LAZY", 0) != 0;
        s.devices = std::min(number("STUB_DEVICES", 1), MAX_DEVICES);
        s.capability = number("STUB_CC", 90);
        s.processors = number("STUB_SMS", 132);
        s.memory = size_t(number("STUB_MEMORY_GB", 80)) * 1000000000ul;
        const char *name = getenv("STUB_NAME");
        s.name = name ? name : "NVIDIA H100 80GB HBM3";
        return s;
    }();
    return all;
}

FILE *open_file(const std::string &name) {
    if (!settings().folder) return nullptr;
    mkdir(settings().folder, 0755);
    return fopen((std::string(settings().folder) + "/" + name).c_str(), "w");
}

bool logging() { return log_file != nullptr; }

void log(const char *format, ...) {
    if (!log_file) return;
    char head[96];
    int at = snprintf(head, sizeof head, "%.6f\t%d\t", seconds(CLOCK_MONOTONIC) - start_of_process, int(gettid()));
    if (settings().cpu)
        snprintf(head + at, sizeof head - size_t(at), "cpu%.6f/%.6f\t", seconds(CLOCK_THREAD_CPUTIME_ID), seconds(CLOCK_PROCESS_CPUTIME_ID));
    std::lock_guard<std::mutex> hold(log_lock);
    fputs(head, log_file);
    va_list list;
    va_start(list, format);
    vfprintf(log_file, format, list);
    va_end(list);
    fputc('\n', log_file);
}

CUresult refuse(CUresult code, const char *format, ...) {
    totals.refused.add(0);
    char text[2048];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    fprintf(stderr, "[stub] %s\n", text);
    log("refused\t%d\t%s", int(code), text);
    if (settings().strict) {
        write_summaries();
        abort();
    }
    return code;
}

// -- Summary: summary.txt for people, summary.json for programs ------------------------------------------------------------

static std::string text_summary() {
    char line[512];
    std::string out;
    auto add = [&](const char *format, auto... values) {
        snprintf(line, sizeof line, format, values...);
        out += line;
    };
    auto calls = [](const Counter &c) { return (unsigned long)c.calls; };
    auto megabytes = [](const Counter &c) { return double(c.bytes) / 1e6; };
    add("launches %lu of %lu modules; refused %lu\n", calls(totals.launches), calls(totals.modules), calls(totals.refused));
    add("copies: to the device %lu (%.1f MB), from it %lu (%.1f MB), within it %lu (%.1f MB), between devices %lu (%.1f MB); fills %lu\n",
        calls(totals.to_device), megabytes(totals.to_device), calls(totals.from_device), megabytes(totals.from_device),
        calls(totals.within_device), megabytes(totals.within_device), calls(totals.between_devices), megabytes(totals.between_devices),
        calls(totals.fills));
    add("the host waited for events %lu, for streams %lu, for contexts %lu times; events %lu, streams waited for events %lu times\n",
        calls(totals.event_waits), calls(totals.stream_waits), calls(totals.context_waits), calls(totals.events), calls(totals.stream_orders));
    add("device memory: live %.3f GB, peak %.3f GB, %lu allocations, %lu frees; pinned: peak %.3f GB, %lu allocations\n", double(live_bytes()) / 1e9,
        double(peak_bytes()) / 1e9, calls(totals.allocations), calls(totals.frees), double(peak_pinned_bytes()) / 1e9,
        calls(totals.pinned_allocations));
    for (const Function *f : functions()) add("%8lu  %04d %.400s\n", (unsigned long)f->launches, f->module, f->name.c_str());
    return out;
}

static std::string json_summary() {
    std::string out = "{\n";
    auto add = [&](const char *name, const Counter &c) {
        char line[256];
        snprintf(line, sizeof line, "  \"%s\": {\"calls\": %lu, \"bytes\": %lu},\n", name, (unsigned long)c.calls, (unsigned long)c.bytes);
        out += line;
    };
    add("launches", totals.launches);
    add("modules", totals.modules);
    add("copies_to_device", totals.to_device);
    add("copies_from_device", totals.from_device);
    add("copies_within_device", totals.within_device);
    add("copies_between_devices", totals.between_devices);
    add("fills", totals.fills);
    add("event_waits", totals.event_waits);
    add("stream_waits", totals.stream_waits);
    add("context_waits", totals.context_waits);
    add("allocations", totals.allocations);
    add("frees", totals.frees);
    add("pinned_allocations", totals.pinned_allocations);
    add("refused", totals.refused);
    char line[256];
    snprintf(line, sizeof line, "  \"peak_device_bytes\": %zu,\n  \"peak_pinned_bytes\": %zu,\n", peak_bytes(), peak_pinned_bytes());
    out += line;
    out += "  \"kernels\": {";
    bool first = true;
    for (const Function *f : functions()) {
        snprintf(line, sizeof line, "%s\n    \"%04d %.180s\": %lu", first ? "" : ",", f->module, f->name.c_str(), (unsigned long)f->launches);
        out += line;
        first = false;
    }
    return out + "\n  }\n}\n";
}

__attribute__((constructor)) static void begin() {
    start_of_process = seconds(CLOCK_MONOTONIC);
    if (!settings().log || !(log_file = open_file("launches.tsv"))) return;
    setvbuf(log_file, nullptr, _IOFBF, 1 << 20);
}

static void write_summaries() {
    if (FILE *file = open_file("summary.txt")) {
        fputs(text_summary().c_str(), file);
        fclose(file);
    }
    if (FILE *file = open_file("summary.json")) {
        fputs(json_summary().c_str(), file);
        fclose(file);
    }
    fflush(nullptr);
}

__attribute__((destructor)) static void end() { write_summaries(); }

} // namespace stub
