/*
 * Modules and kernels of the stand-in. A module is a real cubin, which is read for its architecture, its kernels and the size of their
 * argument, or a text: "STUB 89 name:size name:size" is a module for sm_89 with these kernels, "STUB 89" one with those that the library
 * STUB_CUDA_KERNELS knows, or with any, of STUB_CUDA_KERNEL_ARGUMENT bytes.
 */
#include <dlfcn.h>
#include <elf.h>
#include "stub_cuda_queue.h"

static struct { char name[64]; unsigned numbers[5]; } *launched; /* what ran: blocks in x, y and z, threads, shared bytes */
static long launch_count;

typedef const char *Launch(const char *, unsigned, unsigned, unsigned, unsigned, unsigned, int, unsigned, const void *);
static void *kernel_library(const char *symbol) {
    static void *library;
    const char *path = getenv("STUB_CUDA_KERNELS");
    if (!path || !*path) return NULL;
    if (!library) library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) fprintf(stderr, "stub_cuda: %s\n", dlerror());
    return library ? dlsym(library, symbol) : NULL;
}
/* Run a launch that the stream got to: NULL, or what went wrong. */
static const char *run_kernel(const Op *op) {
    launched = realloc(launched, (launch_count + 1) * sizeof *launched);
    snprintf(launched[launch_count].name, sizeof launched->name, "%s", op->event->base);
    memcpy(launched[launch_count++].numbers, op->numbers, sizeof op->numbers);
    Launch *launch = (Launch *)kernel_library("shim_launch");
    if (!launch) return getenv("STUB_CUDA_KERNELS") ? "STUB_CUDA_KERNELS has no shim_launch" : NULL;
    const unsigned *n = op->numbers;
    int order = (int)setting("STUB_CUDA_ORDER", 0);
    return launch(op->event->base, n[0], n[1], n[2], n[3], n[4], order, (unsigned)setting("STUB_CUDA_SEED", 0), op->source);
}

static int is_cubin(const char *image) { return !memcmp(image, ELFMAG, SELFMAG); }
static size_t image_size(const char *image) {
    const Elf64_Ehdr *head = (const void *)image;
    if (!is_cubin(image)) return strlen(image) + 1;
    const Elf64_Shdr *sections = (const void *)(image + head->e_shoff);
    size_t end = head->e_shoff + head->e_shnum * sizeof *sections;
    for (int i = 0; i < head->e_shnum; i++)
        if (sections[i].sh_type != SHT_NOBITS && sections[i].sh_offset + sections[i].sh_size > end) end = sections[i].sh_offset + sections[i].sh_size;
    return end;
}
/* The SM number that the image was compiled for; 0 where it is no image. */
static int image_architecture(const char *image) {
    const Elf64_Ehdr *head = (const void *)image;
    int number = 0;
    if (!is_cubin(image)) return sscanf(image, "STUB %d", &number) == 1 ? number : 0;
    return head->e_machine != 190 ? 0 : image[EI_ABIVERSION] >= 8 ? head->e_flags >> 8 & 0xff : head->e_flags & 0xff; /* 190: EM_CUDA */
}
/* Bytes of the kernel's argument; -1 where there is no such kernel. */
static long argument_size(const char *image, const char *kernel) {
    if (!is_cubin(image)) {
        char wanted[80];
        const char *list = strchr(image + 5, ' ');
        long (*tell)(const char *) = (long (*)(const char *))kernel_library("shim_argument_size");
        if (!list) return tell ? tell(kernel) : setting("STUB_CUDA_KERNEL_ARGUMENT", 0);
        snprintf(wanted, sizeof wanted, " %s:", kernel);
        list = strstr(list, wanted);
        return list ? strtol(list + strlen(wanted), NULL, 10) : -1;
    }
    const Elf64_Ehdr *head = (const void *)image;
    const Elf64_Shdr *sections = (const void *)(image + head->e_shoff);
    const char *names = image + sections[head->e_shstrndx].sh_offset;
    for (int i = 0; i < head->e_shnum; i++) {
        const char *name = names + sections[i].sh_name;
        if (strncmp(name, ".nv.info.", 9) || strcmp(name + 9, kernel)) continue;
        const unsigned char *at = (const void *)(image + sections[i].sh_offset), *end = at + sections[i].sh_size;
        for (; at < end; at += 4 + (at[0] == 4 ? at[2] | at[3] << 8 : 0)) /* format, attribute, value or the size of what follows */
            if (at[0] == 3 && at[1] == 0x19) return at[2] | at[3] << 8; /* EIATTR_CBANK_PARAM_SIZE */
        return 0;
    }
    return -1;
}

API cuModuleLoadData(Object **module, const void *image) {
    BEGIN(1);
    int major, minor, made_for = image_architecture(image);
    capability(&major, &minor);
    if (!made_for) END(INVALID_IMAGE);
    if (made_for / 10 != major || made_for % 10 > minor) END(NO_BINARY_FOR_GPU);
    size_t size = image_size(image);
    *module = make(MODULE, 0), (*module)->base = memcpy(malloc(size), image, size);
    END(OK);
}
API cuModuleUnload(Object *module) { BEGIN(1); Object *o = valid(module, MODULE); if (o) o->alive = 0; END(o ? OK : INVALID_HANDLE); }
API cuModuleGetFunction(Object **function, Object *module, const char *name) {
    BEGIN(1);
    Object *m = valid(module, MODULE);
    long size = m ? argument_size(m->base, name) : 0;
    if (!m || size < 0) END(m ? NOT_FOUND : INVALID_HANDLE);
    *function = make(FUNCTION, 48 << 10), (*function)->base = strdup(name), (*function)->size = size, (*function)->stream = m;
    END(OK);
}
static Object *kernel_of(Object *handle) {
    Object *o = valid(handle, FUNCTION);
    return o && o->stream->alive ? o : NULL;
}
API cuFuncLoad(Object *function) { BEGIN(1); END(kernel_of(function) ? OK : INVALID_HANDLE); }
API cuFuncGetParamInfo(Object *function, size_t index, size_t *offset, size_t *size) {
    BEGIN(1);
    Object *f = kernel_of(function);
    if (!f || index) END(f ? INVALID_VALUE : INVALID_HANDLE);
    *offset = 0;
    if (size) *size = f->size;
    END(OK);
}
API cuFuncSetAttribute(Object *function, int attribute, int value) {
    BEGIN(1);
    Object *f = kernel_of(function);
    if (!f) END(INVALID_HANDLE);
    if (attribute != 8 || value < 0 || value > setting("STUB_CUDA_SHARED", 99 << 10)) END(INVALID_VALUE);
    f->flags = value; /* bytes of dynamic shared memory that it may be launched with */
    END(OK);
}
/* Memory that lives on, since a graph may hold it; each piece leads to the one before, so that none counts as lost. */
static void *kept(size_t size) {
    static void **latest;
    void **piece = malloc(2 * sizeof *piece + size);
    *piece = latest, latest = piece;
    return piece + 2;
}
API cuLaunchKernel(Object *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   Object *stream, void **parameters, void **extra) {
    BEGIN(1);
    Object *f = kernel_of(function);
    if (!f) END(INVALID_HANDLE);
    size_t size = f->size;
    const void *argument = parameters ? parameters[0] : NULL;
    for (int i = 0; extra && (uintptr_t)extra[i]; i += 2) { /* pairs of a name, 1 for the buffer and 2 for its size, and a pointer */
        if ((uintptr_t)extra[i] == 1) argument = extra[i + 1];
        else if (*(size_t *)extra[i + 1] != size) END(INVALID_VALUE);
    }
    if (!gx || !gy || !gz || !bx || by != 1 || bz != 1 || bx > 1024 || gy > 65535 || gz > 65535) END(INVALID_VALUE);
    if (shared > (unsigned)f->flags || (parameters && extra) || (size && !argument)) END(INVALID_VALUE);
    void *copy = kept(size);
    if (size) memcpy(copy, argument, size);
    END(enqueue(stream_of(stream), (Op){.kind = LAUNCH, .event = f, .source = copy, .numbers = {gx, gy, gz, bx, shared}}));
}
/* For tests: number `index` of the launches that ran, blocks in x, y and z, threads and shared bytes; 0 where there are not so many. */
API stub_cuda_launches(long index, char *name, int size, unsigned *numbers) {
    pthread_mutex_lock(&lock);
    int found = index < launch_count;
    if (found) snprintf(name, size, "%s", launched[index].name), memcpy(numbers, launched[index].numbers, sizeof launched->numbers);
    pthread_mutex_unlock(&lock);
    return found;
}
/* NVRTC looks for tables of the driver's when it compiles; there are none. */
API cuGetExportTable(const void **table, const void *id) { (void)id; *table = NULL; return NOT_FOUND; }
