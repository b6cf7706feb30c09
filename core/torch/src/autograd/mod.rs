//! Autograd features of libtorch that tch lacks: gradient checkpointing, clearing gradients, and deterministic algorithms.
#![allow(unsafe_code, reason = "calls libtorch, and a node of its graph calls back into Rust")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::Tensor;
use torch_sys::C_tensor;
use unirl_base::error::{Error, Result};

/// Whether grad mode is enabled.
pub fn gradient_enabled() -> bool {
    // SAFETY: reads a flag of this thread.
    unsafe { unirl_gradient_enabled() != 0 }
}

/// Removes the gradient of a tensor, which [`Tensor::zero_grad`] would set to zeros.
pub fn clear_gradient(tensor: &mut Tensor) {
    // SAFETY: the pointer is that of a live tensor.
    unsafe { unirl_clear_gradient(tensor.as_mut_ptr()) }
}

/// Makes libtorch use only deterministic algorithms; operations that have none become errors. Must be called before a GPU is
/// used.
pub fn set_deterministic() {
    // SAFETY: sets flags of the process and an environment variable, before other threads exist that could read it.
    unsafe { unirl_set_deterministic() }
}

type Function = Box<dyn Fn(&[Tensor]) -> Vec<Tensor> + Send>;

unsafe extern "C" {
    fn unirl_recompute(
        inputs: *const *mut C_tensor,
        n: usize,
        values: *const *mut C_tensor,
        m: usize,
        closure: *mut c_void,
        call: unsafe extern "C" fn(
            *mut c_void,
            *const *mut C_tensor,
            usize,
            *mut *mut C_tensor,
            usize,
        ) -> c_int,
        drop: unsafe extern "C" fn(*mut c_void),
    ) -> *mut c_char;
    fn unirl_set_deterministic();
    fn unirl_gradient_enabled() -> c_int;
    fn unirl_clear_gradient(tensor: *mut C_tensor);
    fn free(pointer: *mut c_void);
}

/// Gradient checkpointing: runs `function` on `inputs` without storing activations, and runs it again in the backward pass.
///
/// Gradients reach the inputs and the leaves that the function captures. They are bit-equal to those without checkpointing if
/// the arithmetic is deterministic. The function must return the same values when called again, and the graph supports one
/// backward pass.
///
/// Without grad mode this only calls the function.
pub fn checkpoint(
    inputs: &[Tensor],
    function: impl Fn(&[Tensor]) -> Vec<Tensor> + Send + 'static,
) -> Result<Vec<Tensor>> {
    if !gradient_enabled() {
        return Ok(function(inputs));
    }
    // Detached, because a function may return an input, which already has a place in the graph.
    let values: Vec<Tensor> = tch::no_grad(|| function(inputs)).iter().map(Tensor::detach).collect();
    let pointers = |tensors: &[Tensor]| -> Vec<*mut C_tensor> {
        tensors.iter().map(|tensor| tensor.as_ptr().cast_mut()).collect()
    };
    let (given, made) = (pointers(inputs), pointers(&values));
    let closure: *mut Function = Box::into_raw(Box::new(Box::new(function)));
    // SAFETY: the pointers are those of live tensors; the node owns the closure from here on and drops it once.
    let error = unsafe {
        unirl_recompute(
            given.as_ptr(),
            given.len(),
            made.as_ptr(),
            made.len(),
            closure.cast(),
            call,
            drop_closure,
        )
    };
    // SAFETY: the result of the call, which nobody else owns.
    unsafe { take_error(error) }.map(|()| values)
}

/// Converts an error text that C++ returned.
///
/// # Safety
///
/// `error` is null or a text from `malloc`, of which the caller passes ownership.
pub(crate) unsafe fn take_error(error: *mut c_char) -> Result<()> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: by the contract, a text that is valid until it is freed below.
    let text = unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned();
    // SAFETY: by the contract, we own it, and it is not used any more.
    unsafe { free(error.cast()) };
    Err(Error::failure(format!("libtorch: {}", text.lines().next().unwrap_or_default())))
}

unsafe extern "C" fn call(
    closure: *mut c_void,
    inputs: *const *mut C_tensor,
    n: usize,
    outputs: *mut *mut C_tensor,
    m: usize,
) -> c_int {
    catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the node passes the closure of `checkpoint` and `n` tensors that outlive the call.
        let (function, inputs): (&Function, Vec<Tensor>) = unsafe {
            let pointers = std::slice::from_raw_parts(inputs, n);
            (&*closure.cast(), pointers.iter().map(|pointer| Tensor::clone_from_ptr(*pointer)).collect())
        };
        let values = function(&inputs);
        if values.len() != m {
            return 1;
        }
        for (at, mut value) in values.into_iter().enumerate() {
            // SAFETY: `outputs` has `m` elements, and the node takes ownership of the tensors.
            unsafe { *outputs.add(at) = value.as_mut_ptr() };
            std::mem::forget(value);
        }
        0
    }))
    .unwrap_or(1)
}

unsafe extern "C" fn drop_closure(closure: *mut c_void) {
    // SAFETY: created by `Box::into_raw` in `checkpoint`, and dropped once.
    let function: Box<Function> = unsafe { Box::from_raw(closure.cast()) };
    let _ = catch_unwind(AssertUnwindSafe(|| drop(function)));
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn function(weight: &Tensor) -> impl Fn(&[Tensor]) -> Vec<Tensor> + Send + 'static {
        let weight = weight.shallow_clone();
        move |inputs| {
            let product = inputs[0].matmul(&weight).tanh();
            vec![&product * &inputs[1], product.square(), inputs[1].shallow_clone()]
        }
    }

    /// Returns the gradients of a loss over two functions, with or without checkpointing.
    fn gradients(checkpointed: bool) -> Vec<Tensor> {
        tch::manual_seed(3);
        let leaf = |shape: &[i64]| Tensor::randn(shape, (Kind::Double, Device::Cpu)).set_requires_grad(true);
        let (x, y, first, second) = (leaf(&[4, 3]), leaf(&[4, 3]), leaf(&[3, 3]), leaf(&[3, 3]));
        let run = |weight: &Tensor, inputs: &[Tensor]| match checkpointed {
            true => checkpoint(inputs, function(weight)).unwrap(),
            false => function(weight)(inputs),
        };
        let middle = run(&first, &[x.shallow_clone(), y.shallow_clone()]);
        let end = run(&second, &[middle[0].shallow_clone(), middle[2].shallow_clone()]);
        (end[0].sum(Kind::Double) + end[1].sum(Kind::Double) * 0.5 + middle[1].mean(Kind::Double)).backward();
        [x, y, first, second].map(|leaf| leaf.grad()).into()
    }

    #[test]
    fn checkpointing_does_not_change_gradients() {
        for (plain, checkpointed) in gradients(false).iter().zip(gradients(true)) {
            assert!(plain.equal(&checkpointed), "the same arithmetic in the same order");
        }
    }

    #[test]
    fn captured_weights_get_gradients_if_the_input_has_none() {
        let weight = Tensor::ones([2, 2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let x = Tensor::ones([1, 2], (Kind::Float, Device::Cpu));
        let held = weight.shallow_clone();
        let out = checkpoint(&[x], move |inputs| vec![inputs[0].matmul(&held)]).unwrap();
        assert!(out[0].requires_grad());
        out[0].sum(Kind::Float).backward();
        assert!(weight.grad().equal(&Tensor::ones([2, 2], (Kind::Float, Device::Cpu))));
    }

    #[test]
    fn second_backward_pass_and_panic_in_recomputation_are_errors() {
        let x = Tensor::ones([1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let out = checkpoint(&[x.shallow_clone()], |inputs| vec![&inputs[0] * 2.0]).unwrap().remove(0);
        out.f_backward().unwrap();
        assert!(out.f_backward().is_err());

        let panics = |inputs: &[Tensor]| {
            assert!(!gradient_enabled(), "panics in the backward pass only");
            vec![&inputs[0] * 2.0]
        };
        let out = checkpoint(&[x], panics).unwrap().remove(0);
        let error = Error::from(out.f_backward().unwrap_err());
        assert!(error.message().contains("recomputation"), "{error}");
    }

    #[test]
    fn checkpoint_without_grad_mode_builds_no_graph() {
        let x = Tensor::ones([1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let out = tch::no_grad(|| checkpoint(&[x], |inputs| vec![&inputs[0] * 2.0])).unwrap();
        assert!(!out[0].requires_grad());
    }

    #[test]
    fn clear_gradient_removes_the_gradient() {
        let weight = Tensor::ones([1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let mut shared = weight.shallow_clone();
        for _ in 0..2 {
            (&weight * 3.0).sum(Kind::Float).backward();
            assert!(weight.grad().equal(&Tensor::from_slice(&[3.0f32])), "gradients do not accumulate");
            clear_gradient(&mut shared);
            assert!(!weight.grad().defined());
        }
        clear_gradient(&mut Tensor::new());
    }
}
