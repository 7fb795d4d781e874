// The version that the stand-in plays: 11.4.0.106, or whatever -DNV_TENSORRT_MAJOR=10 and its three companions say. With
// -DTRT_MAJOR_RTX=1 and its companions it plays TensorRT-RTX, whose headers are told by that macro.
#pragma once

#ifdef TRT_MAJOR_RTX
#define NV_TENSORRT_MAJOR TRT_MAJOR_RTX
#define NV_TENSORRT_MINOR TRT_MINOR_RTX
#define NV_TENSORRT_PATCH TRT_PATCH_RTX
#define NV_TENSORRT_BUILD TRT_BUILD_RTX
#endif

#ifndef NV_TENSORRT_MAJOR
#define NV_TENSORRT_MAJOR 11
#define NV_TENSORRT_MINOR 4
#define NV_TENSORRT_PATCH 0
#define NV_TENSORRT_BUILD 106
#endif
