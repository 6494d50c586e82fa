// Streams and events. Waits are counted, because on a real device they cost.
//
// Everything is done when it is called, or, with STUB_LAZY=1, in the order of the calls when somebody waits: that is later
// than any real device, and shows memory of the host that is used again while a copy still reads it.
#include "stub.h"

#include <algorithm>
#include <deque>
#include <map>
#include <set>
#include <time.h>

using namespace stub;

namespace {
struct Stream {
    int device;
    // Launches and exchanges so far; how many launches of other streams it has waited for.
    uint64_t launches, exchanges;
    std::map<const Stream *, uint64_t> seen;
};
struct Event {
    int device;
    double recorded; // milliseconds
    uint64_t after;  // how much work was put off before it
    // What it was recorded after.
    const Stream *stream;
    uint64_t launches, exchanges;
};
// Memory that a library writes on a stream which no other stream has waited for.
struct Exchange {
    uint64_t begin, end;
    const Stream *stream;
    uint64_t number;
};

std::mutex lock;
// Never destroyed: other threads may still call when the process ends.
using Handles = std::set<const void *>;
Handles &streams = *new Handles, &events = *new Handles;
std::vector<Exchange> &exchanges = *new std::vector<Exchange>;

template <class T> bool known(const Handles &all, T *handle) {
    std::lock_guard<std::mutex> hold(lock);
    return all.count(handle) != 0;
}
CUresult unknown(const char *call, const void *handle) { return refuse(CUDA_ERROR_INVALID_HANDLE, "%s: unknown handle %p", call, handle); }
double milliseconds() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return double(t.tv_sec) * 1e3 + double(t.tv_nsec) * 1e-6;
}
bool is_default(CUstream s) { return s == nullptr || s == CU_STREAM_LEGACY || s == CU_STREAM_PER_THREAD; }
} // namespace

namespace {
// Work that was put off. One at a time is done, by whoever waits; never destroyed.
constexpr size_t MOST_PUT_OFF = 4096;
std::recursive_mutex &working = *new std::recursive_mutex;
std::deque<std::function<void()>> &put_off = *new std::deque<std::function<void()>>;
uint64_t put_off_so_far, done_so_far;

bool do_one() {
    std::lock_guard<std::recursive_mutex> hold(working);
    if (put_off.empty()) return false;
    std::function<void()> work = std::move(put_off.front());
    put_off.pop_front();
    done_so_far++;
    work();
    return true;
}
} // namespace

namespace stub {
void submit(std::function<void()> work) {
    if (!settings().lazy) return work();
    std::lock_guard<std::recursive_mutex> hold(working);
    put_off.push_back(std::move(work));
    put_off_so_far++;
    if (put_off.size() > MOST_PUT_OFF) finish();
}
void finish() {
    if (!settings().lazy) return;
    while (do_one()) {}
}

void launched(CUstream stream) {
    if (is_default(stream)) return;
    std::lock_guard<std::mutex> hold(lock);
    reinterpret_cast<Stream *>(stream)->launches++;
}

bool begin_exchange(CUstream handle, uint64_t at, size_t bytes) {
    if (is_default(handle)) return true;
    std::lock_guard<std::mutex> hold(lock);
    Stream *own = reinterpret_cast<Stream *>(handle);
    exchanges.push_back({at, at + bytes, own, ++own->exchanges});
    // Several threads of a program may have streams of their own, and the exchange follows one of them.
    bool launches = false;
    for (const void *other : streams) {
        const Stream *stream = static_cast<const Stream *>(other);
        if (stream == own || stream->device != own->device || !stream->launches) continue;
        if (stream->launches == own->seen[stream]) return true;
        launches = true;
    }
    return !launches;
}

bool is_exchanged(CUstream handle, uint64_t at, size_t bytes) {
    std::lock_guard<std::mutex> hold(lock);
    const Stream *own = reinterpret_cast<const Stream *>(handle);
    return std::any_of(exchanges.begin(), exchanges.end(), [&](const Exchange &x) { return x.stream != own && at < x.end && x.begin < at + bytes; });
}

int device_of_stream(CUstream stream) {
    if (is_default(stream)) return current_device();
    return known(streams, stream) ? reinterpret_cast<const Stream *>(stream)->device : -1;
}
} // namespace stub

STUB_EXPORT CUresult cuStreamCreate(CUstream *out, unsigned flags) {
    if (current_device() < 0) return CUDA_ERROR_INVALID_CONTEXT;
    Stream *made = new Stream{current_device(), 0, 0, {}};
    std::lock_guard<std::mutex> hold(lock);
    streams.insert(made);
    *out = reinterpret_cast<CUstream>(made);
    log("stream\t%u", flags);
    return CUDA_SUCCESS;
}
STUB_EXPORT CUresult cuStreamCreateWithPriority(CUstream *out, unsigned flags, int) { return cuStreamCreate(out, flags); }
STUB_EXPORT CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return CUDA_SUCCESS;
}
STUB_EXPORT CUresult cuStreamDestroy_v2(CUstream stream) {
    std::lock_guard<std::mutex> hold(lock);
    if (!streams.erase(stream)) return unknown("cuStreamDestroy", stream);
    auto of_it = [&](const Exchange &x) { return x.stream == reinterpret_cast<Stream *>(stream); };
    exchanges.erase(std::remove_if(exchanges.begin(), exchanges.end(), of_it), exchanges.end());
    delete reinterpret_cast<Stream *>(stream);
    return CUDA_SUCCESS;
}
STUB_EXPORT CUresult cuStreamGetCtx(CUstream stream, CUcontext *context) {
    int device = device_of_stream(stream);
    if (device < 0) return CUDA_ERROR_INVALID_HANDLE;
    *context = context_of(device);
    return CUDA_SUCCESS;
}
STUB_EXPORT CUresult cuStreamSynchronize(CUstream stream) {
    totals.stream_waits.add(0);
    log("streamsync");
    finish();
    return device_of_stream(stream) < 0 ? unknown("cuStreamSynchronize", stream) : CUDA_SUCCESS;
}
STUB_EXPORT CUresult cuStreamQuery(CUstream stream) {
    finish();
    return device_of_stream(stream) < 0 ? unknown("cuStreamQuery", stream) : CUDA_SUCCESS;
}
STUB_EXPORT CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned) {
    totals.stream_orders.add(0);
    log("streamwait\t%p", static_cast<void *>(stream));
    if (device_of_stream(stream) < 0) return unknown("cuStreamWaitEvent", stream);
    if (!known(events, event)) return unknown("cuStreamWaitEvent", event);
    if (is_default(stream)) return CUDA_SUCCESS;
    std::lock_guard<std::mutex> hold(lock);
    Stream *own = reinterpret_cast<Stream *>(stream);
    const Event *e = reinterpret_cast<const Event *>(event);
    if (!e->stream || e->stream == own) return CUDA_SUCCESS;
    own->seen[e->stream] = std::max(own->seen[e->stream], e->launches);
    auto waited_for = [&](const Exchange &x) { return x.stream == e->stream && x.number <= e->exchanges; };
    exchanges.erase(std::remove_if(exchanges.begin(), exchanges.end(), waited_for), exchanges.end());
    return CUDA_SUCCESS;
}
STUB_EXPORT CUresult cuLaunchHostFunc(CUstream stream, CUhostFn function, void *data) {
    log("hostfunc");
    if (device_of_stream(stream) < 0) return unknown("cuLaunchHostFunc", stream);
    submit([=] { function(data); });
    return CUDA_SUCCESS;
}

STUB_EXPORT CUresult cuEventCreate(CUevent *out, unsigned) {
    if (current_device() < 0) return CUDA_ERROR_INVALID_CONTEXT;
    totals.events.add(0);
    Event *made = new Event{current_device(), 0, 0, nullptr, 0, 0};
    std::lock_guard<std::mutex> hold(lock);
    events.insert(made);
    *out = reinterpret_cast<CUevent>(made);
    return CUDA_SUCCESS;
}
STUB_EXPORT CUresult cuEventDestroy_v2(CUevent event) {
    std::lock_guard<std::mutex> hold(lock);
    if (!events.erase(event)) return unknown("cuEventDestroy", event);
    delete reinterpret_cast<Event *>(event);
    return CUDA_SUCCESS;
}
STUB_EXPORT CUresult cuEventRecord(CUevent event, CUstream stream) {
    if (!known(events, event)) return unknown("cuEventRecord", event);
    int device = device_of_stream(stream);
    Event *e = reinterpret_cast<Event *>(event);
    if (device != e->device) return refuse(CUDA_ERROR_INVALID_HANDLE, "an event of device %d recorded in a stream of device %d", e->device, device);
    e->recorded = milliseconds();
    {
        std::lock_guard<std::recursive_mutex> hold(working);
        e->after = put_off_so_far;
    }
    if (is_default(stream)) return CUDA_SUCCESS;
    std::lock_guard<std::mutex> hold(lock);
    const Stream *after = reinterpret_cast<const Stream *>(stream);
    e->stream = after;
    e->launches = after->launches;
    e->exchanges = after->exchanges;
    return CUDA_SUCCESS;
}
STUB_EXPORT CUresult cuEventSynchronize(CUevent event) {
    totals.event_waits.add(0);
    log("eventsync");
    finish();
    return known(events, event) ? CUDA_SUCCESS : unknown("cuEventSynchronize", event);
}
// With work put off, an event is not reached when it is asked for; each question gets one piece of work done.
STUB_EXPORT CUresult cuEventQuery(CUevent event) {
    if (!known(events, event)) return unknown("cuEventQuery", event);
    std::lock_guard<std::recursive_mutex> hold(working);
    if (done_so_far >= reinterpret_cast<Event *>(event)->after) return CUDA_SUCCESS;
    do_one();
    return CUDA_ERROR_NOT_READY;
}
STUB_EXPORT CUresult cuEventElapsedTime(float *ms, CUevent from, CUevent to) {
    if (!known(events, from) || !known(events, to)) return unknown("cuEventElapsedTime", from);
    *ms = float(reinterpret_cast<Event *>(to)->recorded - reinterpret_cast<Event *>(from)->recorded);
    return CUDA_SUCCESS;
}
// cuda.h gives the name above to the second version; older programs ask for the first.
#undef cuEventElapsedTime
STUB_EXPORT CUresult cuEventElapsedTime(float *ms, CUevent from, CUevent to) { return cuEventElapsedTime_v2(ms, from, to); }

// Nothing is recorded into graphs here: whoever wants one is told so.
STUB_EXPORT CUresult cuStreamBeginCapture_v2(CUstream, CUstreamCaptureMode) { return CUDA_ERROR_NOT_SUPPORTED; }
STUB_EXPORT CUresult cuStreamEndCapture(CUstream, CUgraph *) { return CUDA_ERROR_NOT_SUPPORTED; }
STUB_EXPORT CUresult cuStreamIsCapturing(CUstream, CUstreamCaptureStatus *status) {
    *status = CU_STREAM_CAPTURE_STATUS_NONE;
    return CUDA_SUCCESS;
}
