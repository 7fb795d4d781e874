// The functions of NVIDIA's driver library that are used, by the names under which it exports them (CUDA driver API).
#pragma once

#include <cstddef>
#include <cstdint>

#include "yolact_deploy/export.h"

namespace yolact::detail {

using DevicePointer = std::uint64_t;

// name in the library, arguments; all return a CUresult.
#define YOLACT_DRIVER_CALLS(CALL)                                                                                                      \
    CALL(cuInit, (unsigned flags))                                                                                                     \
    CALL(cuDriverGetVersion, (int *version))                                                                                           \
    CALL(cuGetErrorName, (int code, const char **name))                                                                                \
    CALL(cuDeviceGetCount, (int *count))                                                                                               \
    CALL(cuDeviceGet, (int *device, int index))                                                                                        \
    CALL(cuDeviceGetName, (char *name, int size, int device))                                                                          \
    CALL(cuDeviceGetAttribute, (int *value, int attribute, int device))                                                                \
    CALL(cuDevicePrimaryCtxRetain, (void **context, int device))                                                                       \
    CALL(cuDevicePrimaryCtxRelease_v2, (int device))                                                                                   \
    CALL(cuCtxGetCurrent, (void **context))                                                                                            \
    CALL(cuCtxPushCurrent_v2, (void *context))                                                                                         \
    CALL(cuCtxPopCurrent_v2, (void **context))                                                                                         \
    CALL(cuThreadExchangeStreamCaptureMode, (int *mode))                                                                               \
    CALL(cuMemGetInfo_v2, (std::size_t *free, std::size_t *total))                                                                     \
    CALL(cuMemAlloc_v2, (DevicePointer *pointer, std::size_t size))                                                                    \
    CALL(cuMemFree_v2, (DevicePointer pointer))                                                                                        \
    CALL(cuMemHostAlloc, (void **pointer, std::size_t size, unsigned flags))                                                           \
    CALL(cuMemFreeHost, (void *pointer))                                                                                               \
    CALL(cuPointerGetAttribute, (void *value, int attribute, DevicePointer pointer))                                                   \
    CALL(cuMemcpyHtoDAsync_v2, (DevicePointer target, const void *source, std::size_t size, cudaStream_t stream))                      \
    CALL(cuMemcpyDtoHAsync_v2, (void *target, DevicePointer source, std::size_t size, cudaStream_t stream))                            \
    CALL(cuMemcpyDtoDAsync_v2, (DevicePointer target, DevicePointer source, std::size_t size, cudaStream_t stream))                    \
    CALL(cuMemsetD8Async, (DevicePointer target, unsigned char value, std::size_t size, cudaStream_t stream))                          \
    CALL(cuStreamCreate, (cudaStream_t * stream, unsigned flags))                                                                      \
    CALL(cuStreamDestroy_v2, (cudaStream_t stream))                                                                                    \
    CALL(cuStreamSynchronize, (cudaStream_t stream))                                                                                   \
    CALL(cuStreamWaitEvent, (cudaStream_t stream, void *event, unsigned flags))                                                        \
    CALL(cuStreamGetCtx, (cudaStream_t stream, void **context))                                                                        \
    CALL(cuStreamBeginCapture_v2, (cudaStream_t stream, int mode))                                                                     \
    CALL(cuStreamEndCapture, (cudaStream_t stream, void **graph))                                                                      \
    CALL(cuStreamIsCapturing, (cudaStream_t stream, int *status))                                                                      \
    CALL(cuGraphInstantiateWithFlags, (void **executable, void *graph, unsigned long long flags))                                      \
    CALL(cuGraphLaunch, (void *executable, cudaStream_t stream))                                                                       \
    CALL(cuGraphDestroy, (void *graph))                                                                                                \
    CALL(cuGraphExecDestroy, (void *executable))                                                                                       \
    CALL(cuEventCreate, (void **event, unsigned flags))                                                                                \
    CALL(cuEventDestroy_v2, (void *event))                                                                                             \
    CALL(cuEventRecord, (void *event, cudaStream_t stream))                                                                            \
    CALL(cuEventSynchronize, (void *event))                                                                                            \
    CALL(cuModuleLoadData, (void **module, const void *image))                                                                         \
    CALL(cuModuleUnload, (void *module))                                                                                               \
    CALL(cuModuleGetFunction, (void **function, void *module, const char *name))                                                       \
    CALL(cuFuncSetAttribute, (void *function, int attribute, int value))                                                               \
    CALL(cuLaunchKernel, (void *function, unsigned blocks_x, unsigned blocks_y, unsigned blocks_z, unsigned threads_x, unsigned threads_y, \
                          unsigned threads_z, unsigned shared, cudaStream_t stream, void **parameters, void **extra))

struct DriverCalls {
#define YOLACT_DECLARE(name, arguments) int(*name) arguments = nullptr;
    YOLACT_DRIVER_CALLS(YOLACT_DECLARE)
#undef YOLACT_DECLARE
};

// The driver's library, opened once for the process; null where there is none. Throws ErrorCode::device where it lacks a function.
const DriverCalls *driver_calls();

}  // namespace yolact::detail
