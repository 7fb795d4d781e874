#include "yolact_deploy/detector.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include "calls.hpp"
#include "completer.hpp"
#include "driver_calls.hpp"
#include "errors.hpp"
#include "loading.hpp"
#include "pool.hpp"
#include "shelf.hpp"
#include "translated.hpp"

namespace yolact {

using detail::Active;
using detail::Context;
using detail::Lease;
using detail::Pool;
using detail::translated;

struct Detector::Implementation {
    std::shared_ptr<Pool> pool;
    std::shared_ptr<detail::Shelf> shelf = std::make_shared<detail::Shelf>();
    detail::Calls calls;
    detail::Completer completer;  // ends first, with all submissions

    const detail::Model &model() const noexcept { return pool->model(); }
    void check_call() const;
    void check_stream(cudaStream_t stream) const;
    Span<const ImageView> checked(Span<const ImageView> pictures, cudaStream_t stream) const;
    void run(Span<const ImageView> pictures, detail::Storage &storage, cudaStream_t stream);
    void submit(Span<const ImageView> pictures, Callback callback, cudaStream_t stream);
    void warm_up(int width, int height, int batch);
};

namespace {

// Pictures of the call under way, checked; a thread's list keeps its memory from call to call.
std::vector<ImageView> &scratch() {
    static thread_local std::vector<ImageView> list;
    return list;
}

// Masks on the device stay as they are as long as nobody works with their context.
void keep_on_device(Lease lease, detail::Storage &storage) {
    lease.hold();
    storage.lease = std::move(lease);
}

}  // namespace

void Detector::Implementation::check_stream(cudaStream_t stream) const {
    if (!stream) return;
    const detail::Driver &driver = *model().driver;
    const Active active(driver);
    void *context = nullptr;
    int capturing = 0;
    if (driver.calls().cuStreamGetCtx(stream, &context) != 0 || context != driver.context()) {
        throw detail::config_error("The given stream is not one of " + driver.where() + ".", "Give a stream of the GPU that the engine runs on.");
    }
    driver.check(driver.calls().cuStreamIsCapturing(stream, &capturing), "cuStreamIsCapturing");
    if (capturing) throw detail::config_error("The given stream is being captured.", "Call outside of captures: detect waits for its results.");
}

// What no call can be made after or in.
void Detector::Implementation::check_call() const {
    model().driver->check_not_lost();
    if (!completer.is_own_thread()) return;
    throw detail::config_error("The detector was called from a callback, where it may wait for itself.", "Call it from a thread of your own.");
}

Span<const ImageView> Detector::Implementation::checked(Span<const ImageView> pictures, cudaStream_t stream) const {
    const Active active(*model().driver);
    std::vector<ImageView> &list = scratch();
    list.clear();
    for (const ImageView &view : pictures) list.push_back(detail::checked_picture(*model().driver, view));
    check_stream(stream);
    return list;
}

void Detector::Implementation::run(Span<const ImageView> pictures, detail::Storage &storage, cudaStream_t stream) {
    storage.clear();
    storage.manifest = model().shown;
    const auto most = static_cast<std::size_t>(model().engine->batch().largest);
    const bool kept = model().masks & Masks::device_bits;
    if (pictures.size() > most && kept) {
        throw detail::config_error(std::to_string(pictures.size()) + " pictures were given, masks on the device are kept of " +
                                       std::to_string(most) + " at once.",
                                   "Split them, or build the engine with a larger --batch.");
    }
    const Span<const ImageView> all = checked(pictures, stream);
    for (std::size_t first = 0; first < all.size(); first += most) {
        Lease lease = pool->acquire();
        lease->enqueue({all.data() + first, std::min(most, all.size() - first)}, stream);
        lease->finish(storage);
        if (kept) keep_on_device(std::move(lease), storage);
    }
    storage.seal();
}

void Detector::Implementation::submit(Span<const ImageView> pictures, Callback callback, cudaStream_t stream) {
    const auto most = static_cast<std::size_t>(model().engine->batch().largest);
    if (pictures.empty() || pictures.size() > most) {
        throw detail::config_error(std::to_string(pictures.size()) + " pictures were submitted, 1 to " + std::to_string(most) + " were wanted.",
                                   "Split them, or build the engine with a larger --batch.");
    }
    if (!callback) throw detail::config_error("The callback is empty.", "Give a function, or take the future.");
    const Span<const ImageView> all = checked(pictures, stream);
    auto results = std::make_shared<Results>(shelf->take());
    auto lease = std::make_shared<Lease>(pool->acquire());
    (*lease)->enqueue(all, stream);
    // It may run when the detector is gone, if a callback before it was what ended it.
    auto complete = [pool = pool, results, lease, told = std::move(callback)]() mutable {
        std::exception_ptr failure;
        try {
            translated([&] {
                detail::Storage &storage = results->storage();
                storage.manifest = pool->model().shown;
                (*lease)->finish(storage);
                storage.seal();
                if (pool->model().masks & Masks::device_bits) keep_on_device(std::move(*lease), storage);
            });
        } catch (const Error &) {
            failure = std::current_exception();
            results->clear();
        }
        *lease = Lease();  // free before the callback, so that the next one may start
        told(std::move(*results), failure);
    };
    try {
        completer.add(std::move(complete));
    } catch (...) {
        (*lease)->discard();
        throw;
    }
}

void Detector::Implementation::warm_up(int width, int height, int batch) {
    const int most = model().engine->batch().largest;
    if (width < 1 || height < 1 || batch < 1 || batch > most) {
        throw detail::config_error("Warming up with " + std::to_string(batch) + " pictures of " + std::to_string(width) + " x " +
                                       std::to_string(height) + " pixels was asked for.",
                                   "Give 1 to " + std::to_string(most) + " pictures of at least 1 x 1 pixels.");
    }
    const std::vector<unsigned char> grey(std::size_t{3} * static_cast<std::size_t>(width) * static_cast<std::size_t>(height), 128);
    ImageView view;
    view.data = grey.data();
    view.width = width;
    view.height = height;
    const std::vector<ImageView> pictures(static_cast<std::size_t>(batch), detail::checked_picture(*model().driver, view));
    Results results;
    for (const Lease &lease : pool->acquire_all()) {
        for (int run = 0; run < 3; ++run) {  // the first sets up, the second captures, the third is as all others
            results.clear();
            lease->enqueue(pictures, nullptr);
            lease->finish(results.storage());
        }
    }
}

Detector::Detector(std::unique_ptr<Implementation> implementation) : implementation_(std::move(implementation)) {}

Detector::Implementation &Detector::implementation() const {
    if (implementation_) return *implementation_;
    throw detail::config_error("The detector is empty: what it had was moved away.", "Load one, or use the one that it was moved to.");
}

Detector::~Detector() {
    if (implementation_) implementation_->calls.wait_until_none();
}

Detector::Detector(Detector &&other) noexcept = default;

Detector &Detector::operator=(Detector &&other) noexcept {
    if (this != &other) {
        Detector old(std::move(*this));
        implementation_ = std::move(other.implementation_);
    }
    return *this;
}

Detector Detector::load(const std::string &path, const Options &options) {
    return translated([&] {
        auto implementation = std::make_unique<Implementation>();
        implementation->pool = std::make_shared<Pool>(detail::load_model(path, options), options.contexts);
        return Detector(std::move(implementation));
    });
}

Results Detector::detect(Span<const ImageView> pictures, cudaStream_t stream) {
    Results results;
    detect(pictures, results, stream);
    return results;
}

void Detector::detect(Span<const ImageView> pictures, Results &results, cudaStream_t stream) {
    translated([&] {
        try {
            Implementation &own = implementation();
            const detail::Calls::Inside inside(own.calls);
            own.check_call();
            own.run(pictures, results.storage(), stream);
        } catch (...) {
            results.clear();
            throw;
        }
    });
}

std::future<Results> Detector::submit(Span<const ImageView> pictures, cudaStream_t stream) {
    const auto promise = std::make_shared<std::promise<Results>>();
    std::future<Results> future = promise->get_future();
    submit(
        pictures,
        [promise](Results results, const std::exception_ptr &error) {
            if (error) {
                promise->set_exception(error);
            } else {
                promise->set_value(std::move(results));
            }
        },
        stream);
    return future;
}

void Detector::submit(Span<const ImageView> pictures, Callback callback, cudaStream_t stream) {
    translated([&] {
        Implementation &own = implementation();
        const detail::Calls::Inside inside(own.calls);
        own.check_call();
        own.submit(pictures, std::move(callback), stream);
    });
}

void Detector::warm_up(int width, int height, int batch) {
    translated([&] {
        Implementation &own = implementation();
        const detail::Calls::Inside inside(own.calls);
        own.check_call();
        own.warm_up(width, height, batch);
    });
}

Info Detector::info() const {
    return translated([&] {
        Implementation &own = implementation();
        const detail::Calls::Inside inside(own.calls);
        const detail::Model &model = own.model();
        Info info;
        info.variant = model.manifest.variant;
        info.precision = model.manifest.target.precision;
        info.device = model.driver->name();
        info.tensorrt = detail::tensorrt_here().title();
        info.input_size = model.manifest.input.size;
        info.smallest_batch = model.engine->batch().smallest;
        info.largest_batch = model.engine->batch().largest;
        info.names = model.manifest.names;
        info.categories = model.manifest.categories;
        info.device_bytes = own.pool->device_bytes();
        return info;
    });
}

}  // namespace yolact
