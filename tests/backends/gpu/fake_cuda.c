/* A CUDA driver that is none, for tests: devices of host memory, in the same library calls.
 *
 * Work on a stream waits until somebody waits for it (as late as the driver may run it), so that a missing
 * wait shows as a wrong result. Any call can be made to fail; what is allocated and not freed is counted.
 * With -DWITH_HEADER the prototypes are checked against NVIDIA's cuda.h.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef WITH_HEADER
#include <cuda.h>
#undef cuEventElapsedTime
CUresult CUDAAPI cuEventElapsedTime(float *, CUevent, CUevent);
#else
typedef int CUresult, CUdevice, CUdevice_attribute, CUfunction_attribute, CUstreamCaptureMode;
typedef unsigned long long CUdeviceptr, cuuint64_t;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphExec_st *CUgraphExec;
typedef struct CUctx_st *CUcontext;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;
#define CUDAAPI
#endif

enum { DEVICES = 8, RULES = 16, NAMES = 64, ALLOCATIONS = 4096, ARGUMENTS = 32 };
enum { COPY, LAUNCH, RECORD, WAIT };

typedef void (*Kernel)(void **);
typedef struct CUfunc_st { char name[256]; int count, shared; Kernel kernel; } Function;
typedef struct CUmod_st { int functions; Function *all[256]; } Module;
typedef struct CUctx_st { int device; } Context;
typedef struct CUevent_st { long recorded, done; CUstream last; int timed; } Event;
typedef struct { int kind; void *to; const void *from; size_t bytes; Function *function; uint64_t args[ARGUMENTS];
                 CUevent event; long number; } Op;
typedef struct { Op *ops; size_t first, count, room; } Queue;
typedef struct CUstream_st { int device; int capturing; Queue queue, captured; } Stream;
typedef struct CUgraph_st { Queue queue; } Graph;
typedef struct CUgraphExec_st { Queue queue; } GraphExec;
typedef struct { char *base; size_t bytes; int device; int host; } Allocation;
typedef struct { char name[64]; int nth, code; } Rule;

static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static int devices = 1, major[DEVICES] = {9, 9, 9, 9, 9, 9, 9, 9}, minor[DEVICES], retained[DEVICES];
static int lost[DEVICES], started, owner;
static Context contexts[DEVICES];
static __thread CUcontext current;
static Allocation memory[ALLOCATIONS];
static Rule rules[RULES];
static struct { char name[64]; int count; } calls[NAMES];
static int live_streams, live_events, live_modules, live_graphs, live_execs;
static struct { char name[256]; int count; Kernel kernel; } registered[64];
static int known;
static long bytes_free = -1;
static float event_ms = 1.0f;
static Stream legacy;
static Stream *streams[256];

/* What tests call. */
void fake_devices(int count) { devices = count; }
void fake_chip(int device, int a, int b) { major[device] = a; minor[device] = b; }
void fake_event_ms(float ms) { event_ms = ms; }
void fake_memory(long bytes) { bytes_free = bytes; }
void fake_fail(const char *name, int nth, int code) {
    for (int i = 0; i < RULES; i++)
        if (!rules[i].code) {
            snprintf(rules[i].name, sizeof rules[i].name, "%s", name);
            rules[i].nth = nth; rules[i].code = code;
            return;
        }
    abort();
}
void fake_kernel(const char *name, int count, Kernel kernel) {
    snprintf(registered[known].name, 256, "%s", name);
    registered[known].count = count; registered[known++].kernel = kernel;
}
int fake_calls(const char *name) {
    for (int i = 0; i < NAMES; i++) if (!strcmp(calls[i].name, name)) return calls[i].count;
    return 0;
}
int fake_current(void) { return current ? current->device : -1; }
int fake_live(const char *what) {
    if (!strcmp(what, "streams")) return live_streams;
    if (!strcmp(what, "events")) return live_events;
    if (!strcmp(what, "modules")) return live_modules;
    if (!strcmp(what, "graphs")) return live_graphs + live_execs;
    int found = 0;
    if (!strcmp(what, "contexts")) { for (int i = 0; i < DEVICES; i++) found += retained[i]; return found; }
    for (int i = 0; i < ALLOCATIONS; i++) found += memory[i].base && memory[i].host == !strcmp(what, "host");
    return found;
}

static int sticky(int code) { return code == 214 || code == 700 || (code >= 714 && code <= 719); }

static int enter(const char *name, int needs_context) {
    if (started && getpid() != owner) return 3;
    if (!started && strcmp(name, "cuInit")) return 3;
    int slot = 0;
    while (calls[slot].name[0] && strcmp(calls[slot].name, name)) slot++;
    snprintf(calls[slot].name, sizeof calls[slot].name, "%s", name);
    calls[slot].count++;
    if (needs_context && !current) return 201;
    if (needs_context && lost[current->device]) return lost[current->device];
    for (int i = 0; i < RULES; i++)
        if (rules[i].code && !strcmp(rules[i].name, name) && --rules[i].nth == 0) {
            int code = rules[i].code;
            rules[i].code = 0;
            if (needs_context && sticky(code)) lost[current->device] = code;
            return code;
        }
    return 0;
}

#define ENTER(context)                                                                                       \
    int code_ __attribute__((cleanup(leave)));                                                               \
    pthread_mutex_lock(&lock);                                                                               \
    code_ = enter(__func__, context);                                                                        \
    if (code_) return code_;
static void leave(int *code) { (void)code; pthread_mutex_unlock(&lock); }

static Allocation *holding(const void *address, size_t bytes) {
    const char *at = address;
    for (int i = 0; i < ALLOCATIONS; i++)
        if (memory[i].base && at >= memory[i].base && at + bytes <= memory[i].base + memory[i].bytes) return &memory[i];
    return NULL;
}

static void push(Queue *queue, Op op) {
    if (queue->count == queue->room) {
        queue->room = queue->room ? 2 * queue->room : 16;
        queue->ops = realloc(queue->ops, queue->room * sizeof(Op));
    }
    queue->ops[queue->count++] = op;
}

static void drain(CUstream stream);

static void execute(Op op) {
    if (op.kind == COPY) memcpy(op.to, op.from, op.bytes);
    if (op.kind == RECORD) op.event->done = op.number;
    if (op.kind == WAIT)
        while (op.event->done < op.number) drain(op.event->last);
    if (op.kind == LAUNCH && op.function->kernel) {
        void *pointers[ARGUMENTS];
        for (int i = 0; i < ARGUMENTS; i++) pointers[i] = (void *)(uintptr_t)op.args[i];
        op.function->kernel(pointers);
    }
}

static void drain(CUstream stream) {
    while (stream->queue.first < stream->queue.count) execute(stream->queue.ops[stream->queue.first++]);
    stream->queue.first = stream->queue.count = 0;
}

static void drain_all(void) {
    for (int i = 0; i < 256; i++) if (streams[i]) drain(streams[i]);
    drain(&legacy);
}

static CUstream real(CUstream stream) { return (uintptr_t)stream <= 2 ? &legacy : stream; }

static void queue(CUstream stream, Op op) { push(stream->capturing ? &stream->captured : &stream->queue, op); }

/* What libraries above the driver call. */
int fake_holds(const void *address, size_t bytes) {
    Allocation *found = holding(address, bytes);
    return found && !found->host;
}
int fake_queue(CUstream stream, Kernel kernel, int count, const uint64_t *args) {
    static Function library;
    Op op = {.kind = LAUNCH, .function = &library};
    int is_one = 0;
    for (int i = 0; i < 256; i++) is_one |= streams[i] && streams[i] == stream;
    if (!is_one || count > ARGUMENTS) return 400;
    library.kernel = kernel;
    memcpy(op.args, args, count * sizeof *args);
    pthread_mutex_lock(&lock);
    queue(stream, op);
    pthread_mutex_unlock(&lock);
    return 0;
}

/* The driver. */
CUresult CUDAAPI cuGetErrorName(CUresult code, const char **text) {
    *text = code == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : code == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS"
          : code == 3 ? "CUDA_ERROR_NOT_INITIALIZED" : code == 100 ? "CUDA_ERROR_NO_DEVICE" : NULL;
    return *text ? 0 : 1;
}

CUresult CUDAAPI cuInit(unsigned flags) {
    (void)flags;
    ENTER(0);
    if (!devices) return 100;
    if (!started) { started = 1; owner = getpid(); }
    return 0;
}

CUresult CUDAAPI cuDeviceGetCount(int *count) { ENTER(0); *count = devices; return 0; }

CUresult CUDAAPI cuDeviceGet(CUdevice *device, int index) {
    ENTER(0);
    if (index < 0 || index >= devices) return 101;
    *device = index;
    return 0;
}

CUresult CUDAAPI cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    ENTER(0);
    *value = attribute == 75 ? major[device] : attribute == 76 ? minor[device] : attribute == 16 ? 4 : 0;
    return 0;
}

CUresult CUDAAPI cuDeviceGetPCIBusId(char *text, int room, CUdevice device) {
    ENTER(0);
    snprintf(text, room, "0000:%02x:00.0", 16 + device);
    return 0;
}

CUresult CUDAAPI cuDeviceGetName(char *text, int room, CUdevice device) {
    ENTER(0);
    snprintf(text, room, "Fake %d", device);
    return 0;
}

CUresult CUDAAPI cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    ENTER(0);
    if (lost[device]) return lost[device];
    retained[device]++;
    contexts[device].device = device;
    *context = &contexts[device];
    return 0;
}

CUresult CUDAAPI cuDevicePrimaryCtxRelease_v2(CUdevice device) { ENTER(0); retained[device]--; return 0; }

CUresult CUDAAPI cuCtxSetCurrent(CUcontext context) {
    ENTER(0);
    current = context;
    return 0;
}

CUresult CUDAAPI cuCtxGetCurrent(CUcontext *context) {
    ENTER(0);
    *context = current;
    return 0;
}

static CUresult take(void **address, size_t bytes, int host) {
    if (!bytes) return 1;
    if (!host && bytes_free >= 0 && (long)bytes > bytes_free) return 2;
    for (int i = 0; i < ALLOCATIONS; i++)
        if (!memory[i].base) {
            if (posix_memalign(address, 512, bytes)) return 2;
            memset(*address, 0xcd, bytes);
            memory[i] = (Allocation){*address, bytes, current->device, host};
            if (!host && bytes_free >= 0) bytes_free -= bytes;
            return 0;
        }
    return 2;
}

static CUresult give(void *address, int host) {
    drain_all();
    for (int i = 0; i < ALLOCATIONS; i++)
        if (memory[i].base && memory[i].base == address && memory[i].host == host) {
            if (!host && bytes_free >= 0) bytes_free += memory[i].bytes;
            memset(address, 0xdd, memory[i].bytes);
            free(address);
            memory[i].base = NULL;
            return 0;
        }
    return 1;
}

CUresult CUDAAPI cuMemAlloc_v2(CUdeviceptr *address, size_t bytes) {
    ENTER(1);
    return take((void **)address, bytes, 0);
}
CUresult CUDAAPI cuMemFree_v2(CUdeviceptr address) { ENTER(1); return give((void *)(uintptr_t)address, 0); }
CUresult CUDAAPI cuMemHostAlloc(void **address, size_t bytes, unsigned flags) {
    (void)flags;
    ENTER(1);
    return take(address, bytes, 1);
}
CUresult CUDAAPI cuMemFreeHost(void *address) { ENTER(1); return give(address, 1); }

static CUresult copy(CUstream stream, void *to, const void *from, size_t bytes, const void *on_device) {
    Allocation *found = holding(on_device, bytes);
    if (!found || found->host) return 1;
    queue(real(stream), (Op){.kind = COPY, .to = to, .from = from, .bytes = bytes});
    return 0;
}

CUresult CUDAAPI cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream stream) {
    ENTER(1);
    return copy(stream, (void *)(uintptr_t)to, from, bytes, (void *)(uintptr_t)to);
}
CUresult CUDAAPI cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream stream) {
    ENTER(1);
    return copy(stream, to, (void *)(uintptr_t)from, bytes, (void *)(uintptr_t)from);
}
CUresult CUDAAPI cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes) {
    ENTER(1);
    Allocation *found = holding((void *)(uintptr_t)from, bytes);
    if (!found || found->host) return 1;
    memcpy(to, (void *)(uintptr_t)from, bytes);
    return 0;
}
CUresult CUDAAPI cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    ENTER(1);
    return copy(stream, (void *)(uintptr_t)to, (void *)(uintptr_t)from, bytes, (void *)(uintptr_t)to);
}

CUresult CUDAAPI cuStreamCreate(CUstream *stream, unsigned flags) {
    (void)flags;
    ENTER(1);
    *stream = calloc(1, sizeof(Stream));
    (*stream)->device = current->device;
    for (int i = 0; i < 256; i++) if (!streams[i]) { streams[i] = *stream; break; }
    live_streams++;
    return 0;
}
CUresult CUDAAPI cuStreamDestroy_v2(CUstream stream) {
    ENTER(1);
    drain(stream);
    for (int i = 0; i < 256; i++) if (streams[i] == stream) streams[i] = NULL;
    free(stream->queue.ops); free(stream->captured.ops); free(stream);
    live_streams--;
    return 0;
}
CUresult CUDAAPI cuStreamSynchronize(CUstream stream) {
    ENTER(1);
    if (stream->capturing) return 900;
    drain(real(stream));
    return 0;
}
CUresult CUDAAPI cuStreamWaitEvent(CUstream stream, CUevent event, unsigned flags) {
    (void)flags;
    ENTER(1);
    if (event->recorded) queue(real(stream), (Op){.kind = WAIT, .event = event, .number = event->recorded});
    return 0;
}

CUresult CUDAAPI cuEventCreate(CUevent *event, unsigned flags) {
    ENTER(1);
    *event = calloc(1, sizeof(Event));
    (*event)->timed = !(flags & 2);
    live_events++;
    return 0;
}
CUresult CUDAAPI cuEventDestroy_v2(CUevent event) { ENTER(1); drain_all(); free(event); live_events--; return 0; }
CUresult CUDAAPI cuEventRecord(CUevent event, CUstream stream) {
    ENTER(1);
    event->last = real(stream);
    queue(event->last, (Op){.kind = RECORD, .event = event, .number = ++event->recorded});
    return 0;
}
CUresult CUDAAPI cuEventSynchronize(CUevent event) {
    ENTER(1);
    while (event->done < event->recorded) drain(event->last);
    return 0;
}
CUresult CUDAAPI cuEventElapsedTime(float *ms, CUevent from, CUevent to) {
    ENTER(1);
    if (!from->timed || !to->timed) return 400;
    if (from->done < from->recorded || to->done < to->recorded) return 600;
    *ms = event_ms;
    return 0;
}

CUresult CUDAAPI cuModuleLoadData(CUmodule *module, const void *image) {
    ENTER(1);
    if (!image || !*(const char *)image) return 200;
    *module = calloc(1, sizeof(Module));
    live_modules++;
    return 0;
}
CUresult CUDAAPI cuModuleUnload(CUmodule module) {
    ENTER(1);
    drain_all();
    for (int i = 0; i < module->functions; i++) free(module->all[i]);
    free(module);
    live_modules--;
    return 0;
}
CUresult CUDAAPI cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    ENTER(1);
    Function *made = calloc(1, sizeof(Function));
    snprintf(made->name, sizeof made->name, "%s", name);
    for (int i = 0; i < known; i++)
        if (!strcmp(registered[i].name, name)) { made->count = registered[i].count; made->kernel = registered[i].kernel; }
    module->all[module->functions++] = made;
    *function = made;
    return 0;
}
CUresult CUDAAPI cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
    ENTER(1);
    if (!function || attribute != 8 || value <= 0) return 1;
    function->shared = value;
    return 0;
}
CUresult CUDAAPI cuLaunchKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                                unsigned bz, unsigned shared, CUstream stream, void **arguments, void **extra) {
    (void)extra;
    ENTER(1);
    if (shared > 49152 && (int)shared > function->shared) return 1;
    if (!gx || !gy || !gz || !bx || !by || !bz || bx * by * bz > 1024) return 1;
    Op op = {.kind = LAUNCH, .function = function};
    for (int i = 0; i < function->count; i++) {
        op.args[i] = *(uint64_t *)arguments[i];
        if (op.args[i] % 16) return 1; /* a kernel may load 16 bytes at once */
    }
    queue(real(stream), op);
    return 0;
}

CUresult CUDAAPI cuStreamBeginCapture_v2(CUstream stream, CUstreamCaptureMode mode) {
    (void)mode;
    ENTER(1);
    if (stream->capturing) return 900;
    stream->capturing = 1;
    return 0;
}
CUresult CUDAAPI cuStreamEndCapture(CUstream stream, CUgraph *graph) {
    ENTER(1);
    if (!stream->capturing) return 903;
    stream->capturing = 0;
    *graph = calloc(1, sizeof(Graph));
    (*graph)->queue = stream->captured;
    stream->captured = (Queue){0};
    live_graphs++;
    return 0;
}
CUresult CUDAAPI cuGraphInstantiateWithFlags(CUgraphExec *ready, CUgraph graph, unsigned long long flags) {
    (void)flags;
    ENTER(1);
    *ready = calloc(1, sizeof(GraphExec));
    for (size_t i = 0; i < graph->queue.count; i++) push(&(*ready)->queue, graph->queue.ops[i]);
    live_execs++;
    return 0;
}
CUresult CUDAAPI cuGraphDestroy(CUgraph graph) { ENTER(1); free(graph->queue.ops); free(graph); live_graphs--; return 0; }
CUresult CUDAAPI cuGraphExecDestroy(CUgraphExec graph) {
    ENTER(1);
    free(graph->queue.ops); free(graph);
    live_execs--;
    return 0;
}
CUresult CUDAAPI cuGraphLaunch(CUgraphExec graph, CUstream stream) {
    ENTER(1);
    for (size_t i = 0; i < graph->queue.count; i++) queue(real(stream), graph->queue.ops[i]);
    return 0;
}
