// What the threads of a warp do together: shuffles, votes, matrix products, loads of matrices, and asynchronous copies.
#pragma once

extern "C" {

enum emulate_warp_operation {
    EMULATE_SYNC,
    EMULATE_SHUFFLE,     // value: what to give; source: lane to read from
    EMULATE_BALLOT,      // value: predicate
    EMULATE_MATCH_ANY,   // value: what to compare
    EMULATE_MMA_BF16,    // pointers: d[4], a[4], b[2] of m16n8k16
    EMULATE_LDMATRIX_X1, // pointers: destination registers, this lane's row in shared memory
    EMULATE_LDMATRIX_X2,
    EMULATE_LDMATRIX_X4,
    EMULATE_LDMATRIX_X1_TRANS,
    EMULATE_LDMATRIX_X2_TRANS,
    EMULATE_LDMATRIX_X4_TRANS,
    EMULATE_CALL, // call: computes the results of all 32 lanes
};

// What one lane brings to an operation of its warp. The last lane to arrive computes the results of all.
struct emulate_lane {
    uint64_t value, result;
    int source;
    void *d;
    const void *a, *b, *c;
    void (*call)(struct emulate_lane *const lanes[32]);
};

// Waits until all lanes of `mask` have come to the same operation, and returns with `lane->result` (or `lane->d`) filled.
void emulate_warp(enum emulate_warp_operation operation, unsigned mask, struct emulate_lane *lane);

// Lanes of the running thread's warp that have not ended.
unsigned emulate_active_lanes(void);

// Index of the running thread within its warp.
int emulate_lane_index(void);

// Asynchronous copies happen in the wait that orders them, so that a missing wait shows.
void emulate_copy_async(void *shared, const void *global, unsigned bytes, unsigned zero_from);
void emulate_copy_commit(void);
void emulate_copy_wait(unsigned pending_groups);
}

inline void __syncwarp(unsigned mask = 0xffffffffu) {
    emulate_lane lane = {};
    emulate_warp(EMULATE_SYNC, mask, &lane);
}

inline unsigned __activemask() { return emulate_active_lanes(); }

inline unsigned __ballot_sync(unsigned mask, int predicate) {
    emulate_lane lane = {};
    lane.value = predicate != 0;
    emulate_warp(EMULATE_BALLOT, mask, &lane);
    return unsigned(lane.result);
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }

template <class T> inline unsigned __match_any_sync(unsigned mask, T value) {
    emulate_lane lane = {};
    memcpy(&lane.value, &value, sizeof value);
    emulate_warp(EMULATE_MATCH_ANY, mask, &lane);
    return unsigned(lane.result);
}

namespace emulate {
template <class T> T shuffle(unsigned mask, T value, int source) {
    static_assert(sizeof(T) <= 8, "shuffles move 4 or 8 bytes");
    emulate_lane lane = {};
    memcpy(&lane.value, &value, sizeof value);
    lane.source = source;
    emulate_warp(EMULATE_SHUFFLE, mask, &lane);
    memcpy(&value, &lane.result, sizeof value);
    return value;
}
} // namespace emulate

// Lanes are cut into groups of `width`; a source outside the group gives the lane's own value.
template <class T> inline T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    int self = emulate_lane_index();
    return emulate::shuffle(mask, value, (self & -width) | (source & (width - 1)));
}
template <class T> inline T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32) {
    int self = emulate_lane_index(), source = self ^ flip;
    return emulate::shuffle(mask, value, (source & -width) <= (self & -width) ? source : self);
}
template <class T> inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
    int self = emulate_lane_index(), source = self + int(by);
    return emulate::shuffle(mask, value, source < (self & -width) + width ? source : self);
}
template <class T> inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
    int self = emulate_lane_index(), source = self - int(by);
    return emulate::shuffle(mask, value, source >= (self & -width) ? source : self);
}

#define EMULATE_REDUCE(NAME, T, COMBINED)                                                                                          \
    inline T NAME(unsigned mask, T value) {                                                                                        \
        T total = value;                                                                                                           \
        bool first = true;                                                                                                         \
        for (int i = 0; i < 32; i++) {                                                                                             \
            if (!(mask >> i & 1)) continue;                                                                                        \
            T x = emulate::shuffle(mask, value, i);                                                                                \
            total = first ? x : T(COMBINED);                                                                                       \
            first = false;                                                                                                         \
        }                                                                                                                          \
        return total;                                                                                                              \
    }
EMULATE_REDUCE(__reduce_add_sync, unsigned, total + x)
EMULATE_REDUCE(__reduce_add_sync, int, total + x)
EMULATE_REDUCE(__reduce_min_sync, unsigned, min(total, x))
EMULATE_REDUCE(__reduce_min_sync, int, min(total, x))
EMULATE_REDUCE(__reduce_max_sync, unsigned, max(total, x))
EMULATE_REDUCE(__reduce_max_sync, int, max(total, x))
EMULATE_REDUCE(__reduce_and_sync, unsigned, total & x)
EMULATE_REDUCE(__reduce_or_sync, unsigned, total | x)
EMULATE_REDUCE(__reduce_xor_sync, unsigned, total ^ x)
