//! Operations of libtorch that tch lacks: fused linear layers, fused AdamW, and counting of operations. As with the operations
//! of tch, invalid arguments panic with libtorch's message.
#![allow(unsafe_code, reason = "calls libtorch")]

use std::ffi::{c_char, c_int};
use std::ptr::null_mut;

use tch::{Device, Tensor};
use torch_sys::C_tensor;

use crate::autograd::take_error;

type Pointer = *mut C_tensor;

unsafe extern "C" {
    fn unirl_linear(
        x: Pointer,
        weight: Pointer,
        bias: Pointer,
        weights: *const Pointer,
        biases: *const Pointer,
        parts: usize,
        outputs: *mut Pointer,
    ) -> *mut c_char;
    fn unirl_linear_gelu(x: Pointer, weight: Pointer, bias: Pointer, output: *mut Pointer) -> *mut c_char;
    fn unirl_adamw(
        weights: *const Pointer,
        gradients: *const Pointer,
        means: *const Pointer,
        squares: *const Pointer,
        steps: *const Pointer,
        n: usize,
        rate: f64,
        beta1: f64,
        beta2: f64,
        decay: f64,
        epsilon: f64,
        scale: Pointer,
    ) -> *mut c_char;
    fn unirl_norm(tensors: *const Pointer, n: usize, output: *mut Pointer) -> *mut c_char;
    fn unirl_copy(to: *const Pointer, from: *const Pointer, n: usize) -> *mut c_char;
    fn unirl_peak_memory(index: c_int, bytes: *mut i64) -> *mut c_char;
    fn unirl_count_begin() -> u64;
    fn unirl_count_end(handle: u64) -> i64;
}

fn pointer(tensor: &Tensor) -> Pointer {
    tensor.as_ptr().cast_mut()
}

fn pointers(tensors: &[&Tensor]) -> Vec<Pointer> {
    tensors.iter().map(|tensor| pointer(tensor)).collect()
}

/// Panics if a call returned an error.
fn check(error: *mut c_char) {
    // SAFETY: the result of a call, which nobody else owns.
    if let Err(error) = unsafe { take_error(error) } {
        panic!("{}", error.message());
    }
}

/// Applies several linear layers to the same input with one matrix product, and one per gradient.
///
/// `x` is `[…,inputs]`, each of `weights` is `[outputs,inputs]`, and `biases` has one `[outputs]` per weight or is empty.
/// `weight [Σ outputs,inputs]` and `bias [Σ outputs]` share their memory with the concatenated weights and biases, and require no
/// gradient. Returns `[…,outputs]` for each layer.
pub fn linear(
    x: &Tensor,
    (weight, bias): (&Tensor, Option<&Tensor>),
    weights: &[&Tensor],
    biases: &[&Tensor],
) -> Vec<Tensor> {
    assert!(bias.is_none() || biases.len() == weights.len(), "expected a bias for each weight");
    let mut outputs = vec![null_mut(); weights.len()];
    // SAFETY: pointers of live tensors, with matching counts.
    check(unsafe {
        unirl_linear(
            pointer(x),
            pointer(weight),
            bias.map_or(null_mut(), pointer),
            pointers(weights).as_ptr(),
            pointers(biases).as_ptr(),
            weights.len(),
            outputs.as_mut_ptr(),
        )
    });
    // SAFETY: tensors that the call created for us.
    outputs.into_iter().map(|output| unsafe { Tensor::from_ptr(output) }).collect()
}

/// Computes `GELU(x·Wᵀ + b)` with the tanh approximation in one pass, without gradient.
pub fn linear_gelu(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Tensor {
    let mut output = null_mut();
    // SAFETY: pointers of live tensors.
    check(unsafe { unirl_linear_gelu(pointer(x), pointer(weight), pointer(bias), &raw mut output) });
    // SAFETY: a tensor that the call created for us.
    unsafe { Tensor::from_ptr(output) }
}

/// The tensors of [`adamw`], all f32: for each weight its gradient, its moments and `steps []`, its update count including this
/// one.
#[derive(Default)]
pub struct AdamWTensors<'a> {
    /// The weights, changed in place.
    pub weights: Vec<&'a Tensor>,
    /// Their gradients.
    pub gradients: Vec<&'a Tensor>,
    /// The first moments.
    pub means: Vec<&'a Tensor>,
    /// The second moments.
    pub squares: Vec<&'a Tensor>,
    /// The number of steps so far, as tensors.
    pub steps: Vec<&'a Tensor>,
}

/// The hyper-parameters of AdamW.
#[derive(Clone, Copy)]
pub struct AdamWRates {
    /// The learning rate of the step.
    pub learning_rate: f64,
    /// The decay of the first moment.
    pub beta1: f64,
    /// The decay of the second moment.
    pub beta2: f64,
    /// The decoupled weight decay.
    pub weight_decay: f64,
    /// Added to the denominator.
    pub epsilon: f64,
}

/// Updates all weights by one AdamW step. Gradients are divided by `scale []`.
pub fn adamw(tensors: &AdamWTensors<'_>, rates: AdamWRates, scale: &Tensor) {
    let AdamWTensors { weights, gradients, means, squares, steps } = tensors;
    let n = weights.len();
    assert!([gradients, means, squares, steps].iter().all(|list| list.len() == n), "lists of equal length");
    // SAFETY: pointers of live tensors, `n` in each list.
    check(unsafe {
        unirl_adamw(
            pointers(weights).as_ptr(),
            pointers(gradients).as_ptr(),
            pointers(means).as_ptr(),
            pointers(squares).as_ptr(),
            pointers(steps).as_ptr(),
            n,
            rates.learning_rate,
            rates.beta1,
            rates.beta2,
            rates.weight_decay,
            rates.epsilon,
            pointer(scale),
        )
    });
}

/// Returns the Euclidean norm over all values of `tensors`, an f32 scalar.
pub fn norm(tensors: &[&Tensor]) -> Tensor {
    let mut output = null_mut();
    // SAFETY: pointers of live tensors.
    check(unsafe { unirl_norm(pointers(tensors).as_ptr(), tensors.len(), &raw mut output) });
    // SAFETY: a tensor that the call created for us.
    unsafe { Tensor::from_ptr(output) }
}

/// Copies the values of `from` into `to`, tensors of the same shapes.
pub fn copy(to: &[&Tensor], from: &[&Tensor]) {
    assert_eq!(to.len(), from.len(), "lists of equal length");
    // SAFETY: pointers of live tensors.
    check(unsafe { unirl_copy(pointers(to).as_ptr(), pointers(from).as_ptr(), to.len()) });
}

/// Returns the peak bytes of tensors on a GPU since the last call; `None` on the CPU.
pub fn peak_memory(device: Device) -> Option<i64> {
    let Device::Cuda(index) = device else { return None };
    let mut bytes = 0;
    // SAFETY: the pointer is that of a live number.
    check(unsafe { unirl_peak_memory(index as c_int, &raw mut bytes) });
    Some(bytes)
}

/// Counts the libtorch operations that `work` starts on this thread, without nested ones. On a GPU every operation except views
/// launches at least one kernel.
pub fn count<T>(work: impl FnOnce() -> T) -> (T, i64) {
    // SAFETY: adds a callback of this thread, which is removed below.
    let handle = unsafe { unirl_count_begin() };
    let value = work();
    // SAFETY: the handle of the callback.
    (value, unsafe { unirl_count_end(handle) })
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    fn leaf(shape: &[i64], kind: Kind) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(kind).detach().set_requires_grad(true)
    }

    /// Concatenates `tensors` and moves them into the memory of the result.
    fn fused(tensors: &mut [Tensor]) -> Tensor {
        let whole = Tensor::cat(&tensors.iter().map(Tensor::detach).collect::<Vec<_>>(), 0);
        let mut start = 0;
        for tensor in tensors {
            let rows = tensor.size()[0];
            tensor.set_data(&whole.narrow(0, start, rows));
            start += rows;
        }
        whole
    }

    /// Compares values and gradients of fused and separate layers. `learn` says which of input, weights and biases are trainable.
    fn compare(kind: Kind, biased: bool, learn: [bool; 3], tolerance: f64) {
        tch::manual_seed(1);
        let x = leaf(&[3, 7, 5], kind).detach().set_requires_grad(learn[0]);
        let sizes = [4, 9, 2];
        let mut weights = sizes.map(|size| leaf(&[size, 5], kind).detach().set_requires_grad(learn[1]));
        let mut biases = sizes.map(|size| leaf(&[size], kind).detach().set_requires_grad(learn[2]));
        let factors = sizes.map(|size| Tensor::randn([3, 7, size], (Kind::Float, Device::Cpu)));
        let leaves = |weights: &[Tensor], biases: &[Tensor]| -> Vec<Tensor> {
            std::iter::once(&x).chain(weights).chain(biases).map(Tensor::shallow_clone).collect()
        };
        let learned = |outputs: Vec<Tensor>, leaves: Vec<Tensor>| -> Vec<Option<Tensor>> {
            let terms = outputs.iter().zip(&factors).take(2); // the last output gets no gradient
            let losses: Vec<Tensor> =
                terms.map(|(out, factor)| (out.to_kind(Kind::Float) * factor).sum(Kind::Float)).collect();
            let loss = Tensor::stack(&losses, 0).sum(Kind::Float);
            if loss.requires_grad() {
                loss.backward();
            }
            let gradient = |mut leaf: Tensor| {
                let gradient = leaf.grad();
                let gradient = gradient.defined().then(|| gradient.copy());
                crate::autograd::clear_gradient(&mut leaf);
                gradient
            };
            outputs
                .into_iter()
                .map(|out| Some(out.detach()))
                .chain(leaves.into_iter().map(gradient))
                .collect()
        };

        let plain: Vec<Tensor> =
            weights.iter().zip(&biases).map(|(w, b)| x.linear(w, biased.then_some(b))).collect();
        let expected = learned(plain, leaves(&weights, &biases));
        let (weight, bias) = (fused(&mut weights), fused(&mut biases));
        let refs = |of: &'_ [Tensor]| of.iter().map(Tensor::shallow_clone).collect::<Vec<_>>();
        let (held_weights, held_biases) = (refs(&weights), refs(&biases));
        let outputs = linear(
            &x,
            (&weight, biased.then_some(&bias)),
            &held_weights.iter().collect::<Vec<_>>(),
            &if biased { held_biases.iter().collect() } else { Vec::new() },
        );
        let got = learned(outputs, leaves(&weights, &biases));
        for (at, (got, expected)) in got.iter().zip(&expected).enumerate() {
            match (got, expected) {
                (Some(got), Some(expected)) => {
                    let off = (got - expected).abs().max().double_value(&[]);
                    assert!(off <= tolerance, "{kind:?}, tensor {at}: off by {off}");
                }
                (None, None) => {}
                // The last output is not in the loss: fused, it has a gradient of zeros.
                (Some(got), None) => assert!(got.equal(&got.zeros_like())),
                (None, Some(_)) => panic!("{kind:?}, tensor {at}: no gradient"),
            }
        }
    }

    #[test]
    fn fused_linear_matches_separate_layers() {
        for biased in [false, true] {
            for learn in
                [[true, true, true], [false, true, true], [true, false, false], [false, false, false]]
            {
                compare(Kind::Float, biased, learn, 1e-5); // sums of 21 numbers near 1 in f32
                compare(Kind::Double, biased, learn, 1e-12);
                compare(Kind::BFloat16, biased, learn, 0.3); // 8 bits of numbers near 10, summed in a different order
            }
        }
    }

    #[test]
    fn linear_gelu_matches_linear_and_gelu() {
        tch::manual_seed(2);
        for (kind, tolerance) in [(Kind::Float, 1e-5), (Kind::BFloat16, 0.05)] {
            let [x, w, b] = [&[3, 7, 5][..], &[9, 5], &[9]].map(|shape| leaf(shape, kind));
            let expected = tch::no_grad(|| x.linear(&w, Some(&b)).gelu("tanh"));
            let got = linear_gelu(&x, &w, &b);
            assert_eq!((got.size(), got.requires_grad()), (expected.size(), false));
            let off = (got - expected).abs().max().double_value(&[]);
            assert!(off <= tolerance, "{kind:?}: off by {off}");
        }
    }

    #[test]
    fn wrong_shapes_panic_with_the_message_of_libtorch() {
        let [x, w] = [[2, 3], [4, 5]].map(|shape| leaf(&shape, Kind::Float));
        let error =
            unirl_base::panic::catch_unwind_to_error(|| Ok(linear(&x, (&w.detach(), None), &[&w], &[])))
                .unwrap_err();
        assert!(error.to_string().contains('3'), "{error}");
        assert!(!error.to_string().contains("Exception raised from"), "no C++ stack: {error}");
    }

    #[test]
    fn count_excludes_nested_operations() {
        let x = Tensor::ones([2, 2], (Kind::Float, Device::Cpu));
        let (_, counted) = count(|| (&x + &x).softmax(-1, Kind::Float));
        assert_eq!(counted, 2);
        assert_eq!(count(|| ()).1, 0);
    }
}
