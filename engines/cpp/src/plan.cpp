#include "plan.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "errors.hpp"
#include "files.hpp"
#include "sha256.hpp"
#include "text.hpp"

namespace yolact::detail {

namespace {

constexpr std::size_t HEAD = 64;
constexpr std::uintmax_t LARGEST_PLAN = std::uintmax_t{1} << 40;
const std::vector<Capability> RTX_PORTABLE = {{8, 0}, {8, 6}, {8, 9}};  // and everything from RTX_NEWER on: TensorRT-RTX's support matrix
constexpr Capability RTX_NEWER = {12, 0};

bool contains(const std::vector<Capability> &list, const Capability &one) { return std::find(list.begin(), list.end(), one) != list.end(); }

// What the first bytes say; engines/plan_file.py has the sources.
enum class Kind { tensorrt, tensorrt_rtx, onnx, checkpoint, empty, unknown };

struct PlanFile {
    Kind kind = Kind::unknown;
    std::uint64_t size = 0;
};

Kind kind_of(const std::string &head) {
    if (head.empty()) return Kind::empty;
    const std::string mark = head.substr(0, 4);
    if (mark == "ftrt" || mark == "ptrt") return Kind::tensorrt;
    if (mark == "vtrt") return Kind::tensorrt_rtx;
    if (mark == std::string("PK\x03\x04", 4)) return Kind::checkpoint;
    const auto byte = [&head](std::size_t index) { return index < head.size() ? static_cast<unsigned char>(head[index]) : 0u; };
    std::uint64_t header = 0;  // of safetensors
    for (std::size_t index = 0; index < 8; ++index) header |= std::uint64_t{byte(index)} << 8 * index;
    if (head.size() > 8 && head[8] == '{' && header < std::uint64_t{1} << 32) return Kind::checkpoint;
    const unsigned second = byte(2);
    const bool field = second >= 0x12 && second <= 0x42 && (second & 7) == 2;  // of a ModelProto
    if (head.size() > 2 && byte(0) == 0x08 && byte(1) <= 0x1f && field) return Kind::onnx;
    return Kind::unknown;
}

PlanFile identify(const std::string &path) {
    std::error_code unknown;
    if (!std::filesystem::is_regular_file(path, unknown)) {
        const bool folder = std::filesystem::is_directory(path, unknown);
        throw model_error("The engine " + path + (folder ? " is a folder." : " does not exist."), "Check the path.");
    }
    errno = 0;
    std::ifstream file(path, std::ios::binary);
    const std::uintmax_t size = std::filesystem::file_size(path, unknown);
    if (!file || unknown) throw model_error("The engine " + path + " cannot be read: " + std::strerror(errno) + ".", "Check its permissions.");
    std::string head(HEAD, '\0');
    file.read(head.data(), HEAD);
    head.resize(static_cast<std::size_t>(file.gcount()));
    return {kind_of(head), static_cast<std::uint64_t>(size)};
}

std::string stem_of(const std::string &path) { return std::filesystem::path(path).stem().string(); }

void check_kind(const std::string &path, Kind kind, const Target *target, const std::string &rebuild) {
    if (kind == Kind::empty) throw model_error("The engine " + path + " is empty.", rebuild);
    if (kind == Kind::onnx) {
        throw model_error(path + " is an ONNX file, an engine was wanted.",
                          "Rename it to .onnx and run: yolact-deploy build-engine " + stem_of(path) + ".onnx");
    }
    if (kind == Kind::checkpoint) {
        throw model_error(path + " is a checkpoint, an engine was wanted.", "Run: yolact-deploy export, then build-engine.");
    }
    if (kind == Kind::unknown) throw model_error(path + " is no TensorRT engine: it starts with none of their marks.", rebuild);
    const std::string backend = kind == Kind::tensorrt ? "tensorrt" : "tensorrt-rtx";
    if (target && backend != target->backend) {
        throw model_error(path + " is a plan of " + backend_title(backend) + ", its sidecar says " + backend_title(target->backend) + ".",
                          "Copy both files again. " + rebuild);
    }
}

std::string bytes_of(const std::string &path) {
    std::string content;
    const std::string reason = read_file(path, LARGEST_PLAN, content);
    if (!reason.empty()) throw model_error("The engine " + path + " cannot be read: " + reason + ".", "Check its permissions.");
    return content;
}

std::vector<int> numbers_of(const std::string &version) {
    std::vector<int> numbers;
    bool inside = false;
    for (const char letter : version) {
        const bool digit = letter >= '0' && letter <= '9';
        if (digit && !inside) numbers.push_back(0);
        if (digit) numbers.back() = std::min(numbers.back(), 99'999'999) * 10 + (letter - '0');
        inside = digit;
    }
    return numbers;
}

// Whether TensorRT of this version runs an engine that `target` describes: its own version's and, where they are version-compatible, those
// of earlier versions of its major version and of the one before, from 8.6 on; TensorRT-RTX its own release's.
bool reads(const Target &target, const Machine &machine) {
    const std::vector<int> built = numbers_of(target.tensorrt_version), &own = machine.version;
    if (built.empty()) return false;
    const bool rtx = machine.backend == "tensorrt-rtx";
    if (target.version_compatible && !rtx) {
        const bool near = built[0] == own[0] || (built[0] == 8 && own[0] == 9) || (built[0] == 8 && own[0] == 10) ||
                          (built[0] == 9 && own[0] == 10) || (built[0] == 10 && own[0] == 11);
        const std::vector<int> same(built.begin(), built.begin() + static_cast<std::ptrdiff_t>(std::min(built.size(), own.size())));
        return near && std::vector<int>{8, 6} <= same && same <= own;
    }
    const std::size_t length = std::min({built.size(), own.size(), std::size_t{rtx ? 3u : 4u}});
    return length >= 2 && std::equal(built.begin(), built.begin() + static_cast<std::ptrdiff_t>(length), own.begin());
}

// The hardware compatibility rules of both products: TensorRT's engines stay on their GPU model unless built for more.
bool runs_on(const Target &target, const Machine &machine) {
    const Capability &here = machine.capability;
    if (target.backend == "tensorrt-rtx") {
        if (target.capabilities.empty()) return contains(RTX_PORTABLE, here) || here >= RTX_NEWER;
        return contains(target.capabilities, here);
    }
    if (target.hardware_level == "ampere+") return here >= Capability{8, 0};
    if (target.hardware_level == "same-compute-capability" || target.gpu.empty()) return contains(target.capabilities, here);
    return contains(target.capabilities, here) && machine.gpu == target.gpu;
}

// The rebuild command for another GPU: TensorRT builds for the one here; TensorRT-RTX is told, or left where it does not know it.
std::string rebuild_for(const Target &target, const Capability &capability) {
    const std::string option = " --sm ", backend = "--backend tensorrt-rtx";
    std::string command = target.rebuild;
    for (std::size_t start; (start = command.find(option)) != std::string::npos;) {
        command.erase(start, std::min(command.find(' ', start + option.size()), command.size()) - start);
    }
    if (target.backend == "tensorrt") return command;
    if (contains(RTX_PORTABLE, capability) || capability == Capability{7, 5} || capability >= RTX_NEWER) {
        return command + " --sm " + std::to_string(capability[0]) + std::to_string(capability[1]);
    }
    const std::size_t start = command.find(backend);
    return start == std::string::npos ? command : command.replace(start, backend.size(), "--backend tensorrt");
}

}  // namespace

std::string Machine::title() const {
    std::vector<std::string> parts;
    for (const int part : version) parts.push_back(std::to_string(part));
    return backend_title(backend) + " " + joined(parts, ".");
}

std::string read_plan(const std::string &path, const std::optional<Manifest> &sidecar) {
    const PlanFile found = identify(path);
    const Target *target = sidecar ? &sidecar->target : nullptr;
    const std::string rebuild = target ? "Rebuild it: " + target->rebuild
                                       : "If trtexec built it from our ONNX: yolact-deploy adopt " + path +
                                             " --onnx MODEL.onnx; else rebuild it with build-engine.";
    check_kind(path, found.kind, target, rebuild);
    if (!target) {
        throw model_error(path + " has no sidecar " + base_name(sidecar_path(path)) + ", and a plan is code that would run on this machine.",
                          "Copy both files. " + rebuild);
    }
    if (found.size != target->size) {
        throw model_error("The engine " + path + " has " + with_commas(found.size) + " bytes, its sidecar says " + with_commas(target->size) + ".",
                          "Copy both files again. " + rebuild);
    }
    std::string plan = bytes_of(path);
    if (sha256(plan.data(), plan.size()) != target->sha256) {
        throw model_error(path + " is not the engine that " + base_name(sidecar_path(path)) + " describes: its SHA-256 differs.",
                          "Copy both files again. " + rebuild);
    }
    return plan;
}

std::string read_mask_iou_plan(const std::string &path, const Manifest &manifest) {
    const NamedFile &named = manifest.mask_iou;
    if (named.file.empty()) return "";
    const std::string own = beside(path, named.file), rebuild = "Copy both files, or rebuild: " + manifest.target.rebuild;
    std::error_code ignored;
    if (!std::filesystem::is_regular_file(own, ignored)) {
        throw model_error(path + " needs its mask-IoU engine " + base_name(own) + " beside it, which is missing.", rebuild);
    }
    check_kind(own, identify(own).kind, &manifest.target, rebuild);
    std::string plan = bytes_of(own);
    if (sha256(plan.data(), plan.size()) != named.sha256) {
        throw model_error(own + " is not the mask-IoU engine that " + base_name(path) + " was built with.", rebuild);
    }
    return plan;
}

void check_tensorrt(const std::string &path, const Target &target, const Machine &machine) {
    const std::string rebuild = "Rebuild it here: " + target.rebuild;
    if (machine.backend != target.backend) {
        throw model_error(path + " was built by " + target.title() + ", " + machine.title() + " was to run it.",
                          "Build this library for " + backend_title(target.backend) + ". " + rebuild);
    }
    if (!reads(target, machine)) {
        throw model_error(path + " was built by " + target.title() + ", " + machine.title() + " is installed and does not read it.", rebuild);
    }
}

void check_gpu(const std::string &path, const Target &target, const Machine &machine) {
    if (runs_on(target, machine)) return;
    throw model_error(path + " was built for " + target.where() + "; this machine has " + machine.gpu + ", compute capability " +
                          capability_text(machine.capability) + ".",
                      "Rebuild it for this GPU: " + rebuild_for(target, machine.capability));
}

}  // namespace yolact::detail
