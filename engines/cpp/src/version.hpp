#pragma once

namespace yolact::detail {

inline constexpr const char *VERSION = YOLACT_DEPLOY_VERSION;  // of the Python package too; CMake knows it

}  // namespace yolact::detail
