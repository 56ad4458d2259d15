/* A cuBLASLt that is none, for tests: products of matrices in host memory, on streams of fake_cuda.c.
 *
 * Every argument is checked: sizes of attributes, layouts against each other, what types and integers may be,
 * that buffers and workspace lie in device memory as long and as aligned as was said. What a test lets fail
 * fails; what is made and not destroyed is counted. The product itself is computed by the test (NumPy).
 * With -DWITH_HEADER prototypes and numbers are checked against NVIDIA's cublasLt.h.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef WITH_HEADER
#include <cublasLt.h>
#else
typedef int cublasStatus_t, cublasComputeType_t, cudaDataType, cublasLtMatmulDescAttributes_t;
typedef int cublasLtMatmulPreferenceAttributes_t;
typedef void *cublasLtHandle_t, *cublasLtMatmulDesc_t, *cublasLtMatrixLayout_t, *cublasLtMatmulPreference_t;
typedef void *cudaStream_t;
typedef struct { uint64_t data[8]; } cublasLtMatmulAlgo_t;
typedef struct {
    cublasLtMatmulAlgo_t algo; size_t workspaceSize; cublasStatus_t state; float wavesCount; int reserved[4];
} cublasLtMatmulHeuristicResult_t;
#define CUBLASWINAPI
#endif

enum { DONE = 0, NOT_INITIALIZED = 1, INVALID = 7, NOT_SUPPORTED = 15 };
enum { F32 = 0, F16 = 2, I8 = 3, I32 = 10, BF16 = 14, SUM_F32 = 68, SUM_I32 = 72 };
enum { TRANSA = 3, WORKSPACE = 1, REDUCTION = 3, ALIGN_A = 5, ALIGN_D = 8, OUTPUT_TYPE = 4 };
#ifdef WITH_HEADER
#define SAME(ours, theirs) _Static_assert((int)(ours) == (int)(theirs), #theirs)
SAME(NOT_INITIALIZED, CUBLAS_STATUS_NOT_INITIALIZED);
SAME(INVALID, CUBLAS_STATUS_INVALID_VALUE);
SAME(NOT_SUPPORTED, CUBLAS_STATUS_NOT_SUPPORTED);
SAME(F32, CUDA_R_32F);
SAME(F16, CUDA_R_16F);
SAME(I8, CUDA_R_8I);
SAME(I32, CUDA_R_32I);
SAME(BF16, CUDA_R_16BF);
SAME(SUM_F32, CUBLAS_COMPUTE_32F);
SAME(SUM_I32, CUBLAS_COMPUTE_32I);
SAME(TRANSA, CUBLASLT_MATMUL_DESC_TRANSA);
SAME(WORKSPACE, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
SAME(REDUCTION, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK);
SAME(ALIGN_A, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES);
SAME(ALIGN_D, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
SAME(OUTPUT_TYPE, CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE);
#endif

enum { HANDLE = 0x4c54, DESC, LAYOUT, PREFERENCE, RULES = 8, NAMES = 16, ARGUMENTS = 13 };

typedef void (*Kernel)(void **);
typedef struct { int kind; } Context;
typedef struct { int kind, compute, scale, turned; } Desc;
typedef struct { int kind, type; uint64_t rows, columns; int64_t stride; } Layout;
typedef struct { int kind; uint64_t workspace; uint32_t reduction, alignment[4]; } Preference;

static Kernel compute;
static int live, proposals = 4;
static size_t version = 131000;
static struct { char name[64]; int nth, status; } rules[RULES];
static struct { char name[64]; int count; } calls[NAMES];
static int (*driver_holds)(const void *, size_t);
static int (*driver_queue)(void *, Kernel, int, const uint64_t *);
static int (*driver_current)(void);

/* What tests call. */
void fake_lt_driver(const char *path) {
    void *driver = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
    if (!driver) abort();
    *(void **)&driver_holds = dlsym(driver, "fake_holds");
    *(void **)&driver_queue = dlsym(driver, "fake_queue");
    *(void **)&driver_current = dlsym(driver, "fake_current");
}
void fake_lt_compute(Kernel kernel) { compute = kernel; }
void fake_lt_version(long number) { version = number; }
void fake_lt_proposals(int count) { proposals = count; }
int fake_lt_live(void) { return live; }
int fake_lt_calls(const char *name) {
    for (int i = 0; i < NAMES; i++) if (!strcmp(calls[i].name, name)) return calls[i].count;
    return 0;
}
void fake_lt_fail(const char *name, int nth, int status) {
    for (int i = 0; i < RULES; i++)
        if (!rules[i].status) {
            snprintf(rules[i].name, sizeof rules[i].name, "%s", name);
            rules[i].nth = nth; rules[i].status = status;
            return;
        }
    abort();
}

static int enter(const char *name) {
    int slot = 0;
    while (calls[slot].name[0] && strcmp(calls[slot].name, name)) slot++;
    snprintf(calls[slot].name, sizeof calls[slot].name, "%s", name);
    calls[slot].count++;
    if (!driver_current || driver_current() < 0) return NOT_INITIALIZED;
    for (int i = 0; i < RULES; i++)
        if (rules[i].status && !strcmp(rules[i].name, name) && --rules[i].nth == 0) {
            int status = rules[i].status;
            rules[i].status = 0;
            return status;
        }
    return DONE;
}
#define ENTER() do { int status_ = enter(__func__); if (status_) return (cublasStatus_t)status_; } while (0)
#define NEED(truth) do { if (!(truth)) return (cublasStatus_t)INVALID; } while (0)

static int kind_of(const void *object) { return object ? *(const int *)object : 0; }
static void *make(size_t bytes, int kind) {
    int *made = calloc(1, bytes);
    *made = kind;
    live++;
    return made;
}
static cublasStatus_t end(void *object, int kind) {
    NEED(kind_of(object) == kind);
    *(int *)object = 0;
    free(object);
    live--;
    return (cublasStatus_t)DONE;
}

/* The library. */
size_t CUBLASWINAPI cublasLtGetVersion(void) { return version; }
const char *CUBLASWINAPI cublasLtGetStatusName(cublasStatus_t status) {
    return (int)status == INVALID ? "CUBLAS_STATUS_INVALID_VALUE"
         : (int)status == NOT_SUPPORTED ? "CUBLAS_STATUS_NOT_SUPPORTED" : "CUBLAS_STATUS_OF_ANOTHER_KIND";
}

cublasStatus_t CUBLASWINAPI cublasLtCreate(cublasLtHandle_t *handle) {
    ENTER();
    *handle = make(sizeof(Context), HANDLE);
    return (cublasStatus_t)DONE;
}
cublasStatus_t CUBLASWINAPI cublasLtDestroy(cublasLtHandle_t handle) { ENTER(); return end(handle, HANDLE); }

cublasStatus_t CUBLASWINAPI cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc, cublasComputeType_t type,
                                                     cudaDataType scale) {
    ENTER();
    NEED((type == SUM_F32 && scale == F32) || (type == SUM_I32 && scale == I32));
    Desc *made = make(sizeof(Desc), DESC);
    made->compute = type; made->scale = scale;
    *(void **)desc = made;
    return (cublasStatus_t)DONE;
}
cublasStatus_t CUBLASWINAPI cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) { ENTER(); return end(desc, DESC); }
cublasStatus_t CUBLASWINAPI cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                                           cublasLtMatmulDescAttributes_t name, const void *value,
                                                           size_t bytes) {
    ENTER();
    NEED(kind_of(desc) == DESC && name == TRANSA && bytes == 4);
    int turned = *(const int32_t *)value;
    NEED(turned == 0 || turned == 1);
    ((Desc *)desc)->turned = turned;
    return (cublasStatus_t)DONE;
}

cublasStatus_t CUBLASWINAPI cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType type,
                                                       uint64_t rows, uint64_t columns, int64_t stride) {
    ENTER();
    NEED(rows && columns && stride >= (int64_t)rows);
    Layout *made = make(sizeof(Layout), LAYOUT);
    made->type = type; made->rows = rows; made->columns = columns; made->stride = stride;
    *(void **)layout = made;
    return (cublasStatus_t)DONE;
}
cublasStatus_t CUBLASWINAPI cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
    ENTER();
    return end(layout, LAYOUT);
}

cublasStatus_t CUBLASWINAPI cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference) {
    ENTER();
    Preference *made = make(sizeof(Preference), PREFERENCE);
    made->reduction = 7;
    for (int i = 0; i < 4; i++) made->alignment[i] = 256;
    *(void **)preference = made;
    return (cublasStatus_t)DONE;
}
cublasStatus_t CUBLASWINAPI cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
    ENTER();
    return end(preference, PREFERENCE);
}
cublasStatus_t CUBLASWINAPI cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                                 cublasLtMatmulPreferenceAttributes_t name,
                                                                 const void *value, size_t bytes) {
    ENTER();
    Preference *wishes = (Preference *)preference;
    NEED(kind_of(wishes) == PREFERENCE && bytes == (name == WORKSPACE ? 8 : 4));
    if (name == WORKSPACE) wishes->workspace = *(const uint64_t *)value;
    else if (name == REDUCTION) wishes->reduction = *(const uint32_t *)value;
    else if (name >= ALIGN_A && name <= ALIGN_D) wishes->alignment[name - ALIGN_A] = *(const uint32_t *)value;
    else return (cublasStatus_t)INVALID;
    return (cublasStatus_t)DONE;
}

static int width(int type) { return type == I8 ? 1 : type == F16 || type == BF16 ? 2 : 4; }
static size_t bytes_of(const Layout *one) {
    return (one->stride * (one->columns - 1) + one->rows) * width(one->type);
}
static int fits(const Desc *desc, const Layout *a, const Layout *b, const Layout *c, const Layout *d) {
    uint64_t m = desc->turned ? a->columns : a->rows, k = desc->turned ? a->rows : a->columns;
    return b->rows == k && d->rows == m && d->columns == b->columns && !memcmp(c, d, sizeof *c) && a->type == b->type;
}
static int supported(const Desc *desc, const Layout *a, const Layout *b, const Layout *d) {
    if (desc->compute == SUM_F32)
        return (a->type == F32 || a->type == F16 || a->type == BF16) && (d->type == F32 || d->type == a->type);
    int words = a->stride % 4 == 0 && b->stride % 4 == 0 && d->stride % 4 == 0 && d->rows % 4 == 0 && b->rows % 4 == 0;
    return a->type == I8 && d->type == I32 && desc->turned && words;
}

cublasStatus_t CUBLASWINAPI cublasLtMatmulAlgoGetHeuristic(
    cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
    cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t preference, int wanted,
    cublasLtMatmulHeuristicResult_t *results, int *found) {
    ENTER();
    const Preference *wishes = (Preference *)preference;
    NEED(kind_of(handle) == HANDLE && kind_of(desc) == DESC && kind_of(wishes) == PREFERENCE && wanted > 0);
    NEED(kind_of(a) == LAYOUT && kind_of(b) == LAYOUT && kind_of(c) == LAYOUT && kind_of(d) == LAYOUT);
    NEED(fits((Desc *)desc, (Layout *)a, (Layout *)b, (Layout *)c, (Layout *)d));
    if (!supported((Desc *)desc, (Layout *)a, (Layout *)b, (Layout *)d)) return (cublasStatus_t)NOT_SUPPORTED;
    *found = 0;
    for (int rank = 0; rank < proposals && *found < wanted; rank++) {
        cublasLtMatmulHeuristicResult_t *one = &results[*found];
        memset(one, 0, sizeof *one);
        one->workspaceSize = 4096 * rank;
        if (one->workspaceSize > wishes->workspace) continue;
        /* What this one is for, and how it sums. */
        uint64_t own[8] = {HANDLE, rank, (uint64_t)(uintptr_t)desc, one->workspaceSize, wishes->alignment[0],
                           wishes->alignment[1], wishes->alignment[3], wishes->reduction & OUTPUT_TYPE};
        memcpy(one->algo.data, own, sizeof own);
        one->wavesCount = 1;
        ++*found;
    }
    return (cublasStatus_t)DONE;
}

static int lies(const void *address, const Layout *layout, uint64_t alignment) {
    return (uintptr_t)address % alignment == 0 && driver_holds(address, bytes_of(layout));
}

cublasStatus_t CUBLASWINAPI cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc_, const void *alpha,
                                           const void *a, cublasLtMatrixLayout_t a_, const void *b,
                                           cublasLtMatrixLayout_t b_, const void *beta, const void *c,
                                           cublasLtMatrixLayout_t c_, void *d, cublasLtMatrixLayout_t d_,
                                           const cublasLtMatmulAlgo_t *algo, void *workspace, size_t bytes,
                                           cudaStream_t stream) {
    ENTER();
    const Desc *desc = (Desc *)desc_;
    const Layout *left = (Layout *)a_, *right = (Layout *)b_, *before = (Layout *)c_, *result = (Layout *)d_;
    NEED(kind_of(handle) == HANDLE && kind_of(desc) == DESC && kind_of(left) == LAYOUT && kind_of(right) == LAYOUT);
    NEED(kind_of(before) == LAYOUT && kind_of(result) == LAYOUT && fits(desc, left, right, before, result));
    NEED(algo && algo->data[0] == HANDLE && algo->data[2] == (uint64_t)(uintptr_t)desc);
    NEED(lies(a, left, algo->data[4]) && lies(b, right, algo->data[5]) && lies(d, result, algo->data[6]) && c == d);
    NEED(bytes >= algo->data[3] && (!bytes || driver_holds(workspace, bytes)));
    if (desc->scale == I32) NEED(*(const int32_t *)alpha == 1 && *(const int32_t *)beta == 0);
    else NEED(*(const float *)alpha == 1 && *(const float *)beta == 0);
    uint64_t given[ARGUMENTS] = {
        (uintptr_t)a, (uintptr_t)b, (uintptr_t)d, left->type, result->type, desc->turned, result->rows, result->columns,
        right->rows, left->stride, right->stride, result->stride, algo->data[1] | algo->data[7] << 32,
    };
    NEED(!driver_queue(stream, compute, ARGUMENTS, given));
    return (cublasStatus_t)DONE;
}
