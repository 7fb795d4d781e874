// What the project's C++ code uses of TensorRT, with the types spelled out: compiles against the stand-in and against the real headers.
#include <NvInferRuntime.h>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

namespace {

using namespace nvinfer1;

#if NV_TENSORRT_MAJOR < 10 && !defined(TRT_MAJOR_RTX)
#define IS_TENSORRT_8 1
using Size = int32_t;
#else
#define IS_TENSORRT_8 0
using Size = int64_t;
#endif

template <typename Found, typename Wanted> constexpr bool same = std::is_same_v<Found, Wanted>;

// IRuntime
[[maybe_unused]] constexpr auto deserialize =
    static_cast<ICudaEngine *(IRuntime::*)(void const *, std::size_t) noexcept>(&IRuntime::deserializeCudaEngine);
static_assert(same<decltype(&IRuntime::setEngineHostCodeAllowed), void (IRuntime::*)(bool) noexcept>);
static_assert(same<decltype(&IRuntime::loadRuntime), IRuntime *(IRuntime::*)(char const *) noexcept>);
static_assert(same<decltype(createInferRuntime(std::declval<ILogger &>())), IRuntime *>);
static_assert(noexcept(createInferRuntime(std::declval<ILogger &>())));

// ICudaEngine
static_assert(same<decltype(&ICudaEngine::getNbIOTensors), int32_t (ICudaEngine::*)() const noexcept>);
static_assert(same<decltype(&ICudaEngine::getIOTensorName), char const *(ICudaEngine::*)(int32_t) const noexcept>);
static_assert(same<decltype(&ICudaEngine::getTensorIOMode), TensorIOMode (ICudaEngine::*)(char const *) const noexcept>);
static_assert(same<decltype(&ICudaEngine::getTensorShape), Dims (ICudaEngine::*)(char const *) const noexcept>);
static_assert(same<decltype(&ICudaEngine::getTensorDataType), DataType (ICudaEngine::*)(char const *) const noexcept>);
static_assert(same<decltype(&ICudaEngine::getTensorLocation), TensorLocation (ICudaEngine::*)(char const *) const noexcept>);
[[maybe_unused]] constexpr auto format =
    static_cast<TensorFormat (ICudaEngine::*)(char const *) const noexcept>(&ICudaEngine::getTensorFormat);
using GetProfileShape = Dims (ICudaEngine::*)(char const *, int32_t, OptProfileSelector) const noexcept;
static_assert(same<decltype(&ICudaEngine::getProfileShape), GetProfileShape>);
static_assert(same<decltype(std::declval<ICudaEngine &>().createExecutionContext()), IExecutionContext *>);
#if IS_TENSORRT_8
[[maybe_unused]] constexpr auto create =
    static_cast<IExecutionContext *(ICudaEngine::*)() noexcept>(&ICudaEngine::createExecutionContext);
#else
[[maybe_unused]] constexpr auto create =
    static_cast<IExecutionContext *(ICudaEngine::*)(ExecutionContextAllocationStrategy) noexcept>(&ICudaEngine::createExecutionContext);
static_assert(static_cast<int32_t>(ExecutionContextAllocationStrategy::kSTATIC) == 0);
static_assert(static_cast<int32_t>(ExecutionContextAllocationStrategy::kON_PROFILE_CHANGE) == 1);
static_assert(static_cast<int32_t>(ExecutionContextAllocationStrategy::kUSER_MANAGED) == 2);
#endif

// IExecutionContext
static_assert(same<decltype(&IExecutionContext::setTensorAddress), bool (IExecutionContext::*)(char const *, void *) noexcept>);
static_assert(same<decltype(&IExecutionContext::setInputShape), bool (IExecutionContext::*)(char const *, Dims const &) noexcept>);
static_assert(same<decltype(&IExecutionContext::setOptimizationProfileAsync), bool (IExecutionContext::*)(int32_t, cudaStream_t) noexcept>);
static_assert(same<decltype(&IExecutionContext::enqueueV3), bool (IExecutionContext::*)(cudaStream_t) noexcept>);
#ifdef TRT_MAJOR_RTX
static_assert(same<decltype(std::declval<IExecutionContext &>().isStreamCapturable(cudaStream_t{})), bool>);
#endif

// What is deleted, and what is not copied
template <typename T>
constexpr bool owned = std::has_virtual_destructor_v<T> && std::is_nothrow_destructible_v<T> && !std::is_copy_constructible_v<T>;
static_assert(owned<IRuntime> && owned<ICudaEngine> && owned<IExecutionContext>);

// ILogger
struct Logger final : ILogger {
    void log(Severity, char const *) noexcept override {}
};
static_assert(!std::is_abstract_v<Logger> && std::has_virtual_destructor_v<ILogger>);
static_assert(same<decltype(&ILogger::log), void (ILogger::*)(ILogger::Severity, char const *) noexcept>);
template <typename T> constexpr int32_t number(T value) {
    static_assert(std::is_enum_v<T> && same<std::underlying_type_t<T>, int32_t>);
    return static_cast<int32_t>(value);
}
static_assert(number(ILogger::Severity::kINTERNAL_ERROR) == 0 && number(ILogger::Severity::kERROR) == 1);
static_assert(number(ILogger::Severity::kWARNING) == 2 && number(ILogger::Severity::kINFO) == 3);
static_assert(number(ILogger::Severity::kVERBOSE) == 4);

// Sizes and numbers
static_assert(same<decltype(Dims::nbDims), int32_t> && same<decltype(Dims::d), Size[8]> && Dims::MAX_DIMS == 8);
static_assert(std::is_aggregate_v<Dims> && std::is_trivially_copyable_v<Dims>);
static_assert(same<cudaStream_t, CUstream_st *>);
static_assert(number(DataType::kFLOAT) == 0 && number(DataType::kHALF) == 1);
static_assert(number(DataType::kINT8) == 2 && number(DataType::kINT32) == 3);
static_assert(number(DataType::kBOOL) == 4 && number(DataType::kUINT8) == 5 && number(DataType::kFP8) == 6);
#if !IS_TENSORRT_8
static_assert(number(DataType::kBF16) == 7 && number(DataType::kINT64) == 8 && number(DataType::kINT4) == 9);
#endif
static_assert(number(TensorFormat::kLINEAR) == 0 && number(TensorFormat::kCHW2) == 1 && number(TensorFormat::kHWC8) == 2);
static_assert(number(TensorFormat::kCHW4) == 3 && number(TensorFormat::kCHW16) == 4 && number(TensorFormat::kCHW32) == 5);
static_assert(number(TensorFormat::kDHWC8) == 6 && number(TensorFormat::kCDHW32) == 7 && number(TensorFormat::kHWC) == 8);
static_assert(number(TensorFormat::kDLA_LINEAR) == 9 && number(TensorFormat::kDLA_HWC4) == 10 && number(TensorFormat::kHWC16) == 11);
static_assert(number(TensorFormat::kDHWC) == 12);
static_assert(number(TensorIOMode::kNONE) == 0 && number(TensorIOMode::kINPUT) == 1 && number(TensorIOMode::kOUTPUT) == 2);
static_assert(number(TensorLocation::kDEVICE) == 0 && number(TensorLocation::kHOST) == 1);
static_assert(number(OptProfileSelector::kMIN) == 0 && number(OptProfileSelector::kOPT) == 1 && number(OptProfileSelector::kMAX) == 2);

// Versions
static_assert(NV_TENSORRT_MAJOR >= 1 && NV_TENSORRT_MINOR >= 0 && NV_TENSORRT_PATCH >= 0 && NV_TENSORRT_BUILD >= 0);
#if IS_TENSORRT_8
static_assert(NV_TENSORRT_VERSION == NV_TENSORRT_MAJOR * 1000 + NV_TENSORRT_MINOR * 100 + NV_TENSORRT_PATCH);
#else
static_assert(NV_TENSORRT_VERSION == NV_TENSORRT_MAJOR * 10000 + NV_TENSORRT_MINOR * 100 + NV_TENSORRT_PATCH);
using GetVersion = int32_t (*)() noexcept;
static_assert(same<decltype(&getInferLibMajorVersion), GetVersion> && same<decltype(&getInferLibMinorVersion), GetVersion>);
static_assert(same<decltype(&getInferLibPatchVersion), GetVersion> && same<decltype(&getInferLibBuildVersion), GetVersion>);
#endif
static_assert(same<decltype(&getInferLibVersion), int32_t (*)() noexcept>);
static_assert(same<decltype(&createInferRuntime_INTERNAL), void *(*)(void *, int32_t) noexcept>);

} // namespace
