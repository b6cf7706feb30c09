//! Rows of ids as tensors.

use tch::{Device, Tensor};

/// Rows of any length, padded with `pad` on their right: ids `[B,L]` and where they are, `[B,L]` bool.
pub fn padded(rows: &[Vec<i64>], pad: i64, device: Device) -> (Tensor, Tensor) {
    pad_rows(rows, pad, device, |row, missing| row.chain(missing).collect())
}

/// [`padded`], on their left.
pub fn padded_left(rows: &[Vec<i64>], pad: i64, device: Device) -> (Tensor, Tensor) {
    pad_rows(rows, pad, device, |row, missing| missing.chain(row).collect())
}

type Ids<'a> = &'a mut dyn Iterator<Item = (i64, bool)>;

fn pad_rows(
    rows: &[Vec<i64>],
    pad: i64,
    device: Device,
    join: impl Fn(Ids<'_>, Ids<'_>) -> Vec<(i64, bool)>,
) -> (Tensor, Tensor) {
    let length = rows.iter().map(Vec::len).max().unwrap_or(0);
    let join = |row: &Vec<i64>| {
        let mut missing = std::iter::repeat_n((pad, false), length - row.len());
        join(&mut row.iter().map(|id| (*id, true)), &mut missing)
    };
    let (ids, there): (Vec<i64>, Vec<bool>) = rows.iter().flat_map(join).unzip();
    let shape = [rows.len() as i64, length as i64];
    (
        Tensor::from_slice(&ids).view(shape).to_device(device),
        Tensor::from_slice(&there).view(shape).to_device(device),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_padded_on_either_side() {
        let rows = [vec![1, 2], vec![3]];
        let flat = |(ids, there): (Tensor, Tensor)| {
            (Vec::<i64>::try_from(ids.view([-1])).unwrap(), Vec::<bool>::try_from(there.view([-1])).unwrap())
        };
        assert_eq!(flat(padded(&rows, 9, Device::Cpu)), (vec![1, 2, 3, 9], vec![true, true, true, false]));
        assert_eq!(
            flat(padded_left(&rows, 9, Device::Cpu)),
            (vec![1, 2, 9, 3], vec![true, true, false, true])
        );
    }
}
