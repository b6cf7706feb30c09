//! An image tokenizer for the drawn world that is exact and learns nothing: a code for what each tile may show.

use tch::{Kind, Tensor};

use super::{GRID, SIDE, TILE, Tile, TileGrid, render};

/// Codes of a tile: 0 is the empty one, then [`Tile::all`].
pub const CODES: i64 = 65;

/// Pixels `[B,3,32,32]` in `0..=1` as codes `[B,16]`: of each tile the nearest.
pub fn encode(pixels: &Tensor) -> Tensor {
    let codebook = codebook().to_device(pixels.device());
    Tensor::cdist(&patches(pixels), &codebook.unsqueeze(0), 2.0, None::<i64>).argmin(-1, false)
}

/// Codes `[B,16]` as pixels `[B,3,32,32]` in `0..=1`.
pub fn decode(codes: &Tensor) -> Tensor {
    let (grid, tile, side) = (GRID as i64, TILE as i64, SIDE as i64);
    let rows = codebook().to_device(codes.device()).index_select(0, &codes.reshape([-1]));
    let tiles = rows.view([-1, grid, grid, 3, tile, tile]).permute([0, 3, 1, 4, 2, 5]);
    tiles.reshape([-1, 3, side, side])
}

/// What the codes look like, `[65,192]`.
fn codebook() -> Tensor {
    let alone = |tile: Option<Tile>| TileGrid { tiles: std::array::from_fn(|at| tile.filter(|_| at == 0)) };
    let scenes: Vec<TileGrid> = std::iter::once(None).chain(Tile::all().map(Some)).map(alone).collect();
    patches(&render(&scenes)).select(1, 0)
}

/// Pixels tile by tile, `[B,16,192]`.
fn patches(pixels: &Tensor) -> Tensor {
    let (grid, tile) = (GRID as i64, TILE as i64);
    let split = pixels.to_kind(Kind::Float).view([-1, 3, grid, tile, grid, tile]);
    split.permute([0, 2, 4, 1, 3, 5]).reshape([-1, grid * grid, 3 * tile * tile])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompts::rng::Rng;

    #[test]
    fn codes_are_the_tiles_of_a_scene_and_give_its_picture_back() {
        let mut rng = Rng::new(5);
        let scenes: Vec<TileGrid> = (0..20).map(|_| TileGrid::scattered(&mut rng)).collect();
        let pixels = render(&scenes);
        let codes = encode(&pixels);
        for (row, scene) in (0..).zip(&scenes) {
            for (place, tile) in (0..).zip(scene.tiles) {
                let expected =
                    tile.map_or(0, |tile| Tile::all().position(|known| known == tile).unwrap() as i64 + 1);
                assert_eq!(codes.int64_value(&[row, place]), expected);
            }
        }
        assert!(decode(&codes).equal(&pixels));
        assert_eq!(codebook().size(), [CODES, 192]);
    }
}
