#include "loading.hpp"

#include <algorithm>
#include <set>

#include "errors.hpp"
#include "files.hpp"
#include "plan.hpp"
#include "text.hpp"

namespace yolact::detail {

namespace {

void check_options(const Options &options) {
    if (options.contexts < 1) throw config_error(std::to_string(options.contexts) + " contexts were asked for.", "Give 1 or more.");
    if (static_cast<unsigned>(options.masks) > 7) {
        throw config_error("The forms of masks are " + std::to_string(static_cast<unsigned>(options.masks)) + ".",
                           "Combine Masks::rle, Masks::host_bits and Masks::device_bits.");
    }
    if (!options.rle_bytes) throw config_error("Room for 0 bytes of RLE was asked for, at least 1 is wanted.", "Leave rle_bytes out.");
}

const TensorSpec *find(const std::vector<TensorSpec> &specs, const std::string &name) {
    const auto found = std::find_if(specs.begin(), specs.end(), [&name](const TensorSpec &spec) { return spec.name == name; });
    return found == specs.end() ? nullptr : &*found;
}

void check_tensors(const std::string &path, const Engine &engine, const Manifest &manifest) {
    std::vector<TensorSpec> wanted = manifest.inputs;
    wanted.insert(wanted.end(), manifest.outputs.begin(), manifest.outputs.end());
    const std::vector<TensorSpec> found = engine.specs();
    std::set<std::string> names;
    for (const TensorSpec &spec : wanted) names.insert(spec.name);
    for (const TensorSpec &spec : found) names.insert(spec.name);
    for (const std::string &name : names) {
        const TensorSpec *const here = find(found, name), *const told = find(wanted, name);
        if (here && told && *here == *told) continue;
        throw model_error("The tensor " + name + " of " + path + " is " + (here ? here->text() : "missing") + ", its sidecar says " +
                              (told ? told->text() : "missing") + ".",
                          "Rebuild it: " + manifest.target.rebuild);
    }
}

void check_input(const std::string &path, const Engine &engine, const Manifest &manifest) {
    const EngineTensor &input = engine.tensors()[0];
    const std::int64_t size = manifest.input.size;
    const bool alone = std::count_if(engine.tensors().begin(), engine.tensors().end(), [](const EngineTensor &one) { return one.input; }) == 1;
    const bool raw = manifest.input.raw;
    const bool typed = raw ? input.dtype == "uint8" : input.dtype == "float32" || input.dtype == "float16";
    const std::vector<std::int64_t> wanted = raw ? std::vector<std::int64_t>{size, size, 3} : std::vector<std::int64_t>{3, size, size};
    if (alone && typed && input.shape == wanted) return;
    throw model_error("The input " + input.name + " of " + path + " is " + input.dtype + " " + shape_text(input.shape) + " a picture, " +
                          (raw ? "uint8 " : "float32 ") + shape_text(wanted) + " was wanted.",
                      "Rebuild it: " + manifest.target.rebuild);
}

std::string told(const std::string &dtype, const std::vector<std::int64_t> &shape) {
    return dtype + " [B, " + shape_text(shape).substr(1);
}

void check_mask_iou(const Engine &net, const HeadShapes &shapes) {
    const std::vector<std::int64_t> masks = {1, shapes.height, shapes.width}, ious = {shapes.classes - 1};
    const std::vector<EngineTensor> &found = net.tensors();
    const bool fits = found.size() == 2 && found[0].input && !found[1].input && found[0].dtype == "float32" && found[1].dtype == "float32" &&
                      found[0].shape == masks && found[1].shape == ious;
    if (fits) return;
    std::vector<std::string> texts;
    for (const EngineTensor &each : found) texts.push_back(told(each.dtype, each.shape));
    throw model_error(net.name() + " has the tensors " + joined(texts, "; ") + "; a mask-IoU net has " + told("float32", masks) + "; " +
                          told("float32", ious) + ".",
                      "Build both engines again.");
}

}  // namespace

std::shared_ptr<const Model> load_model(const std::string &path, const Options &options) {
    check_options(options);
    std::optional<Manifest> sidecar = read_sidecar(path);
    const std::string plan = read_plan(path, sidecar);
    const auto model = std::make_shared<Model>();
    model->manifest = std::move(*sidecar);
    model->shown = std::make_shared<const Manifest>(model->manifest);
    const Manifest &manifest = model->manifest;
    const std::string mask_iou_plan = read_mask_iou_plan(path, manifest);
    Machine machine = tensorrt_here();
    check_tensorrt(path, manifest.target, machine);
    if (manifest.target.version_compatible && options.lean_runtime.empty()) {
        throw model_error(path + " is a version-compatible engine, which brings no runtime of its own.",
                          "Name libnvinfer_lean.so of TensorRT " + manifest.target.tensorrt_version + ": Options::lean_runtime.");
    }
    model->settings = Settings::of(manifest, options);
    model->masks = options.masks;
    model->graphs = options.graphs;
    model->rle_bytes = options.rle_bytes;
    model->driver = Driver::open(options.device, machine.title());
    model->driver->check_not_lost();
    machine.gpu = model->driver->name();
    machine.capability = {model->driver->major(), model->driver->minor()};
    check_gpu(path, manifest.target, machine);

    const auto engine = std::make_shared<Engine>(model->driver, plan, base_name(path), options.lean_runtime, options.log);
    check_tensors(path, *engine, manifest);
    check_input(path, *engine, manifest);
    model->shapes = HeadShapes::of(*engine, manifest);
    if (!mask_iou_plan.empty()) {
        const auto net = std::make_shared<Engine>(model->driver, mask_iou_plan, base_name(manifest.mask_iou.file), options.lean_runtime, options.log);
        check_mask_iou(*net, model->shapes);
        model->mask_iou = net;
    }
    model->engine = engine;
    model->module = std::make_unique<Module>(model->driver);
    return model;
}

}  // namespace yolact::detail
