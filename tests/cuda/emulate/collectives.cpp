// The results of warp operations, computed once all lanes are there.
//
// Which element of a matrix lies in which register of which lane: PTX ISA, "Matrix Fragments for mma.m16n8k16" and
// "ldmatrix".
#include "emulate.h"

namespace {

float bf16_to_f32(uint16_t bits) {
    uint32_t wide = uint32_t(bits) << 16;
    float x;
    memcpy(&x, &wide, 4);
    return x;
}

float low(unsigned pair) { return bf16_to_f32(uint16_t(pair)); }
float high(unsigned pair) { return bf16_to_f32(uint16_t(pair >> 16)); }

void require_whole_warp(const char *what, unsigned mask) {
    if (mask != 0xffffffffu) emulate_fail("%s needs all 32 lanes of the warp; the lanes there are %08x", what, mask);
}

// d[16, 8] += a[16, 16] · b[16, 8]; products and sums in f32.
void mma_bf16(emulate_lane *const lanes[32]) {
    float a[16][16], b[16][8], d[16][8];
    for (int lane = 0; lane < 32; lane++) {
        int group = lane / 4, pair = lane % 4 * 2;
        const unsigned *from = static_cast<const unsigned *>(lanes[lane]->a);
        for (int i = 0; i < 4; i++) { // registers: upper rows and lower rows of the left half, then of the right half
            int row = group + i % 2 * 8, column = pair + i / 2 * 8;
            a[row][column] = low(from[i]);
            a[row][column + 1] = high(from[i]);
        }
        from = static_cast<const unsigned *>(lanes[lane]->b);
        for (int i = 0; i < 2; i++) {
            b[pair + i * 8][group] = low(from[i]);
            b[pair + i * 8 + 1][group] = high(from[i]);
        }
        const float *sum = static_cast<const float *>(lanes[lane]->d);
        for (int i = 0; i < 4; i++) d[group + i / 2 * 8][pair + i % 2] = sum[i];
    }
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < 16; k++)
            for (int column = 0; column < 8; column++) d[row][column] += a[row][k] * b[k][column];
    for (int lane = 0; lane < 32; lane++) {
        int group = lane / 4, pair = lane % 4 * 2;
        float *sum = static_cast<float *>(lanes[lane]->d);
        for (int i = 0; i < 4; i++) sum[i] = d[group + i / 2 * 8][pair + i % 2];
    }
}

// Matrix m of 8 x 8 elements of 2 bytes: lane 8m + r has the address of row r. Lane l receives the elements
// (l / 4, 2 (l % 4)) and the one beside it, or of the transposed matrix.
void ldmatrix(emulate_lane *const lanes[32], int matrices, bool transposed) {
    for (int m = 0; m < matrices; m++) {
        uint16_t rows[8][8];
        for (int r = 0; r < 8; r++) {
            const void *at = lanes[8 * m + r]->a;
            if (size_t(at) % 16) emulate_fail("ldmatrix: the address of row %d of matrix %d is not a multiple of 16", r, m);
            memcpy(rows[r], at, 16);
        }
        for (int lane = 0; lane < 32; lane++) {
            int row = lane / 4, column = lane % 4 * 2;
            unsigned first = transposed ? rows[column][row] : rows[row][column];
            unsigned second = transposed ? rows[column + 1][row] : rows[row][column + 1];
            static_cast<unsigned *>(lanes[lane]->d)[m] = first | second << 16;
        }
    }
}

} // namespace

// `lanes[i]` is there for every lane of `mask`.
void complete_warp_operation(emulate_warp_operation operation, unsigned mask, emulate_lane *const lanes[32]) {
    switch (operation) {
    case EMULATE_SYNC: return;
    case EMULATE_SHUFFLE:
        for (int i = 0; i < 32; i++) {
            if (!(mask >> i & 1)) continue;
            int source = lanes[i]->source;
            // The value of a lane that is not there is undefined on a GPU: all bits set.
            lanes[i]->result = source >= 0 && source < 32 && (mask >> source & 1) ? lanes[source]->value : ~uint64_t(0);
        }
        return;
    case EMULATE_BALLOT: {
        uint64_t votes = 0;
        for (int i = 0; i < 32; i++)
            if (mask >> i & 1) votes |= lanes[i]->value << i;
        for (int i = 0; i < 32; i++)
            if (mask >> i & 1) lanes[i]->result = votes;
        return;
    }
    case EMULATE_MATCH_ANY:
        for (int i = 0; i < 32; i++) {
            if (!(mask >> i & 1)) continue;
            uint64_t same = 0;
            for (int j = 0; j < 32; j++)
                if (mask >> j & 1 && lanes[j]->value == lanes[i]->value) same |= uint64_t(1) << j;
            lanes[i]->result = same;
        }
        return;
    case EMULATE_MMA_BF16: require_whole_warp("mma", mask); return mma_bf16(lanes);
    case EMULATE_LDMATRIX_X1: require_whole_warp("ldmatrix", mask); return ldmatrix(lanes, 1, false);
    case EMULATE_LDMATRIX_X2: require_whole_warp("ldmatrix", mask); return ldmatrix(lanes, 2, false);
    case EMULATE_LDMATRIX_X4: require_whole_warp("ldmatrix", mask); return ldmatrix(lanes, 4, false);
    case EMULATE_LDMATRIX_X1_TRANS: require_whole_warp("ldmatrix", mask); return ldmatrix(lanes, 1, true);
    case EMULATE_LDMATRIX_X2_TRANS: require_whole_warp("ldmatrix", mask); return ldmatrix(lanes, 2, true);
    case EMULATE_CALL: require_whole_warp("a matrix operation of the warp", mask); return lanes[0]->call(lanes);
    case EMULATE_LDMATRIX_X4_TRANS: require_whole_warp("ldmatrix", mask); return ldmatrix(lanes, 4, true);
    }
}
