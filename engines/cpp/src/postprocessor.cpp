#include "postprocessor.hpp"

#include <algorithm>

#include "blocks.cuh"
#include "errors.hpp"

namespace yolact::detail {

namespace {

constexpr std::size_t ARENA_GRAIN = 16;
constexpr std::uint32_t NO_ROOM = 0xffffffffu;  // in rle_starts

unsigned pieces(int whole, int piece) { return static_cast<unsigned>((whole + piece - 1) / piece); }

std::size_t size_of(int number) { return static_cast<std::size_t>(number); }

}  // namespace

template <typename T>
void Postprocessor::allocate(T *&place, std::size_t bytes) {
    if (!bytes) return;
    buffers_.emplace_back(driver_, Buffer::Kind::device, bytes);
    place = buffers_.back().as<T>();
}

Postprocessor::Postprocessor(std::shared_ptr<Driver> driver, const Module &module, const HeadShapes &shapes, const Settings &settings,
                             int batch, int input_size, std::size_t rle_bytes, bool rescoring)
    : driver_(std::move(driver)), shapes_(shapes), nms_(settings.nms), slots_(shapes.slots(settings)), batch_(batch) {
    const bool inside = shapes.graph != GraphKind::none, traditional = !inside && nms_ == Nms::traditional;
    const int groups = inside ? 0 : nms_ == Nms::cross_class ? 1 : shapes.classes - 1;
    const int top_k = traditional ? settings.max_detections : settings.top_k;
    const std::size_t pictures = size_of(batch), lists = pictures * size_of(groups), found = pictures * size_of(slots_);
    const std::size_t priors = pictures * size_of(shapes.priors), ranked = lists * size_of(top_k);
    Problem &p = problem_;
    counter_bytes_ = 8 + 2 * (pictures + pictures % 2) * 4;
    counters_ = Buffer(driver_, Buffer::Kind::device, counter_bytes_);
    p.arena_used = counters_.as<u64>();
    p.candidate_counts = counters_.as<u32>() + 2;
    p.survivor_counts = p.candidate_counts + pictures + pictures % 2;
    allocate(p.candidates, 4 * priors);
    if (!inside) allocate(p.best_keys, 8 * priors);
    if (!traditional) {
        allocate(p.ranked, 8 * ranked);
        allocate(p.ranked_counts, 4 * lists);
    } else {
        allocate(p.removed, 4 * lists * pieces(shapes.priors, WARP));
    }
    allocate(p.survivors, 8 * ranked);
    allocate(p.chosen_coefficients, 4 * found * size_of(shapes.prototypes));
    allocate(p.crops, 16 * found);
    allocate(p.probabilities, 4 * found * size_of(shapes.height) * size_of(shapes.width));
    pictures_ = Buffer(driver_, Buffer::Kind::device, 8 * pictures);
    p.pictures = pictures_.as<int>();

    const std::size_t table = (4 * found + 7) / 8 * 8;
    places_.boxes = (4 * pictures + 7) / 8 * 8;
    std::size_t end = places_.boxes + 16 * found;
    for (std::size_t *place : {&places_.scores, &places_.mask_scores, &places_.labels, &places_.priors, &places_.starts, &places_.lengths}) {
        *place = end;
        end += table;
    }
    places_.size = end;
    results_ = Buffer(driver_, Buffer::Kind::device, places_.size);
    staged_ = Buffer(driver_, Buffer::Kind::pinned, places_.size + 8 * pictures);
    char *const results = results_.as<char>();
    p.counts = reinterpret_cast<u32 *>(results + places_.counts);
    p.found_boxes = reinterpret_cast<float *>(results + places_.boxes);
    p.found_scores = reinterpret_cast<float *>(results + places_.scores);
    p.mask_scores = reinterpret_cast<float *>(results + places_.mask_scores);
    p.labels = reinterpret_cast<int *>(results + places_.labels);
    p.priors = reinterpret_cast<int *>(results + places_.priors);
    p.rle_starts = reinterpret_cast<u32 *>(results + places_.starts);
    p.rle_lengths = reinterpret_cast<u32 *>(results + places_.lengths);

    p.prior_count = shapes.priors;
    p.classes = shapes.classes;
    p.groups = groups;
    p.prototype_count = shapes.prototypes;
    p.height = shapes.height;
    p.width = shapes.width;
    p.top_k = top_k;
    p.max_detections = slots_;
    p.score_threshold = settings.score_threshold;
    p.iou_threshold = settings.iou_threshold;
    p.fill = rescoring;
    p.input_size = input_size;
    make_arena(rle_bytes * pictures);

    const bool wide = shapes.prototypes > MOST_PROTOTYPES / 2;
    if (inside) {
        given_ = module.kernel("given");
    } else {
        select_[0] = module.kernel("select_float"), select_[1] = module.kernel("select_half");
        greedy_[0] = module.kernel("greedy_float"), greedy_[1] = module.kernel("greedy_half");
        rank_[0] = module.kernel("rank_float"), rank_[1] = module.kernel("rank_half");
        suppress_ = module.kernel("suppress");
        best_ = module.kernel("best");
    }
    given_masks_ = module.kernel("given_masks");
    assemble_[0] = module.kernel(wide ? "assemble_float_64" : "assemble_float_32");
    assemble_[1] = module.kernel(wide ? "assemble_half_64" : "assemble_half_32");
    rescore_ = module.kernel("rescore");
    pack_bits_ = module.kernel("pack_bits");
    encode_rle_ = module.kernel("encode_rle", shapes.outline_bytes());
    deliver_ = module.kernel("deliver");
}

void Postprocessor::make_arena(std::size_t bytes) {
    const std::size_t size = (bytes + ARENA_GRAIN - 1) / ARENA_GRAIN * ARENA_GRAIN;
    if (size == 0 || size >= std::size_t{1} << 32) {
        throw config_error("Room for " + std::to_string(bytes) + " bytes of RLE in a batch was wanted, 1 to 2^32 - 16 can be had.",
                           "Set rle_bytes to a value in that range, or build the engine with a smaller --batch.");
    }
    problem_.arena_size = 0;  // without memory, nothing has room there
    arena_ = Buffer();
    delivered_ = Buffer();
    arena_ = Buffer(driver_, Buffer::Kind::device, size);
    delivered_ = Buffer(driver_, Buffer::Kind::pinned, size);
    problem_.arena = arena_.as<u8>();
    problem_.delivered = delivered_.as<u8>();
    problem_.arena_size = static_cast<u32>(size);
}

std::size_t Postprocessor::device_bytes() const {
    std::size_t size = counters_.size() + results_.size() + pictures_.size() + arena_.size() + bits_.size();
    for (const Buffer &buffer : buffers_) size += buffer.size();
    return size;
}

void Postprocessor::set_pictures(const std::vector<std::pair<int, int>> &sizes) {
    int *const row = reinterpret_cast<int *>(staged_.as<char>() + places_.size);
    for (std::size_t picture = 0; picture < size_of(batch_); ++picture) {
        const bool given = picture < sizes.size();  // what fills up the engine's smallest batch
        row[2 * picture] = given ? sizes[picture].first : 1;
        row[2 * picture + 1] = given ? sizes[picture].second : 1;
    }
}

bool Postprocessor::make_bits_room(std::size_t words) {
    if (words <= problem_.bits_stride) return false;
    const std::size_t masks = size_of(batch_) * size_of(slots_);
    if (words >= std::size_t{1} << 32) throw picture_error("A picture is too large for masks as bits.", "Ask for RLE.");
    bits_ = Buffer();
    problem_.bits = nullptr;
    problem_.bits_stride = 0;
    bits_ = Buffer(driver_, Buffer::Kind::device, 4 * words * masks);
    problem_.bits = bits_.as<u32>();
    problem_.bits_stride = static_cast<u32>(words);
    return true;
}

void Postprocessor::launch(const Kernel &kernel, Blocks blocks, int threads, cudaStream_t stream, unsigned shared) const {
    kernel.launch(*driver_, blocks, static_cast<unsigned>(threads), shared, stream, &problem_);
}

void Postprocessor::enqueue(const Outputs &outputs, int batch, cudaStream_t stream, bool rle, bool bits, const MaskIouNet &net) {
    Problem &p = problem_;
    const auto at = [](DevicePointer pointer) { return reinterpret_cast<const void *>(static_cast<std::uintptr_t>(pointer)); };
    p.boxes = at(outputs.boxes), p.scores = at(outputs.scores);
    p.coefficients = at(outputs.coefficients), p.prototypes = at(outputs.prototypes);
    p.given_scores = static_cast<const float *>(at(outputs.given_scores));
    p.given_labels = static_cast<const int *>(at(outputs.given_labels));
    p.given_masks = at(outputs.given_masks);
    p.given_mask_scores = static_cast<const float *>(at(outputs.given_mask_scores));
    p.half_inputs = outputs.half_boxes | outputs.half_coefficients << 1 | outputs.half_masks << 2;
    p.batch = batch;

    const unsigned pictures = static_cast<unsigned>(batch);
    copy_to_device(*driver_, pictures_.pointer(), staged_.as<char>() + places_.size, 8 * size_of(batch), stream);
    clear(*driver_, counters_.pointer(), counter_bytes_, stream);
    if (shapes_.graph == GraphKind::none) {
        enqueue_nms(outputs.half_scores, stream);
    } else {
        launch(given_, {pictures}, GIVEN_THREADS, stream);
    }
    enqueue_masks(outputs.half_prototypes, stream);
    if (net && shapes_.graph != GraphKind::masks) {
        const auto probabilities = static_cast<DevicePointer>(reinterpret_cast<std::uintptr_t>(p.probabilities));
        p.mask_iou = static_cast<const float *>(at(net(probabilities, batch * slots_, stream)));
        launch(rescore_, {pieces(slots_, RESCORE_THREADS), pictures}, RESCORE_THREADS, stream);
    }
    if (bits) launch(pack_bits_, {BITS_BLOCKS, static_cast<unsigned>(slots_), pictures}, BITS_THREADS, stream);
    if (rle) enqueue_rle(stream);
    copy_to_host(*driver_, staged_.as<void>(), results_.pointer(), places_.size, stream);
}

void Postprocessor::enqueue_nms(bool half_scores, cudaStream_t stream) const {
    const unsigned pictures = static_cast<unsigned>(problem_.batch), groups = static_cast<unsigned>(problem_.groups);
    launch(select_[half_scores], {pieces(shapes_.priors, SELECT_PRIORS), pictures}, SELECT_THREADS, stream);
    if (nms_ == Nms::traditional) {
        launch(greedy_[half_scores], {groups, pictures}, GREEDY_THREADS, stream);
    } else {
        launch(rank_[half_scores], {groups, pictures}, RANK_THREADS, stream);
        launch(suppress_, {groups, pictures}, SUPPRESS_THREADS, stream);
    }
    launch(best_, {pictures}, BEST_THREADS, stream);
}

void Postprocessor::enqueue_masks(bool half_prototypes, cudaStream_t stream) const {
    const unsigned pictures = static_cast<unsigned>(problem_.batch);
    if (shapes_.graph == GraphKind::masks) {
        launch(given_masks_, {GIVEN_BLOCKS, static_cast<unsigned>(slots_), pictures}, GIVEN_THREADS, stream);
        return;
    }
    const unsigned tiles = pieces(shapes_.width, ASSEMBLE_WIDTH) * pieces(shapes_.height, ASSEMBLE_HEIGHT);
    launch(assemble_[half_prototypes], {tiles, pieces(slots_, ASSEMBLE_DETECTIONS), pictures}, ASSEMBLE_THREADS, stream);
}

void Postprocessor::enqueue_rle(cudaStream_t stream) const {
    const unsigned pictures = static_cast<unsigned>(problem_.batch);
    launch(encode_rle_, {static_cast<unsigned>(slots_), pictures}, RLE_THREADS, stream, shapes_.outline_bytes());
    launch(deliver_, {DELIVER_BLOCKS}, DELIVER_THREADS, stream);
}

Postprocessor::Found Postprocessor::found(int picture) const {
    const char *const results = staged_.as<const char>();
    const std::size_t slot = size_of(picture) * size_of(slots_);
    return {reinterpret_cast<const std::uint32_t *>(results + places_.counts)[picture],
            reinterpret_cast<const float *>(results + places_.boxes) + 4 * slot,
            reinterpret_cast<const float *>(results + places_.scores) + slot,
            reinterpret_cast<const float *>(results + places_.mask_scores) + slot,
            reinterpret_cast<const int *>(results + places_.labels) + slot,
            reinterpret_cast<const int *>(results + places_.priors) + slot,
            reinterpret_cast<const std::uint32_t *>(results + places_.starts) + slot,
            reinterpret_cast<const std::uint32_t *>(results + places_.lengths) + slot};
}

bool Postprocessor::all_delivered(int batch) const {
    for (int picture = 0; picture < batch; ++picture) {
        const Found own = found(picture);
        if (std::find(own.rle_starts, own.rle_starts + own.count, NO_ROOM) != own.rle_starts + own.count) return false;
    }
    return true;
}

void Postprocessor::repeat_rle(cudaStream_t stream) {
    std::size_t wanted = 0;
    for (int picture = 0; picture < problem_.batch; ++picture) {
        const Found own = found(picture);
        for (std::uint32_t slot = 0; slot < own.count; ++slot) wanted += own.rle_lengths[slot];
    }
    make_arena(wanted + wanted / 4);
    clear(*driver_, counters_.pointer(), 8, stream);  // arena_used
    enqueue_rle(stream);
    copy_to_host(*driver_, staged_.as<void>(), results_.pointer(), places_.size, stream);
}

DevicePointer Postprocessor::bits(int picture) const {
    return bits_.pointer() + 4 * size_of(picture) * size_of(slots_) * problem_.bits_stride;
}

DevicePointer Postprocessor::labels(int picture) const {
    return results_.pointer() + places_.labels + 4 * size_of(picture) * size_of(slots_);
}

}  // namespace yolact::detail
