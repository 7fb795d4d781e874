// All of the C++ interface. No type of TensorRT, CUDA or OpenCV is in it.
#ifndef YOLACT_DEPLOY_YOLACT_HPP
#define YOLACT_DEPLOY_YOLACT_HPP

#include "detector.hpp"
#include "error.hpp"
#include "image.hpp"
#include "results.hpp"
#include "selftest.hpp"
#include "span.hpp"

#endif
