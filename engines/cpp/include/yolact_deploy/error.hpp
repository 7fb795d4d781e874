// The one exception of the library.
#ifndef YOLACT_DEPLOY_ERROR_HPP
#define YOLACT_DEPLOY_ERROR_HPP

#include <stdexcept>
#include <string>

#include "export.h"

namespace yolact {

// Whose mistake it was, and so who can mend it. The numbers are those of the C interface (yolact.h).
enum class ErrorCode : int {
    config = 1,      // an option or argument that contradicts the engine or itself
    model_file = 2,  // an engine or sidecar that is missing, broken, foreign, or does not fit this machine
    device = 3,      // a GPU that is missing, out of memory, or failed
    picture = 4,     // a picture without pixels, of a wrong pitch, or in the wrong memory
    internal = 5,    // a mistake in this library, or memory of the host that ran out
};

// Every error that the library raises. `what()` is the message and the mend, as the Python package's errors have them: what was found, what was
// wanted, and what to do. The pointers live as long as the exception.
class YOLACT_API Error : public std::runtime_error {
public:
    Error(ErrorCode code, const std::string &message, const std::string &mend = "");
    ~Error() override;

    ErrorCode code() const noexcept { return code_; }
    const char *message() const noexcept { return message_.what(); }
    const char *mend() const noexcept { return mend_.what(); }

private:
    ErrorCode code_;
    std::runtime_error message_, mend_;  // whose copies throw nothing
};

}  // namespace yolact

#endif
