// Raising errors of each kind.
#pragma once

#include <string>

#include "yolact_deploy/error.hpp"

namespace yolact::detail {

inline Error config_error(const std::string &message, const std::string &mend = "") { return Error(ErrorCode::config, message, mend); }
inline Error model_error(const std::string &message, const std::string &mend = "") { return Error(ErrorCode::model_file, message, mend); }
inline Error device_error(const std::string &message, const std::string &mend = "") { return Error(ErrorCode::device, message, mend); }
inline Error picture_error(const std::string &message, const std::string &mend = "") { return Error(ErrorCode::picture, message, mend); }

}  // namespace yolact::detail
