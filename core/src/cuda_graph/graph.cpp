// CUDA graphs. A library of its own, which is opened only where there is a GPU: what it wants of libtorch and of CUDA is
// found in the process, and nothing of it is needed to build or to start. `mod.rs` holds the other side.

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

// Other threads may go on with what they do: only calls of this one are refused while it records.
constexpr auto MODE = cudaStreamCaptureModeThreadLocal;

// More than a recorded step of decoding makes on its way.
constexpr size_t ROOM = size_t{1} << 30;

// The default stream cannot be recorded. One stream for all that a thread records, since cuBLAS keeps memory for good for
// each pair of thread and stream.
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
    bool recording = false;
    c10::MempoolId_t pool{0, 0};
    at::cuda::CUDAGraph graph;
    std::optional<c10::cuda::CUDAStreamGuard> side;

    explicit Work(c10::DeviceIndex device) : device(device) {}

    void begin(bool record) {
        side.emplace(side_stream(device));
        // What the work reads was made on another stream.
        c10::cuda::device_synchronize();
        if (!record) return;
        // A recording that runs out of memory cannot take it back from the cache; all that is given up for nothing has to be
        // allocated again in the rest of a step.
        size_t free = 0, total = 0;
        C10_CUDA_CHECK(cudaMemGetInfo(&free, &total));
        if (free < ROOM) allocator::emptyCache();
        pool = at::cuda::graph_pool_handle();
        recording = true;
        graph.capture_begin(pool, MODE);
    }

    void end() {
        if (recording) graph.capture_end();
        else side->current_stream().synchronize();
        recording = false;
        side.reset();
    }

    // Throws only when all has been done that could be.
    void abandon() {
        bool whole = true;
        if (recording) {
            works([&] { graph.capture_end(); });
            // With an end the graph has its pool, and gives it back itself.
            if (!works([&] { graph.pool(); })) whole = disown();
            recording = false;
        } else if (side) {
            works([&] { side->current_stream().synchronize(); });
        }
        side.reset();
        TORCH_CHECK(whole, "random numbers on the GPU are not to be had any more");
    }

    // libtorch leaves a recording that failed where it stands: new memory is still asked whether it belongs to this graph,
    // its pool is kept, and the generator refuses its numbers. Answers whether the generator gives them again.
    bool disown() {
        auto* host = at::getHostAllocator(at::kCUDA);
        works([&] { allocator::endAllocateToPool(device, pool); });
        works([&] { allocator::releasePool(device, pool); });
        works([&] { host->end_allocate_to_pool(pool); });
        works([&] { host->release_pool(pool); });
        return works([&] {
            // The end of a recording frees the generator, of whichever recording.
            at::Tensor value = at::empty({1}, at::TensorOptions(at::Device(at::kCUDA, device)));
            at::cuda::CUDAGraph other;
            other.capture_begin({0, 0}, MODE);
            value.zero_();
            other.capture_end();
        });
    }
};

}  // namespace

// From here on until `end` or `drop`, what this thread does on the device goes to a stream of its own; where `record` is
// not 0, it is written down and not done.
extern "C" char* unirl_graph_begin(int device, int record, Work** answer) {
    return catch_to_cstr([&] {
        auto work = std::make_unique<Work>(static_cast<c10::DeviceIndex>(device));
        try {
            work->begin(record != 0);
        } catch (...) {
            works([&] { work->abandon(); });
            throw;
        }
        *answer = work.release();
    });
}

extern "C" char* unirl_graph_end(Work* work) {
    return catch_to_cstr([&] { work->end(); });
}

// Does what was recorded, on the stream of the caller.
extern "C" char* unirl_graph_replay(Work* work) {
    return catch_to_cstr([&] { work->graph.replay(); });
}

// Takes the work in any case. One that did not come to its end is given up.
extern "C" char* unirl_graph_drop(Work* work) {
    return catch_to_cstr([&] {
        std::unique_ptr<Work> owned(work);
        owned->abandon();
    });
}
