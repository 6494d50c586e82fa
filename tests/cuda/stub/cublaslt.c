// A libcublasLt.so.13 for the stand-in driver: the calls that beit2 makes, each checked against the rules of the
// documentation of cublasLtMatmul (CUDA 13). In compute mode it multiplies, sums in f32 and rounds the result once.
//
//   gcc -shared -fPIC -O3 -Wall -Wextra -o libcublasLt.so.13 -Wl,-soname,libcublasLt.so.13 cublaslt.c -ldl -lpthread
//
// A line of launches.tsv: gemm, rows x columns x depth of the column-major D, types, transposes, batch, epilogue, beta, stream.
//
//   STUB_BLAS_ALGORITHMS=N    how many algorithms are proposed: the default is 3 in count mode and 1 in compute mode
//   STUB_BLAS_EPILOGUES=0     no algorithm has an epilogue
//   STUB_BLAS_VERSION=130100  what cublasLtGetVersion says
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stub.h"

enum { OK = 0, NOT_INITIALIZED = 1, INVALID = 7, NOT_SUPPORTED = 15 };
enum { F32 = 0, BF16 = 14, COMPUTE_32F = 68 };
enum { EPILOGUE_DEFAULT = 1, EPILOGUE_BIAS = 4, EPILOGUE_BGRADA = 256, EPILOGUE_BGRADB = 512 };
enum { WORKSPACE_NEEDED = 4 << 20 };

// The first word of everything that is handed out, so that one thing isn't taken for another.
enum { HANDLE = 0x48414e44, OPERATION = 0x4f504552, LAYOUT = 0x4c41594f, PREFERENCE = 0x50524546, ALGORITHM = 0x414c474f };

typedef struct { uint32_t tag; } Handle;
typedef struct {
    uint32_t tag;
    int32_t transposed_a, transposed_b;
    uint32_t epilogue;
    uint64_t vector;
} Operation;
typedef struct {
    uint32_t tag, type;
    uint64_t rows, cols;
    int64_t ld, stride;
    int32_t count;
} Layout;
typedef struct {
    uint32_t tag, reduction;
    uint64_t workspace;
    uint32_t aligned[4];
} Preference;
typedef struct { uint64_t data[8]; } Algorithm;
typedef struct {
    Algorithm algorithm;
    size_t workspace;
    uint32_t status;
    float waves;
    int reserved[4];
} Candidate;

static stub_computes_function *computes;
static stub_holds_function *holds;
static stub_log_function *log_line;
static stub_refuse_function *refused;

static void find_driver(void) {
    void *driver = dlopen("libcuda.so", RTLD_LAZY | RTLD_NOLOAD);
    if (!driver) return;
    computes = (stub_computes_function *)dlsym(driver, "stub_computes");
    holds = (stub_holds_function *)dlsym(driver, "stub_holds");
    log_line = (stub_log_function *)dlsym(driver, "stub_log");
    refused = (stub_refuse_function *)dlsym(driver, "stub_refuse");
}
static void driver(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, find_driver);
}
static int setting(const char *name, int otherwise) {
    const char *value = getenv(name);
    return value ? atoi(value) : otherwise;
}
static int computing(void) { return !computes || computes(); }

// Says what is wrong with a call and returns `status`.
__attribute__((format(printf, 2, 3))) static int refuse(int status, const char *format, ...) {
    char text[1024] = "cublasLt: ";
    va_list list;
    va_start(list, format);
    vsnprintf(text + strlen(text), sizeof text - strlen(text), format, list);
    va_end(list);
    driver();
    if (refused) refused(text);
    else fprintf(stderr, "[stub] %s\n", text);
    return status;
}
static int is(const void *thing, uint32_t tag) { return thing && *(const uint32_t *)thing == tag; }
static uint64_t bytes_of(uint32_t type) { return type == F32 ? 4 : 2; }
static const char *name_of(uint32_t type) { return type == F32 ? "f32" : "bf16"; }

size_t cublasLtGetVersion(void) { return (size_t)setting("STUB_BLAS_VERSION", 130000); }
size_t cublasLtGetCudartVersion(void) { return 13000; }
const char *cublasLtGetStatusString(uint32_t status) {
    switch (status) {
    case OK: return "the operation completed successfully";
    case NOT_INITIALIZED: return "the library was not initialized";
    case INVALID: return "an unsupported value or parameter was passed to the function";
    case NOT_SUPPORTED: return "the functionality requested is not supported";
    default: return "an error of the stand-in";
    }
}

static void *made(size_t size, uint32_t tag) {
    uint32_t *thing = calloc(1, size);
    *thing = tag;
    return thing;
}
static int unmade(void *thing, uint32_t tag) {
    if (!is(thing, tag)) return refuse(INVALID, "something else is destroyed, or the same thing twice");
    *(uint32_t *)thing = 0;
    free(thing);
    return OK;
}
int cublasLtCreate(Handle **handle) { *handle = made(sizeof(Handle), HANDLE); return OK; }
int cublasLtDestroy(Handle *handle) { return unmade(handle, HANDLE); }
int cublasLtMatmulDescDestroy(Operation *operation) { return unmade(operation, OPERATION); }
int cublasLtMatrixLayoutDestroy(Layout *layout) { return unmade(layout, LAYOUT); }
int cublasLtMatmulPreferenceDestroy(Preference *preference) { return unmade(preference, PREFERENCE); }

int cublasLtMatmulDescCreate(Operation **out, uint32_t compute, uint32_t scale) {
    if (compute != COMPUTE_32F || scale != F32) return refuse(INVALID, "compute type %u with scale type %u", compute, scale);
    Operation *operation = made(sizeof *operation, OPERATION);
    operation->epilogue = EPILOGUE_DEFAULT;
    *out = operation;
    return OK;
}
int cublasLtMatmulDescSetAttribute(Operation *operation, uint32_t attribute, const void *value, size_t size) {
    if (!is(operation, OPERATION) || !value) return refuse(INVALID, "attribute %u of no operation", attribute);
    int32_t word = 0;
    if (size == 4) memcpy(&word, value, 4);
    switch (attribute) {
    case 3: // TRANSA
    case 4: // TRANSB
        if (size != 4 || (word != 0 && word != 1)) return refuse(INVALID, "transpose %d in %zu bytes", word, size);
        *(attribute == 3 ? &operation->transposed_a : &operation->transposed_b) = word;
        return OK;
    case 7: // EPILOGUE
        if (size != 4 || (word != EPILOGUE_DEFAULT && word != EPILOGUE_BIAS && word != EPILOGUE_BGRADA && word != EPILOGUE_BGRADB))
            return refuse(INVALID, "epilogue %d in %zu bytes", word, size);
        operation->epilogue = (uint32_t)word;
        return OK;
    case 8: // BIAS_POINTER
        if (size != 8) return refuse(INVALID, "a pointer in %zu bytes", size);
        memcpy(&operation->vector, value, 8);
        return OK;
    default: return refuse(INVALID, "attribute %u of an operation is not known to the stand-in", attribute);
    }
}
int cublasLtMatrixLayoutCreate(Layout **out, uint32_t type, uint64_t rows, uint64_t cols, int64_t ld) {
    if (type != F32 && type != BF16) return refuse(INVALID, "a matrix of type %u", type);
    if (!rows || !cols || ld < (int64_t)rows) return refuse(INVALID, "a matrix of %lu x %lu, columns %ld apart", rows, cols, ld);
    Layout *layout = made(sizeof *layout, LAYOUT);
    *layout = (Layout){ LAYOUT, type, rows, cols, ld, 0, 1 };
    *out = layout;
    return OK;
}
int cublasLtMatrixLayoutSetAttribute(Layout *layout, uint32_t attribute, const void *value, size_t size) {
    if (!is(layout, LAYOUT) || !value) return refuse(INVALID, "attribute %u of no layout", attribute);
    if (attribute == 5 && size == 4) memcpy(&layout->count, value, 4); // BATCH_COUNT
    else if (attribute == 6 && size == 8) memcpy(&layout->stride, value, 8); // STRIDED_BATCH_OFFSET
    else return refuse(INVALID, "attribute %u of a layout in %zu bytes", attribute, size);
    if (layout->count < 1 || layout->stride < 0) return refuse(INVALID, "batch of %d, %ld apart", layout->count, layout->stride);
    return OK;
}
int cublasLtMatmulPreferenceCreate(Preference **out) {
    Preference *preference = made(sizeof *preference, PREFERENCE);
    *preference = (Preference){ PREFERENCE, 7, 0, { 256, 256, 256, 256 } };
    *out = preference;
    return OK;
}
int cublasLtMatmulPreferenceSetAttribute(Preference *preference, uint32_t attribute, const void *value, size_t size) {
    if (!is(preference, PREFERENCE) || !value) return refuse(INVALID, "attribute %u of no preference", attribute);
    uint32_t word = 0;
    if (size == 4) memcpy(&word, value, 4);
    if (attribute == 1 && size == 8) memcpy(&preference->workspace, value, 8);
    else if (attribute == 3 && size == 4 && word < 8) preference->reduction = word;
    else if (attribute >= 5 && attribute <= 8 && size == 4 && word && !(word & (word - 1))) preference->aligned[attribute - 5] = word;
    else return refuse(INVALID, "attribute %u of a preference: %u in %zu bytes", attribute, word, size);
    return OK;
}

// Whether the parts fit together and the types are among the supported ones; `OK`, or what the library would return.
static int fits(const Operation *o, const Layout *a, const Layout *b, const Layout *c, const Layout *d) {
    if (!is(o, OPERATION) || !is(a, LAYOUT) || !is(b, LAYOUT) || !is(c, LAYOUT) || !is(d, LAYOUT))
        return refuse(INVALID, "a descriptor is missing");
    uint64_t rows = o->transposed_a ? a->cols : a->rows, depth = o->transposed_a ? a->rows : a->cols;
    uint64_t below = o->transposed_b ? b->cols : b->rows, cols = o->transposed_b ? b->rows : b->cols;
    if (rows != d->rows || cols != d->cols || depth != below || c->rows != d->rows || c->cols != d->cols)
        return refuse(INVALID, "[%lu, %lu] x [%lu, %lu] into [%lu, %lu]", rows, depth, below, cols, d->rows, d->cols);
    if (a->count != d->count || b->count != d->count || c->count != d->count)
        return refuse(INVALID, "batches of %d, %d, %d and %d", a->count, b->count, c->count, d->count);
    if (d->count > 1 && !d->stride) return refuse(INVALID, "a batch whose results have one address");
    if (a->type != b->type || c->type != d->type || (a->type == F32 && d->type == BF16))
        return refuse(NOT_SUPPORTED, "%s x %s into %s", name_of(a->type), name_of(b->type), name_of(d->type));
    if (d->count > 1 && (o->epilogue == EPILOGUE_BGRADA || o->epilogue == EPILOGUE_BGRADB))
        return refuse(NOT_SUPPORTED, "a bias gradient of a batch");
    if (o->epilogue != EPILOGUE_DEFAULT && !setting("STUB_BLAS_EPILOGUES", 1)) return NOT_SUPPORTED;
    return OK;
}
// What an algorithm was proposed for, apart from sizes.
static uint64_t kind(const Operation *o, const Layout *a, const Layout *d) {
    return (uint64_t)o->transposed_a | (uint64_t)o->transposed_b << 1 | (uint64_t)o->epilogue << 2 | (uint64_t)a->type << 16 | (uint64_t)d->type << 24;
}

int cublasLtMatmulAlgoGetHeuristic(Handle *handle, Operation *o, Layout *a, Layout *b, Layout *c, Layout *d, Preference *preference,
                                   int wanted, Candidate *found, int *count) {
    driver();
    if (!is(handle, HANDLE) || !is(preference, PREFERENCE) || !found || !count || wanted < 1)
        return refuse(INVALID, "a heuristic without handle, preference or room");
    int status = fits(o, a, b, c, d);
    if (status) return status;
    if (o->epilogue != EPILOGUE_DEFAULT && !o->vector) return refuse(INVALID, "the epilogue has no vector to take the alignment from");
    int proposed = setting("STUB_BLAS_ALGORITHMS", computing() ? 1 : 3);
    *count = proposed < wanted ? proposed : wanted;
    memset(found, 0, sizeof *found * (size_t)wanted);
    for (int i = 0; i < *count; i++) {
        const uint32_t *p = preference->aligned;
        uint64_t aligned = (uint64_t)p[0] | (uint64_t)p[1] << 16 | (uint64_t)p[2] << 32 | (uint64_t)p[3] << 48;
        uint64_t needed = preference->workspace < WORKSPACE_NEEDED ? preference->workspace : WORKSPACE_NEEDED;
        found[i].algorithm = (Algorithm){ { ALGORITHM, kind(o, a, d), aligned, needed, (uint64_t)i } };
        found[i].workspace = needed;
        found[i].waves = 1;
    }
    if (!*count) return NOT_SUPPORTED;
    return OK;
}
int cublasLtMatmulAlgoCheck(Handle *handle, Operation *o, Layout *a, Layout *b, Layout *c, Layout *d, const Algorithm *algorithm, Candidate *result) {
    driver();
    if (!is(handle, HANDLE) || !algorithm || !result) return refuse(INVALID, "a check without handle, algorithm or result");
    int status = fits(o, a, b, c, d);
    if (status) return status;
    if (algorithm->data[0] != ALGORITHM || algorithm->data[1] != kind(o, a, d)) return NOT_SUPPORTED;
    memset(result, 0, sizeof *result);
    result->algorithm = *algorithm;
    result->workspace = algorithm->data[3];
    return OK;
}

static float widened(uint16_t bits) {
    uint32_t word = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
}
static uint16_t narrowed(float value) { // to nearest, ties to even; NaN stays NaN
    uint32_t word;
    memcpy(&word, &value, 4);
    if ((word & 0x7fffffff) > 0x7f800000) return (uint16_t)(word >> 16 | 0x40);
    return (uint16_t)((word + 0x7fff + (word >> 16 & 1)) >> 16);
}
static float at(const void *base, uint32_t type, uint64_t index) {
    return type == F32 ? ((const float *)base)[index] : widened(((const uint16_t *)base)[index]);
}
// op(X) as f32: element (row, col) of the result lies at row * across + col * along.
static float *unpacked(const void *base, const Layout *x, int transposed, uint64_t across, uint64_t along) {
    float *out = malloc(x->rows * x->cols * sizeof *out);
    for (uint64_t j = 0; j < x->cols; j++)
        for (uint64_t i = 0; i < x->rows; i++)
            out[transposed ? j * across + i * along : i * across + j * along] = at(base, x->type, i + j * (uint64_t)x->ld);
    return out;
}
enum { WIDE = 64, TALL = 4 };
// sums[t][w] = the sum over l of b[l + t * depth] * a[w + l * rows]
__attribute__((target_clones("avx512f", "avx2", "default"))) static void block(const float *restrict a, uint64_t rows, const float *restrict b, uint64_t depth,
                                                                              uint64_t wide, uint64_t tall, float sums[TALL][WIDE]) {
    memset(sums, 0, sizeof(float[TALL][WIDE]));
    if (wide == WIDE && tall == TALL) {
        for (uint64_t l = 0; l < depth; l++)
            for (int t = 0; t < TALL; t++)
                for (int w = 0; w < WIDE; w++) sums[t][w] += b[l + (uint64_t)t * depth] * a[(uint64_t)w + l * rows];
        return;
    }
    for (uint64_t l = 0; l < depth; l++)
        for (uint64_t t = 0; t < tall; t++)
            for (uint64_t w = 0; w < wide; w++) sums[t][w] += b[l + t * depth] * a[w + l * rows];
}
static void multiply(const Operation *o, float alpha, const void *A, const Layout *a, const void *B, const Layout *b, float beta, const void *C,
                     const Layout *c, void *D, const Layout *d, void *vector) {
    uint64_t rows = d->rows, cols = d->cols, depth = o->transposed_a ? a->rows : a->cols;
    float *left = unpacked(A, a, o->transposed_a, 1, rows), *right = unpacked(B, b, o->transposed_b, 1, depth);
    for (uint64_t j = 0; j < cols; j += TALL)
        for (uint64_t i = 0; i < rows; i += WIDE) {
            float sums[TALL][WIDE];
            uint64_t wide = rows - i < WIDE ? rows - i : WIDE, tall = cols - j < TALL ? cols - j : TALL;
            block(left + i, rows, right + j * depth, depth, wide, tall, sums);
            for (uint64_t t = 0; t < tall; t++)
                for (uint64_t w = 0; w < wide; w++) {
                    float value = alpha * sums[t][w];
                    if (beta != 0) value += beta * at(C, c->type, i + w + (j + t) * (uint64_t)c->ld);
                    if (o->epilogue == EPILOGUE_BIAS) value += at(vector, d->type, i + w);
                    uint64_t to = i + w + (j + t) * (uint64_t)d->ld;
                    if (d->type == F32) ((float *)D)[to] = value;
                    else ((uint16_t *)D)[to] = narrowed(value);
                }
        }
    if (o->epilogue == EPILOGUE_BGRADA || o->epilogue == EPILOGUE_BGRADB) {
        uint64_t count = o->epilogue == EPILOGUE_BGRADA ? rows : cols;
        for (uint64_t x = 0; x < count; x++) {
            float sum = 0;
            for (uint64_t l = 0; l < depth; l++) sum += o->epilogue == EPILOGUE_BGRADA ? left[x + l * rows] : right[l + x * depth];
            if (d->type == F32) ((float *)vector)[x] = sum;
            else ((uint16_t *)vector)[x] = narrowed(sum);
        }
    }
    free(left);
    free(right);
}

// Whether a matrix lies in device memory, aligned as the algorithm was promised.
static int lies(const char *name, const void *base, const Layout *x, uint64_t promised) {
    uint64_t address = (uint64_t)base;
    uint64_t elements = (uint64_t)(x->count - 1) * (uint64_t)x->stride + (x->cols - 1) * (uint64_t)x->ld + x->rows;
    if (!address || address % bytes_of(x->type)) { refuse(INVALID, "%s at %p", name, base); return 0; }
    if (promised && address % promised) { refuse(INVALID, "%s at %p, but the algorithm was chosen for a multiple of %lu", name, base, promised); return 0; }
    if (holds && !holds(address, elements * bytes_of(x->type))) {
        refuse(INVALID, "%s at %p has %lu elements of %s outside device memory", name, base, elements, name_of(x->type));
        return 0;
    }
    return 1;
}
int cublasLtMatmul(Handle *handle, Operation *o, const float *alpha, const void *A, Layout *a, const void *B, Layout *b, const float *beta, const void *C,
                   Layout *c, void *D, Layout *d, const Algorithm *algorithm, void *workspace, size_t workspace_bytes, void *stream) {
    driver();
    if (!is(handle, HANDLE) || !alpha || !beta) return refuse(INVALID, "a matmul without handle or factors");
    int status = fits(o, a, b, c, d);
    if (status) return status;
    uint64_t promised = 0;
    if (algorithm) {
        if (algorithm->data[0] != ALGORITHM || algorithm->data[1] != kind(o, a, d)) return refuse(INVALID, "the algorithm is for another kind of matmul");
        promised = algorithm->data[2];
        if (workspace_bytes < algorithm->data[3]) return refuse(INVALID, "a workspace of %zu bytes, needed are %lu", workspace_bytes, algorithm->data[3]);
    }
    if (workspace_bytes && ((uint64_t)workspace % 256 || (holds && !holds((uint64_t)workspace, workspace_bytes))))
        return refuse(INVALID, "a workspace of %zu bytes at %p", workspace_bytes, workspace);
    if (!lies("A", A, a, promised & 0xffff) || !lies("B", B, b, promised >> 16 & 0xffff) || !lies("C", C, c, promised >> 32 & 0xffff) ||
        !lies("D", D, d, promised >> 48))
        return INVALID;
    if (C == D && (c->ld != d->ld || c->type != d->type || c->stride != d->stride)) return refuse(INVALID, "C is D, but laid out otherwise");
    if (o->epilogue != EPILOGUE_DEFAULT) {
        uint64_t count = o->epilogue == EPILOGUE_BGRADB ? d->cols : d->rows;
        if (!o->vector || o->vector % 16 || (holds && !holds(o->vector, count * bytes_of(d->type))))
            return refuse(INVALID, "the vector of the epilogue, %lu of %s at %lx", count, name_of(d->type), o->vector);
    }
    if (log_line) {
        char line[512];
        const char *epilogue = o->epilogue == EPILOGUE_BIAS ? "bias" : o->epilogue == EPILOGUE_DEFAULT ? "-" : "bias_gradient";
        uint64_t depth = o->transposed_a ? a->rows : a->cols;
        snprintf(line, sizeof line, "gemm\t%lux%lux%lu\t%s-%s\t%c%c\t%d\t%s\t%g\t%p", d->rows, d->cols, depth, name_of(a->type), name_of(d->type),
                 o->transposed_a ? 't' : 'n', o->transposed_b ? 't' : 'n', d->count, epilogue, (double)*beta, stream);
        log_line(line);
    }
    if (!computing()) return OK;
    for (int i = 0; i < d->count; i++) {
        const char *from_a = (const char *)A + (uint64_t)i * (uint64_t)a->stride * bytes_of(a->type);
        const char *from_b = (const char *)B + (uint64_t)i * (uint64_t)b->stride * bytes_of(b->type);
        const char *from_c = (const char *)C + (uint64_t)i * (uint64_t)c->stride * bytes_of(c->type);
        char *to = (char *)D + (uint64_t)i * (uint64_t)d->stride * bytes_of(d->type);
        multiply(o, *alpha, from_a, a, from_b, b, *beta, from_c, c, to, d, (void *)o->vector);
    }
    return OK;
}
