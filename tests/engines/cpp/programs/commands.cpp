// Does what lines of text tell it, `command name=value name=value …`, and answers each with a line of JSON. The last line is what was left
// behind when everything had ended.
//
//   load path= device= contexts= graphs= masks= nms= score= iou= top_k= max= rle=
//   picture file= width= height= pitch= format= space= chroma= chroma_pitch= device=   `chroma` is an offset into the file
//   detect pictures=0,1 stream=own|made|default|bogus|foreign|capturing results=0|1 above=   results=1: into the same Results as the last such call
//   submit pictures=0,1    late device=    warm_up width= height= batch=    unload    input file=    counts    launches    info
#include <cmath>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <sstream>

#include "harness.hpp"

namespace {

using Words = std::map<std::string, std::string>;

struct Picture {
    std::unique_ptr<unsigned char[]> bytes;  // of exactly its size, so that a sanitizer sees what is read behind it
    std::unique_ptr<OnDevice> there;
    yolact::ImageView view;
};

struct State {
    std::unique_ptr<yolact::Detector> detector;
    std::vector<std::unique_ptr<Picture>> pictures;
    std::unique_ptr<yolact::Results> kept = std::make_unique<yolact::Results>();
    std::map<std::string, std::unique_ptr<OwnStream>> streams;
};

long whole(const Words &words, const char *name, long otherwise) {
    const auto found = words.find(name);
    return found == words.end() ? otherwise : std::stol(found->second);
}

std::string number(float value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.9g", static_cast<double>(value));
    return std::isfinite(value) ? text : std::isnan(value) ? "NaN" : value < 0 ? "-Infinity" : "Infinity";
}

yolact::Options options_of(const Words &words) {
    yolact::Options options;
    options.device = static_cast<int>(whole(words, "device", 0));
    options.contexts = static_cast<int>(whole(words, "contexts", 2));
    options.graphs = whole(words, "graphs", 1) != 0;
    options.masks = static_cast<yolact::Masks>(whole(words, "masks", 1));
    if (words.count("nms")) options.nms = static_cast<yolact::Nms>(whole(words, "nms", 0));
    if (words.count("score")) options.score_threshold = std::stof(words.at("score"));
    if (words.count("iou")) options.iou_threshold = std::stof(words.at("iou"));
    if (words.count("top_k")) options.top_k = static_cast<int>(whole(words, "top_k", 0));
    if (words.count("max")) options.max_detections = static_cast<int>(whole(words, "max", 0));
    options.rle_bytes = static_cast<std::size_t>(whole(words, "rle", 4 << 20));
    return options;
}

void add_picture(State &state, const Words &words) {
    auto picture = std::make_unique<Picture>();
    const std::string content = read_file(words.at("file"));
    picture->bytes.reset(new unsigned char[content.size()]);
    std::copy(content.begin(), content.end(), picture->bytes.get());
    yolact::ImageView &view = picture->view;
    view.width = static_cast<int>(whole(words, "width", 0));
    view.height = static_cast<int>(whole(words, "height", 0));
    view.pitch = static_cast<std::size_t>(whole(words, "pitch", 0));
    view.format = static_cast<yolact::PixelFormat>(whole(words, "format", 0));
    view.space = static_cast<yolact::MemorySpace>(whole(words, "space", 0));
    view.chroma_pitch = static_cast<std::size_t>(whole(words, "chroma_pitch", 0));
    const unsigned char *start = picture->bytes.get();
    if (const long device = whole(words, "device", -1); device >= 0) {
        picture->there = std::make_unique<OnDevice>(content, static_cast<int>(device));
        start = static_cast<const unsigned char *>(picture->there->get());
    }
    view.data = whole(words, "null", 0) ? nullptr : start;
    if (const long chroma = whole(words, "chroma", -1); chroma >= 0) view.chroma = start + chroma;
    state.pictures.push_back(std::move(picture));
}

std::vector<yolact::ImageView> chosen(const State &state, const Words &words) {
    std::vector<yolact::ImageView> views;
    std::istringstream numbers(words.count("pictures") ? words.at("pictures") : "");
    for (std::string each; std::getline(numbers, each, ',');) views.push_back(state.pictures.at(std::stoul(each))->view);
    return views;
}

std::string bits_of(const yolact::DetectionsView &view) {
    std::string json;
    try {
        for (std::size_t index = 0; index < view.size(); ++index) {
            const yolact::Span<const std::uint32_t> bits = view.bits(index);
            json += (json.empty() ? "[\"" : ",\"") + hexed(bits.data(), 4 * bits.size()) + "\"";
        }
    } catch (const yolact::Error &) {
        return "null";
    }
    return json.empty() ? "[]" : json + "]";
}

std::string device_bits_of(const yolact::DetectionsView &view) {
    const yolact::DeviceMasksView &masks = view.device_masks;
    if (!masks.bits) return "null";
    const Current current;
    std::string json = "{\"row_words\": " + std::to_string(masks.row_words) + ", \"count\": " + std::to_string(masks.count) + ", \"masks\": [";
    const std::size_t words = masks.row_words * static_cast<std::size_t>(view.height);
    CHECK(words <= masks.mask_words);
    std::vector<std::uint32_t> bits(words);
    for (std::size_t index = 0; index < masks.count; ++index) {
        const void *const from = masks.bits + index * masks.mask_words;
        CHECK(cuda("cuMemcpyDtoH_v2", static_cast<void *>(bits.data()), from, 4 * words) == 0);
        json += (index ? ",\"" : "\"") + hexed(bits.data(), 4 * words) + "\"";
    }
    std::vector<std::int32_t> labels(masks.count);
    const void *const from = masks.labels;
    if (masks.count) CHECK(cuda("cuMemcpyDtoH_v2", static_cast<void *>(labels.data()), from, 4 * masks.count) == 0);
    json += "], \"labels\": [";
    for (std::size_t index = 0; index < masks.count; ++index) json += (index ? "," : "") + std::to_string(labels[index]);
    return json + "]}";
}

// Null where RLE was not asked for, which has to be refused.
std::string coco_of(const yolact::DetectionsView &view) {
    try {
        return quoted(view.coco_json("17"));
    } catch (const yolact::Error &error) {
        CHECK(error.code() == yolact::ErrorCode::config);
        return "null";
    }
}

std::string told(const yolact::DetectionsView &view) {
    std::string json = "{\"width\": " + std::to_string(view.width) + ", \"height\": " + std::to_string(view.height) + ", \"detections\": [";
    for (std::size_t index = 0; index < view.size(); ++index) {
        const yolact::Detection &one = view[index];
        json += index ? ",[" : "[";
        for (const float value : {one.x1, one.y1, one.x2, one.y2, one.score, one.mask_score}) json += number(value) + ",";
        json += std::to_string(one.label) + "," + std::to_string(one.prior) + "," + quoted(std::string(one.rle)) + "]";
    }
    return json + "], \"coco\": " + coco_of(view) + ", \"bits\": " + bits_of(view) + ", \"device\": " + device_bits_of(view) +
           ", \"names\": " + std::to_string(view.names.size()) + "}";
}

std::string told(const yolact::Results &results, const Words &words) {
    std::string json = "[";
    for (std::size_t picture = 0; picture < results.size(); ++picture) {
        const yolact::DetectionsView view = results[picture];
        json += (picture ? "," : "") + told(words.count("above") ? view.above(std::stof(words.at("above"))) : view);
    }
    return json + "]";
}

cudaStream_t stream_of(State &state, const std::string &name) {
    if (name == "own") return nullptr;
    if (name == "default") return reinterpret_cast<cudaStream_t>(std::uintptr_t{1});
    if (name == "bogus") return reinterpret_cast<cudaStream_t>(std::uintptr_t{4096});
    std::unique_ptr<OwnStream> &made = state.streams[name];
    if (!made) made = std::make_unique<OwnStream>(name == "foreign" ? 1 : 0);
    return made->get();
}

std::string detect(State &state, const Words &words) {
    const std::vector<yolact::ImageView> views = chosen(state, words);
    const std::string name = words.count("stream") ? words.at("stream") : "own";
    const cudaStream_t stream = stream_of(state, name);
    const bool capturing = name == "capturing";
    if (capturing) {
        const Current current;
        CHECK(cuda("cuStreamBeginCapture_v2", static_cast<void *>(stream), 2) == 0);
    }
    std::string json;
    try {
        if (whole(words, "results", 0)) {
            state.detector->detect(views, *state.kept, stream);
            json = told(*state.kept, words);
        } else {
            json = told(state.detector->detect(views, stream), words);
        }
    } catch (const yolact::Error &) {
        if (whole(words, "results", 0)) CHECK(state.kept->size() == 0);
        if (capturing) {
            const Current current;
            void *graph = nullptr;
            CHECK(cuda("cuStreamEndCapture", static_cast<void *>(stream), &graph) == 0 && cuda("cuGraphDestroy", graph) == 0);
        }
        throw;
    }
    return json;
}

// What is copied to a picture's memory only when the default stream is reached, behind whatever else waits there.
std::string late(State &state, const Words &words) {
    const Current current;
    Picture &picture = *state.pictures.back();
    const std::string *const content = new std::string(read_file(words.at("file")));  // lives on, as the copy may be late
    static std::vector<std::unique_ptr<const std::string>> held;
    held.emplace_back(content);
    CHECK(cuda("cuMemcpyHtoDAsync_v2", picture.there->get(), static_cast<const void *>(content->data()), content->size(),
               static_cast<void *>(stream_of(state, words.at("stream")))) == 0);
    return "null";
}

std::string counted() {
    std::string json = "{";
    const char *const names[] = {"enqueued", "captured", "run"};
    for (int what = 0; what < 3; ++what) json += quoted(names[what]) + ": " + std::to_string(standin_count(what)) + ", ";
    for (const char *call : {"cuMemAlloc_v2", "cuMemHostAlloc", "cuGraphLaunch", "cuGraphInstantiateWithFlags", "cuStreamWaitEvent"})
        json += quoted(call) + ": " + std::to_string(calls(call)) + ", ";
    std::size_t available = 0, all = 0;
    if (standin_live(0)) {
        const Current current;
        CHECK(cuda("cuMemGetInfo_v2", &available, &all) == 0);
    }
    return json + "\"used\": " + std::to_string(all - available) + ", \"left\": " + quoted(left_behind()) + "}";
}

std::string launched() {
    std::string json = "[";
    char name[64];
    unsigned numbers[5];
    for (long index = 0; cuda("stub_cuda_launches", index, static_cast<char *>(name), 64, static_cast<unsigned *>(numbers)); ++index) {
        json += index ? ",[" : "[";
        json += quoted(name);
        for (const unsigned each : numbers) json += "," + std::to_string(each);
        json += "]";
    }
    return json + "]";
}

std::string informed(const yolact::Detector &detector) {
    const yolact::Info info = detector.info();
    std::string json = "[" + quoted(info.variant) + "," + quoted(info.precision) + "," + quoted(info.device) + "," + quoted(info.tensorrt);
    for (const std::size_t value : {static_cast<std::size_t>(info.input_size), static_cast<std::size_t>(info.smallest_batch),
                                    static_cast<std::size_t>(info.largest_batch), info.device_bytes, info.names.size(), info.categories.size()})
        json += "," + std::to_string(value);
    return json + "," + quoted(info.names[0]) + "," + std::to_string(info.categories[0]) + "]";
}

std::string answer(State &state, const std::string &command, const Words &words) {
    if (command == "load") {
        state.detector.reset();
        state.detector = std::make_unique<yolact::Detector>(yolact::Detector::load(words.at("path"), options_of(words)));
    } else if (command == "picture") {
        add_picture(state, words);
    } else if (command == "detect") {
        return detect(state, words);
    } else if (command == "submit") {
        const std::string name = words.count("stream") ? words.at("stream") : "own";
        return told(state.detector->submit(chosen(state, words), stream_of(state, name)).get(), words);
    } else if (command == "late") {
        return late(state, words);
    } else if (command == "warm_up") {
        state.detector->warm_up(static_cast<int>(whole(words, "width", 0)), static_cast<int>(whole(words, "height", 0)),
                                static_cast<int>(whole(words, "batch", 1)));
    } else if (command == "unload") {
        state.detector.reset();
    } else if (command == "input") {
        std::string input(static_cast<std::size_t>(standin_last_input(nullptr, 0)), '\0');
        standin_last_input(input.data(), static_cast<long>(input.size()));
        std::ofstream(words.at("file"), std::ios::binary) << input;
    } else if (command == "counts") {
        return counted();
    } else if (command == "launches") {
        return launched();
    } else if (command == "info") {
        return informed(*state.detector);
    } else {
        throw std::invalid_argument("no command " + command);
    }
    return "null";
}

}  // namespace

int main() {
    {
        State state;
        for (std::string line; std::getline(std::cin, line);) {
            std::istringstream parts(line);
            std::string command;
            Words words;
            parts >> command;
            for (std::string part; parts >> part;) words[part.substr(0, part.find('='))] = part.substr(part.find('=') + 1);
            try {
                std::printf("%s\n", answer(state, command, words).c_str());
            } catch (const yolact::Error &error) {
                std::printf("{\"code\": %d, \"error\": %s}\n", static_cast<int>(error.code()), quoted(error.what()).c_str());
            }
        }
        state.detector.reset();  // results may outlive it
    }
    std::printf("%s\n", quoted(left_behind()).c_str());
    return 0;
}
