#include "yolact_deploy/results.hpp"

#include <cmath>
#include <limits>

#include "errors.hpp"
#include "shelf.hpp"
#include "storage.hpp"
#include "text.hpp"

namespace yolact::detail {

void Storage::clear() noexcept {
    pictures.clear();
    detections.clear();
    places.clear();
    text.clear();
    bits_used = 0;
    lease = Lease();
    manifest.reset();
}

void Storage::seal() noexcept {
    for (std::size_t index = 0; index < detections.size(); ++index) {
        detections[index].rle = std::string_view(text.data() + places[index].first, places[index].second);
    }
}

Results Shelf::take() {
    std::unique_ptr<Results::Storage> storage;
    {
        const std::lock_guard<std::mutex> guard(lock_);
        if (!kept_.empty()) {
            storage = std::move(kept_.back());
            kept_.pop_back();
        }
    }
    if (!storage) storage = std::make_unique<Results::Storage>();
    storage->home = weak_from_this();
    return Results(std::move(storage));
}

void Shelf::put(std::unique_ptr<Results::Storage> storage) noexcept {
    const std::lock_guard<std::mutex> guard(lock_);
    try {
        if (kept_.size() < MOST) kept_.push_back(std::move(storage));
    } catch (...) {
        return;  // no memory to keep it in: it ends here
    }
}

}  // namespace yolact::detail

namespace yolact {

DetectionsView DetectionsView::above(float score) const noexcept {
    DetectionsView found = *this;
    std::size_t count = 0;
    while (count < detections.size() && detections[count].score > score) ++count;
    found.detections = detections.first(count);
    found.device_masks.count = device_masks.bits ? count : 0;
    return found;
}

Span<const std::uint32_t> DetectionsView::bits(std::size_t index) const {
    if (!host_bits_words_) {
        throw detail::config_error("Masks as bits on the host were not asked for.", "Load with Options::masks = Masks::host_bits.");
    }
    if (index >= detections.size()) {
        throw detail::config_error("Detection " + std::to_string(index) + " of " + std::to_string(detections.size()) + " was asked for.");
    }
    return {host_bits_ + index * host_bits_words_, host_bits_words_};
}

namespace {

// As NumPy's truncation to 64 bits on the machines that this runs on: what has no whole number becomes the smallest.
long long truncated(float value) {
    return std::isfinite(value) && std::fabs(value) < 9.2e18f ? static_cast<long long>(value) : std::numeric_limits<long long>::min();
}

}  // namespace

std::string DetectionsView::coco_json(const std::string &image_id) const {
    if (!has_rle_) throw detail::config_error("Masks as RLE were not asked for.", "Load with Options::masks = Masks::rle.");
    std::string json;
    for (const Detection &one : detections) {
        const long long x1 = truncated(one.x1), y1 = truncated(one.y1), x2 = truncated(one.x2), y2 = truncated(one.y2);
        if (x2 <= x1 || y2 <= y1) continue;
        json += json.empty() ? "[" : ",\n ";
        json += "{\"image_id\": " + image_id + ", \"category_id\": " + std::to_string(categories[static_cast<std::size_t>(one.label)]);
        json += ", \"bbox\": [" + std::to_string(x1) + ", " + std::to_string(y1) + ", " + std::to_string(x2 - x1) + ", " + std::to_string(y2 - y1);
        json += "], \"score\": " + detail::python_float(static_cast<double>(one.mask_score)) + ", \"segmentation\": {\"size\": [" +
                std::to_string(height) + ", " + std::to_string(width) + "], \"counts\": " + detail::json_string(std::string(one.rle)) + "}}";
    }
    return json.empty() ? "[]" : json + "]";
}

Results::Results() : storage_(std::make_unique<Storage>()) {}
Results::Results(std::unique_ptr<Storage> storage) noexcept : storage_(std::move(storage)) {}

Results::~Results() {
    if (!storage_) return;
    storage_->clear();
    if (const std::shared_ptr<detail::Shelf> home = storage_->home.lock()) home->put(std::move(storage_));
}

Results::Results(Results &&other) noexcept = default;

Results &Results::operator=(Results &&other) noexcept {
    if (this != &other) {
        const Results old(std::move(*this));
        storage_ = std::move(other.storage_);
    }
    return *this;
}

std::size_t Results::size() const noexcept { return storage_ ? storage_->pictures.size() : 0; }

DetectionsView Results::operator[](std::size_t picture) const & noexcept {
    const detail::FoundPicture &own = storage_->pictures[picture];
    DetectionsView view;
    view.width = own.width;
    view.height = own.height;
    view.detections = {storage_->detections.data() + own.first, own.count};
    view.names = storage_->manifest->names;
    view.categories = storage_->manifest->categories;
    view.device_masks = own.device_masks;
    view.has_rle_ = storage_->has_text;
    view.host_bits_ = storage_->bits.as<const std::uint32_t>() + own.bits;
    view.host_bits_words_ = own.mask_words;
    return view;
}

DetectionsView Results::at(std::size_t picture) const & {
    if (picture < size()) return (*this)[picture];
    throw detail::config_error("Picture " + std::to_string(picture) + " of " + std::to_string(size()) + " was asked for.", "Count from 0.");
}

Results::Storage &Results::storage() {
    if (!storage_) storage_ = std::make_unique<Storage>();  // what it had was moved away
    return *storage_;
}

void Results::clear() noexcept {
    if (storage_) storage_->clear();
}

}  // namespace yolact
