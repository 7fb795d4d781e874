// Pictures to the network's input on the GPU, as yolact_deploy/engines/cuda/preprocess.py has it.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "driver.hpp"
#include "manifest.hpp"
#include "pictures.cuh"
#include "yolact_deploy/image.hpp"
#include "yolact_deploy/span.hpp"

namespace yolact::detail {

// Throws ErrorCode::picture for what contradicts itself or does not lie where it says; `view` is completed: pitches and the chroma plane.
ImageView checked_picture(const Driver &driver, const ImageView &view);

// The driver's context has to be current; one call at a time.
class Preprocessor {
public:
    Preprocessor(std::shared_ptr<Driver> driver, const Module &module, const InputSpec &spec, bool half, int batch);

    // Queue what fills the inputs of these pictures, which were checked, from `target` on; the last run is over. Host memory is free when this
    // returns.
    void enqueue(Span<const ImageView> pictures, DevicePointer target, cudaStream_t stream);

    std::size_t device_bytes() const { return table_.size() + pixels_.size(); }

private:
    std::shared_ptr<Driver> driver_;
    InputSpec spec_;
    Kernel kernel_;
    Buffer table_, rows_, pixels_, staged_;
};

}  // namespace yolact::detail
