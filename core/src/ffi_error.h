// Turns a C++ exception into an error message for Rust. `autograd::take_error` reads it.
#pragma once

#include <cstring>
#include <exception>

// Null, or the text of what `function` threw, to be freed: no exception goes further.
template <typename F>
char* catch_to_cstr(F function) noexcept {
    try {
        function();
        return nullptr;
    } catch (const std::exception& error) {
        return strdup(error.what());
    } catch (...) {
        return strdup("an exception that is no std::exception");
    }
}
