// From an engine's path to a model on the GPU: every check in its order, then TensorRT; as engines/loading.py.
#pragma once

#include <memory>
#include <string>

#include "context.hpp"

namespace yolact::detail {

std::shared_ptr<const Model> load_model(const std::string &path, const Options &options);

}  // namespace yolact::detail
