// Emulated kernels by name, with what unpacks a launch's parameters by each kernel's own signature.
#pragma once
#include <cstddef>
#include <utility>

namespace emulated {
struct Kernel {
    const char* name;
    void (*call)(void**);
    // From ptx_report.py, 0 where unknown: registers of a thread, bytes of static shared memory and the most
    // threads that a block may have.
    unsigned registers, shared, threads;
};
// One list a source file, null at the end.
extern const Kernel* const lists[];

template <typename... A, size_t... I>
inline void call_with(void (*kernel)(A...), void** values, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_reference_t<A>*>(values[I])...);
}
template <typename... A>
inline void call(void (*kernel)(A...), void** values) {
    call_with(kernel, values, std::index_sequence_for<A...>{});
}
}  // namespace emulated
