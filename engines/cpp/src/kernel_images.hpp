// The kernels as they were compiled when the library was built; the build writes this table.
#pragma once

#include <cstddef>

namespace yolact::detail {

// What cuModuleLoadData takes: a cubin for one architecture, a fat binary for several, or PTX. Some may be for other GPUs.
struct KernelImage {
    const unsigned char *data;
    std::size_t size;
};

extern const KernelImage kernel_images[];
extern const std::size_t kernel_image_count;

}  // namespace yolact::detail
