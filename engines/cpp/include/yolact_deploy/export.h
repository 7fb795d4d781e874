/* What the library shows to its users; everything else in it is hidden. */
#ifndef YOLACT_DEPLOY_EXPORT_H
#define YOLACT_DEPLOY_EXPORT_H

#if defined(YOLACT_DEPLOY_STATIC)
#define YOLACT_API
#elif defined(_WIN32)
#if defined(YOLACT_DEPLOY_BUILDING)
#define YOLACT_API __declspec(dllexport)
#else
#define YOLACT_API __declspec(dllimport)
#endif
#else
#define YOLACT_API __attribute__((visibility("default")))
#endif

/* A stream, as the CUDA runtime and driver name it: including their headers beside these changes nothing. */
typedef struct CUstream_st *cudaStream_t;

#endif
