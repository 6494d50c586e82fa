// What the kernels of attention in bf16 and in f32 share: their argument and how queries find their row of the bias.

// All of a forward or backward pass; attention.rs builds it field by field. Distances count elements.
struct Attention {
    const bf16 *q, *k, *v;      // element i of head h of token t of sample b: b·sample + t·row + h·64 + i
    void *output;               // bf16, or f32 where output_f32
    float *lse;                 // [B, H, R]: the log of each row's softmax sum
    const float *bias;          // or null: b·bias_sample + (h·bias_rows + row)·bias_pitch + key
    const int *bias_row;        // or null: [B, R], which row of the bias a query reads; null: its own
    const bf16 *grad;           // of the output
    float *rows;                // [B, H, R up to a multiple of 64, 4]: lse, Σ grad·output, bias row, unused
    void *dq, *dk, *dv;         // bf16, or f32 where grads_f32
    float *dbias;               // [S, H, bias_rows, dbias_pitch]: one part for each slice of the batch
    long long q_sample, k_sample, v_sample, output_sample, grad_sample, dq_sample, dk_sample, dv_sample, bias_sample;
    int q_row, k_row, v_row, output_row, grad_row, dq_row, dk_row, dv_row;
    int bias_pitch, dbias_pitch, bias_rows;
    int batch, heads, queries, keys, slice;    // slice: samples of one part of dbias
    float scale;
    int output_f32, grads_f32;
    int depth;                  // width of a head; read by the f32 kernels only
    int dbias_add;              // whether to add to what dbias holds
    int unused;
};

static_assert(sizeof(Attention) == 264, "attention.rs passes 264 bytes");

constexpr int TILE = 64;          // tokens of a tile in shared memory, bf16; `rows` is padded to it in both precisions
constexpr float OUTSIDE = -1e30f; // a logit whose exponential is 0
constexpr float NO_ROW = 1e30f;   // the lse of a query that is not there: its weights are 0

// Which row of the bias a query reads.
__device__ __forceinline__ int bias_row(const Attention &a, int batch, int query) {
    return a.bias_row ? a.bias_row[(long long)batch * a.queries + query] : query;
}

// The first row of the bias of a sample and head.
__device__ __forceinline__ const float *bias_head(const Attention &a, int batch, int head) {
    return a.bias + batch * a.bias_sample + (long long)head * a.bias_rows * a.bias_pitch;
}

// What goes to an element of dbias.
__device__ __forceinline__ void put_dbias(const Attention &a, float *to, float sum) { *to = a.dbias_add ? *to + sum : sum; }

// Queries with the padding that `rows` has.
__device__ __forceinline__ int padded(int queries) { return (queries + TILE - 1) / TILE * TILE; }

// Fills `query_of` with the query that reads each of `count` rows of the bias from `row` on, or −1. The queries of a sample
// must read different rows.
__device__ __forceinline__ void find_queries(int *query_of, const Attention &a, int batch, int row, int count) {
    if (threadIdx.x >= count) return;
    const int wanted = row + threadIdx.x;
    int found = -1;
    if (!a.bias_row) {
        if (wanted < a.queries) found = wanted;
    } else {
        const int *from = a.bias_row + (long long)batch * a.queries;
        for (int i = 0; i < a.queries; i++)
            if (from[i] == wanted) found = i;
    }
    query_of[threadIdx.x] = found;
}
