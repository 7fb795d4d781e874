// Pictures as they come in.
#ifndef YOLACT_DEPLOY_IMAGE_HPP
#define YOLACT_DEPLOY_IMAGE_HPP

#include <cstddef>

namespace yolact {

// How the pixels lie. NV12 is of limited range (luma 16 … 235), as decoders write it.
enum class PixelFormat : int {
    rgb = 0,         // 3 bytes a pixel
    bgr = 1,         // as OpenCV has them
    nv12_bt601 = 2,  // a plane of luma and one of interleaved Cb, Cr for 2 x 2 pixels each
    nv12_bt709 = 3,
};

enum class MemorySpace : int {
    host = 0,    // pageable or page-locked
    device = 1,  // of the detector's GPU
};

// A borrowed uint8 picture of any size; odd widths and heights are taken. It has to stay as it is until `detect` returns; with `submit`, pictures
// on the host are free when it returns, those on the device when their result is there.
struct ImageView {
    const void *data = nullptr;  // the first row: RGB or BGR pixels, or NV12's luma; no alignment is needed
    int width = 0, height = 0;   // pixels; width * height < 2^31
    std::size_t pitch = 0;       // bytes from a row to the next, 0: rows without gaps
    PixelFormat format = PixelFormat::rgb;
    MemorySpace space = MemorySpace::host;
    const void *chroma = nullptr;  // NV12: the plane of pairs, [ceil(height / 2), ceil(width / 2), 2]; nullptr: it follows the luma
    std::size_t chroma_pitch = 0;  // NV12: bytes from a row of pairs to the next, 0: as the luma's, or the next even number
};

}  // namespace yolact

#endif
