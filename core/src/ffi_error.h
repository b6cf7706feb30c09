// How C++ tells Rust of an error. `autograd::told` reads it.
#pragma once

#include <cstring>
#include <exception>

// Null, or the text of what `function` threw, to be freed: no exception goes further.
template <typename F>
char* told(F function) noexcept {
    try {
        function();
        return nullptr;
    } catch (const std::exception& error) {
        return strdup(error.what());
    } catch (...) {
        return strdup("an exception that is no std::exception");
    }
}
