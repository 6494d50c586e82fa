// Casts of several tensors in one launch: the weights of a Transformer block, say.
#include "device.cuh"

// One tensor of a cast: f32 to bf16 or back. Without `from`, zeros.
struct Cast {
    const void *from;
    void *into;
    unsigned long long count;
    unsigned first;    // block of the grid
    unsigned to_f32;   // else to bf16
};

struct Casts {
    unsigned count;
    Cast casts[96];
};

template <typename In, typename Out>
static __device__ void cast(const In *from, Out *into, unsigned long long at, unsigned long long count) {
    bool aligned = ((unsigned long long)from | (unsigned long long)into) % 16 == 0;
    float v[8];
    if (aligned && at + 8 <= count) {
        if (from) {
            load_f32(v, from + at);
        } else {
#pragma unroll
            for (int i = 0; i < 8; i++) v[i] = 0.0f;
        }
        store_f32(into + at, v);
    } else {
        for (unsigned long long end = at + 8 < count ? at + 8 : count; at < end; at++) {
            into[at] = to<Out>(from ? to_f32(from[at]) : 0.0f);
        }
    }
}

// A block casts 4096 elements of one tensor.
extern "C" __global__ void __launch_bounds__(256) cast_many(Casts table) {
    unsigned low = 0, high = table.count;  // the last whose first block is not after this one
    while (high - low > 1) {
        unsigned middle = (low + high) / 2;
        if (table.casts[middle].first <= blockIdx.x) low = middle;
        else high = middle;
    }
    const Cast &c = table.casts[low];
    unsigned long long at = (unsigned long long)(blockIdx.x - c.first) * 4096 + threadIdx.x * 8;
#pragma unroll
    for (int i = 0; i < 2; i++, at += 2048) {
        if (at >= c.count) return;
        if (c.to_f32) cast((const bf16 *)c.from, (float *)c.into, at, c.count);
        else cast((const float *)c.from, (bf16 *)c.into, at, c.count);
    }
}
