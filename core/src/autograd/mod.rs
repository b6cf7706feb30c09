//! What of libtorch tch has no call for: gradient checkpointing, which is memory for arithmetic, gradients forgotten, and
//! algorithms that repeat themselves.
#![allow(unsafe_code, reason = "calls libtorch, and a node of its graph calls back into Rust")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::error::{Error, Result};

/// Whether operations are remembered for a gradient.
pub fn gradient_enabled() -> bool {
    // SAFETY: reads a flag of this thread.
    unsafe { unirl_gradient_enabled() != 0 }
}

/// Leaves a tensor without gradient, where [`Tensor::zero_grad`] would leave one of zeros.
pub fn forget_gradient(tensor: &mut Tensor) {
    // SAFETY: the pointer is that of a live tensor.
    unsafe { unirl_forget_gradient(tensor.as_mut_ptr()) }
}

/// From here on, libtorch takes only algorithms that answer the same each time; an operation that has none is an error.
/// To be called before a GPU is used.
pub fn set_deterministic() {
    // SAFETY: sets flags of the process and a variable of its environment, before other threads are there to read it.
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
    fn unirl_forget_gradient(tensor: *mut C_tensor);
    fn free(pointer: *mut c_void);
}

/// Runs `function` on `inputs` and keeps only the inputs: what it needs for its gradient it computes again on the way
/// back. Gradients reach the inputs and the leaves that the function holds, as without checkpointing, to the bit where
/// the arithmetic repeats itself. The function must answer the same when it is called again, and the graph can be walked
/// back once.
///
/// Without gradient mode this is the function.
pub fn checkpoint(
    inputs: &[Tensor],
    function: impl Fn(&[Tensor]) -> Vec<Tensor> + Send + 'static,
) -> Result<Vec<Tensor>> {
    if !gradient_enabled() {
        return Ok(function(inputs));
    }
    // What a function passes through would be its own input, which already has its place in the graph.
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
    // SAFETY: what the call answered, and nobody else has it.
    unsafe { take_error(error) }.map(|()| values)
}

/// The error that C++ answered, if it did.
///
/// # Safety
///
/// `error` is null or a text from `malloc`, and the caller has no other use for it.
pub(crate) unsafe fn take_error(error: *mut c_char) -> Result<()> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: by the contract, a text that lives until it is freed below.
    let text = unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned();
    // SAFETY: by the contract, it was allocated for us; it is not used any more.
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
        // SAFETY: the node passes what `checkpoint` gave it, and `n` tensors that outlive the call.
        let (function, inputs): (&Function, Vec<Tensor>) = unsafe {
            let pointers = std::slice::from_raw_parts(inputs, n);
            (&*closure.cast(), pointers.iter().map(|pointer| Tensor::clone_from_ptr(*pointer)).collect())
        };
        let values = function(&inputs);
        if values.len() != m {
            return 1;
        }
        for (at, mut value) in values.into_iter().enumerate() {
            // SAFETY: there is room for `m` pointers, and the node takes what they point to.
            unsafe { *outputs.add(at) = value.as_mut_ptr() };
            std::mem::forget(value);
        }
        0
    }))
    .unwrap_or(1)
}

unsafe extern "C" fn drop_closure(closure: *mut c_void) {
    // SAFETY: made by `Box::into_raw` in `checkpoint`, and dropped once.
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

    /// Gradients of a loss over two checkpointed steps, with or without checkpointing.
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
    fn gradients_are_those_of_the_plain_graph() {
        for (plain, checkpointed) in gradients(false).iter().zip(gradients(true)) {
            assert!(plain.equal(&checkpointed), "the same arithmetic in the same order");
        }
    }

    #[test]
    fn weights_learn_behind_an_input_that_does_not() {
        let weight = Tensor::ones([2, 2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let x = Tensor::ones([1, 2], (Kind::Float, Device::Cpu));
        let held = weight.shallow_clone();
        let out = checkpoint(&[x], move |inputs| vec![inputs[0].matmul(&held)]).unwrap();
        assert!(out[0].requires_grad());
        out[0].sum(Kind::Float).backward();
        assert!(weight.grad().equal(&Tensor::ones([2, 2], (Kind::Float, Device::Cpu))));
    }

    #[test]
    fn a_second_walk_back_and_a_panic_on_the_way_are_errors() {
        let x = Tensor::ones([1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let out = checkpoint(&[x.shallow_clone()], |inputs| vec![&inputs[0] * 2.0]).unwrap().remove(0);
        out.f_backward().unwrap();
        assert!(out.f_backward().is_err());

        let panics = |inputs: &[Tensor]| {
            assert!(!gradient_enabled(), "only on the way back");
            vec![&inputs[0] * 2.0]
        };
        let out = checkpoint(&[x], panics).unwrap().remove(0);
        let error = Error::from(out.f_backward().unwrap_err());
        assert!(error.message().contains("recomputation"), "{error}");
    }

    #[test]
    fn nothing_is_kept_without_gradient() {
        let x = Tensor::ones([1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let out = tch::no_grad(|| checkpoint(&[x], |inputs| vec![&inputs[0] * 2.0])).unwrap();
        assert!(!out[0].requires_grad());
    }

    #[test]
    fn a_forgotten_gradient_is_none_until_the_next() {
        let weight = Tensor::ones([1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let mut shared = weight.shallow_clone();
        for _ in 0..2 {
            (&weight * 3.0).sum(Kind::Float).backward();
            assert!(weight.grad().equal(&Tensor::from_slice(&[3.0f32])), "nothing is left of the first");
            forget_gradient(&mut shared);
            assert!(!weight.grad().defined());
        }
        forget_gradient(&mut Tensor::new());
    }
}
