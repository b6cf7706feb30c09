// Functions for `mod.rs`.

#include <ATen/Context.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/_addmm_activation.h>
#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/gelu.h>
#include <ATen/record_function.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <torch/csrc/autograd/custom_function.h>

#include <string_view>
#include <vector>

#include "../ffi_error.h"

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// oneDNN generates kernels for the processor. MKL, which libtorch uses for f32 products, is slower by half or more on processors
// of other vendors than Intel.
bool use_onednn(const Tensor& x, const Tensor& weight) {
    return at::hasMKLDNN() && at::globalContext().userEnabledMkldnn() && x.device().is_cpu() && x.numel() > 0 &&
           x.size(-1) == weight.size(1) && x.scalar_type() == at::kFloat && weight.scalar_type() == at::kFloat;
}

// `x·weightᵀ + bias`, followed by `activation`: "none" or "gelu" (tanh).
Tensor onednn(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const char* activation) {
    using Scalars = c10::List<std::optional<at::Scalar>>;
    using Signature = Tensor(const Tensor&, const Tensor&, const std::optional<Tensor>&, std::string_view, Scalars,
                             std::optional<std::string_view>);
    static const auto linear =
        c10::Dispatcher::singleton().findSchemaOrThrow("mkldnn::_linear_pointwise", "").typed<Signature>();
    return linear.call(x, weight, bias, activation, Scalars(), "tanh");
}

Tensor product(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
    return use_onednn(x, weight) ? onednn(x, weight, bias, "none") : at::linear(x, weight, bias);
}

// `left [n,k]` times `right [k,m]`.
Tensor matrix_product(const Tensor& left, const Tensor& right) { return product(left, right.t(), std::nullopt); }

// Several linear layers of the same input: their concatenated weights and biases, and the output size of each.
struct FusedWeights {
    Tensor weight;
    std::optional<Tensor> bias;
    std::vector<int64_t> sizes;
};

// One product for the values, and one for each gradient.
struct FusedLinear : public torch::autograd::Function<FusedLinear> {
    // `leaves`, weights and then biases, are arguments only for their edges in the graph.
    static variable_list forward(AutogradContext* context, const FusedWeights& fused, const Tensor& x,
                                 at::TensorList leaves) {
        context->save_for_backward({x, fused.weight});
        context->saved_data["sizes"] = fused.sizes;
        context->saved_data["biased"] = leaves.size() > fused.sizes.size();
        return product(x, fused.weight, fused.bias).split_with_sizes(fused.sizes, -1);
    }

    static variable_list backward(AutogradContext* context, const variable_list& gradients) {
        const auto saved = context->get_saved_variables();
        const Tensor &x = saved[0], &weight = saved[1];
        const auto sizes = context->saved_data["sizes"].toIntVector();
        const size_t parts = sizes.size(), leaves = parts * (context->saved_data["biased"].toBool() ? 2 : 1);
        const Tensor joined = parts == 1 ? gradients[0] : at::cat(gradients, -1);
        const Tensor rows = joined.reshape({-1, weight.size(0)});

        // One per argument; the first is not a tensor and has no edge.
        variable_list result(2 + leaves);
        const auto trainable = [&](size_t leaf) { return context->needs_input_grad(1 + leaf); };
        const auto split = [&](const Tensor& gradient, size_t first) {
            const auto each = gradient.split_with_sizes(sizes, 0);
            for (size_t i = 0; i < parts; ++i) {
                if (trainable(first + i)) result[2 + first + i] = each[i];
            }
        };
        const auto any = [&](size_t first) {
            for (size_t i = first; i < first + parts; ++i) {
                if (trainable(i)) return true;
            }
            return false;
        };
        if (context->needs_input_grad(0)) result[1] = matrix_product(rows, weight).view_as(x);
        if (any(0)) {
            const Tensor inputs = x.reshape({-1, weight.size(1)});
            // A left factor that is not row-major is copied; choose the smaller one.
            split(rows.size(1) <= inputs.size(1) ? matrix_product(rows.t(), inputs)
                                                 : matrix_product(inputs.t(), rows).t(),
                  0);
        }
        if (leaves > parts && any(parts)) split(rows.sum(0), parts);
        return result;
    }
};

}  // namespace

// Applies `parts` linear layers to `x`; `weight` and `bias` are the concatenated weights and biases in the same memory. Writes
// `parts` outputs, which the caller owns. `biases` and `bias` may be null. This and the other functions return null or an error
// text that the caller frees.
extern "C" char* unirl_linear(Tensor* x, Tensor* weight, Tensor* bias, Tensor** weights, Tensor** biases, size_t parts,
                              Tensor** outputs) {
    return catch_to_cstr([&] {
        FusedWeights fused{*weight, bias == nullptr ? std::nullopt : std::make_optional(*bias), {}};
        variable_list leaves;
        for (size_t i = 0; i < parts; ++i) {
            fused.sizes.push_back(weights[i]->size(0));
            leaves.push_back(*weights[i]);
        }
        for (size_t i = 0; bias != nullptr && i < parts; ++i) leaves.push_back(*biases[i]);
        const auto results = at::GradMode::is_enabled()
                                 ? FusedLinear::apply(fused, *x, at::TensorList(leaves))
                                 : product(*x, fused.weight, fused.bias).split_with_sizes(fused.sizes, -1);
        for (size_t i = 0; i < parts; ++i) outputs[i] = new Tensor(results[i]);
    });
}

// GELU (tanh) of `x·weightᵀ + bias`, without gradient.
extern "C" char* unirl_linear_gelu(Tensor* x, Tensor* weight, Tensor* bias, Tensor** output) {
    return catch_to_cstr([&] {
        at::NoGradGuard no_grad;
        if (use_onednn(*x, *weight)) {
            *output = new Tensor(onednn(*x, *weight, *bias, "gelu"));
        } else if (x->is_cuda()) {
            auto shape = x->sizes().vec();
            shape.back() = weight->size(0);
            const auto rows = x->reshape({-1, x->size(-1)});
            *output = new Tensor(at::_addmm_activation(*bias, rows, weight->t(), 1, 1, /*use_gelu=*/true).view(shape));
        } else {
            *output = new Tensor(at::gelu(at::linear(*x, *weight, *bias), "tanh"));
        }
    });
}

// AdamW on lists of f32 tensors; `gradients` are divided by `scale`, and `steps` include this step.
extern "C" char* unirl_adamw(Tensor** weights, Tensor** gradients, Tensor** means, Tensor** squares, Tensor** steps,
                             size_t n, double rate, double beta1, double beta2, double decay, double epsilon,
                             Tensor* scale) {
    return catch_to_cstr([&] {
        at::NoGradGuard no_grad;
        const auto list = [n](Tensor** tensors) {
            std::vector<Tensor> list;
            for (size_t i = 0; i < n; ++i) list.push_back(tensors[i]->detach());
            return list;
        };
        at::_fused_adamw_(list(weights), list(gradients), list(means), list(squares), {}, list(steps), rate, beta1,
                          beta2, decay, epsilon, /*amsgrad=*/false, /*maximize=*/false, *scale);
    });
}

// The Euclidean norm over all values of `n` tensors, an f32 scalar that the caller owns.
extern "C" char* unirl_norm(Tensor** tensors, size_t n, Tensor** output) {
    return catch_to_cstr([&] {
        at::NoGradGuard no_grad;
        std::vector<Tensor> list;
        for (size_t i = 0; i < n; ++i) list.push_back(*tensors[i]);
        *output = new Tensor(at::linalg_vector_norm(at::stack(at::_foreach_norm(list, 2, at::kFloat))));
    });
}

// Copies tensors into others, converting their type if necessary.
extern "C" char* unirl_copy(Tensor** to, Tensor** from, size_t n) {
    return catch_to_cstr([&] {
        at::NoGradGuard no_grad;
        if (n == 0) return;
        std::vector<Tensor> targets, sources;
        for (size_t i = 0; i < n; ++i) {
            targets.push_back(to[i]->detach());
            sources.push_back(from[i]->detach());
        }
        at::_foreach_copy_(targets, sources);
    });
}

// The peak bytes of tensors on a GPU since the last call.
extern "C" char* unirl_peak_memory(int index, int64_t* bytes) {
    return catch_to_cstr([&] {
        auto* allocator = c10::getDeviceAllocator(at::kCUDA);
        const auto gpu = static_cast<c10::DeviceIndex>(index);
        *bytes = allocator->getDeviceStats(gpu).allocated_bytes[0].peak;
        allocator->resetPeakStats(gpu);
    });
}

namespace {

thread_local int64_t started = 0;
thread_local int64_t depth = 0;

// Counts operations that are not nested in another.
std::unique_ptr<at::ObserverContext> count(const at::RecordFunction&) {
    if (depth++ == 0) ++started;
    return nullptr;
}

}  // namespace

extern "C" uint64_t unirl_count_begin() {
    started = 0;
    depth = 0;
    return at::addThreadLocalCallback(
        at::RecordFunctionCallback(count, [](const at::RecordFunction&, at::ObserverContext*) { --depth; })
            .scopes({at::RecordScope::FUNCTION}));
}

extern "C" int64_t unirl_count_end(uint64_t handle) {
    at::removeCallback(handle);
    return started;
}
