// What was found: owners of results, and views into them.
#ifndef YOLACT_DEPLOY_RESULTS_HPP
#define YOLACT_DEPLOY_RESULTS_HPP

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "export.h"
#include "span.hpp"

namespace yolact {

namespace detail {
class Shelf;
}

// One instance. It is a view: the text of `rle` is borrowed from the Results that it came from, and copies borrow it too.
struct Detection {
    float x1, y1, x2, y2;  // pixels of the picture, clipped to it; a box wholly outside ends with x1 > x2 or y1 > y2, as in Python
    float score;           // class probability, by which detections are ordered
    float mask_score;      // times the predicted mask IoU for variants with mask rescoring, else `score`
    int label;             // 0-based without background; the class of DetectionsView::names
    int prior;             // that it comes from; -1 of an engine that has its NMS inside
    std::string_view rle;  // COCO's compressed run lengths of the mask, column by column; empty where RLE was not asked for
};

// One picture's masks as bits on the device, borrowed from Results. The work that made them is over: any stream of the GPU may read them. Wait
// for your readers before the Results are cleared, used again or destroyed: then the next call may overwrite the masks.
struct DeviceMasksView {
    const std::uint32_t *bits = nullptr;  // device memory: mask i begins at bits + i * mask_words
    std::size_t mask_words = 0;           // from one mask to the next; at least row_words * height
    std::size_t row_words = 0;            // ceil(width / 32): pixel x of row y is bit x % 32 of word y * row_words + x / 32
    std::size_t count = 0;
    const std::int32_t *labels = nullptr;  // device memory, [count]
};

// One picture's detections, best first; borrowed from Results.
class YOLACT_API DetectionsView {
public:
    int width = 0, height = 0;  // of the picture, in pixels
    Span<const Detection> detections;
    Span<const std::string> names;        // of each label
    Span<const std::int64_t> categories;  // COCO category id of each label
    DeviceMasksView device_masks;         // where Masks::device_bits was asked for

    std::size_t size() const noexcept { return detections.size(); }
    bool empty() const noexcept { return detections.empty(); }
    const Detection &operator[](std::size_t index) const noexcept { return detections[index]; }
    const Detection *begin() const noexcept { return detections.begin(); }
    const Detection *end() const noexcept { return detections.end(); }

    // Those whose score is greater than `score`, still best first.
    DetectionsView above(float score) const noexcept;

    // The mask of one detection as host bits, [height, ceil(width / 32)] laid out as in DeviceMasksView; throws ErrorCode::config where
    // Masks::host_bits was not asked for.
    Span<const std::uint32_t> bits(std::size_t index) const;

    // A JSON list of COCO results: image_id, category_id, bbox, score and segmentation of each detection with an area, as the Python package's
    // Detections.to_coco. `image_id` is written as it is: a number, or a string with its quotes. Throws ErrorCode::config where Masks::rle was
    // not asked for.
    std::string coco_json(const std::string &image_id) const;

private:
    friend class Results;
    bool has_rle_ = false;
    const std::uint32_t *host_bits_ = nullptr;
    std::size_t host_bits_words_ = 0;
};

// Detections of the pictures of one call, and all the memory that they lie in. Give the same object to the next call and nothing is allocated once
// it has grown. Moving is cheap and keeps views valid; a call that fills it, and its end, end all views. Not for two threads at once.
class YOLACT_API Results {
public:
    Results();
    ~Results();
    Results(Results &&other) noexcept;
    Results &operator=(Results &&other) noexcept;
    Results(const Results &) = delete;
    Results &operator=(const Results &) = delete;

    // Pictures of the call, in their order.
    std::size_t size() const noexcept;

    // One of them; there has to be such a picture. `at` throws ErrorCode::config where there is none.
    DetectionsView operator[](std::size_t picture) const & noexcept;
    DetectionsView at(std::size_t picture) const &;
    DetectionsView operator[](std::size_t picture) && = delete;  // of results that end with the expression the view would dangle
    DetectionsView at(std::size_t picture) && = delete;

    // Give back what it holds of a detector: with Masks::device_bits that is the context which made them. Views end.
    void clear() noexcept;

    struct Storage;
    Storage &storage();  // for the library itself

private:
    friend class detail::Shelf;
    explicit Results(std::unique_ptr<Storage> storage) noexcept;

    std::unique_ptr<Storage> storage_;
};

}  // namespace yolact

#endif
