#include "context.hpp"

#include <algorithm>
#include <cstring>

#include "driver_calls.hpp"
#include "errors.hpp"

namespace yolact::detail {

namespace {

const cudaStream_t DEFAULT_STREAM = reinterpret_cast<cudaStream_t>(std::uintptr_t{1});  // CU_STREAM_LEGACY

std::size_t row_words(int width) { return (static_cast<std::size_t>(width) + 31) / 32; }

// NaN where one is NaN, as NumPy's minimum and maximum have it.
float smaller(float a, float b) { return b < a || b != b ? b : a; }
float larger(float a, float b) { return b > a || b != b ? b : a; }

// A relative axis in pixels, as the Python package's pixel_boxes: the smaller end raised to 0, the larger cut to the picture's size.
std::pair<float, float> pixels(float a, float b, int size) {
    const float scale = static_cast<float>(size), from = a * scale, to = b * scale;
    return {larger(smaller(from, to), 0.0f), smaller(larger(from, to), scale)};
}

}  // namespace

Rescoring::Rescoring(const std::shared_ptr<const Engine> &engine, int slots, cudaStream_t stream)
    : engine_(*engine), context_(engine, stream), masks_(engine->tensors()[0]), ious_(engine->tensors()[1]) {
    const auto piece = static_cast<std::size_t>(engine_.batch().largest);
    given_ = Buffer(engine_.driver(), Buffer::Kind::device, masks_.bytes(piece));
    found_ = Buffer(engine_.driver(), Buffer::Kind::device, ious_.bytes(piece));
    answers_ = Buffer(engine_.driver(), Buffer::Kind::device, ious_.bytes(static_cast<std::size_t>(slots)));
    clear(*engine_.driver(), given_.pointer(), given_.size(), stream);  // slots behind the last detections are computed too
    context_.set_address(masks_, given_.pointer());
    context_.set_address(ious_, found_.pointer());
    context_.set_batch(engine_.batch().largest);
    synchronize(*engine_.driver(), stream);  // nothing of it is under way if what is made next fails
}

DevicePointer Rescoring::enqueue(DevicePointer masks, int count, cudaStream_t stream) {
    const Driver &driver = *engine_.driver();
    const int piece = engine_.batch().largest;
    for (int first = 0; first < count; first += piece) {
        const auto size = static_cast<std::size_t>(std::min(piece, count - first)), start = static_cast<std::size_t>(first);
        copy_on_device(driver, given_.pointer(), masks + masks_.bytes(start), masks_.bytes(size), stream);
        context_.enqueue(stream);
        copy_on_device(driver, answers_.pointer() + ious_.bytes(start), found_.pointer(), ious_.bytes(size), stream);
    }
    return answers_.pointer();
}

Context::Context(std::shared_ptr<const Model> model)
    : model_(std::move(model)),
      own_(model_->driver),
      done_(model_->driver),
      default_done_(model_->driver),
      context_(model_->engine, own_.get()),
      rescoring_(model_->mask_iou && model_->shapes.graph != GraphKind::masks
                     ? std::make_unique<Rescoring>(model_->mask_iou, model_->shapes.slots(model_->settings) * model_->engine->batch().largest, own_.get())
                     : nullptr),
      post_(model_->driver, *model_->module, model_->shapes, model_->settings, model_->engine->batch().largest, model_->manifest.input.size,
            model_->rle_bytes, rescoring_ != nullptr),
      pre_(model_->driver, *model_->module, model_->manifest.input, model_->engine->tensors()[0].dtype == "float16",
           model_->engine->batch().largest),
      graphs_(model_->graphs) {
    const Engine &engine = *model_->engine;
    for (const EngineTensor &each : engine.tensors()) {
        buffers_.emplace_back(model_->driver, Buffer::Kind::device, each.bytes(static_cast<std::size_t>(engine.batch().largest)));
        context_.set_address(each, buffers_.back().pointer());
    }
    if (rescoring_) {
        net_ = [this](DevicePointer masks, int count, cudaStream_t stream) { return rescoring_->enqueue(masks, count, stream); };
    }
    synchronize(*model_->driver, own_.get());
}

Context::~Context() { abandon(own_.get()); }

std::size_t Context::device_bytes() const {
    std::size_t size = post_.device_bytes() + pre_.device_bytes() + (rescoring_ ? rescoring_->device_bytes() : 0);
    for (const Buffer &buffer : buffers_) size += buffer.size();
    return size;
}

void Context::enqueue(Span<const ImageView> pictures, cudaStream_t stream) {
    const Active active(*model_->driver);
    const bool borrowed = stream != nullptr;
    try {
        if (!borrowed && std::any_of(pictures.begin(), pictures.end(), [](const ImageView &view) { return view.space == MemorySpace::device; })) {
            wait_for_default_stream();
        }
        start(pictures, borrowed ? stream : own_.get());
    } catch (...) {
        abandon(borrowed ? stream : own_.get());
        model_->driver->check_not_lost();  // what the GPU says comes before what TensorRT makes of it
        throw;
    }
}

void Context::wait_for_default_stream() {
    default_done_.record(DEFAULT_STREAM);
    wait_for(*model_->driver, own_.get(), default_done_);
}

void Context::start(Span<const ImageView> pictures, cudaStream_t stream) {
    const int count = static_cast<int>(pictures.size()), batch = std::max(count, model_->engine->batch().smallest);
    const bool bits = model_->masks & (Masks::host_bits | Masks::device_bits);
    sizes_.clear();
    std::size_t words = 0;
    for (const ImageView &view : pictures) {
        sizes_.emplace_back(view.width, view.height);
        words = std::max(words, row_words(view.width) * static_cast<std::size_t>(view.height));
    }
    if (bits && post_.make_bits_room(words)) drop_graph();
    post_.set_pictures(sizes_);
    prepare(batch);
    if (!graph_ && graphs_ && runs_ == 1) capture();
    pre_.enqueue(pictures, buffers_[0].pointer(), stream);
    if (graph_) {
        graph_->launch(stream);
    } else {
        execute(stream);
    }
    ++runs_;
    done_.record(stream);
}

// Another batch than the last run's ends its graph.
void Context::prepare(int batch) {
    if (batch == batch_) return;
    drop_graph();
    batch_ = 0;
    context_.set_batch(batch);
    batch_ = batch;
}

// Record one execution; the first one, which is over, has set up whatever TensorRT sets up lazily.
void Context::capture() {
    graphs_ = context_.can_capture(own_.get()) && (!rescoring_ || rescoring_->can_capture(own_.get()));
    if (!graphs_) return;
    try {
        graph_.emplace(model_->driver, own_.get(), [this] { execute(own_.get()); });
    } catch (const Error &) {
        graph_.reset();
        graphs_ = false;  // a layer that cannot be captured runs as before
        model_->driver->check_not_lost();
    }
}

void Context::execute(cudaStream_t stream) {
    const bool rle = model_->masks & Masks::rle, bits = model_->masks & (Masks::host_bits | Masks::device_bits);
    context_.enqueue(stream);
    post_.enqueue(outputs(), batch_, stream, rle, bits, net_);
}

void Context::drop_graph() {
    graph_.reset();
    runs_ = 0;
}

void Context::discard() noexcept {
    try {
        const Active active(*model_->driver);
        model_->driver->note(model_->driver->calls().cuEventSynchronize(done_.handle()), "cuEventSynchronize");
    } catch (...) {
        return;  // the GPU is lost, and with it all work
    }
}

// After an error: nothing may still read the buffers when they are used or given back.
void Context::abandon(cudaStream_t stream) noexcept {
    const Driver &driver = *model_->driver;
    try {
        const Active active(driver);
        for (const cudaStream_t each : {stream, own_.get()}) driver.note(driver.calls().cuStreamSynchronize(each), "cuStreamSynchronize");
    } catch (...) {
        return;  // the GPU is lost, and with it all work
    }
}

const EngineTensor &Context::tensor(const char *name) const { return *model_->engine->find(name); }

Outputs Context::outputs() const {
    const Engine &engine = *model_->engine;
    const auto place = [this, &engine](const char *name, bool *half = nullptr) -> DevicePointer {
        for (std::size_t index = 0; index < buffers_.size(); ++index) {
            if (engine.tensors()[index].name != name) continue;
            if (half) *half = engine.tensors()[index].dtype == "float16";
            return buffers_[index].pointer();
        }
        return 0;
    };
    Outputs found;
    if (model_->shapes.graph == GraphKind::none) {
        found.boxes = place("boxes", &found.half_boxes);
        found.scores = place("scores", &found.half_scores);
        found.coefficients = place("coefficients", &found.half_coefficients);
        found.prototypes = place("prototypes", &found.half_prototypes);
        return found;
    }
    found.boxes = place("detections_boxes", &found.half_boxes);
    found.given_scores = place("detections_scores");
    found.given_labels = place("detections_labels");
    if (model_->shapes.graph == GraphKind::masks) {
        found.given_masks = place("detections_masks", &found.half_masks);
        found.given_mask_scores = place("detections_mask_scores");
    } else {
        found.coefficients = place("detections_coefficients", &found.half_coefficients);
        found.prototypes = place("prototypes", &found.half_prototypes);
    }
    return found;
}

void Context::finish(Storage &results) {
    const Active active(*model_->driver);
    const int count = static_cast<int>(sizes_.size());
    done_.synchronize();
    try {
        if ((model_->masks & Masks::rle) && !post_.all_delivered(batch_)) {
            drop_graph();  // it holds the old arena
            post_.repeat_rle(own_.get());
            synchronize(*model_->driver, own_.get());
        }
        for (int picture = 0; picture < count; ++picture) collect(picture, results);
        if (model_->masks & Masks::host_bits) {
            for (int picture = 0; picture < count; ++picture) copy_bits(picture, results);
            synchronize(*model_->driver, own_.get());
        }
    } catch (...) {
        abandon(own_.get());
        throw;
    }
}

void Context::collect(int picture, Storage &results) {
    const Postprocessor::Found found = post_.found(picture);
    results.has_text = model_->masks & Masks::rle;
    const auto [width, height] = sizes_[static_cast<std::size_t>(picture)];
    FoundPicture own;
    own.width = width;
    own.height = height;
    own.first = results.detections.size();
    own.count = found.count;
    for (std::uint32_t slot = 0; slot < found.count; ++slot) {
        const float *const box = found.boxes + std::size_t{4} * slot;
        Detection one{};
        std::tie(one.x1, one.x2) = pixels(box[0], box[2], width);
        std::tie(one.y1, one.y2) = pixels(box[1], box[3], height);
        one.score = found.scores[slot];
        one.mask_score = found.mask_scores[slot];
        one.label = found.labels[slot];
        one.prior = found.priors[slot];
        if (one.label < 0 || static_cast<std::size_t>(one.label) >= model_->manifest.names.size()) {
            throw model_error("The graph finds the label " + std::to_string(one.label) + ", its manifest names " +
                                  std::to_string(model_->manifest.names.size()) + " classes.",
                              "Export the checkpoint again.");
        }
        std::pair<std::size_t, std::size_t> place{results.text.size(), 0};
        if (model_->masks & Masks::rle) {
            const char *const counts = post_.arena() + found.rle_starts[slot];
            place.second = found.rle_lengths[slot];
            results.text.insert(results.text.end(), counts, counts + place.second);
        }
        results.detections.push_back(one);
        results.places.push_back(place);
    }
    if (model_->masks & Masks::device_bits) {
        DeviceMasksView &masks = own.device_masks;
        masks.bits = reinterpret_cast<const std::uint32_t *>(static_cast<std::uintptr_t>(post_.bits(picture)));
        masks.mask_words = post_.mask_words();
        masks.row_words = row_words(width);
        masks.count = own.count;
        masks.labels = reinterpret_cast<const std::int32_t *>(static_cast<std::uintptr_t>(post_.labels(picture)));
    }
    results.pictures.push_back(own);
}

void Context::copy_bits(int picture, Storage &results) {
    FoundPicture &own = results.pictures[results.pictures.size() - sizes_.size() + static_cast<std::size_t>(picture)];
    own.mask_words = row_words(own.width) * static_cast<std::size_t>(own.height);
    own.bits = results.bits_used;
    const std::size_t wanted = results.bits_used + own.count * own.mask_words;
    if (4 * wanted > results.bits.size()) {
        synchronize(*model_->driver, own_.get());  // what is on its way to the old memory
        Buffer larger(model_->driver, Buffer::Kind::pinned, 4 * std::max(wanted, 2 * results.bits_used));
        if (results.bits_used) std::memcpy(larger.as<void>(), results.bits.as<void>(), 4 * results.bits_used);
        results.bits = std::move(larger);
    }
    std::uint32_t *const target = results.bits.as<std::uint32_t>() + own.bits;
    const DevicePointer source = post_.bits(picture);
    if (own.mask_words == post_.mask_words()) {
        if (own.count) copy_to_host(*model_->driver, target, source, 4 * own.count * own.mask_words, own_.get());
    } else {
        for (std::size_t mask = 0; mask < own.count; ++mask) {
            copy_to_host(*model_->driver, target + mask * own.mask_words, source + 4 * mask * post_.mask_words(), 4 * own.mask_words, own_.get());
        }
    }
    results.bits_used = wanted;
}

}  // namespace yolact::detail
