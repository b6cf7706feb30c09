//! Rows of token ids.

use std::collections::BTreeMap;

use tch::{Device, Tensor};

/// Right-pads rows with `pad`: ids `[B,L]`, and a mask `[B,L]` that is false at padding.
pub fn padded(rows: &[Vec<i64>], pad: i64, device: Device) -> (Tensor, Tensor) {
    pad_rows(rows, pad, device, |row, padding| row.chain(padding).collect())
}

/// [`padded`], with padding on the left.
pub fn padded_left(rows: &[Vec<i64>], pad: i64, device: Device) -> (Tensor, Tensor) {
    pad_rows(rows, pad, device, |row, padding| padding.chain(row).collect())
}

/// The distinct rows in the order of their first occurrence, and the index of each original row among them.
pub fn deduplicate(rows: Vec<Vec<i64>>) -> (Vec<Vec<i64>>, Vec<i64>) {
    let mut indices = BTreeMap::new();
    let mut unique = Vec::new();
    let index = rows
        .into_iter()
        .map(|row| {
            *indices.entry(row).or_insert_with_key(|row| {
                unique.push(row.clone());
                unique.len() as i64 - 1
            })
        })
        .collect();
    (unique, index)
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
        let mut padding = std::iter::repeat_n((pad, false), length - row.len());
        join(&mut row.iter().map(|id| (*id, true)), &mut padding)
    };
    let (ids, present): (Vec<i64>, Vec<bool>) = rows.iter().flat_map(join).unzip();
    let shape = [rows.len() as i64, length as i64];
    (
        Tensor::from_slice(&ids).view(shape).to_device(device),
        Tensor::from_slice(&present).view(shape).to_device(device),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_added_on_the_right_or_left() {
        let rows = [vec![1, 2], vec![3]];
        let flat = |(ids, mask): (Tensor, Tensor)| {
            (Vec::<i64>::try_from(ids.view([-1])).unwrap(), Vec::<bool>::try_from(mask.view([-1])).unwrap())
        };
        assert_eq!(flat(padded(&rows, 9, Device::Cpu)), (vec![1, 2, 3, 9], vec![true, true, true, false]));
        assert_eq!(
            flat(padded_left(&rows, 9, Device::Cpu)),
            (vec![1, 2, 9, 3], vec![true, true, false, true])
        );
    }
}
