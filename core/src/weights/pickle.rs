use safetensors::tensor::Dtype;
use std::ops::Range;
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) data: Range<usize>,
}
pub(super) fn read(_file: &[u8]) -> Result<Vec<Entry>, String> {
    Err("x".into())
}
