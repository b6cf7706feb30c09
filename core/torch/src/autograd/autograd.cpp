// Functions for `mod.rs`.

#include <ATen/Context.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "../ffi_error.h"

namespace {

using torch::autograd::variable_list;

// Reads `n` inputs and writes `m` outputs that the caller owns. Returns 0 on success.
using Call = int (*)(void* closure, at::Tensor** inputs, size_t n, at::Tensor** outputs, size_t m);
using Drop = void (*)(void* closure);

// Stores its inputs and calls its function, a Rust closure behind `call`, again in the backward pass.
struct Recompute : public torch::autograd::Node {
    variable_list inputs;
    std::vector<bool> wanted;
    size_t outputs = 0;
    void* closure = nullptr;
    Call call = nullptr;
    Drop drop = nullptr;

    ~Recompute() override { release_variables(); }

    void release_variables() override {
        inputs.clear();
        if (closure != nullptr) drop(closure);
        closure = nullptr;
    }

    variable_list apply(variable_list&& gradients) override {
        TORCH_CHECK(closure != nullptr, "a checkpointed graph supports one backward pass");
        at::AutoGradMode with_gradient(true);
        variable_list leaves;
        std::vector<at::Tensor*> pointers;
        for (size_t i = 0; i < inputs.size(); ++i) leaves.push_back(inputs[i].detach().requires_grad_(wanted[i]));
        for (auto& leaf : leaves) pointers.push_back(&leaf);
        std::vector<at::Tensor*> results(outputs, nullptr);
        TORCH_CHECK(call(closure, pointers.data(), pointers.size(), results.data(), outputs) == 0,
                    "the recomputation failed");

        variable_list roots, seeds;
        for (size_t i = 0; i < outputs; ++i) {
            at::Tensor result = std::move(*results[i]);
            delete results[i];
            if (gradients[i].defined() && result.requires_grad()) {
                roots.push_back(std::move(result));
                seeds.push_back(gradients[i]);
            }
        }
        if (!roots.empty()) torch::autograd::backward(roots, seeds);

        variable_list result;
        for (size_t i = 0; i < leaves.size(); ++i) result.push_back(wanted[i] ? leaves[i].grad() : at::Tensor());
        return result;
    }
};

}  // namespace

// Adds `values`, computed without gradient from `inputs`, to the graph. Always takes ownership of the closure. Returns null or
// an error text that the caller frees.
extern "C" char* unirl_recompute(at::Tensor** inputs, size_t n, at::Tensor** values, size_t m, void* closure, Call call,
                                 Drop drop) {
    return catch_to_cstr([&] {
        std::shared_ptr<Recompute> node(new Recompute(), torch::autograd::deleteNode);
        node->closure = closure;
        node->call = call;
        node->drop = drop;
        node->outputs = m;
        variable_list variables;
        for (size_t i = 0; i < n; ++i) variables.push_back(*inputs[i]);
        node->set_next_edges(torch::autograd::collect_next_edges(variables));
        for (const auto& variable : variables) {
            node->inputs.push_back(variable.detach());
            node->wanted.push_back(variable.requires_grad());
        }
        for (size_t i = 0; i < m; ++i) torch::autograd::set_history(*values[i], node);
    });
}

// Affects the whole process. cuBLAS reads its variable when it creates its first handle.
extern "C" void unirl_set_deterministic() {
    setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", 0);
    at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/false);
    at::globalContext().setDeterministicCuDNN(true);
    at::globalContext().setBenchmarkCuDNN(false);
}

extern "C" int unirl_gradient_enabled() { return at::GradMode::is_enabled() ? 1 : 0; }

extern "C" void unirl_clear_gradient(at::Tensor* tensor) {
    if (tensor->defined()) tensor->mutable_grad().reset();
}
