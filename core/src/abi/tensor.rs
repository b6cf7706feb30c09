//! A tensor that crosses the plugin boundary.
#![allow(unsafe_code, reason = "raw tensor handles; each block says why it is sound")]
#![allow(unreachable_pub, reason = "the derive of abi_stable needs plain `pub`")]

use std::ffi::c_void;
use std::mem::ManuallyDrop;

use abi_stable::StableAbi;
use tch::Tensor;

/// A tensor handle that the producer allocates and that the producer's `release` frees. The receiver clones it. Both handles
/// refer to the same tensor with its storage, gradient and graph.
#[repr(C)]
#[derive(StableAbi)]
pub struct FfiTensor {
    ptr: *mut c_void,
    release: unsafe extern "C" fn(*mut c_void),
}

unsafe extern "C" fn release(ptr: *mut c_void) {
    // SAFETY: only `Drop` below calls this, once, with a pointer that this library took out of a `Tensor`.
    drop(unsafe { Tensor::from_ptr(ptr.cast()) });
}

impl From<Tensor> for FfiTensor {
    fn from(tensor: Tensor) -> Self {
        let mut tensor = ManuallyDrop::new(tensor);
        Self { ptr: tensor.as_mut_ptr().cast(), release }
    }
}

impl From<FfiTensor> for Tensor {
    fn from(handle: FfiTensor) -> Self {
        // SAFETY: the handle is live until it is dropped at the end of this function.
        unsafe { Tensor::clone_from_ptr(handle.ptr.cast()) }
    }
}

impl Drop for FfiTensor {
    fn drop(&mut self) {
        // SAFETY: `ptr` and `release` come from the same library, and nobody else releases this handle.
        unsafe { (self.release)(self.ptr) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    static RELEASED: AtomicUsize = AtomicUsize::new(0);

    unsafe extern "C" fn counting(ptr: *mut c_void) {
        RELEASED.fetch_add(1, Ordering::SeqCst);
        // SAFETY: as `release`.
        unsafe { release(ptr) }
    }

    #[test]
    fn handle_is_released_exactly_once() {
        for taken in [true, false] {
            let tensor = Tensor::from_slice(&[1f32, 2.0]);
            let mut handle = FfiTensor::from(tensor.shallow_clone());
            handle.release = counting;
            let before = RELEASED.load(Ordering::SeqCst);
            if taken {
                let other = Tensor::from(handle);
                assert_eq!(other.data_ptr(), tensor.data_ptr());
            } else {
                drop(handle);
            }
            assert_eq!(RELEASED.load(Ordering::SeqCst), before + 1);
        }
    }
}
