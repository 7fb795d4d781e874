// From what an engine leaves on the GPU to detections: the kernels in their order, and the buffers between them, as
// yolact_deploy/engines/cuda/{workspace,stages,postprocessor}.py have them.
#pragma once

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "driver.hpp"
#include "problem.cuh"
#include "settings.hpp"

namespace yolact::detail {

// Where an engine's outputs lie, and which of them are half.
struct Outputs {
    DevicePointer boxes = 0, scores = 0, coefficients = 0, prototypes = 0;             // of heads; of given detections boxes, coefficients, prototypes
    DevicePointer given_scores = 0, given_labels = 0, given_masks = 0, given_mask_scores = 0;  // of a graph with NMS inside
    bool half_boxes = false, half_scores = false, half_coefficients = false, half_prototypes = false, half_masks = false;
};

// The mask-IoU net: queued on `count` masks, float32 [count, 1, h, w]; says where float32 [count, C - 1] will be.
using MaskIouNet = std::function<DevicePointer(DevicePointer masks, int count, cudaStream_t stream)>;

// One run at a time; for one thread at a time. The driver's context has to be current.
class Postprocessor {
public:
    Postprocessor(std::shared_ptr<Driver> driver, const Module &module, const HeadShapes &shapes, const Settings &settings, int batch,
                  int input_size, std::size_t rle_bytes, bool rescoring);

    // The sizes of the next run's pictures; the last run is over.
    void set_pictures(const std::vector<std::pair<int, int>> &sizes);

    // Make room for the bits of a picture of `words` words a mask. Whether buffers changed, which graphs have in them.
    bool make_bits_room(std::size_t words);

    // Queue all stages; may be captured. Sizes are read when it runs.
    void enqueue(const Outputs &outputs, int batch, cudaStream_t stream, bool rle, bool bits, const MaskIouNet &net);

    // After a run: whether every mask found room in the arena. If not, `repeat_rle` makes room and queues what is missing again, after which
    // graphs have to be captured anew.
    bool all_delivered(int batch) const;
    void repeat_rle(cudaStream_t stream);

    // Results of the last run, which is over; [slot] of one picture.
    struct Found {
        std::uint32_t count;
        const float *boxes;  // [D, 4] relative
        const float *scores, *mask_scores;
        const int *labels, *priors;
        const std::uint32_t *rle_starts, *rle_lengths;
    };
    Found found(int picture) const;
    const char *arena() const { return delivered_.as<const char>(); }
    DevicePointer bits(int picture) const;
    DevicePointer labels(int picture) const;
    std::size_t mask_words() const { return problem_.bits_stride; }
    int slots() const { return slots_; }
    std::size_t device_bytes() const;

private:
    template <typename T>
    void allocate(T *&place, std::size_t bytes);
    void make_arena(std::size_t bytes);
    void launch(const Kernel &kernel, Blocks blocks, int threads, cudaStream_t stream, unsigned shared = 0) const;
    void enqueue_nms(bool half_scores, cudaStream_t stream) const;
    void enqueue_masks(bool half_prototypes, cudaStream_t stream) const;
    void enqueue_rle(cudaStream_t stream) const;

    // Where each table of the results begins, on the device and on the host alike.
    struct Places {
        std::size_t counts, boxes, scores, mask_scores, labels, priors, starts, lengths, size;
    };

    std::shared_ptr<Driver> driver_;
    HeadShapes shapes_;
    Nms nms_;
    int slots_, batch_;
    std::vector<Buffer> buffers_;
    Buffer counters_, results_, staged_, pictures_, arena_, delivered_, bits_;
    std::size_t counter_bytes_ = 0;
    Places places_{};
    Problem problem_{};
    Kernel select_[2], rank_[2], suppress_, greedy_[2], best_, given_, given_masks_, assemble_[2], rescore_, pack_bits_, encode_rle_, deliver_;
};

}  // namespace yolact::detail
