/* Loaded by CUDA's driver into a program (CUDA_INJECTION64_PATH): appends each kernel, copy and driver call with its begin and end in
   nanoseconds to the file that FPO_TIMELINE names. Built and read by `timeline`. */
#include <cupti.h>
#include <dlfcn.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* The newest records that the headers have; the fields used here are in all of them. */
#ifndef KERNEL_RECORD
#define KERNEL_RECORD CUpti_ActivityKernel10
#define MEMCPY_RECORD CUpti_ActivityMemcpy6
#define MEMSET_RECORD CUpti_ActivityMemset4
#endif

static FILE *file;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static CUptiResult (*next_record)(uint8_t *, size_t, CUpti_Activity **);
static CUptiResult (*flush_all)(uint32_t);
static CUptiResult (*callback_name)(CUpti_CallbackDomain, uint32_t, const char **);

static void write_record(CUpti_Activity *record) {
    switch (record->kind) {
    case CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL: {
        KERNEL_RECORD *k = (KERNEL_RECORD *)record;
        fprintf(file, "kernel %" PRIu64 " %" PRIu64 " %d,%d,%d/%d,%d,%d %s\n", k->start, k->end, k->gridX, k->gridY, k->gridZ,
                k->blockX, k->blockY, k->blockZ, k->name);
        break;
    }
    case CUPTI_ACTIVITY_KIND_MEMCPY: {
        MEMCPY_RECORD *c = (MEMCPY_RECORD *)record;
        const char *kind = c->copyKind == CUPTI_ACTIVITY_MEMCPY_KIND_HTOD   ? "to the device"
                           : c->copyKind == CUPTI_ACTIVITY_MEMCPY_KIND_DTOH ? "to the host"
                                                                            : "on the device";
        fprintf(file, "copy %" PRIu64 " %" PRIu64 " %" PRIu64 " %s\n", c->start, c->end, c->bytes, kind);
        break;
    }
    case CUPTI_ACTIVITY_KIND_MEMSET: {
        MEMSET_RECORD *s = (MEMSET_RECORD *)record;
        fprintf(file, "copy %" PRIu64 " %" PRIu64 " %" PRIu64 " of one value\n", s->start, s->end, s->bytes);
        break;
    }
    case CUPTI_ACTIVITY_KIND_DRIVER: {
        CUpti_ActivityAPI *call = (CUpti_ActivityAPI *)record;
        const char *name = "?";
        callback_name(CUPTI_CB_DOMAIN_DRIVER_API, call->cbid, &name);
        fprintf(file, "call %" PRIu64 " %" PRIu64 " %u %s\n", call->start, call->end, call->threadId, name);
        break;
    }
    default:
        break;
    }
}

static void requested(uint8_t **buffer, size_t *size, size_t *most) {
    *size = 8 << 20;
    *most = 0;
    *buffer = aligned_alloc(8, *size);
}

static void completed(CUcontext context, uint32_t stream, uint8_t *buffer, size_t size, size_t valid) {
    CUpti_Activity *record = NULL;
    pthread_mutex_lock(&lock);
    while (next_record(buffer, valid, &record) == CUPTI_SUCCESS) write_record(record);
    fflush(file);
    pthread_mutex_unlock(&lock);
    free(buffer);
}

static void at_exit(void) { flush_all(1); }

/* A program that is killed has written all but the last half second. */
static void *flush_often(void *unused) {
    for (;;) {
        struct timespec half = {0, 500000000};
        nanosleep(&half, NULL);
        flush_all(0);
    }
    return unused;
}

int InitializeInjection(void) {
    const char *path = getenv("FPO_TIMELINE");
    void *cupti = dlopen("libcupti.so", RTLD_NOW);
    if (!cupti) cupti = dlopen(CUPTI_LIBRARY, RTLD_NOW);
    if (!path || !cupti || !(file = fopen(path, "w"))) {
        fprintf(stderr, "timeline: %s\n", path ? cupti ? "the file can't be written" : dlerror() : "FPO_TIMELINE is not set");
        return 0;
    }
    CUptiResult (*enable)(CUpti_ActivityKind) = dlsym(cupti, "cuptiActivityEnable");
    CUptiResult (*callbacks)(CUpti_BuffersCallbackRequestFunc, CUpti_BuffersCallbackCompleteFunc) =
        dlsym(cupti, "cuptiActivityRegisterCallbacks");
    next_record = dlsym(cupti, "cuptiActivityGetNextRecord");
    flush_all = dlsym(cupti, "cuptiActivityFlushAll");
    callback_name = dlsym(cupti, "cuptiGetCallbackName");
    CUptiResult result = callbacks(requested, completed);
    CUpti_ActivityKind kinds[] = {CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, CUPTI_ACTIVITY_KIND_MEMCPY, CUPTI_ACTIVITY_KIND_MEMSET,
                                  CUPTI_ACTIVITY_KIND_DRIVER};
    for (int i = 0; i < 4 && result == CUPTI_SUCCESS; i++) result = enable(kinds[i]);
    if (result != CUPTI_SUCCESS) {
        fprintf(stderr, "timeline: CUPTI's error %d\n", result);
        return 0;
    }
    atexit(at_exit);
    pthread_t thread;
    pthread_create(&thread, NULL, flush_often, NULL);
    return 1;
}
