//! What tiles look like. Neighbours in both lists (0 and 1, 2 and 3, ...) are partners: easily taken for each other.

/// The near-white paper, RGB.
pub const BACKGROUND: [f32; 3] = [0.97, 0.97, 0.97];

/// Names and RGB values.
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

/// Names and pictures.
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

/// The look-alike of a shape or colour, by index.
pub fn partner(index: usize) -> usize {
    index ^ 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_fill_their_tile_and_differ_in_ten_pixels() {
        for (index, (name, picture)) in SHAPES.iter().enumerate() {
            assert!(picture.iter().all(|row| row.len() == 8), "{name}");
            for (other, second) in &SHAPES[..index] {
                let pixels = |picture: &[&str; 8]| picture.concat().into_bytes();
                let differ = pixels(picture).iter().zip(pixels(second)).filter(|(a, b)| **a != *b).count();
                assert!(differ >= 10, "{name}, {other}: {differ}");
            }
        }
    }
}
