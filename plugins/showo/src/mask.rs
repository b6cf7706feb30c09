//! Show-o's omni-attention masks: visibility, bool `[B,query,key]`.

use tch::{Kind, Tensor};

use crate::config::Special;

/// Causal visibility `[query,key]` of `rows` rows after `past` earlier ones.
pub fn causal(rows: i64, past: i64, device: tch::Device) -> Tensor {
    Tensor::ones([rows, past + rows], (Kind::Bool, device)).tril(past)
}

/// Generation: text is causal and does not attend to padding before it; image rows, including `<soi>` and `<eoi>`, attend to
/// everything except padding (`skip_pads`) or to everything. Rows without an image are causal.
pub fn t2i(ids: &Tensor, special: &Special, skip_pads: bool) -> Tensor {
    let length = ids.size()[1];
    let causal = causal(length, 0, ids.device());
    let after = |token: i64| ids.eq(token).to_kind(Kind::Int64).cumsum(1, Kind::Int64).gt(0); // from it on
    let before = |token: i64| {
        let reversed = ids.eq(token).to_kind(Kind::Int64).flip([1]).cumsum(1, Kind::Int64).flip([1]);
        reversed.gt(0)
    };
    let image = after(special.soi).logical_and(&before(special.eoi)).unsqueeze(2); // query in [soi,eoi]
    let pad = ids.eq(special.pad);
    let (text_visible, image_visible) = if skip_pads {
        // Rows after the last pad attend only to rows after it.
        let padded = before(special.pad); // up to the last pad
        let text = causal.logical_and(&padded.unsqueeze(2).logical_or(&padded.logical_not().unsqueeze(1)));
        (text, pad.logical_not().unsqueeze(1))
    } else {
        (causal.unsqueeze(0), pad.logical_or(&pad.logical_not()).unsqueeze(1))
    };
    image.logical_and(&image_visible).logical_or(&image.logical_not().logical_and(&text_visible))
}

/// Understanding: causal, with everything up to `<eoi>` visible to all. `<eoi>` is at the same position in every row.
pub fn mmu(ids: &Tensor, special: &Special) -> Tensor {
    let (rows, length) = (ids.size()[0], ids.size()[1]);
    let eoi = ids.get(0).eq(special.eoi).to_kind(Kind::Int64).argmax(-1, false);
    let prefix = Tensor::arange(length, (Kind::Int64, ids.device())).le_tensor(&eoi).unsqueeze(0);
    causal(length, 0, ids.device()).logical_or(&prefix).unsqueeze(0).expand([rows, -1, -1], false)
}

/// Understanding with CLIP features, `[1,L,L]`: the mask of every sequence `<mmu>`, `system` rows of the system prompt,
/// `<soi>`, `features` rows, `<eoi>`, text, of `length` rows in total. Causal, with the features visible to all. UniRL's copy,
/// like early Show-o, also makes everything before the features visible to all.
pub fn mmu_clip(length: i64, system: i64, features: i64, device: tch::Device) -> Tensor {
    let start = system + 2;
    let column = Tensor::arange(length, (Kind::Int64, device));
    let shown = column.ge(start).logical_and(&column.lt(start + features)).unsqueeze(0);
    causal(length, 0, device).logical_or(&shown).unsqueeze(0)
}
