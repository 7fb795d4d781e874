/* The C interface (C11) of yolact_deploy, for C and for other languages. It is the C++ interface (yolact.hpp) with opaque handles; what is said there of
 * units, memory, streams and threads holds here.
 *
 * Every function that can fail returns 0 or a code of yolact_error; yolact_last_error() then tells the calling thread what happened and what
 * to do. Handles may be null where they are given back. Structures begin with their size, so that later versions may add to them: set it, and
 * leave 0 what is to be as usual. Submissions with callbacks are C++'s alone.
 */
#ifndef YOLACT_DEPLOY_YOLACT_H
#define YOLACT_DEPLOY_YOLACT_H

#include <stddef.h>
#include <stdint.h>

#include "export.h"

#ifdef __cplusplus
extern "C" {
#endif

enum yolact_error {
    YOLACT_OK = 0,
    YOLACT_CONFIG = 1,     /* an option or argument that contradicts the engine or itself, null pointers among them */
    YOLACT_MODEL_FILE = 2, /* an engine or sidecar that is missing, broken, foreign, or does not fit this machine */
    YOLACT_DEVICE = 3,     /* a GPU that is missing, out of memory, or failed */
    YOLACT_PICTURE = 4,    /* a picture without pixels, of a wrong pitch, or in the wrong memory */
    YOLACT_INTERNAL = 5    /* a mistake in the library, or memory of the host that ran out */
};

enum yolact_format { YOLACT_RGB = 0, YOLACT_BGR = 1, YOLACT_NV12_BT601 = 2, YOLACT_NV12_BT709 = 3 };
enum yolact_space { YOLACT_HOST = 0, YOLACT_GPU = 1 };
enum yolact_nms { YOLACT_FAST_NMS = 0, YOLACT_CROSS_CLASS_NMS = 1, YOLACT_TRADITIONAL_NMS = 2 };
enum yolact_masks { YOLACT_RLE = 1, YOLACT_HOST_BITS = 2, YOLACT_DEVICE_BITS = 4 };

typedef struct yolact_detector yolact_detector; /* an engine that is loaded; for any number of threads */
typedef struct yolact_results yolact_results;   /* what a call found; for one thread at a time */

/* Which of the settings below are given; the others are as the engine's sidecar says. */
enum yolact_settings { YOLACT_SET_NMS = 1, YOLACT_SET_SCORE = 2, YOLACT_SET_IOU = 4, YOLACT_SET_TOP_K = 8, YOLACT_SET_MAX_DETECTIONS = 16 };

/* Options of yolact_load; see Options. */
typedef struct yolact_options {
    size_t size;            /* sizeof(yolact_options) */
    int device;             /* GPU */
    int contexts;           /* 0: the default */
    int no_graphs;          /* 1: never replay CUDA graphs */
    int masks;              /* yolact_masks, combined with |; 0: YOLACT_RLE */
    int settings;           /* yolact_settings, combined with | */
    int nms;                /* yolact_nms */
    float score_threshold, iou_threshold;
    int top_k, max_detections;
    size_t rle_bytes;          /* 0: the default */
    const char *lean_runtime;  /* null: none */
} yolact_options;
#define YOLACT_OPTIONS_DEFAULT {sizeof(yolact_options), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, NULL}

/* A borrowed picture; see ImageView. */
typedef struct yolact_image {
    size_t size; /* sizeof(yolact_image) */
    const void *data;
    int width, height;
    size_t pitch; /* 0: rows without gaps */
    int format, space;
    const void *chroma;
    size_t chroma_pitch;
} yolact_image;

/* One instance; see Detection. `rle` is not terminated, and lives as long as the results stay as they are. */
typedef struct yolact_detection {
    size_t size; /* sizeof(yolact_detection) */
    float x1, y1, x2, y2, score, mask_score;
    int label, prior;
    const char *rle;
    size_t rle_length;
} yolact_detection;

/* The library's version, "0.1.0". */
YOLACT_API const char *yolact_version(void);

/* What the last call of this thread that failed said: found, wanted, and the mend. "" where none has failed. It lives until the next failure. */
YOLACT_API const char *yolact_last_error(void);

/* Load the engine at `path` (UTF-8); `options` may be null. */
YOLACT_API int yolact_load(const char *path, const yolact_options *options, yolact_detector **detector);

/* Wait for what is under way and give everything back. */
YOLACT_API void yolact_free(yolact_detector *detector);

/* Detect in `count` pictures that lie one after the other. `stream` is a cudaStream_t, null for one of the detector's own. `*results` is null, or
 * results of an earlier call, whose memory is used again; if the call fails it stays null, or they are empty. */
YOLACT_API int yolact_detect(yolact_detector *detector, const yolact_image *images, size_t count, cudaStream_t stream, yolact_results **results);

YOLACT_API int yolact_warm_up(yolact_detector *detector, int width, int height, int batch);

/* Give results back, to their detector too what they hold of it. */
YOLACT_API void yolact_results_free(yolact_results *results);

/* Pictures of the call, and detections of one of them, best first; 0 where there is no such picture. */
YOLACT_API size_t yolact_pictures(const yolact_results *results);
YOLACT_API size_t yolact_count(const yolact_results *results, size_t picture);
YOLACT_API int yolact_get(const yolact_results *results, size_t picture, size_t index, yolact_detection *detection);

/* One mask as bits on the host, `*words` words: rows of ceil(width / 32), pixel x in bit x % 32 of word x / 32. With YOLACT_HOST_BITS only. */
YOLACT_API int yolact_bits(const yolact_results *results, size_t picture, size_t index, const uint32_t **bits, size_t *words);

/* All masks of a picture as bits on the GPU: mask i begins at `*bits + i * *mask_words`; and the labels there, unless `labels` is null. With
 * YOLACT_DEVICE_BITS only. */
YOLACT_API int yolact_device_bits(const yolact_results *results, size_t picture, const uint32_t **bits, size_t *mask_words, const int32_t **labels);

/* A picture's detections as COCO results, JSON; `image_id` is written as it is. The text lives until the next call with these results. */
YOLACT_API const char *yolact_coco_json(yolact_results *results, size_t picture, const char *image_id);

/* The name and the COCO category id of a label; null and -1 where there is no such class. The name lives as long as the detector. */
YOLACT_API const char *yolact_class_name(const yolact_detector *detector, int label);
YOLACT_API int64_t yolact_category_id(const yolact_detector *detector, int label);

/* Pictures that the engine takes at once, and the pixels a side of its input. */
YOLACT_API int yolact_largest_batch(const yolact_detector *detector);
YOLACT_API int yolact_input_size(const yolact_detector *detector);

/* Run the engine's self-test. 0 where it could be run: `*passed` is 1, or 0 and yolact_last_error() has the problems, a line each. */
YOLACT_API int yolact_selftest(const char *path, const yolact_options *options, int *passed);

#ifdef __cplusplus
}
#endif

#endif
