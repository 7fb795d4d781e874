/*
 * A stand-in for NVIDIA's driver library, for tests: the functions that the package, cuda-core and cuda-bindings ask for, on host memory.
 *
 * Work on streams is queued and runs when something waits for it, as late as CUDA allows, so that a missing synchronisation shows.
 * Device memory is filled with 0xA5, and freed memory is never handed out again. Nothing here is fast.
 *
 * Read from the environment: STUB_CUDA_DEVICES (1, at most 8), STUB_CUDA_MEMORY (bytes of each GPU, 4 GiB), STUB_CUDA_HOST_MEMORY (bytes
 * that may be page-locked, 4 GiB), STUB_CUDA_VERSION (13030), STUB_CUDA_CAPABILITY (8.9), STUB_CUDA_INIT (what cuInit returns, 0),
 * STUB_CUDA_SHARED (bytes of shared memory that a block may have, 99 KiB), STUB_CUDA_KERNELS (a library whose shim_launch runs kernels;
 * without one a launch is only noted), STUB_CUDA_KERNEL_ARGUMENT (see stub_cuda_module.h), STUB_CUDA_ORDER and STUB_CUDA_SEED (what that
 * library is told, 0).
 * For tests alone: stub_cuda_live, stub_cuda_calls, stub_cuda_accessible, stub_cuda_launches, stub_cuda_fail, stub_cuda_forget.
 */
#include "stub_cuda_queue.h"
#include "stub_cuda_module.h"

/* The driver and its devices */

static const struct { int code; const char *name; } NAMES[] = {
    {OK, "CUDA_SUCCESS"}, {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"}, {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED"}, {NO_DEVICE, "CUDA_ERROR_NO_DEVICE"}, {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"}, {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE"}, {NOT_FOUND, "CUDA_ERROR_NOT_FOUND"},
    {NOT_READY, "CUDA_ERROR_NOT_READY"}, {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS"}, {NOT_PERMITTED, "CUDA_ERROR_NOT_PERMITTED"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE"}, {NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED"},
    {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"}, {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
    {CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"}, {CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED"},
    {CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION"}, {CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT"},
    {WRONG_THREAD, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD"},
};
API cuGetErrorName(int code, const char **text) {
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++) if (NAMES[i].code == code) return *text = NAMES[i].name, OK;
    return *text = NULL, INVALID_VALUE;
}
API cuGetErrorString(int code, const char **text) { return cuGetErrorName(code, text); }
API cuInit(unsigned flags) {
    int code = flags ? INVALID_VALUE : (int)setting("STUB_CUDA_INIT", device_count() ? OK : NO_DEVICE);
    if (!code) for (int i = 0; i < MANY; i++) contexts[i].device = i;
    return ready = !code, code;
}
API cuDriverGetVersion(int *version) { return *version = (int)setting("STUB_CUDA_VERSION", 13030), OK; }
API cuDeviceGetCount(int *count) { BEGIN(0); *count = device_count(); END(OK); }
API cuDeviceGet(int *device, int index) { BEGIN(0); *device = index; END(index >= 0 && index < device_count() ? OK : INVALID_DEVICE); }
API cuDeviceGetName(char *name, int size, int device) { BEGIN(0); snprintf(name, size, "Stub GPU %d", device); END(OK); }
API cuDeviceGetUuid_v2(char *uuid, int device) { BEGIN(0); memset(uuid, device + 1, 16); END(OK); }
API cuDeviceTotalMem_v2(size_t *size, int device) { (void)device; BEGIN(0); *size = total(); END(OK); }
API cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    BEGIN(0);
    int major, minor;
    capability(&major, &minor);
    *value = attribute == 75 ? major : attribute == 76 ? minor : attribute == 41; /* 41: one address space for host and device */
    END(OK);
}
API cuDeviceComputeCapability(int *major, int *minor, int device) { (void)device; BEGIN(0); capability(major, minor); END(OK); }
API cuDevicePrimaryCtxRetain(Context **context, int device) {
    BEGIN(0);
    if (device < 0 || device >= device_count()) END(INVALID_DEVICE);
    contexts[device].retained++, *context = &contexts[device];
    END(OK);
}
API cuDevicePrimaryCtxRelease_v2(int device) {
    BEGIN(0);
    END(contexts[device].retained ? contexts[device].retained--, OK : INVALID_CONTEXT);
}
API cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    BEGIN(0);
    *flags = 0, *active = contexts[device].retained > 0;
    END(OK);
}
API cuCtxGetCurrent(Context **context) { BEGIN(0); *context = current(); END(OK); }
API cuCtxSetCurrent(Context *context) { BEGIN(0); depth -= depth > 0; if (context) stack[depth++] = context; END(OK); }
API cuCtxPushCurrent_v2(Context *context) {
    BEGIN(0);
    if (!context || !context->retained || depth == 16) END(INVALID_CONTEXT);
    stack[depth++] = context;
    END(OK);
}
API cuCtxPopCurrent_v2(Context **context) {
    BEGIN(0);
    if (!depth) END(INVALID_CONTEXT);
    if (context) *context = current();
    depth--;
    END(OK);
}
API cuCtxDetach(Context *context) { (void)context; return INVALID_CONTEXT; } /* which primary contexts do not allow */
API cuCtxGetDevice(int *device) { BEGIN(1); *device = current()->device; END(OK); }
static int context_device(int *device, Context *context) { BEGIN(0); *device = context->device; END(OK); }
API cuCtxGetStreamPriorityRange(int *least, int *greatest) { BEGIN(1); *least = 0, *greatest = -5; END(OK); }
API cuCtxSynchronize(void) {
    BEGIN_RUN;
    int code = forbidden();
    for (Object *o = objects; o && !code; o = o->older) if (o->kind == STREAM && o->device == current()->device) run(o, NULL, 0);
    END_RUN(code ? code : current()->fault);
}

/* Memory */

static int allocate(void **address, size_t size, int kind, size_t *used, size_t most) {
    int code = forbidden();
    if (code || !size || !address) return code ? code : INVALID_VALUE;
    if (size > most || *used > most - size) return OUT_OF_MEMORY;
    void *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return OUT_OF_MEMORY;
    memset(base, 0xA5, size < (64 << 20) ? size : 64 << 20);
    Object *made = make(kind, 0);
    made->base = *address = base, made->size = size, *used += size;
    return OK;
}
static int give_back(void *address, int kind, size_t *used_of_one) {
    int code = forbidden();
    if (code || !address) return code;
    Object *o = memory(address, 1);
    if (!o || o->kind != kind || o->base != address) return INVALID_VALUE;
    *(used_of_one ? used_of_one : &contexts[o->device].used) -= o->size;
    o->alive = 0;
    mmap(o->base, o->size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0); /* the address stays taken */
    return OK;
}
API cuMemAlloc_v2(void **address, size_t size) { BEGIN(1); END(allocate(address, size, DEVICE_MEMORY, &current()->used, total())); }
API cuMemFree_v2(void *address) { BEGIN(1); END(give_back(address, DEVICE_MEMORY, NULL)); }
API cuMemHostAlloc(void **address, size_t size, unsigned flags) {
    (void)flags;
    BEGIN(1);
    END(allocate(address, size, PINNED_MEMORY, &pinned, setting("STUB_CUDA_HOST_MEMORY", 4LL << 30)));
}
API cuPointerGetAttribute(int *value, int attribute, void *address) { /* 9: the number of its device; 2: 1 for the host's memory, 2 for a GPU's */
    BEGIN(1);
    Object *o = memory(address, 1);
    if (o && attribute == 9) *value = o->device;
    if (o && attribute == 2) *value = o->kind == DEVICE_MEMORY ? 2 : 1;
    END(o && (attribute == 9 || attribute == 2) ? OK : INVALID_VALUE);
}
API cuMemAllocHost_v2(void **address, size_t size) { return cuMemHostAlloc(address, size, 0); }
API cuMemFreeHost(void *address) { BEGIN(1); END(give_back(address, PINNED_MEMORY, &pinned)); }
API cuMemGetInfo_v2(size_t *available, size_t *all) { BEGIN(1); *all = total(), *available = *all - current()->used; END(OK); }
static Op copy(void *target, const void *source, size_t size, int to_device, int from_device) {
    return (Op){.kind = COPY, .target = target, .source = source, .size = size, .to_device = to_device, .from_device = from_device};
}
API cuMemcpyHtoDAsync_v2(void *target, const void *source, size_t size, Object *stream) {
    BEGIN(1);
    END(enqueue(stream_of(stream), copy(target, source, size, 1, 0)));
}
API cuMemcpyDtoHAsync_v2(void *target, const void *source, size_t size, Object *stream) {
    BEGIN(1);
    END(enqueue(stream_of(stream), copy(target, source, size, 0, 1)));
}
API cuMemcpyDtoDAsync_v2(void *target, const void *source, size_t size, Object *stream) {
    BEGIN(1);
    END(enqueue(stream_of(stream), copy(target, source, size, 1, 1)));
}
static int copy_now(Op op) {
    int code = enqueue(stream_of(NULL), op);
    if (!code) run_with_default(stream_of(NULL));
    return code ? code : current()->fault;
}
API cuMemcpyHtoD_v2(void *target, const void *source, size_t size) { BEGIN_RUN; END_RUN(copy_now(copy(target, source, size, 1, 0))); }
API cuMemcpyDtoH_v2(void *target, const void *source, size_t size) { BEGIN_RUN; END_RUN(copy_now(copy(target, source, size, 0, 1))); }
API cuMemsetD8Async(void *target, unsigned char value, size_t size, Object *stream) {
    BEGIN(1);
    END(enqueue(stream_of(stream), (Op){.kind = FILL, .target = target, .value = value, .size = size, .to_device = 1}));
}

/* Streams and events */

API cuStreamCreateWithPriority(Object **stream, unsigned flags, int priority) {
    (void)priority;
    BEGIN(1);
    *stream = make(STREAM, flags);
    END(OK);
}
API cuStreamCreate(Object **stream, unsigned flags) { return cuStreamCreateWithPriority(stream, flags, 0); }
API cuStreamDestroy_v2(Object *stream) { BEGIN(0); Object *o = valid(stream, STREAM); if (o) o->alive = 0; END(o ? OK : INVALID_HANDLE); }
/* Both ask for the stream's end; a query answers that it is not reached, then lets it be reached. */
static int stream_end(Object *stream, int waits) {
    Object *o = stream_of(stream);
    if (!o) return INVALID_HANDLE;
    if (o->graph) return o->invalid = 1, CAPTURE_UNSUPPORTED;
    int pending = o->list.next < o->list.count;
    run_with_default(o);
    return current()->fault ? current()->fault : pending && !waits ? NOT_READY : OK;
}
API cuStreamSynchronize(Object *stream) { BEGIN_RUN; END_RUN(stream_end(stream, 1)); }
API cuStreamQuery(Object *stream) { BEGIN_RUN; END_RUN(stream_end(stream, 0)); }
API cuStreamGetFlags(Object *stream, unsigned *flags) {
    BEGIN(1);
    Object *o = stream_of(stream);
    if (o) *flags = o->flags;
    END(o ? OK : INVALID_HANDLE);
}
API cuStreamGetPriority(Object *stream, int *priority) { BEGIN(1); *priority = 0; END(stream_of(stream) ? OK : INVALID_HANDLE); }
API cuStreamGetCtx(Object *stream, Context **context) {
    BEGIN(1);
    Object *o = stream_of(stream);
    if (o) *context = &contexts[o->device];
    END(o ? OK : INVALID_HANDLE);
}
API cuStreamGetCtx_v2(Object *stream, Context **context, void **green) { *green = NULL; return cuStreamGetCtx(stream, context); }
API cuEventCreate(Object **event, unsigned flags) { BEGIN(1); *event = make(EVENT, flags); END(OK); }
API cuEventDestroy_v2(Object *event) { BEGIN(0); Object *o = valid(event, EVENT); if (o) o->alive = 0; END(o ? OK : INVALID_HANDLE); }
API cuEventRecord(Object *event, Object *stream) {
    BEGIN(1);
    Object *e = valid(event, EVENT), *s = stream_of(stream);
    if (!e || !s || e->device != s->device) END(INVALID_HANDLE);
    int code = enqueue(s, (Op){.kind = RECORD, .event = e, .mark = e->asked + 1});
    if (!code) e->asked++, e->stream = s, e->graph = s->graph;
    END(code);
}
API cuEventRecordWithFlags(Object *event, Object *stream, unsigned flags) { (void)flags; return cuEventRecord(event, stream); }
API cuStreamWaitEvent(Object *stream, Object *event, unsigned flags) {
    (void)flags;
    BEGIN(1);
    Object *e = valid(event, EVENT), *s = stream_of(stream);
    if (!e || !s) END(INVALID_HANDLE);
    if (e->graph != s->graph && e->asked) END(s->invalid = 1, CAPTURE_ISOLATION);
    END(e->asked && !s->graph ? enqueue(s, (Op){.kind = WAIT, .event = e, .mark = e->asked}) : OK);
}
static int event_end(Object *event, int waits) {
    Object *o = valid(event, EVENT);
    if (!o) return INVALID_HANDLE;
    if (o->graph) return CAPTURED_EVENT;
    int pending = o->reached < o->asked;
    if (pending) run(o->stream, o, o->asked);
    return current()->fault ? current()->fault : pending && !waits ? NOT_READY : OK;
}
API cuEventSynchronize(Object *event) { BEGIN_RUN; END_RUN(event_end(event, 1)); }
API cuEventQuery(Object *event) { BEGIN_RUN; int code = forbidden(); END_RUN(code ? code : event_end(event, 0)); }
API cuEventElapsedTime_v2(float *milliseconds, Object *earlier, Object *later) {
    BEGIN(1);
    Object *a = valid(earlier, EVENT), *b = valid(later, EVENT);
    if (!a || !b || (a->flags | b->flags) & NO_TIMING || !a->asked || !b->asked) END(INVALID_HANDLE);
    if (a->reached < a->asked || b->reached < b->asked) END(NOT_READY);
    *milliseconds = (float)((b->time.tv_sec - a->time.tv_sec) * 1e3 + (b->time.tv_nsec - a->time.tv_nsec) * 1e-6);
    END(OK);
}
API cuEventElapsedTime(float *milliseconds, Object *earlier, Object *later) { return cuEventElapsedTime_v2(milliseconds, earlier, later); }
API cuLaunchHostFunc(Object *stream, void (*function)(void *), void *data) {
    BEGIN(1);
    END(enqueue(stream_of(stream), (Op){.kind = HOST, .function = function, .target = data}));
}
static int launch_host_mode(Object *stream, void (*function)(void *), void *data, unsigned mode) {
    (void)mode;
    return cuLaunchHostFunc(stream, function, data);
}

/* Capture and graphs */

API cuStreamBeginCapture_v2(Object *stream, int mode) {
    BEGIN(1);
    Object *o = valid(stream, STREAM);
    if (!o || o->graph) END(o ? CAPTURE_UNMATCHED : CAPTURE_UNSUPPORTED);
    o->graph = make(GRAPH, 0), o->mode = mode, o->invalid = 0, o->thread = pthread_self();
    END(OK);
}
API cuStreamEndCapture(Object *stream, Object **graph) {
    BEGIN(1);
    Object *o = valid(stream, STREAM);
    if (graph) *graph = NULL;
    if (!o || !o->graph) END(CAPTURE_UNMATCHED);
    if (o->mode != RELAXED_MODE && !pthread_equal(o->thread, pthread_self())) END(WRONG_THREAD);
    Object *made = o->graph;
    int code = o->invalid ? made->alive = 0, CAPTURE_INVALIDATED : OK;
    if (!code && graph) *graph = made;
    o->graph = NULL, o->invalid = 0;
    END(code);
}
API cuThreadExchangeStreamCaptureMode(int *mode) {
    int before = thread_mode;
    if (*mode < GLOBAL_MODE || *mode > RELAXED_MODE) return INVALID_VALUE;
    return thread_mode = *mode, *mode = before, OK;
}
API cuStreamIsCapturing(Object *stream, int *status) {
    BEGIN(1);
    Object *o = stream_of(stream);
    if (o) *status = o->graph ? 1 + o->invalid : 0;
    END(o ? OK : INVALID_HANDLE);
}
static int capture_info(Object *stream, int *status, uint64_t *id, Object **graph, void **nodes, void **edges, size_t *count) {
    int code = cuStreamIsCapturing(stream, status);
    if (id) *id = 1;
    if (graph) *graph = code || !*status ? NULL : stream->graph;
    if (nodes) *nodes = NULL;
    if (edges) *edges = NULL;
    if (count) *count = 0;
    return code;
}
static int capture_info_v2(Object *stream, int *status, uint64_t *id, Object **graph, void **nodes, size_t *count) {
    return capture_info(stream, status, id, graph, nodes, NULL, count);
}
API cuGraphDestroy(Object *graph) { BEGIN(0); Object *o = valid(graph, GRAPH); if (o) o->alive = 0; END(o ? OK : INVALID_HANDLE); }
API cuGraphExecDestroy(Object *exec) { BEGIN(0); Object *o = valid(exec, EXEC); if (o) o->alive = 0; END(o ? OK : INVALID_HANDLE); }
API cuGraphInstantiateWithFlags(Object **exec, Object *graph, unsigned long long flags) {
    (void)flags;
    BEGIN(1);
    Object *o = valid(graph, GRAPH);
    if (!o) END(INVALID_VALUE);
    *exec = make(EXEC, 0);
    for (size_t i = 0; i < o->list.count; i++) append(&(*exec)->list, o->list.ops[i]);
    END(OK);
}
typedef struct { uint64_t flags; void *upload_stream, *failed_node; int result; } Wanted;
API cuGraphInstantiateWithParams(Object **exec, Object *graph, Wanted *wanted) {
    wanted->result = 0;
    return cuGraphInstantiateWithFlags(exec, graph, wanted->flags);
}
API cuGraphLaunch(Object *exec, Object *stream) {
    BEGIN(1);
    Object *o = valid(exec, EXEC), *s = stream_of(stream);
    if (!o || !s) END(INVALID_HANDLE);
    for (size_t i = 0; i < o->list.count; i++) { /* addresses count when it runs, as on a GPU */
        if (s->graph) append(&s->graph->list, o->list.ops[i]); else append(&s->list, o->list.ops[i]);
    }
    END(OK);
}

/* For tests: how many of `kind` there are, how often a function was called, whether the bytes are the GPU's or page-locked and live. */
__attribute__((visibility("default"))) long stub_cuda_live(int kind) {
    long count = 0;
    pthread_mutex_lock(&lock);
    for (Object *o = objects; o; o = o->older) count += o->kind == kind && o->alive == 1;
    pthread_mutex_unlock(&lock);
    return count;
}
__attribute__((visibility("default"))) long stub_cuda_calls(const char *name) {
    for (int i = 0; i < 256; i++) if (!strcmp(calls[i].name, name)) return calls[i].count;
    return 0;
}
API stub_cuda_accessible(const void *address, size_t size) {
    pthread_mutex_lock(&lock);
    int found = memory(address, size) != NULL;
    pthread_mutex_unlock(&lock);
    return found;
}

/* From now on everything on this GPU, or on the one whose work calls this, fails with `code`. */
API stub_cuda_fail(int code) {
    Context *context = in_callback ? running : current();
    if (context) context->fault = code;
    return context ? OK : INVALID_CONTEXT;
}

/* Nothing that exists now counts as live any more: what a lost GPU could not give back. */
__attribute__((visibility("default"))) void stub_cuda_forget(void) {
    pthread_mutex_lock(&lock);
    for (Object *o = objects; o; o = o->older) if (o->alive == 1) o->alive = 2;
    pthread_mutex_unlock(&lock);
}

/* What the bindings ask for: the newest version of a function that is not newer than they know. */
static const struct { const char *name; int version; void *function; } TABLE[] = {
#define F(name) {#name, 0, name}
#define F2(name) {#name, 0, name##_v2}
    F(cuGetErrorName), F(cuGetErrorString), F(cuInit), F(cuDriverGetVersion), F(cuDeviceGetCount), F(cuDeviceGet), F(cuDeviceGetName),
    F2(cuDeviceGetUuid), F2(cuDeviceTotalMem), F(cuDeviceGetAttribute), F(cuDevicePrimaryCtxRetain), F2(cuDevicePrimaryCtxRelease),
    F(cuDevicePrimaryCtxGetState), F(cuCtxGetCurrent), F(cuCtxSetCurrent), F2(cuCtxPushCurrent), F2(cuCtxPopCurrent), F(cuCtxGetDevice),
    {"cuCtxGetDevice", 13000, context_device}, F(cuCtxGetStreamPriorityRange), F(cuCtxSynchronize), F2(cuMemAlloc), F2(cuMemFree),
    F(cuMemHostAlloc), F2(cuMemAllocHost), F(cuMemFreeHost), F2(cuMemGetInfo), F2(cuMemcpyHtoDAsync), F2(cuMemcpyDtoHAsync),
    F2(cuMemcpyDtoDAsync), F2(cuMemcpyHtoD), F2(cuMemcpyDtoH), F(cuMemsetD8Async), F(cuPointerGetAttribute), F(cuStreamCreate), F(cuStreamCreateWithPriority),
    F2(cuStreamDestroy), F(cuStreamSynchronize), F(cuStreamQuery), F(cuStreamGetFlags), F(cuStreamGetPriority), F(cuStreamGetCtx),
    {"cuStreamGetCtx", 12050, cuStreamGetCtx_v2}, F(cuStreamWaitEvent), F(cuEventCreate), F2(cuEventDestroy), F(cuEventRecord),
    F(cuEventRecordWithFlags), F(cuEventQuery), F(cuEventSynchronize), F2(cuEventElapsedTime), F(cuLaunchHostFunc),
    {"cuLaunchHostFunc", 13020, launch_host_mode}, F2(cuStreamBeginCapture), F(cuStreamEndCapture), F(cuStreamIsCapturing),
    {"cuStreamGetCaptureInfo", 11030, capture_info_v2}, {"cuStreamGetCaptureInfo", 12030, capture_info}, F(cuGraphDestroy),
    F(cuGraphExecDestroy), F(cuGraphInstantiateWithFlags), F(cuGraphInstantiateWithParams), F(cuGraphLaunch),
    F(cuModuleLoadData), F(cuModuleUnload), F(cuModuleGetFunction), F(cuFuncLoad), F(cuFuncGetParamInfo), F(cuFuncSetAttribute),
    F(cuLaunchKernel),
};
API cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *status) {
    (void)flags;
    *function = strcmp(name, "cuGetProcAddress") ? NULL : cuGetProcAddress_v2; /* cuda-bindings 12.9.0 asks for this one too */
    for (size_t i = 0; i < sizeof TABLE / sizeof *TABLE; i++)
        if (!strcmp(TABLE[i].name, name) && TABLE[i].version <= version) *function = TABLE[i].function;
    if (status) *status = *function ? 0 : 1;
    return *function ? OK : NOT_FOUND;
}
