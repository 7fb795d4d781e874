// Whether everything on this machine is right.
#ifndef YOLACT_DEPLOY_SELFTEST_HPP
#define YOLACT_DEPLOY_SELFTEST_HPP

#include <string>
#include <vector>

#include "detector.hpp"
#include "export.h"

namespace yolact {

struct SelftestResult {
    bool passed = false;
    int checked = 0;                    // expected detections that had to be found
    std::vector<std::string> problems;  // one sentence each; empty where it passed
};

// Loads the engine, runs it on the picture that `yolact-deploy build-engine --with-selftest` put beside it and compares with the detections
// that the ONNX file gives there: an engine, its sidecar, TensorRT, the driver, the GPU and this library in one call. How near is near enough
// stands in the file. Throws as Detector::load does, and ErrorCode::model_file for an engine that carries no self-test or a damaged one.
YOLACT_API SelftestResult selftest(const std::string &path, const Options &options = {});

}  // namespace yolact

#endif
