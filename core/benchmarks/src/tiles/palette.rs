//! The colours and shapes of the tiles benchmark. Neighbours in both lists (0 and 1, 2 and 3, …) are partners, which are easily
//! confused.

/// The near-white background, RGB.
pub const BACKGROUND: [f32; 3] = [0.97, 0.97, 0.97];

/// The colours: names and RGB values.
pub const COLORS: [(&str, [f32; 3]); 8] = [
    ("red", [0.85, 0.05, 0.10]),
    ("orange", [1.00, 0.50, 0.00]),
    ("yellow", [0.98, 0.90, 0.15]),
    ("green", [0.10, 0.65, 0.20]),
    ("blue", [0.10, 0.30, 0.90]),
    ("purple", [0.50, 0.10, 0.65]),
    ("pink", [1.00, 0.35, 0.65]),
    ("black", [0.08, 0.08, 0.08]),
];

/// The shapes: names and bitmaps.
#[rustfmt::skip]
pub const SHAPES: [(&str, [&str; 8]); 8] = [
    ("circle", [
        "..####..",
        ".######.",
        "########",
        "########",
        "########",
        "########",
        ".######.",
        "..####..",
    ]),
    ("ring", [
        "..####..",
        ".######.",
        "###..###",
        "##....##",
        "##....##",
        "###..###",
        ".######.",
        "..####..",
    ]),
    ("square", [
        "........",
        ".######.",
        ".######.",
        ".######.",
        ".######.",
        ".######.",
        ".######.",
        "........",
    ]),
    ("diamond", [
        "...##...",
        "..####..",
        ".######.",
        "########",
        "########",
        ".######.",
        "..####..",
        "...##...",
    ]),
    ("triangle", [
        "...##...",
        "...##...",
        "..####..",
        "..####..",
        ".######.",
        ".######.",
        "########",
        "########",
    ]),
    ("heart", [
        ".##..##.",
        "########",
        "########",
        "########",
        ".######.",
        "..####..",
        "...##...",
        "........",
    ]),
    ("star", [
        "...##...",
        "...##...",
        "########",
        ".######.",
        "..####..",
        ".######.",
        ".##..##.",
        "##....##",
    ]),
    ("cross", [
        "...##...",
        "...##...",
        "...##...",
        "########",
        "########",
        "...##...",
        "...##...",
        "...##...",
    ]),
];

/// Returns the index of the partner of a shape or colour.
pub fn partner(index: usize) -> usize {
    index ^ 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_fill_their_tile_and_differ_in_ten_pixels() {
        for (index, (name, bitmap)) in SHAPES.iter().enumerate() {
            assert!(bitmap.iter().all(|row| row.len() == 8), "{name}");
            for (other, second) in &SHAPES[..index] {
                let pixels = |bitmap: &[&str; 8]| bitmap.concat().into_bytes();
                let differ = pixels(bitmap).iter().zip(pixels(second)).filter(|(a, b)| **a != *b).count();
                assert!(differ >= 10, "{name}, {other}: {differ}");
            }
        }
    }
}
