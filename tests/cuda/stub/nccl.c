// A libnccl.so.2 for the stand-in driver: communicators of several devices in one process, and sums over them in host
// memory, in the order of the ranks. Waits for the other ranks as the real one may, and checks that all ask for the same.
//
//   gcc -shared -fPIC -O3 -Wall -Wextra -o libnccl.so.2 -Wl,-soname,libnccl.so.2 nccl.c -ldl -lpthread
//
// A line of launches.tsv, one for each group of calls as NCCL launches one kernel for it: nccl, what, tensors, bytes,
// operation, rank/ranks, stream.
//
//   STUB_NCCL_WAIT=60    seconds after which a rank that waits in vain ends the program
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "stub.h"

enum { OK = 0, INVALID_ARGUMENT = 4, INVALID_USAGE = 5 };
enum { FLOAT32 = 7, BFLOAT16 = 9, SUM = 0, AVERAGE = 4, RANKS = 64, CALLS = 4096 };

typedef struct { uint64_t words[16]; } Id;
typedef struct {
    const void *send;
    void *receive;
    size_t count;
    int type, operation;
    void *stream;
} Call;

// Ranks that belong together.
typedef struct Group {
    uint64_t id;
    int ranks, joined, device[RANKS];
    // The round that is running: what each rank brought, and how many have taken the result.
    Call *calls[RANKS];
    int many[RANKS], brought, taken;
    unsigned long round;
    struct Group *next;
} Group;
typedef struct { uint32_t tag; Group *group; int rank; } Communicator;
enum { COMMUNICATOR = 0x434f4d4d };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static Group *groups;
// Calls between ncclGroupStart and ncclGroupEnd of this thread.
static __thread int depth, waiting;
static __thread Call calls[CALLS];
static __thread Communicator *whose;

static stub_computes_function *computes;
static stub_holds_function *holds;
static stub_exchange_function *exchange;
static stub_log_function *log_line;
static stub_refuse_function *refused;
static int (*current_device)(int *);

static void find_driver(void) {
    void *driver = dlopen("libcuda.so", RTLD_LAZY | RTLD_NOLOAD);
    if (!driver) return;
    computes = (stub_computes_function *)dlsym(driver, "stub_computes");
    holds = (stub_holds_function *)dlsym(driver, "stub_holds");
    exchange = (stub_exchange_function *)dlsym(driver, "stub_exchange");
    log_line = (stub_log_function *)dlsym(driver, "stub_log");
    refused = (stub_refuse_function *)dlsym(driver, "stub_refuse");
    current_device = (int (*)(int *))dlsym(driver, "cuCtxGetDevice");
}
static void driver(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, find_driver);
}
__attribute__((format(printf, 2, 3))) static int refuse(int status, const char *format, ...) {
    char text[1024] = "nccl: ";
    va_list list;
    va_start(list, format);
    vsnprintf(text + strlen(text), sizeof text - strlen(text), format, list);
    va_end(list);
    if (refused) refused(text);
    else fprintf(stderr, "[stub] %s\n", text);
    return status;
}
static size_t bytes_of(int type) { return type == FLOAT32 ? 4 : 2; }

// With the lock held: until something changes. Whoever waits for too long says so and ends the program, as nothing else would.
static void wait_for_others(const char *what) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    const char *seconds = getenv("STUB_NCCL_WAIT");
    until.tv_sec += seconds ? atoi(seconds) : 60;
    if (pthread_cond_timedwait(&changed, &lock, &until)) {
        refuse(INVALID_USAGE, "%s: the other ranks never came", what);
        abort();
    }
}

int ncclGetVersion(int *version) { *version = 22809; return OK; }
const char *ncclGetErrorString(int result) {
    switch (result) {
    case OK: return "no error";
    case INVALID_ARGUMENT: return "invalid argument";
    case INVALID_USAGE: return "invalid usage";
    default: return "unknown result code";
    }
}
int ncclGetUniqueId(Id *id) {
    static uint64_t next = 1;
    *id = (Id){ { 0x6e63636c, __sync_fetch_and_add(&next, 1) } };
    return OK;
}
int ncclCommInitRank(Communicator **out, int ranks, Id id, int rank) {
    driver();
    if (id.words[0] != 0x6e63636c || ranks < 1 || ranks > RANKS || rank < 0 || rank >= ranks)
        return refuse(INVALID_ARGUMENT, "rank %d of %d with id %lx", rank, ranks, id.words[0]);
    int device = rank;
    if (current_device) current_device(&device);
    pthread_mutex_lock(&lock);
    Group *group = groups;
    while (group && group->id != id.words[1]) group = group->next;
    if (!group) {
        group = calloc(1, sizeof *group);
        *group = (Group){ .id = id.words[1], .ranks = ranks, .next = groups };
        for (int i = 0; i < RANKS; i++) group->device[i] = -1;
        groups = group;
    }
    int status = OK;
    if (group->ranks != ranks || group->device[rank] != -1) status = refuse(INVALID_USAGE, "rank %d of %d joins twice or another group", rank, ranks);
    for (int i = 0; i < ranks && !status; i++)
        if (group->device[i] == device) status = refuse(INVALID_USAGE, "ranks %d and %d are both on device %d", i, rank, device);
    if (!status) {
        group->device[rank] = device;
        group->joined++;
        pthread_cond_broadcast(&changed);
        while (group->joined < ranks) wait_for_others("ncclCommInitRank");
        Communicator *made = malloc(sizeof *made);
        *made = (Communicator){ COMMUNICATOR, group, rank };
        *out = made;
    }
    pthread_mutex_unlock(&lock);
    return status;
}
int ncclCommDestroy(Communicator *communicator) {
    if (!communicator || communicator->tag != COMMUNICATOR) return refuse(INVALID_ARGUMENT, "no communicator is destroyed");
    communicator->tag = 0;
    free(communicator);
    return OK;
}

static float read_at(const void *base, int type, size_t i) {
    if (type == FLOAT32) return ((const float *)base)[i];
    uint32_t word = (uint32_t)((const uint16_t *)base)[i] << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
}
static void write_at(void *base, int type, size_t i, float value) {
    if (type == FLOAT32) { ((float *)base)[i] = value; return; }
    uint32_t word;
    memcpy(&word, &value, 4);
    uint16_t bits = (word & 0x7fffffff) > 0x7f800000 ? (uint16_t)(word >> 16 | 0x40) : (uint16_t)((word + 0x7fff + (word >> 16 & 1)) >> 16);
    ((uint16_t *)base)[i] = bits;
}
// What all ranks brought, into what all ranks get.
static void reduce(Group *group) {
    for (int c = 0; c < group->many[0]; c++) {
        Call *first = &group->calls[0][c];
        for (size_t i = 0; i < first->count; i++) {
            float sum = 0;
            for (int r = 0; r < group->ranks; r++) sum += read_at(group->calls[r][c].send, first->type, i);
            if (first->operation == AVERAGE) sum /= (float)group->ranks;
            for (int r = 0; r < group->ranks; r++) write_at(group->calls[r][c].receive, first->type, i, sum);
        }
    }
}
// The calls of a group of one thread: meets the other ranks and sums.
static int run(Communicator *communicator, Call *own, int many) {
    Group *group = communicator->group;
    size_t bytes = 0;
    for (int c = 0; c < many; c++) bytes += own[c].count * bytes_of(own[c].type);
    if (log_line) {
        char line[256];
        snprintf(line, sizeof line, "nccl\tallreduce\t%d\t%zu\t%s\t%d/%d\t%p", many, bytes, own[0].operation == AVERAGE ? "average" : "sum",
                 communicator->rank, group->ranks, own[0].stream);
        log_line(line);
    }
    for (int c = 0; c < many && exchange; c++)
        if (own[c].count) exchange(own[c].stream, (unsigned long)own[c].receive, own[c].count * bytes_of(own[c].type));
    int status = OK;
    pthread_mutex_lock(&lock);
    // The round before must have been left by all.
    while (group->calls[communicator->rank]) wait_for_others("ncclAllReduce");
    group->calls[communicator->rank] = own;
    group->many[communicator->rank] = many;
    unsigned long round = group->round;
    if (++group->brought == group->ranks) {
        for (int r = 0; r < group->ranks; r++) {
            if (group->many[r] != group->many[0]) status = refuse(INVALID_USAGE, "rank 0 reduces %d tensors, rank %d %d", group->many[0], r, group->many[r]);
            for (int c = 0; c < group->many[0] && !status; c++) {
                Call *a = &group->calls[0][c], *b = &group->calls[r][c];
                if (a->count != b->count || a->type != b->type || a->operation != b->operation)
                    status = refuse(INVALID_USAGE, "tensor %d of a group: rank 0 has %zu elements, rank %d %zu, or another type", c, a->count, r, b->count);
            }
        }
        if (!status && (!computes || computes())) reduce(group);
        group->round++;
        pthread_cond_broadcast(&changed);
    } else {
        while (group->round == round) wait_for_others("ncclAllReduce");
    }
    if (++group->taken == group->ranks) {
        memset(group->calls, 0, sizeof group->calls);
        group->brought = group->taken = 0;
        pthread_cond_broadcast(&changed);
    }
    pthread_mutex_unlock(&lock);
    return status;
}

int ncclGroupStart(void) { depth++; return OK; }
int ncclGroupEnd(void) {
    if (!depth) return refuse(INVALID_USAGE, "a group ends that was not begun");
    if (--depth || !waiting) return OK;
    int many = waiting;
    waiting = 0;
    return run(whose, calls, many);
}
int ncclAllReduce(const void *send, void *receive, size_t count, int type, int operation, Communicator *communicator, void *stream) {
    driver();
    if (!communicator || communicator->tag != COMMUNICATOR) return refuse(INVALID_ARGUMENT, "an all-reduce without a communicator");
    if ((type != FLOAT32 && type != BFLOAT16) || (operation != SUM && operation != AVERAGE))
        return refuse(INVALID_ARGUMENT, "type %d, operation %d", type, operation);
    size_t bytes = count * bytes_of(type);
    if (count && (!send || !receive || (holds && (!holds((unsigned long)send, bytes) || !holds((unsigned long)receive, bytes)))))
        return refuse(INVALID_ARGUMENT, "%zu bytes from %p to %p are not device memory", bytes, send, receive);
    if (waiting && (whose != communicator || calls[0].stream != stream)) return refuse(INVALID_USAGE, "a group with several communicators or streams");
    if (waiting == CALLS) return refuse(INVALID_USAGE, "more than %d calls in a group", CALLS);
    whose = communicator;
    calls[waiting++] = (Call){ send, receive, count, type, operation, stream };
    if (depth) return OK;
    waiting = 0;
    return run(communicator, calls, 1);
}
