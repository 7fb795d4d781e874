// What the programs of these tests share: the stand-ins' own functions, checks that tell their line, files and JSON as it is printed.
#pragma once
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include <yolact_deploy/yolact.hpp>

extern "C" {
long standin_misuse(char *text, long size);
long standin_last_input(void *target, long size);
long standin_live(int kind);
long standin_count(int what);
}

// The stand-in for libcuda keeps each launch's argument for good, as a graph may hold it.
extern "C" const char *__lsan_default_suppressions();
extern "C" const char *__lsan_default_suppressions() { return "leak:cuLaunchKernel"; }

#define CHECK(...)                                                                             \
    do {                                                                                       \
        if (!(__VA_ARGS__)) {                                                                  \
            std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #__VA_ARGS__);     \
            std::_Exit(1);                                                                     \
        }                                                                                      \
    } while (0)

// Call a function of the driver's, or of its stand-in's for tests.
template <typename Result = int, typename... Arguments>
Result cuda(const char *name, Arguments... arguments) {
    static void *const library = dlopen("libcuda.so.1", RTLD_NOW);
    void *const function = library ? dlsym(library, name) : nullptr;
    if (!function) std::fprintf(stderr, "no %s\n", name), std::exit(1);
    return reinterpret_cast<Result (*)(Arguments...)>(function)(arguments...);
}

inline long calls(const char *name) { return cuda<long>("stub_cuda_calls", name); }

// Everything of CUDA's and TensorRT's that was made and not given back, and misuse of the latter.
inline std::string left_behind() {
    static const char *const kinds[] = {"device memory", "pinned memory", "streams", "events", "graphs", "executable graphs", "modules"};
    static const char *const objects[] = {"runtimes", "engines", "execution contexts"};
    std::string text;
    for (int kind = 0; kind < 7; ++kind)
        if (const long count = cuda<long>("stub_cuda_live", kind)) text += std::to_string(count) + " " + kinds[kind] + "; ";
    for (int kind = 0; kind < 3; ++kind)
        if (const long count = standin_live(kind)) text += std::to_string(count) + " " + objects[kind] + "; ";
    char misuse[2048] = {};
    if (standin_misuse(misuse, sizeof misuse)) text += misuse;
    return text;
}

inline std::string read_file(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    CHECK(file.good());
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

inline std::string quoted(const std::string &text) {
    std::string json = "\"";
    char code[8];
    for (const char letter : text) {
        if (letter != '"' && letter != '\\' && static_cast<unsigned char>(letter) >= 0x20) json += letter;
        else std::snprintf(code, sizeof code, "\\u%04x", static_cast<unsigned>(letter)), json += code;
    }
    return json + "\"";
}

inline std::string hexed(const void *data, std::size_t size) {
    std::string text;
    for (std::size_t index = 0; index < size; ++index) {
        const unsigned char byte = static_cast<const unsigned char *>(data)[index];
        text += {"0123456789abcdef"[byte >> 4], "0123456789abcdef"[byte & 15]};
    }
    return text;
}

// A GPU's primary context, current for as long as it lives.
class Current {
public:
    explicit Current(int device = 0) : device_(device) {
        CHECK(cuda("cuInit", 0u) == 0 && cuda("cuDevicePrimaryCtxRetain", &context_, device) == 0);
        CHECK(cuda("cuCtxPushCurrent_v2", context_) == 0);
    }
    ~Current() {
        void *popped = nullptr;
        CHECK(cuda("cuCtxPopCurrent_v2", &popped) == 0 && popped == context_);
        cuda("cuDevicePrimaryCtxRelease_v2", device_);
    }
    Current(const Current &) = delete;
    Current &operator=(const Current &) = delete;

private:
    int device_;
    void *context_ = nullptr;
};

// Bytes of exactly this size on a GPU, copied there by now.
class OnDevice {
public:
    explicit OnDevice(const std::string &bytes, int device = 0) : device_(device) {
        const Current current(device_);
        CHECK(cuda("cuMemAlloc_v2", &address_, bytes.size()) == 0);
        CHECK(cuda("cuMemcpyHtoD_v2", address_, static_cast<const void *>(bytes.data()), bytes.size()) == 0);
    }
    ~OnDevice() {
        const Current current(device_);
        CHECK(cuda("cuMemFree_v2", address_) == 0);
    }
    OnDevice(const OnDevice &) = delete;
    OnDevice &operator=(const OnDevice &) = delete;
    void *get() const { return address_; }

private:
    int device_;
    void *address_ = nullptr;
};

class OwnStream {
public:
    explicit OwnStream(int device = 0) : device_(device) {
        const Current current(device_);
        CHECK(cuda("cuStreamCreate", &handle_, 1u) == 0);
    }
    ~OwnStream() {
        const Current current(device_);
        cuda("cuStreamDestroy_v2", handle_);
    }
    OwnStream(const OwnStream &) = delete;
    OwnStream &operator=(const OwnStream &) = delete;
    cudaStream_t get() const { return static_cast<cudaStream_t>(handle_); }

private:
    int device_;
    void *handle_ = nullptr;
};
