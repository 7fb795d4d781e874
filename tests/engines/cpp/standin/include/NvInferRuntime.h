// A stand-in for TensorRT's header of this name, for tests: the declarations that running an engine takes, with TensorRT's names,
// signatures and values, so that what compiles against it compiles against the real ones. ../checks/signatures.cpp holds it against them.
#pragma once
#include <cstddef>
#include <cstdint>
#include "NvInferVersion.h"

// Whether it plays TensorRT 8, whose sizes are int32_t; TensorRT-RTX 1 is younger than TensorRT 10.
#if NV_TENSORRT_MAJOR < 10 && !defined(TRT_MAJOR_RTX)
#define STANDIN_TENSORRT_8 1
#else
#define STANDIN_TENSORRT_8 0
#endif

struct CUstream_st;
using cudaStream_t = CUstream_st *;

#define NV_TENSORRT_VERSION_INT(major, minor, patch) ((major) * 10000L + (minor) * 100L + (patch) * 1L)
#if STANDIN_TENSORRT_8
#define NV_TENSORRT_VERSION (NV_TENSORRT_MAJOR * 1000 + NV_TENSORRT_MINOR * 100 + NV_TENSORRT_PATCH)
#else
#define NV_TENSORRT_VERSION NV_TENSORRT_VERSION_INT(NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR, NV_TENSORRT_PATCH)
#endif
#define TENSORRTAPI __attribute__((visibility("default")))

namespace nvinfer1 {

using AsciiChar = char;

enum class DataType : int32_t {
    kFLOAT = 0,
    kHALF = 1,
    kINT8 = 2,
    kINT32 = 3,
    kBOOL = 4,
    kUINT8 = 5,
    kFP8 = 6,
#if !STANDIN_TENSORRT_8
    kBF16 = 7,
    kINT64 = 8,
    kINT4 = 9,
#endif
};

enum class TensorFormat : int32_t {
    kLINEAR = 0,
    kCHW2 = 1,
    kHWC8 = 2,
    kCHW4 = 3,
    kCHW16 = 4,
    kCHW32 = 5,
    kDHWC8 = 6,
    kCDHW32 = 7,
    kHWC = 8,
    kDLA_LINEAR = 9,
    kDLA_HWC4 = 10,
    kHWC16 = 11,
    kDHWC = 12,
};

enum class TensorIOMode : int32_t { kNONE = 0, kINPUT = 1, kOUTPUT = 2 };
enum class TensorLocation : int32_t { kDEVICE = 0, kHOST = 1 };
enum class OptProfileSelector : int32_t { kMIN = 0, kOPT = 1, kMAX = 2 };

#if STANDIN_TENSORRT_8
class Dims32 {
  public:
    static constexpr int32_t MAX_DIMS{8};
    int32_t nbDims;
    int32_t d[MAX_DIMS];
};
using Dims = Dims32;
#else
class Dims64 {
  public:
    static constexpr int32_t MAX_DIMS{8};
    int32_t nbDims;
    int64_t d[MAX_DIMS];
};
using Dims = Dims64;
enum class ExecutionContextAllocationStrategy : int32_t { kSTATIC = 0, kON_PROFILE_CHANGE = 1, kUSER_MANAGED = 2 };
#endif

// From TensorRT 11 on the name ILogger is an alias, which no forward declaration as a class may contradict.
#if NV_TENSORRT_MAJOR >= 11
namespace v_1_0 {
#endif
class ILogger {
  public:
    enum class Severity : int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2, kINFO = 3, kVERBOSE = 4 };

    virtual void log(Severity severity, AsciiChar const *msg) noexcept = 0;

    ILogger() = default;
    virtual ~ILogger() = default;

  protected:
    ILogger(ILogger const &) = default;
    ILogger(ILogger &&) = default;
    ILogger &operator=(ILogger const &) & = default;
    ILogger &operator=(ILogger &&) & = default;
};
#if NV_TENSORRT_MAJOR >= 11
} // namespace v_1_0
using ILogger = v_1_0::ILogger;
#endif

class INoCopy {
  protected:
    INoCopy() = default;
    virtual ~INoCopy() = default;
    INoCopy(INoCopy const &) = delete;
    INoCopy &operator=(INoCopy const &) = delete;
    INoCopy(INoCopy &&) = delete;
    INoCopy &operator=(INoCopy &&) = delete;
};

class IExecutionContext : public INoCopy {
  public:
    virtual ~IExecutionContext() noexcept = default;
    virtual bool setTensorAddress(char const *tensorName, void *data) noexcept = 0;
    virtual bool setInputShape(char const *tensorName, Dims const &dims) noexcept = 0;
    virtual bool setOptimizationProfileAsync(int32_t profileIndex, cudaStream_t stream) noexcept = 0;
    virtual bool enqueueV3(cudaStream_t stream) noexcept = 0;
#ifdef TRT_MAJOR_RTX
    virtual bool isStreamCapturable(cudaStream_t stream) noexcept = 0;
#endif
};

class ICudaEngine : public INoCopy {
  public:
    virtual ~ICudaEngine() noexcept = default;
    virtual int32_t getNbIOTensors() const noexcept = 0;
    virtual char const *getIOTensorName(int32_t index) const noexcept = 0;
    virtual TensorIOMode getTensorIOMode(char const *tensorName) const noexcept = 0;
    virtual Dims getTensorShape(char const *tensorName) const noexcept = 0;
    virtual DataType getTensorDataType(char const *tensorName) const noexcept = 0;
    virtual TensorFormat getTensorFormat(char const *tensorName) const noexcept = 0;
    virtual TensorLocation getTensorLocation(char const *tensorName) const noexcept = 0;
    virtual Dims getProfileShape(char const *tensorName, int32_t profileIndex, OptProfileSelector select) const noexcept = 0;
#if STANDIN_TENSORRT_8
    virtual IExecutionContext *createExecutionContext() noexcept = 0;
#else
    virtual IExecutionContext *createExecutionContext(
        ExecutionContextAllocationStrategy strategy = ExecutionContextAllocationStrategy::kSTATIC) noexcept = 0;
#endif
};

class IRuntime : public INoCopy {
  public:
    virtual ~IRuntime() noexcept = default;
    virtual ICudaEngine *deserializeCudaEngine(void const *blob, std::size_t size) noexcept = 0;
    virtual void setEngineHostCodeAllowed(bool allowed) noexcept = 0;
    virtual IRuntime *loadRuntime(char const *path) noexcept = 0;
};

} // namespace nvinfer1

extern "C" TENSORRTAPI void *createInferRuntime_INTERNAL(void *logger, int32_t version) noexcept;
extern "C" TENSORRTAPI int32_t getInferLibVersion() noexcept;
#if !STANDIN_TENSORRT_8
extern "C" TENSORRTAPI int32_t getInferLibMajorVersion() noexcept;
extern "C" TENSORRTAPI int32_t getInferLibMinorVersion() noexcept;
extern "C" TENSORRTAPI int32_t getInferLibPatchVersion() noexcept;
extern "C" TENSORRTAPI int32_t getInferLibBuildVersion() noexcept;
#endif

namespace nvinfer1 {
namespace {
inline IRuntime *createInferRuntime(ILogger &logger) noexcept {
    return static_cast<IRuntime *>(createInferRuntime_INTERNAL(&logger, NV_TENSORRT_VERSION));
}
} // namespace
} // namespace nvinfer1
