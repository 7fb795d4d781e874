#include <dlfcn.h>
#include "ledger.hpp"

namespace standin {
namespace {

Driver open_driver() {
    Driver driver;
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    if (!library) {
        driver.missing = dlerror();
        return driver;
    }
    const auto find = [&](auto &function, const char *name) {
        function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
        if (!function) driver.missing = std::string("libcuda.so.1 has no ") + name + ": is it the stand-in?";
    };
#define FIND(name) find(driver.name, #name)
    FIND(cuInit), FIND(cuCtxGetCurrent), FIND(cuCtxPushCurrent_v2), FIND(cuCtxPopCurrent_v2), FIND(cuMemAlloc_v2), FIND(cuMemFree_v2);
    FIND(cuStreamIsCapturing), FIND(cuStreamSynchronize), FIND(cuLaunchHostFunc), FIND(stub_cuda_accessible), FIND(stub_cuda_fail);
#undef FIND
    return driver;
}

} // namespace

const Driver &driver() {
    static const Driver *const found = new Driver(open_driver());
    return *found;
}

int Memory::take(std::size_t size) {
    driver().cuCtxGetCurrent(&context_);
    return size ? driver().cuMemAlloc_v2(&address_, size) : 0;
}

bool Memory::failed() const {
    int recording = 0;
    if (driver().cuCtxPushCurrent_v2(context_) != 0) return true;
    const int code = driver().cuStreamIsCapturing(nullptr, &recording);
    driver().cuCtxPopCurrent_v2(nullptr);
    return code != 0;
}

Memory::~Memory() {
    if (!address_) return;
    if (driver().cuCtxPushCurrent_v2(context_) != 0) {
        ledger().tell("an engine or a context was destroyed after its CUDA context");
        return;
    }
    driver().cuMemFree_v2(address_); // after a fault of the GPU it refuses; that is not the caller's fault
    driver().cuCtxPopCurrent_v2(nullptr);
}

} // namespace standin
