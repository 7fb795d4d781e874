#include "plan.hpp"
#include <algorithm>
#include <cmath>
#include <cstring>
#include <sstream>
#include <stdexcept>

namespace standin {
namespace {

constexpr std::size_t kHEAD = 64;
constexpr char kFIRST_LINE[] = "yolact stand-in plan 1\n";
constexpr int64_t kLARGEST = int64_t{1} << 31;
const std::vector<std::string> kTYPES = {"FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8", "FP8", "BF16", "INT64", "INT4"};
const std::vector<std::size_t> kTYPE_BYTES = {4, 2, 1, 4, 1, 1, 1, 2, 8, 1};
const std::vector<std::string> kFORMATS = {"LINEAR", "CHW2", "HWC8", "CHW4", "CHW16", "CHW32", "DHWC8",
                                           "CDHW32", "HWC", "DLA_LINEAR", "DLA_HWC4", "HWC16", "DHWC"};

int place(const std::vector<std::string> &names, const std::string &name) {
    const auto found = std::find(names.begin(), names.end(), name);
    if (found == names.end()) throw std::runtime_error("it does not know " + name);
    return static_cast<int>(found - names.begin());
}

template <typename T> T next(std::istringstream &words, const std::string &line) {
    T value{};
    if (!(words >> value)) throw std::runtime_error("its line '" + line + "' ends early");
    return value;
}

std::size_t count(std::istringstream &words, const std::string &line) {
    const auto value = next<int64_t>(words, line);
    if (value < 0 || value > kLARGEST) throw std::runtime_error("its line '" + line + "' has a number out of range");
    return static_cast<std::size_t>(value);
}

Tensor &named(Plan &plan, const std::string &name) {
    for (Tensor &tensor : plan.tensors)
        if (tensor.name == name) return tensor;
    throw std::runtime_error("it has no tensor " + name);
}

void read_tensor(Plan &plan, std::istringstream &words, const std::string &line) {
    Tensor tensor;
    tensor.name = next<std::string>(words, line);
    tensor.input = next<std::string>(words, line) == "INPUT";
    tensor.type = place(kTYPES, next<std::string>(words, line));
    tensor.format = place(kFORMATS, next<std::string>(words, line));
    for (int64_t size = 0; words >> size;) {
        if (size < (tensor.sizes.empty() ? -1 : 1) || size == 0 || size > kLARGEST || tensor.sizes.size() == 8)
            throw std::runtime_error("its line '" + line + "' has a shape that cannot be");
        tensor.sizes.push_back(size);
    }
    if (tensor.sizes.empty()) throw std::runtime_error("its line '" + line + "' has no shape");
    plan.tensors.push_back(tensor);
}

void read_data(Plan &plan, std::istringstream &words, const std::string &line, std::map<std::string, std::size_t> &bytes) {
    Tensor &tensor = named(plan, next<std::string>(words, line));
    tensor.data = count(words, line), tensor.recorded = true;
    bytes[tensor.name] = count(words, line);
}

void read_line(Plan &plan, const std::string &line, std::map<std::string, std::size_t> &bytes) {
    std::istringstream words(line);
    const auto key = next<std::string>(words, line);
    if (key == "version") plan.version = next<std::string>(words, line);
    else if (key == "host_code") plan.host_code = count(words, line) != 0;
    else if (key == "weights") plan.weights = count(words, line);
    else if (key == "memory") plan.memory = count(words, line);
    else if (key == "rows") plan.rows = count(words, line);
    else if (key == "tensor") read_tensor(plan, words, line);
    else if (key == "data") read_data(plan, words, line, bytes);
    else if (key == "host") named(plan, next<std::string>(words, line)).host = true;
    else if (key == "capturable") plan.capturable = count(words, line) != 0;
    else if (key == "warning") plan.warnings.push_back(line.substr(std::min(line.size(), key.size() + 1)));
    else if (key == "profile") {
        auto &sizes = plan.profiles[next<std::string>(words, line)];
        for (int64_t &size : sizes) size = static_cast<int64_t>(count(words, line));
    } else if (key == "choose") {
        if (next<std::string>(words, line) != "by") throw std::runtime_error("its line '" + line + "' is not known");
        plan.choice = static_cast<Choice>(place({"index", "input", "value"}, next<std::string>(words, line)));
    } else if (key == "compute") {
        plan.mean = place({"mean"}, next<std::string>(words, line)) == 0;
    } else if (key == "fail") {
        const int what = place({"run", "enqueue"}, next<std::string>(words, line));
        (what == 0 ? plan.failing_runs : plan.failing_enqueues).insert(static_cast<long>(count(words, line)));
    } else throw std::runtime_error("its line '" + line + "' is not known");
}

void check(const Plan &plan, const std::map<std::string, std::size_t> &bytes) {
    const auto inputs = std::count_if(plan.tensors.begin(), plan.tensors.end(), [](const Tensor &one) { return one.input; });
    if (inputs == 0 || inputs == static_cast<std::ptrdiff_t>(plan.tensors.size())) throw std::runtime_error("it lacks inputs or outputs");
    for (const auto &[name, sizes] : plan.profiles) {
        const Tensor *tensor = plan.find(name.c_str());
        if (!tensor || !tensor->input || !tensor->dynamic() || sizes[0] < 1 || sizes[0] > sizes[1] || sizes[1] > sizes[2])
            throw std::runtime_error("its profile of " + name + " fits no input");
    }
    for (const Tensor &tensor : plan.tensors) {
        if (tensor.input && tensor.dynamic() && !plan.profiles.count(tensor.name))
            throw std::runtime_error("its input " + tensor.name + " has no profile");
        if (tensor.input || plan.mean) continue;
        if (!tensor.recorded || plan.rows == 0) throw std::runtime_error("its output " + tensor.name + " has no data");
        const std::size_t size = bytes.at(tensor.name);
        if (tensor.data > plan.data.size() || size > plan.data.size() - tensor.data || size != plan.rows * tensor.row_bytes())
            throw std::runtime_error("its data of " + tensor.name + " is not there");
    }
    if (plan.mean && (plan.tensors.size() != 2 || plan.tensors[0].type + plan.tensors[1].type != 0))
        throw std::runtime_error("it computes a mean of other than one FLOAT input for one FLOAT output");
}

float half(uint16_t bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const auto whole = static_cast<float>(exponent ? 1024 + fraction : fraction);
    const float size = std::ldexp(whole, exponent ? exponent - 25 : -24);
    return bits & 0x8000 ? -size : size;
}

double first_number(const unsigned char *at, int type) {
    if (type == 0) {
        float value = 0;
        std::memcpy(&value, at, sizeof value);
        return value;
    }
    if (type == 1) {
        uint16_t bits = 0;
        std::memcpy(&bits, at, sizeof bits);
        return half(bits);
    }
    return at[0];
}

} // namespace

std::size_t Tensor::row_bytes() const {
    std::size_t bytes = kTYPE_BYTES[static_cast<std::size_t>(type)];
    for (std::size_t axis = 1; axis < sizes.size(); axis++) {
        bytes *= static_cast<std::size_t>(sizes[axis]);
        if (bytes > static_cast<std::size_t>(kLARGEST)) throw std::runtime_error("its tensor " + name + " is too large");
    }
    return bytes;
}

const Tensor *Plan::find(const char *name) const {
    for (const Tensor &tensor : tensors)
        if (name && tensor.name == name) return &tensor;
    return nullptr;
}

const Tensor &Plan::first_input() const {
    return *std::find_if(tensors.begin(), tensors.end(), [](const Tensor &tensor) { return tensor.input; });
}

std::array<int64_t, 3> Plan::profile(const Tensor &input) const {
    const auto found = profiles.find(input.name);
    return found != profiles.end() ? found->second : std::array<int64_t, 3>{input.sizes[0], input.sizes[0], input.sizes[0]};
}

std::size_t Plan::row(std::size_t index, const unsigned char *input) const {
    if (choice == Choice::kINDEX) return index % rows;
    if (choice == Choice::kINPUT) return input[0] % rows;
    const double number = first_number(input, first_input().type);
    if (!(std::abs(number) < 1e9)) return 0;
    const auto count = static_cast<long>(rows);
    return static_cast<std::size_t>((std::lround(number) % count + count) % count);
}

Plan read_plan(const void *blob, std::size_t size, const std::vector<std::string> &marks) {
    const auto *bytes = static_cast<const char *>(blob);
    const std::size_t text = kHEAD + sizeof kFIRST_LINE - 1;
    const bool known = bytes && size >= 4 && std::find(marks.begin(), marks.end(), std::string(bytes, 4)) != marks.end();
    if (!known || size < text || std::memcmp(bytes + kHEAD, kFIRST_LINE, sizeof kFIRST_LINE - 1) != 0)
        throw std::runtime_error("it is damaged or foreign");
    Plan plan;
    std::map<std::string, std::size_t> data;
    for (std::size_t at = text;;) {
        const auto *end = static_cast<const char *>(std::memchr(bytes + at, '\n', size - at));
        if (!end) throw std::runtime_error("it is cut off");
        const std::string line(bytes + at, end);
        at = static_cast<std::size_t>(end - bytes) + 1;
        if (line == "end") {
            plan.data.assign(bytes + at, bytes + size);
            break;
        }
        read_line(plan, line, data);
    }
    check(plan, data);
    return plan;
}

} // namespace standin
