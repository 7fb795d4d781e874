# The target yolact_deploy::tensorrt: TensorRT's runtime library and headers, and the CUDA headers that these include. Where they are not found
# there is no such target, and YOLACT_TENSORRT_MISSING says what to set.
include_guard(GLOBAL)

if(NOT DEFINED YOLACT_DEPLOY_BACKEND)
    set(YOLACT_DEPLOY_BACKEND tensorrt)
endif()
if(YOLACT_DEPLOY_BACKEND STREQUAL "tensorrt")
    set(yolact_tensorrt_names nvinfer nvinfer_11 nvinfer_10)  # the last two as Windows has them
elseif(YOLACT_DEPLOY_BACKEND STREQUAL "tensorrt-rtx")
    set(yolact_tensorrt_names tensorrt_rtx tensorrt_rtx_1_7 tensorrt_rtx_1_6 tensorrt_rtx_1_5 tensorrt_rtx_1_4)
else()
    message(FATAL_ERROR "YOLACT_DEPLOY_BACKEND is \"${YOLACT_DEPLOY_BACKEND}\", tensorrt or tensorrt-rtx was wanted.")
endif()

# YOLACT_TENSORRT_HINTS, YOLACT_CUDA_HINTS: where an installed library was built with them.
find_path(TENSORRT_INCLUDE_DIR NvInferRuntime.h
    HINTS ${TENSORRT_ROOT} $ENV{TENSORRT_ROOT} ${YOLACT_TENSORRT_HINTS}
    PATH_SUFFIXES include
    DOC "Folder with NvInferRuntime.h")
find_library(TENSORRT_LIBRARY NAMES ${yolact_tensorrt_names}
    HINTS ${TENSORRT_ROOT} $ENV{TENSORRT_ROOT} ${YOLACT_TENSORRT_HINTS}
    PATH_SUFFIXES lib lib64
    DOC "TensorRT's runtime library")
if(NOT CUDA_INCLUDE_DIR)
    find_package(CUDAToolkit QUIET)
    find_path(CUDA_INCLUDE_DIR cuda_runtime_api.h HINTS ${CUDAToolkit_INCLUDE_DIRS} ${YOLACT_CUDA_HINTS} DOC "Folder with cuda_runtime_api.h")
endif()

set(YOLACT_TENSORRT_MISSING)
if(NOT TENSORRT_INCLUDE_DIR OR NOT TENSORRT_LIBRARY)
    string(CONCAT YOLACT_TENSORRT_MISSING
        "TensorRT was not found (NvInferRuntime.h: ${TENSORRT_INCLUDE_DIR}, library: ${TENSORRT_LIBRARY}). "
        "Set TENSORRT_ROOT to the folder with its include/ and lib/, or TENSORRT_INCLUDE_DIR and TENSORRT_LIBRARY. "
        "On JetPack: apt install libnvinfer-dev.")
elseif(NOT CUDA_INCLUDE_DIR)
    string(CONCAT YOLACT_TENSORRT_MISSING
        "CUDA's headers, which TensorRT's include, were not found. Set CUDAToolkit_ROOT to the toolkit's folder, or CUDA_INCLUDE_DIR to the "
        "folder with cuda_runtime_api.h (the wheel nvidia-cuda-runtime has one).")
elseif(NOT TARGET yolact_deploy_tensorrt)
    add_library(yolact_deploy_tensorrt UNKNOWN IMPORTED GLOBAL)
    set_target_properties(yolact_deploy_tensorrt PROPERTIES
        IMPORTED_LOCATION ${TENSORRT_LIBRARY}
        INTERFACE_INCLUDE_DIRECTORIES "${TENSORRT_INCLUDE_DIR};${CUDA_INCLUDE_DIR}")
    add_library(yolact_deploy::tensorrt ALIAS yolact_deploy_tensorrt)
endif()
