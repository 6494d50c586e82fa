// Runs a kernel: blocks one after another, the threads of a block as fibres that hand over where they wait.
//
//   BEIT2_EMULATE_ORDER=forward|reverse|shuffle[:SEED]   order in which blocks, and threads within a block, get to run
//
// A correct kernel gives the same bits in every order, unless it says otherwise (sums by float atomics).
#define EMULATE_SCHEDULER
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include "emulate.h"
#include "fibre.h"

extern "C" {
uint3 emulate_thread, emulate_block;
dim3 emulate_block_size, emulate_grid_size;
unsigned char *emulate_dynamic_shared;
}

// In collectives.cpp.
void complete_warp_operation(emulate_warp_operation operation, unsigned mask, emulate_lane *const lanes[32]);

namespace {

constexpr unsigned MAX_THREADS = 1024, PAGE = 4096;
constexpr size_t MAX_DYNAMIC_SHARED = 232448;
enum State : unsigned char { NOT_STARTED, RUNNING, READY, AT_BARRIER, IN_WARP, FINISHED };

struct Copy {
    void *shared;
    const void *global;
    unsigned bytes, zero_from, group;
};

struct Thread {
    State state;
    fibre::Stack *stack;
    void *saved; // stack pointer while it waits
    // In a warp operation:
    emulate_warp_operation operation;
    unsigned mask;
    emulate_lane *lane;
    // Asynchronous copies not yet waited for:
    Copy *copies;
    unsigned copy_count, copy_capacity, copy_group;
};

struct Warp {
    unsigned waiting, live; // lanes
};

pthread_mutex_t running = PTHREAD_MUTEX_INITIALIZER; // one kernel at a time, over all devices
const emulate_kernel *kernel;
void **arguments;
unsigned thread_count, finished, at_barrier, with_predicate, barrier_result, current;
Thread threads[MAX_THREADS];
Warp warps[MAX_THREADS / 32];
unsigned queue[MAX_THREADS], queue_head, queue_length;
void *scheduler_saved;
unsigned char *shared_area; // MAX_DYNAMIC_SHARED bytes and a page that cannot be touched

// -- Order ------------------------------------------------------------------------------------------------------------

enum Order { FORWARD, REVERSE, SHUFFLE };
Order order;
uint64_t random_state;

void read_order() {
    const char *text = getenv("BEIT2_EMULATE_ORDER");
    order = FORWARD;
    if (!text || !*text || !strcmp(text, "forward")) return;
    if (!strcmp(text, "reverse")) {
        order = REVERSE;
    } else if (!strncmp(text, "shuffle", 7)) {
        order = SHUFFLE;
        random_state = 0x9e3779b97f4a7c15ull ^ (text[7] == ':' ? strtoull(text + 8, nullptr, 10) : 0);
    } else {
        fprintf(stderr, "BEIT2_EMULATE_ORDER is %s; it can be forward, reverse, shuffle or shuffle:SEED\n", text);
        abort();
    }
}

unsigned random_below(unsigned n) {
    random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
    return unsigned((random_state >> 33) % n);
}

// The numbers below `n`, in the order wanted.
void fill_order(unsigned *out, unsigned n) {
    for (unsigned i = 0; i < n; i++) out[i] = order == REVERSE ? n - 1 - i : i;
    if (order != SHUFFLE) return;
    for (unsigned i = n; i > 1; i--) {
        unsigned j = random_below(i), swapped = out[i - 1];
        out[i - 1] = out[j];
        out[j] = swapped;
    }
}

// -- Threads ----------------------------------------------------------------------------------------------------------

void enqueue(unsigned thread) { queue[(queue_head + queue_length++) % MAX_THREADS] = thread; }

void wake(unsigned thread) {
    threads[thread].state = READY;
    enqueue(thread);
}

// Hands over to the scheduler; returns when the thread is run again.
void wait_as(State state) {
    Thread &self = threads[current];
    self.state = state;
    fibre::hand_over(&self.saved, scheduler_saved);
}

bool all_arrived(const Warp &warp, unsigned mask) {
    unsigned wanted = mask & warp.live;
    return wanted && (warp.waiting & wanted) == wanted;
}

// Completes the operation that `mask` of a warp has arrived at; everyone in it may go on.
void complete(unsigned first_thread, Warp &warp, unsigned mask, unsigned except) {
    emulate_lane *lanes[32] = {};
    unsigned members = mask & warp.live;
    int leader = __builtin_ctz(members);
    emulate_warp_operation operation = threads[first_thread + leader].operation;
    for (unsigned rest = members; rest; rest &= rest - 1) {
        int lane = __builtin_ctz(rest);
        Thread &thread = threads[first_thread + lane];
        if (thread.operation != operation || thread.mask != mask)
            emulate_fail("lanes %d and %d of a warp wait in different warp operations (%d with mask %08x, %d with mask %08x)", leader, lane,
                operation, mask, thread.operation, thread.mask);
        lanes[lane] = thread.lane;
    }
    complete_warp_operation(operation, members, lanes);
    warp.waiting &= ~members;
    for (unsigned rest = members; rest; rest &= rest - 1) {
        unsigned thread = first_thread + unsigned(__builtin_ctz(rest));
        if (thread != except) wake(thread);
    }
}

// First function of a fibre.
void thread_main() {
    kernel->call(kernel->entry, arguments);
    Thread &self = threads[current];
    self.state = FINISHED;
    self.copy_count = self.copy_group = 0;
    finished++;
    // Lanes that wait for a warp operation no longer wait for this one.
    unsigned first = current & ~31u;
    Warp &warp = warps[current / 32];
    warp.live &= ~(1u << (current & 31));
    if (warp.waiting) {
        unsigned mask = threads[first + unsigned(__builtin_ctz(warp.waiting))].mask;
        if (all_arrived(warp, mask)) complete(first, warp, mask, MAX_THREADS);
    }
    fibre::hand_over(&self.saved, scheduler_saved);
    __builtin_unreachable();
}

void resume(unsigned index) {
    Thread &thread = threads[index];
    current = index;
    emulate_thread = {index % emulate_block_size.x, index / emulate_block_size.x % emulate_block_size.y,
        index / (emulate_block_size.x * emulate_block_size.y)};
    if (thread.state == NOT_STARTED) {
        thread.stack = fibre::take_stack();
        thread.saved = fibre::prepare(thread.stack, thread_main);
    }
    thread.state = RUNNING;
    fibre::hand_over(&scheduler_saved, thread.saved);
    if (thread.state == FINISHED) fibre::give_stack(thread.stack);
}

const char *describe(State state) {
    switch (state) {
    case AT_BARRIER: return "at __syncthreads()";
    case IN_WARP: return "in a warp operation";
    case FINISHED: return "finished";
    default: return "not started";
    }
}

[[noreturn]] void deadlock() {
    char text[512];
    int at = 0;
    for (unsigned i = 0, ranges = 0; i < thread_count && ranges < 8; ranges++) {
        unsigned end = i;
        while (end < thread_count && threads[end].state == threads[i].state) end++;
        at += snprintf(text + at, sizeof text - size_t(at), "%s%u to %u %s", i ? ", " : "", i, end - 1, describe(threads[i].state));
        i = end;
    }
    emulate_fail("the block waits for ever: threads %s", text);
}

// -- Blocks -----------------------------------------------------------------------------------------------------------

void poison(unsigned dynamic_bytes) {
    // All bits set is NaN as f32, f64, f16 and bf16, and out of range as an index.
    if (kernel->shared_end > kernel->shared_begin) memset(kernel->shared_begin, 0xff, size_t(kernel->shared_end - kernel->shared_begin));
    memset(emulate_dynamic_shared, 0xff, dynamic_bytes);
}

void run_block() {
    unsigned starting[MAX_THREADS];
    fill_order(starting, thread_count);
    finished = at_barrier = with_predicate = queue_head = queue_length = 0;
    for (unsigned i = 0; i < thread_count; i++) {
        Thread &thread = threads[i];
        thread.state = NOT_STARTED;
        thread.copy_count = thread.copy_group = 0;
        enqueue(starting[i]);
    }
    for (unsigned w = 0; w * 32 < thread_count; w++) {
        unsigned lanes = thread_count - w * 32;
        warps[w] = {0, lanes >= 32 ? 0xffffffffu : (1u << lanes) - 1};
    }
    while (queue_length) {
        unsigned next = queue[queue_head];
        queue_head = (queue_head + 1) % MAX_THREADS;
        queue_length--;
        resume(next);
    }
    if (finished != thread_count) deadlock();
}

void on_fault(int signal_number, siginfo_t *info, void *) {
    const char *what = signal_number == SIGSEGV || signal_number == SIGBUS ? "touches memory that is not allocated"
        : signal_number == SIGILL ? "indexes an array out of its bounds, or uses a pointer that is not aligned"
                                  : "divides an integer by zero";
    emulate_fail("%s (address %p)", what, info->si_addr);
}

constexpr int FAULTS[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};

} // namespace

extern "C" {

void emulate_fail(const char *format, ...) {
    char text[1024];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    fflush(stdout);
    if (kernel)
        fprintf(stderr, "\nCUDA emulator: kernel %s, block (%u, %u, %u) of (%u, %u, %u), thread (%u, %u, %u) of (%u, %u, %u): %s\n", kernel->name,
            emulate_block.x, emulate_block.y, emulate_block.z, emulate_grid_size.x, emulate_grid_size.y, emulate_grid_size.z, emulate_thread.x,
            emulate_thread.y, emulate_thread.z, emulate_block_size.x, emulate_block_size.y, emulate_block_size.z, text);
    else
        fprintf(stderr, "\nCUDA emulator: %s\n", text);
    signal(SIGABRT, SIG_DFL);
    abort();
}

int emulate_barrier(bool predicate) {
    at_barrier++;
    with_predicate += predicate;
    if (at_barrier < thread_count) {
        wait_as(AT_BARRIER);
        return int(barrier_result);
    }
    // The last to arrive lets all others go on.
    barrier_result = with_predicate;
    unsigned result = barrier_result;
    at_barrier = with_predicate = 0;
    unsigned waking[MAX_THREADS];
    fill_order(waking, thread_count);
    for (unsigned i = 0; i < thread_count; i++)
        if (waking[i] != current) wake(waking[i]);
    // So that the order is that of `waking` for this thread too.
    wake(current);
    fibre::hand_over(&threads[current].saved, scheduler_saved);
    return int(result);
}

void emulate_warp(emulate_warp_operation operation, unsigned mask, emulate_lane *lane) {
    Thread &self = threads[current];
    unsigned bit = 1u << (current & 31);
    if (!(mask & bit)) emulate_fail("a warp operation with mask %08x, in which lane %u is not", mask, current & 31);
    Warp &warp = warps[current / 32];
    self.operation = operation;
    self.mask = mask;
    self.lane = lane;
    warp.waiting |= bit;
    if (all_arrived(warp, mask))
        complete(current & ~31u, warp, mask, current);
    else
        wait_as(IN_WARP);
}

unsigned emulate_active_lanes(void) { return warps[current / 32].live; }
int emulate_lane_index(void) { return int(current & 31); }

void emulate_copy_async(void *shared, const void *global, unsigned bytes, unsigned zero_from) {
    Thread &self = threads[current];
    if (size_t(shared) % bytes || size_t(global) % bytes)
        emulate_fail("cp.async of %u bytes from %p to %p: an address is not a multiple of %u", bytes, global, shared, bytes);
    if (self.copy_count == self.copy_capacity) {
        self.copy_capacity = self.copy_capacity ? 2 * self.copy_capacity : 64;
        self.copies = static_cast<Copy *>(realloc(self.copies, self.copy_capacity * sizeof(Copy)));
    }
    self.copies[self.copy_count++] = {shared, global, bytes, zero_from, self.copy_group};
}

void emulate_copy_commit(void) { threads[current].copy_group++; }

void emulate_copy_wait(unsigned pending_groups) {
    Thread &self = threads[current];
    unsigned kept = 0;
    for (unsigned i = 0; i < self.copy_count; i++) {
        const Copy &copy = self.copies[i];
        if (copy.group + pending_groups < self.copy_group) {
            memcpy(copy.shared, copy.global, copy.zero_from);
            memset(static_cast<char *>(copy.shared) + copy.zero_from, 0, copy.bytes - copy.zero_from);
        } else {
            self.copies[kept++] = copy;
        }
    }
    self.copy_count = kept;
}

void emulate_run(const emulate_kernel *wanted, const unsigned grid[3], const unsigned block[3], unsigned shared_bytes, void **values) {
    pthread_mutex_lock(&running);
    kernel = wanted;
    arguments = values;
    emulate_grid_size = dim3(grid[0], grid[1], grid[2]);
    emulate_block_size = dim3(block[0], block[1], block[2]);
    emulate_block = {0, 0, 0};
    emulate_thread = {0, 0, 0};
    uint64_t in_block = uint64_t(block[0]) * block[1] * block[2];
    if (!in_block || in_block > kernel->max_threads) emulate_fail("%lu threads in a block; it is compiled for 1 to %u", (unsigned long)in_block, kernel->max_threads);
    if (!grid[0] || !grid[1] || !grid[2] || grid[1] > 65535 || grid[2] > 65535) emulate_fail("a grid of %u x %u x %u", grid[0], grid[1], grid[2]);
    size_t static_shared = size_t(kernel->shared_end - kernel->shared_begin);
    if (shared_bytes > MAX_DYNAMIC_SHARED) emulate_fail("%u bytes of dynamic shared memory; a block has at most %zu", shared_bytes, MAX_DYNAMIC_SHARED);
    (void)static_shared;
    thread_count = unsigned(in_block);
    read_order();
    if (!shared_area) {
        size_t whole = (MAX_DYNAMIC_SHARED + PAGE - 1) / PAGE * PAGE;
        shared_area = static_cast<unsigned char *>(mmap(nullptr, whole + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        if (shared_area == MAP_FAILED) emulate_fail("no memory for shared memory");
        mprotect(shared_area + whole, PAGE, PROT_NONE);
        shared_area += whole;
    }
    emulate_dynamic_shared = shared_area - (shared_bytes + 127) / 128 * 128;

    // A fault of the kernel is told with its name; the program's own handlers come back afterwards.
    static char alternative[65536];
    stack_t old_stack, stack = {};
    stack.ss_sp = alternative;
    stack.ss_size = sizeof alternative;
    sigaltstack(&stack, &old_stack);
    struct sigaction old_actions[4], action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < 4; i++) sigaction(FAULTS[i], &action, &old_actions[i]);

    uint64_t blocks = uint64_t(grid[0]) * grid[1] * grid[2];
    uint64_t offset = order == SHUFFLE ? random_below(blocks > 0xffffffffu ? 0xffffffffu : unsigned(blocks)) : 0;
    for (uint64_t i = 0; i < blocks; i++) {
        uint64_t b = order == REVERSE ? blocks - 1 - i : (i + offset) % blocks;
        emulate_block = {unsigned(b % grid[0]), unsigned(b / grid[0] % grid[1]), unsigned(b / grid[0] / grid[1])};
        poison(shared_bytes);
        run_block();
    }

    for (int i = 0; i < 4; i++) sigaction(FAULTS[i], &old_actions[i], nullptr);
    if (old_stack.ss_flags & SS_DISABLE) old_stack.ss_size = MINSIGSTKSZ;
    sigaltstack(&old_stack, nullptr);
    kernel = nullptr;
    pthread_mutex_unlock(&running);
}
}
