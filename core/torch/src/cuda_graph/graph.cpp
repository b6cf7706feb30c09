// CUDA graphs for `mod.rs`. A separate library that is opened only on machines with a GPU: the symbols of libtorch and CUDA
// are resolved in the process, so that neither building nor starting unirl needs them.

#include <ATen/core/CachingHostAllocator.h>
#include <ATen/cuda/CUDAGraph.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>

#include <map>
#include <memory>
#include <optional>

#include "../ffi_error.h"

namespace {

namespace allocator = c10::cuda::CUDACachingAllocator;

// During a capture only unsafe calls of this thread are refused, not those of other threads.
constexpr auto MODE = cudaStreamCaptureModeThreadLocal;

// More than a captured decoding step allocates.
constexpr size_t MIN_FREE = size_t{1} << 30;

// The default stream cannot be captured. All captures of a thread share one stream, because cuBLAS never frees the memory that
// it allocates for each pair of thread and stream.
c10::cuda::CUDAStream side_stream(c10::DeviceIndex device) {
    thread_local std::map<c10::DeviceIndex, c10::cuda::CUDAStream> streams;
    auto found = streams.find(device);
    if (found == streams.end()) found = streams.emplace(device, c10::cuda::getStreamFromPool(false, device)).first;
    return found->second;
}

template <typename F>
bool works(F function) noexcept {
    try {
        function();
        return true;
    } catch (...) {
        return false;
    }
}

struct Work {
    c10::DeviceIndex device;
    bool capturing = false;
    c10::MempoolId_t pool{0, 0};
    at::cuda::CUDAGraph graph;
    std::optional<c10::cuda::CUDAStreamGuard> side;

    explicit Work(c10::DeviceIndex device) : device(device) {}

    void begin(bool capture) {
        side.emplace(side_stream(device));
        // The inputs were written on another stream.
        c10::cuda::device_synchronize();
        if (!capture) return;
        // A capture cannot free cached memory. The cache is only emptied if necessary, because the rest of the step would have to
        // allocate it again.
        size_t free = 0, total = 0;
        C10_CUDA_CHECK(cudaMemGetInfo(&free, &total));
        if (free < MIN_FREE) allocator::emptyCache();
        pool = at::cuda::graph_pool_handle();
        capturing = true;
        graph.capture_begin(pool, MODE);
    }

    void end() {
        if (capturing) graph.capture_end();
        else side->current_stream().synchronize();
        capturing = false;
        side.reset();
    }

    // Ends an unfinished capture. Throws after all cleanup if the random generator is unusable.
    void abort() {
        bool generator_works = true;
        if (capturing) {
            works([&] { graph.capture_end(); });
            // After a successful end the graph owns its pool and releases it itself.
            if (!works([&] { graph.pool(); })) generator_works = clean_up_failed_capture();
            capturing = false;
        } else if (side) {
            works([&] { side->current_stream().synchronize(); });
        }
        side.reset();
        TORCH_CHECK(generator_works, "the random generator of the GPU is unusable after a failed capture");
    }

    // libtorch does not clean up a failed capture: new memory is still checked against the graph, its pool is kept, and the
    // generator refuses to produce numbers. Returns whether the generator works again.
    bool clean_up_failed_capture() {
        auto* host = at::getHostAllocator(at::kCUDA);
        works([&] { allocator::endAllocateToPool(device, pool); });
        works([&] { allocator::releasePool(device, pool); });
        works([&] { host->end_allocate_to_pool(pool); });
        works([&] { host->release_pool(pool); });
        return works([&] {
            // The end of any capture resets the generator.
            at::Tensor value = at::empty({1}, at::TensorOptions(at::Device(at::kCUDA, device)));
            at::cuda::CUDAGraph other;
            other.capture_begin({0, 0}, MODE);
            value.zero_();
            other.capture_end();
        });
    }
};

}  // namespace

// Until `end` or `drop`, operations of this thread on the device go to a separate stream; if `capture` is not 0, they are
// captured instead of executed.
extern "C" char* unirl_graph_begin(int device, int capture, Work** result) {
    return catch_to_cstr([&] {
        auto work = std::make_unique<Work>(static_cast<c10::DeviceIndex>(device));
        try {
            work->begin(capture != 0);
        } catch (...) {
            works([&] { work->abort(); });
            throw;
        }
        *result = work.release();
    });
}

extern "C" char* unirl_graph_end(Work* work) {
    return catch_to_cstr([&] { work->end(); });
}

// Launches the graph on the stream of the caller.
extern "C" char* unirl_graph_replay(Work* work) {
    return catch_to_cstr([&] { work->graph.replay(); });
}

// Frees the work; an unfinished capture is aborted.
extern "C" char* unirl_graph_drop(Work* work) {
    return catch_to_cstr([&] {
        std::unique_ptr<Work> owned(work);
        owned->abort();
    });
}
