#include "preprocessor.hpp"

#include <cstring>
#include <limits>

#include "blocks.cuh"
#include "errors.hpp"
#include "text.hpp"

namespace yolact::detail {

namespace {

constexpr std::size_t ALIGNMENT = 256;            // of a plane in the staging memory, so that two never share a sector
constexpr std::size_t GRAIN = std::size_t{1} << 20;  // staging memory is asked for in multiples of this: pictures of nearly one size share it
constexpr std::uint64_t MOST_PIXELS = (std::uint64_t{1} << 31) - 1;
constexpr std::uint64_t MOST_PITCH = (std::uint64_t{1} << 32) - 1;
// In the order of PixelFormat and of the kernels' PictureFormat.
const char *const FORMATS[] = {"rgb", "bgr", "nv12-bt601", "nv12-bt709"};
const char *const PLANES[] = {"rgb pixels", "bgr pixels", "nv12-bt601 pixels", "nv12-bt709 pixels"};

static_assert(static_cast<int>(PixelFormat::rgb) == FORMAT_RGB && static_cast<int>(PixelFormat::bgr) == FORMAT_BGR &&
                  static_cast<int>(PixelFormat::nv12_bt601) == FORMAT_NV12_BT601 && static_cast<int>(PixelFormat::nv12_bt709) == FORMAT_NV12_BT709,
              "as the kernels number them");

bool planar(const ImageView &view) { return view.format == PixelFormat::nv12_bt601 || view.format == PixelFormat::nv12_bt709; }

std::size_t luma_row(const ImageView &view) { return static_cast<std::size_t>(view.width) * (planar(view) ? 1 : 3); }
std::size_t chroma_row(const ImageView &view) { return (static_cast<std::size_t>(view.width) + 1) / 2 * 2; }
std::size_t chroma_rows(const ImageView &view) { return (static_cast<std::size_t>(view.height) + 1) / 2; }
std::size_t aligned(std::size_t size) { return (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; }

DevicePointer address_of(const void *pointer) { return static_cast<DevicePointer>(reinterpret_cast<std::uintptr_t>(pointer)); }

void check_plane(const Driver &driver, const char *name, const void *pointer, std::size_t pitch, std::size_t row, MemorySpace space) {
    if (!pointer) throw picture_error(std::string("The address of the ") + name + " is null.", "Give the address of its first byte.");
    if (pitch < row || pitch > MOST_PITCH) {
        throw picture_error(std::string("The pitch of the ") + name + " is " + std::to_string(pitch) + " bytes, from " + std::to_string(row) +
                                " (a row's) up to " + with_commas(MOST_PITCH) + " were wanted.",
                            "Give the bytes from the start of a row to the start of the next.");
    }
    if (space == MemorySpace::device && !driver.is_device_memory(address_of(pointer))) {
        throw picture_error(std::string("The ") + name + " at " + hexadecimal(address_of(pointer)) + " are not in the memory of " + driver.where() + ".",
                            "Say MemorySpace::host, or copy the picture to that GPU.");
    }
    if (space == MemorySpace::host && driver.is_device_only(pointer)) {
        throw picture_error(std::string("The ") + name + " at " + hexadecimal(address_of(pointer)) + " are in a GPU's memory, which the host cannot read.",
                            "Say MemorySpace::device.");
    }
}

}  // namespace

ImageView checked_picture(const Driver &driver, const ImageView &view) {
    const int format = static_cast<int>(view.format);
    if (format < 0 || format > static_cast<int>(PixelFormat::nv12_bt709)) {
        throw picture_error("The format of a picture is " + std::to_string(format) + ", one of rgb, bgr, nv12-bt601, nv12-bt709 was wanted.",
                            "Name one of these.");
    }
    if (view.space != MemorySpace::host && view.space != MemorySpace::device) {
        throw picture_error("The memory space of a picture is " + std::to_string(static_cast<int>(view.space)) + ", host or device was wanted.",
                            "Name one of these.");
    }
    const bool empty = view.width < 1 || view.height < 1;
    if (empty || static_cast<std::uint64_t>(view.width) * static_cast<std::uint64_t>(view.height) > MOST_PIXELS) {
        throw picture_error("A picture has " + std::to_string(view.width) + " x " + std::to_string(view.height) + " pixels, from 1 x 1 up to " +
                                with_commas(MOST_PIXELS) + " in all were wanted.",
                            "Give its width and height in pixels.");
    }
    ImageView found = view;
    if (!found.pitch) found.pitch = luma_row(found);
    check_plane(driver, PLANES[format], found.data, found.pitch, luma_row(found), found.space);
    if (!planar(found)) {
        if (found.chroma || found.chroma_pitch) {
            throw picture_error(std::string("A picture of format '") + FORMATS[format] + "' has a chroma plane, which NV12 has.",
                                "Leave it out, or name the format.");
        }
        return found;
    }
    if (!found.chroma) found.chroma = static_cast<const char *>(found.data) + found.pitch * static_cast<std::size_t>(found.height);
    if (!found.chroma_pitch) found.chroma_pitch = found.pitch < chroma_row(found) ? chroma_row(found) : found.pitch;
    check_plane(driver, "chroma", found.chroma, found.chroma_pitch, chroma_row(found), found.space);
    return found;
}

Preprocessor::Preprocessor(std::shared_ptr<Driver> driver, const Module &module, const InputSpec &spec, bool half, int batch)
    : driver_(std::move(driver)),
      spec_(spec),
      kernel_(module.kernel(spec.raw ? "preprocess_raw" : half ? "preprocess_half" : "preprocess_float")),
      table_(driver_, Buffer::Kind::device, static_cast<std::size_t>(batch) * sizeof(SourcePicture)),
      rows_(driver_, Buffer::Kind::pinned, static_cast<std::size_t>(batch) * sizeof(SourcePicture)) {}

namespace {

void copy_plane(char *target, const void *source, std::size_t pitch, std::size_t row, std::size_t rows) {
    const char *from = static_cast<const char *>(source);
    if (pitch == row) {
        std::memcpy(target, from, row * rows);
        return;
    }
    for (std::size_t index = 0; index < rows; ++index) std::memcpy(target + index * row, from + index * pitch, row);
}

}  // namespace

void Preprocessor::enqueue(Span<const ImageView> pictures, DevicePointer target, cudaStream_t stream) {
    std::size_t size = 0;
    for (const ImageView &view : pictures) {
        if (view.space != MemorySpace::host) continue;
        size += aligned(luma_row(view) * static_cast<std::size_t>(view.height));
        if (planar(view)) size += aligned(chroma_row(view) * chroma_rows(view));
    }
    if (size > pixels_.size()) {
        const std::size_t wanted = (size + GRAIN - 1) / GRAIN * GRAIN;
        pixels_ = Buffer();
        staged_ = Buffer();
        staged_ = Buffer(driver_, Buffer::Kind::pinned, wanted);
        pixels_ = Buffer(driver_, Buffer::Kind::device, wanted);
    }
    SourcePicture *const rows = rows_.as<SourcePicture>();
    std::size_t place = 0;
    // Copies a plane to the staging memory and says where it will be on the device.
    const auto stage = [this, &place](const void *source, std::size_t pitch, std::size_t row, std::size_t count) {
        copy_plane(staged_.as<char>() + place, source, pitch, row, count);
        const u8 *const there = pixels_.as<const u8>() + place;
        place += aligned(row * count);
        return there;
    };
    for (std::size_t index = 0; index < pictures.size(); ++index) {
        const ImageView &view = pictures[index];
        SourcePicture own{};
        own.width = view.width;
        own.height = view.height;
        own.format = static_cast<int>(view.format);
        if (view.space == MemorySpace::host) {
            own.data = stage(view.data, view.pitch, luma_row(view), static_cast<std::size_t>(view.height));
            own.pitch = static_cast<u32>(luma_row(view));
            if (planar(view)) {
                own.chroma = stage(view.chroma, view.chroma_pitch, chroma_row(view), chroma_rows(view));
                own.chroma_pitch = static_cast<u32>(chroma_row(view));
            }
        } else {
            own.data = static_cast<const u8 *>(view.data);
            own.chroma = static_cast<const u8 *>(view.chroma);
            own.pitch = static_cast<u32>(view.pitch);
            own.chroma_pitch = static_cast<u32>(view.chroma_pitch);
        }
        rows[index] = own;
    }
    if (place) copy_to_device(*driver_, pixels_.pointer(), staged_.as<void>(), place, stream);
    copy_to_device(*driver_, table_.pointer(), rows, pictures.size() * sizeof(SourcePicture), stream);

    Preprocess argument{};
    argument.pictures = table_.as<const SourcePicture>();
    argument.target = reinterpret_cast<void *>(static_cast<std::uintptr_t>(target));
    argument.size = spec_.size;
    argument.swapped = spec_.bgr;
    std::memcpy(argument.mean, spec_.mean.data(), sizeof argument.mean);
    std::memcpy(argument.std, spec_.std.data(), sizeof argument.std);
    const auto across = static_cast<unsigned>((spec_.size + PREPROCESS_WIDTH - 1) / PREPROCESS_WIDTH);
    const auto down = static_cast<unsigned>((spec_.size + PREPROCESS_HEIGHT - 1) / PREPROCESS_HEIGHT);
    kernel_.launch(*driver_, {across, down, static_cast<unsigned>(pictures.size())}, PREPROCESS_THREADS, 0, stream, &argument);
}

}  // namespace yolact::detail
