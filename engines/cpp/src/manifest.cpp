#include "manifest.hpp"

#include <cmath>
#include <filesystem>

#include "errors.hpp"
#include "files.hpp"
#include "text.hpp"
#include "utf8.hpp"

namespace yolact::detail {

namespace {

constexpr std::int64_t SCHEMA = 1;  // the newest that is read
constexpr std::uintmax_t LARGEST_SIDECAR = 16 << 20;
constexpr int LARGEST_BATCH = 1024;
constexpr int LARGEST_COUNT = 1 << 20;  // of thresholds that count something
const char *const REBUILD = "Export the checkpoint again with this version of yolact-deploy.";

void require(bool holds, const std::string &what) {
    if (!holds) throw JsonError(what);
}

bool one_of(const std::string &text, std::initializer_list<const char *> known) {
    for (const char *const each : known)
        if (text == each) return true;
    return false;
}

int count_of(const Json &fields, const std::string &name, int most) {
    const std::int64_t number = fields.at(name).integer(name);
    require(number >= 1 && number <= most, name + " is " + std::to_string(number));
    return static_cast<int>(number);
}

double share_of(const Json &fields, const std::string &name) {
    const double number = fields.at(name).number(name);
    require(number >= 0 && number <= 1, name + " is " + python_float(number));
    return number;
}

std::array<float, 3> three(const Json &fields, const std::string &name, bool positive) {
    const std::vector<Json> &values = fields.at(name).array(name);
    require(values.size() == 3, name + " has " + std::to_string(values.size()) + " numbers");
    std::array<float, 3> found;
    for (std::size_t index = 0; index < 3; ++index) {
        const double number = values[index].number(name);
        require(std::isfinite(number) && (!positive || number > 0), name + " is " + python_float(number));
        found[index] = static_cast<float>(number);
    }
    return found;
}

std::vector<TensorSpec> tensors(const Json &fields, const std::string &name) {
    std::vector<TensorSpec> found;
    for (const Json &entry : fields.at(name).array(name)) {
        TensorSpec spec{entry.at("name").string("name"), entry.at("dtype").string("dtype"), {}};
        for (const Json &axis : entry.at("shape").array("shape")) {
            spec.shape.push_back(axis.is(Json::Kind::string) ? -1 : axis.integer("an axis of " + spec.name));
        }
        found.push_back(std::move(spec));
    }
    return found;
}

NamedFile named_file(const Json *fields, const std::string &name) {
    NamedFile found;
    if (!fields || fields->object(name).empty()) return found;
    found.file = fields->at("file").string("file");
    found.sha256 = fields->at("sha256").string("sha256");
    require(!found.file.empty(), name + " has no file");
    return found;
}

InputSpec input_of(const Json &fields, int variant_size) {
    InputSpec spec;
    spec.size = count_of(fields, "size", 1 << 16);
    const std::string &layout = fields.at("layout").string("layout"), &channels = fields.at("channels").string("channels");
    require(spec.size == variant_size && one_of(layout, {"float", "raw"}) && one_of(channels, {"rgb", "bgr"}), "the input contradicts itself");
    spec.raw = layout == "raw";
    spec.bgr = channels == "bgr";
    spec.mean = three(fields, "mean", false);
    spec.std = three(fields, "std", true);
    return spec;
}

Manifest manifest_of(const Json &fields) {
    Manifest found;
    const Json &variant = fields.at("variant");
    found.variant = variant.at("name").string("name");
    found.mask_rescoring = variant.at("mask_rescoring").boolean("mask_rescoring");
    const std::int64_t classes = variant.at("num_classes").integer("num_classes");
    const Json &list = fields.at("classes");
    for (const Json &name : list.at("names").array("names")) found.names.push_back(name.string("a class name"));
    for (const Json &id : list.at("category_ids").array("category_ids")) found.categories.push_back(id.integer("a category id"));
    require(found.names.size() == found.categories.size(), "there are not as many category ids as class names");
    require(classes >= 2 && found.names.size() == static_cast<std::uint64_t>(classes - 1),
            std::to_string(found.names.size()) + " class names for " + std::to_string(classes - 1) + " classes");
    found.input = input_of(fields.at("input"), count_of(variant, "input_size", 1 << 16));
    found.postprocess = fields.at("postprocess").string("postprocess");
    require(one_of(found.postprocess, {"none", "nms", "masks"}), "postprocess '" + found.postprocess + "'");
    const Json &limits = fields.at("thresholds");
    found.thresholds = {share_of(limits, "score"), share_of(limits, "iou"), count_of(limits, "top_k", LARGEST_COUNT),
                        count_of(limits, "max_detections", LARGEST_COUNT)};
    found.inputs = tensors(fields, "inputs");
    found.outputs = tensors(fields, "outputs");
    found.mask_iou = named_file(&fields.at("mask_iou"), "mask_iou");
    return found;
}

// "89", "8.9", "sm89" and "sm_89".
Capability capability_of(const std::string &text) {
    std::string digits = text.compare(0, 2, "sm") == 0 ? text.substr(text.compare(0, 3, "sm_") == 0 ? 3 : 2) : text;
    if (digits.size() > 2 && digits[digits.size() - 2] == '.') digits.erase(digits.size() - 2, 1);
    const bool right = (digits.size() == 2 || digits.size() == 3) && digits.find_first_not_of("0123456789") == std::string::npos;
    require(right, "the compute capability '" + text.substr(0, 40) + "'");
    return {std::stoi(digits.substr(0, digits.size() - 1)), digits.back() - '0'};
}

Target target_of(const Json &fields) {
    Target found;
    const auto text = [&fields](const char *name) { return fields.at(name).string(name); };
    found.backend = text("backend");
    found.tensorrt_version = text("tensorrt_version");
    found.precision = text("precision");
    found.sha256 = text("sha256");
    found.gpu = text("gpu");
    found.rebuild = text("rebuild");
    const std::int64_t size = fields.at("size").integer("size");
    const std::vector<Json> &batch = fields.at("batch").array("batch");
    require(found.sha256.size() == 64 && size >= 0 && batch.size() == 3, "wrong fields");
    found.size = static_cast<std::uint64_t>(size);
    const std::int64_t sizes[] = {batch[0].integer("batch"), batch[1].integer("batch"), batch[2].integer("batch")};
    require(1 <= sizes[0] && sizes[0] <= sizes[1] && sizes[1] <= sizes[2] && sizes[2] <= LARGEST_BATCH, "wrong batches");
    found.batch = {static_cast<int>(sizes[0]), static_cast<int>(sizes[1]), static_cast<int>(sizes[2])};
    for (const Json &one : fields.at("capabilities").array("capabilities")) found.capabilities.push_back(capability_of(one.string("a capability")));
    const Json *level = fields.find("hardware_level");
    found.hardware_level = level ? level->string("hardware_level") : "none";
    const Json *compatible = fields.find("version_compatible");
    found.version_compatible = compatible && compatible->boolean("version_compatible");
    require(one_of(found.backend, {"tensorrt", "tensorrt-rtx"}) && one_of(found.hardware_level, {"none", "ampere+", "same-compute-capability"}),
            "backend '" + found.backend + "', hardware level '" + found.hardware_level + "'");
    found.selftest = named_file(fields.find("selftest"), "selftest");
    return found;
}

std::string read_text(const std::string &path, const std::string &mend) {
    std::string text;
    const std::string reason = read_file(path, LARGEST_SIDECAR, text);
    if (reason == TOO_LARGE) throw model_error("The sidecar " + path + " is larger than 16 MiB.", mend);
    if (!reason.empty()) throw model_error("The sidecar " + path + " cannot be read (" + reason + ").", mend);
    if (!is_utf8(text)) throw model_error("The sidecar " + path + " cannot be read (it is not UTF-8).", mend);
    return text;
}

}  // namespace

std::string capability_text(const Capability &capability) { return std::to_string(capability[0]) + "." + std::to_string(capability[1]); }

std::string BatchRange::text() const { return std::to_string(smallest) + ":" + std::to_string(best) + ":" + std::to_string(largest); }

std::string TensorSpec::text() const {
    std::vector<std::string> axes;
    for (const std::int64_t axis : shape) axes.push_back(axis < 0 ? "'batch'" : std::to_string(axis));
    return dtype + " [" + joined(axes) + "]";
}

std::string backend_title(const std::string &backend) { return backend == "tensorrt-rtx" ? "TensorRT-RTX" : "TensorRT"; }

std::string Target::title() const { return backend_title(backend) + " " + tensorrt_version; }

std::string Target::where() const {
    std::vector<std::string> texts;
    for (const Capability &one : capabilities) texts.push_back(capability_text(one));
    const std::string named = "compute capability " + joined(texts);
    if (backend == "tensorrt-rtx") return capabilities.empty() ? "compute capability 8.0, 8.6, 8.9, 12.0 and newer" : named;
    const char *const level = hardware_level == "none"      ? ""
                              : hardware_level == "ampere+" ? " and any of compute capability 8.0 and newer"
                                                            : " and any of the same compute capability";
    return (gpu.empty() ? named : gpu) + level;
}

std::string sidecar_path(const std::string &engine) { return engine + ".json"; }

std::optional<Manifest> read_sidecar(const std::string &engine) {
    const std::string path = sidecar_path(engine), name = std::filesystem::path(path).filename().string();
    std::error_code ignored;
    if (!std::filesystem::is_regular_file(path, ignored)) return std::nullopt;
    const std::string mend = "Build the engine again, or remove " + name + " and adopt it.";
    const std::string text = read_text(path, mend);
    Json fields;
    try {
        fields = Json::parse(text);
        fields.at("schema");
    } catch (const JsonError &) {
        throw model_error("The manifest of " + path + " is damaged.", REBUILD);
    }
    Manifest found;
    std::string kind;
    try {
        const std::int64_t schema = fields.at("schema").integer("schema");
        if (schema < 1 || schema > SCHEMA) {
            throw model_error("The manifest of " + path + " has schema " + std::to_string(schema) + ", this version reads up to " +
                                  std::to_string(SCHEMA) + ".",
                              "Upgrade: pip install -U yolact-deploy");
        }
        found = manifest_of(fields);
        kind = fields.at("kind").string("kind");
        require(one_of(kind, {"checkpoint", "onnx", "engine"}), "kind '" + kind + "'");
    } catch (const JsonError &error) {
        throw model_error("The manifest of " + path + " is damaged (" + error.what() + ").", REBUILD);
    }
    if (kind != "engine") throw model_error(path + " is the manifest of a file of kind " + kind + ", an engine's was wanted.", mend);
    try {
        found.target = target_of(fields.at("target"));
    } catch (const JsonError &error) {
        throw model_error("The sidecar " + path + " does not describe an engine (" + error.what() + ").", "Build the engine again.");
    }
    return found;
}

}  // namespace yolact::detail
