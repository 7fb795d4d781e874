#include "driver_calls.hpp"

#include <optional>
#include <string>

#include "errors.hpp"

#if defined(_WIN32)
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace yolact::detail {

namespace {

#if defined(_WIN32)
void *open_library() { return reinterpret_cast<void *>(LoadLibraryExA("nvcuda.dll", nullptr, LOAD_LIBRARY_SEARCH_SYSTEM32)); }
void *find(void *library, const char *name) { return reinterpret_cast<void *>(GetProcAddress(static_cast<HMODULE>(library), name)); }
#else
// Never closed: TensorRT and the CUDA runtime keep it as well.
void *open_library() { return dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL); }
void *find(void *library, const char *name) { return dlsym(library, name); }
#endif

std::optional<DriverCalls> opened() {
    void *const library = open_library();
    if (!library) return std::nullopt;
    DriverCalls calls;
    const char *missing = nullptr;
#define YOLACT_FIND(name, arguments)                                       \
    calls.name = reinterpret_cast<int(*) arguments>(find(library, #name)); \
    if (!calls.name && !missing) missing = #name;
    YOLACT_DRIVER_CALLS(YOLACT_FIND)
#undef YOLACT_FIND
    if (missing) throw device_error(std::string("NVIDIA's driver has no ") + missing + ".", "Update the driver to one for CUDA 12 or newer.");
    return calls;
}

}  // namespace

const DriverCalls *driver_calls() {
    static const std::optional<DriverCalls> calls = opened();
    return calls ? &*calls : nullptr;
}

}  // namespace yolact::detail
