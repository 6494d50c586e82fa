// The softmax of logits that are read once: its sum follows the running maximum.
#pragma once

// A row's softmax so far: the largest logit, its class (the first of equals), the sum of exp(x - top).
struct Softmax {
    float top, sum;
    unsigned best;
};

static __device__ Softmax joined(Softmax a, Softmax b) {
    bool other = b.top > a.top || (b.top == a.top && b.best < a.best);
    Softmax s;
    s.top = other ? b.top : a.top;
    s.best = other ? b.best : a.best;
    // A side without a class yet has the sum 0; exp(-inf + inf) must not make a NaN of it.
    s.sum = (a.sum == 0.0f ? 0.0f : a.sum * __expf(a.top - s.top)) + (b.sum == 0.0f ? 0.0f : b.sum * __expf(b.top - s.top));
    return s;
}

// Takes the logits of classes `first` and on into account.
template <int N>
static __device__ void take(Softmax &s, const float (&v)[N], unsigned first) {
    float top = s.top;
#pragma unroll
    for (int i = 0; i < N; i++) {
        if (v[i] > top) {
            top = v[i];
            s.best = first + i;
        }
    }
    if (top > s.top) {
        s.sum = s.sum == 0.0f ? 0.0f : s.sum * __expf(s.top - top);
        s.top = top;
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
        // Logits of -inf count nothing, also before the first finite one; NaN stays.
        if (v[i] != -INFINITY) s.sum += __expf(v[i] - s.top);
    }
}

// That of all lanes of a warp; every lane gets it.
static __device__ Softmax warp_softmax(Softmax s) {
#pragma unroll
    for (int by = 16; by > 0; by /= 2) {
        Softmax other;
        other.top = __shfl_xor_sync(0xffffffffu, s.top, by);
        other.sum = __shfl_xor_sync(0xffffffffu, s.sum, by);
        other.best = __shfl_xor_sync(0xffffffffu, s.best, by);
        s = joined(s, other);
    }
    return s;
}
