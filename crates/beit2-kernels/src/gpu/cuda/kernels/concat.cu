// Tensors one after the other along an axis, and apart again. All axes before it count as rows, so a part has whole stretches
// of a row.
#include "device.cuh"

struct ConcatPart {
    float *at;               // null: zeros
    unsigned width, first;   // elements of a row, and where they begin in the joint row
};

struct ConcatParts {
    ConcatPart parts[8];
    unsigned count, joint;   // `joint`: elements of a joint row
};

// Grid (joint / (256 N) rounded up, rows or fewer), N elements a thread. `N` divides all widths.
template <int N, bool APART>
static __device__ void concat(const ConcatParts &table, float *x, unsigned rows) {
    const unsigned column = (blockIdx.x * 256 + threadIdx.x) * N;
    if (column >= table.joint) return;
    unsigned which = 0;
    while (which + 1 < table.count && table.parts[which + 1].first <= column) which++;
    const ConcatPart &part = table.parts[which];
    if (APART && !part.at) return;
    float v[N];
    fill_f32(v, 0.0f);
    for (unsigned long long row = blockIdx.y; row < rows; row += gridDim.y) {
        float *whole = x + row * table.joint + column;
        float *own = part.at ? part.at + row * part.width + (column - part.first) : nullptr;
        if (APART) {
            load_f32(v, whole);
            store_f32(own, v);
        } else {
            if (own) load_f32(v, own);
            store_f32(whole, v);
        }
    }
}

extern "C" __global__ void __launch_bounds__(256)
    concat_f32(const __grid_constant__ ConcatParts table, float *x, unsigned rows, unsigned by_four) {
    if (by_four) concat<4, false>(table, x, rows);
    else concat<1, false>(table, x, rows);
}

extern "C" __global__ void __launch_bounds__(256)
    split_f32(const __grid_constant__ ConcatParts table, float *x, unsigned rows, unsigned by_four) {
    if (by_four) concat<4, true>(table, x, rows);
    else concat<1, true>(table, x, rows);
}
