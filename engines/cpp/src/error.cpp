#include "yolact_deploy/error.hpp"

namespace yolact {

Error::Error(ErrorCode code, const std::string &message, const std::string &mend)
    : std::runtime_error(mend.empty() ? message : message + " " + mend), code_(code), message_(message), mend_(mend) {}

Error::~Error() = default;  // here, so that there is one vtable

}  // namespace yolact
