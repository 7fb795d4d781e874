// One kind of exception for whatever goes wrong.
#pragma once

#include <exception>
#include <new>

#include "errors.hpp"

namespace yolact::detail {

// What `work` returns; what it throws as an Error.
template <typename Work>
auto translated(const Work &work) -> decltype(work()) {
    try {
        return work();
    } catch (const Error &) {
        throw;
    } catch (const std::bad_alloc &) {
        throw Error(ErrorCode::internal, "The host's memory ran out.", "Close other programs, or use smaller pictures or batches.");
    } catch (const std::exception &error) {
        throw Error(ErrorCode::internal, std::string("A mistake in yolact_deploy: ") + error.what(), "Please report it.");
    }
}

}  // namespace yolact::detail
