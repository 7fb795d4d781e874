// The arguments of the kernels that read pictures and draw on them.
#pragma once

#include "types.cuh"

namespace yolact {

enum PictureFormat { FORMAT_RGB, FORMAT_BGR, FORMAT_NV12_BT601, FORMAT_NV12_BT709 };

// Pointers need no alignment. yolact_deploy/engines/cuda/preprocess.py mirrors both structures.
struct SourcePicture {
    const u8 *data;    // [height, pitch] RGB or BGR pixels, or NV12's luma
    const u8 *chroma;  // [ceil(height / 2), chroma_pitch] NV12's pairs of Cb and Cr
    u32 pitch, chroma_pitch;  // bytes from a row to the next
    int width, height;
    int format;        // PictureFormat
    int reserved;      // keeps the size a multiple of 8
};
static_assert(sizeof(SourcePicture) == 40, "as the host lays it out");

struct Preprocess {
    const SourcePicture *pictures;  // [B]
    void *target;  // [B, 3, size, size] RGB, float or half; raw: u8 [B, size, size, 3]
    int size;
    int swapped;   // raw: the order is BGR
    float mean[3], std[3];  // RGB, in 0 … 255; not of raw
};
static_assert(sizeof(Preprocess) == 48, "as the host lays it out");

// yolact_deploy/engines/cuda/draw.py mirrors this layout.
struct Drawing {
    const u32 *masks;   // [D, mask_words] rows of ceil(width / 32) words, pixel x in bit x % 32 of word x / 32; best detection first
    const u32 *count;   // [1] detections that there are, perhaps more than D
    const int *labels;  // [D]
    const u8 *colours;  // [colour_count, 3] RGB of each label; the table is repeated for larger ones
    u8 *frame;          // [height, pitch] pixels of `channels` bytes: RGB or BGR, and alpha, which is left alone
    u32 mask_words, pitch;
    int width, height, detections, channels;
    int swapped;        // the order is BGR
    int colour_count;
    float keep, alpha;  // shares of the frame and of the colour
};
static_assert(sizeof(Drawing) == 80, "as the host lays it out");

}  // namespace yolact
