/* The stand-in's state: contexts, everything that has a handle or an address, and work that waits to be run. */
#pragma once
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define API __attribute__((visibility("default"))) int
enum {
    OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201, NO_BINARY_FOR_GPU = 209, INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700,
    LAUNCH_FAILED = 719, NOT_PERMITTED = 800, CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901, CAPTURE_UNMATCHED = 903, CAPTURE_ISOLATION = 905, CAPTURED_EVENT = 907, WRONG_THREAD = 908
};
enum { DEVICE_MEMORY, PINNED_MEMORY, STREAM, EVENT, GRAPH, EXEC, MODULE, FUNCTION };
enum { COPY, FILL, HOST, LAUNCH, RECORD, WAIT };
enum { GLOBAL_MODE, THREAD_MODE, RELAXED_MODE };
enum { NONBLOCKING = 1, NO_TIMING = 2, MANY = 8 };

typedef struct object Object;
typedef struct {
    int kind, value, to_device, from_device, staged;
    void *target;
    const void *source;
    size_t size;
    void (*function)(void *);
    Object *event;           /* of RECORD and WAIT; the function of LAUNCH, whose argument is `source` */
    uint64_t mark;
    unsigned numbers[5];     /* LAUNCH: blocks in x, y and z, threads, bytes of shared memory */
} Op;
typedef struct { Op *ops; size_t count, room, next; } List;
struct object {              /* whatever a handle or an address names; objects stay in the list after their end, to tell late uses */
    Object *older;
    int kind, alive, device, flags;
    char *base;              /* memory; module: its image; function: its name */
    size_t size;
    List list;               /* stream: queued work; graph and exec: recorded work */
    Object *graph;           /* stream: what it is recorded into; event: where it was recorded */
    int mode, invalid;       /* stream: of its capture */
    pthread_t thread;
    Object *stream;          /* event: where it was last recorded; function: its module */
    uint64_t asked, reached; /* event: marks */
    struct timespec time;
};
typedef struct { int device, retained, fault; size_t used; Object *null_stream; } Context;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;                /* state */
static pthread_mutex_t runner = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP; /* whoever runs queued work; taken before `lock` */
static Object *objects;
static Context contexts[MANY];
static struct { char name[48]; long count; } calls[256];
static size_t pinned;
static int ready;
static __thread Context *stack[16];
static __thread int depth, in_callback;
static __thread Context *running; /* in a callback: whose work called it */

static long long setting(const char *name, long long otherwise) {
    const char *text = getenv(name);
    return text && *text ? strtoll(text, NULL, 10) : otherwise;
}
static long long total(void) { return setting("STUB_CUDA_MEMORY", 4LL << 30); }
static int device_count(void) { return (int)setting("STUB_CUDA_DEVICES", 1); }
static void capability(int *major, int *minor) {
    const char *text = getenv("STUB_CUDA_CAPABILITY");
    *major = 8, *minor = 9;
    if (text) sscanf(text, "%d.%d", major, minor);
}
static Context *current(void) { return depth ? stack[depth - 1] : NULL; }

/* Every call begins here: counts it, and takes the locks that `leave` gives back. */
static int enter(const char *name, int wants_context, int runs) {
    if (runs) pthread_mutex_lock(&runner);
    pthread_mutex_lock(&lock);
    int index = 0, refused = OK;
    while (index < 255 && *calls[index].name && strcmp(calls[index].name, name)) index++;
    snprintf(calls[index].name, sizeof calls[index].name, "%s", name);
    calls[index].count++;
    if (in_callback) refused = NOT_PERMITTED; /* CUDA forbids calls from host functions */
    else if (!ready) refused = NOT_INITIALIZED;
    else if (wants_context && (!current() || !current()->retained)) refused = INVALID_CONTEXT;
    else if (wants_context) refused = current()->fault;
    if (refused) {
        pthread_mutex_unlock(&lock);
        if (runs) pthread_mutex_unlock(&runner);
    }
    return refused;
}
static int leave(int code, int runs) {
    pthread_mutex_unlock(&lock);
    if (runs) pthread_mutex_unlock(&runner);
    return code;
}
#define BEGIN(context) do { int refused = enter(__func__, context, 0); if (refused) return refused; } while (0)
#define END(...) return leave((__VA_ARGS__), 0)
#define BEGIN_RUN do { int refused = enter(__func__, 1, 1); if (refused) return refused; } while (0)
#define END_RUN(...) return leave((__VA_ARGS__), 1)

static Object *make(int kind, int flags) {
    Object *made = calloc(1, sizeof *made);
    made->older = objects, made->kind = kind, made->alive = 1, made->flags = flags;
    made->device = current() ? current()->device : 0;
    return objects = made;
}
static Object *valid(const void *handle, int kind) {
    for (Object *o = objects; o; o = o->older) if (o == handle) return o->kind == kind && o->alive ? o : NULL;
    return NULL;
}
static Object *memory(const void *address, size_t size) { /* the live block that holds all these bytes */
    for (Object *o = objects; o; o = o->older)
        if (o->alive && o->kind <= PINNED_MEMORY && o->base <= (char *)address && (char *)address + size <= o->base + o->size) return o;
    return NULL;
}
static int on_device(const void *address, size_t size) { Object *o = memory(address, size); return o && o->kind == DEVICE_MEMORY; }
static Object *stream_of(Object *handle) {
    if ((uintptr_t)handle > 2) return valid(handle, STREAM);
    if (!current()->null_stream) current()->null_stream = make(STREAM, 0), current()->null_stream->alive = 2;
    return current()->null_stream;
}

/* Queued work */

static void append(List *list, Op op) {
    if (list->count == list->room) list->ops = realloc(list->ops, (list->room = list->room ? 2 * list->room : 8) * sizeof op);
    list->ops[list->count++] = op;
}
static void run(Object *stream, Object *event, uint64_t mark);
static const char *run_kernel(const Op *op);
static void execute(Op *op, Object *stream) {
    int *fault = &contexts[stream->device].fault;
    int reachable = (!op->to_device || on_device(op->target, op->size)) && (!op->from_device || on_device(op->source, op->size));
    if (op->kind == WAIT) run(op->event->stream, op->event, op->mark);
    else if (op->kind == RECORD) {
        if (op->mark > op->event->reached) op->event->reached = op->mark, clock_gettime(CLOCK_MONOTONIC, &op->event->time);
    } else if (*fault) ; /* nothing runs after a fault, events are reached */
    else if (!reachable) *fault = ILLEGAL_ADDRESS;
    else if (op->kind == COPY) memmove(op->target, op->source, op->size);
    else if (op->kind == FILL) memset(op->target, op->value, op->size);
    else if (op->kind == HOST) {
        pthread_mutex_unlock(&lock); /* the function may wait for a thread that calls us */
        in_callback = 1, running = &contexts[stream->device];
        op->function(op->target);
        in_callback = 0;
        pthread_mutex_lock(&lock);
    }
    else if (op->kind == LAUNCH) {
        pthread_mutex_unlock(&lock);
        in_callback = 1;
        const char *told = run_kernel(op);
        in_callback = 0;
        pthread_mutex_lock(&lock);
        if (told) *fault = LAUNCH_FAILED, fprintf(stderr, "%s: %s\n", op->event->base, told);
    }
    if (op->staged) free((void *)op->source);
}
/* Run the stream's work, up to a mark where `event` is given. */
static void run(Object *stream, Object *event, uint64_t mark) {
    while (stream && stream->list.next < stream->list.count && !(event && event->reached >= mark)) {
        Op op = stream->list.ops[stream->list.next++];
        execute(&op, stream);
    }
    if (stream && stream->list.next == stream->list.count) stream->list.next = stream->list.count = 0;
}
/* The default stream and the streams that wait for it go in step, though not in the order of their work. */
static void run_with_default(Object *stream) {
    Object *null = contexts[stream->device].null_stream;
    if (stream == null || !(stream->flags & NONBLOCKING)) {
        run(null, NULL, 0);
        for (Object *o = objects; o; o = o->older)
            if (o->kind == STREAM && o->device == stream->device && !(o->flags & NONBLOCKING)) run(o, NULL, 0);
    }
    run(stream, NULL, 0);
}
static int enqueue(Object *stream, Op op) {
    if (!stream || stream->device != current()->device) return INVALID_HANDLE;
    if ((op.to_device && !on_device(op.target, op.size)) || (op.from_device && !on_device(op.source, op.size))) return INVALID_VALUE;
    if (stream->graph && stream->invalid) return CAPTURE_INVALIDATED;
    if (stream->graph) return append(&stream->graph->list, op), OK;
    if (op.kind == COPY && op.to_device && !op.from_device && !memory(op.source, op.size)) { /* pageable: staged now */
        void *copy = malloc(op.size + 1);
        op.source = memcpy(copy, op.source, op.size), op.staged = 1;
    }
    return append(&stream->list, op), OK;
}
/* What a capture in progress forbids, as its mode and the thread's own say, ends that capture. */
static __thread int thread_mode; /* GLOBAL_MODE at first */
static int forbidden(void) {
    int found = OK;
    if (thread_mode == RELAXED_MODE) return OK;
    for (Object *o = objects; o; o = o->older) {
        if (o->kind != STREAM || !o->alive || !o->graph) continue;
        if (o->mode == RELAXED_MODE || (o->mode == THREAD_MODE && !pthread_equal(o->thread, pthread_self()))) continue;
        o->invalid = 1, found = CAPTURE_UNSUPPORTED;
    }
    return found;
}
