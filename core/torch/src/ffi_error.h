// Converts a C++ exception into an error message for `autograd::take_error`.
#pragma once

#include <cstring>
#include <exception>

// Returns null, or the message of the exception that `function` threw, which the caller frees.
template <typename F>
char* catch_to_cstr(F function) noexcept {
    try {
        function();
        return nullptr;
    } catch (const std::exception& error) {
        return strdup(error.what());
    } catch (...) {
        return strdup("unknown exception");
    }
}
