//! An exact image tokenizer for the tiles benchmark without parameters: one code per possible tile.

use tch::{Kind, Tensor};

use super::{GRID, SIDE, TILE, Tile, TileGrid, render};

/// The number of codes: 0 is the empty tile, then [`Tile::all`].
pub const CODES: i64 = 65;

/// Encodes pixels `[B,3,32,32]` in `0..=1` to the nearest codes `[B,16]`.
pub fn encode(pixels: &Tensor) -> Tensor {
    let codebook = codebook().to_device(pixels.device());
    Tensor::cdist(&patches(pixels), &codebook.unsqueeze(0), 2.0, None::<i64>).argmin(-1, false)
}

/// Decodes codes `[B,16]` to pixels `[B,3,32,32]` in `0..=1`.
pub fn decode(codes: &Tensor) -> Tensor {
    let (grid, tile, side) = (GRID as i64, TILE as i64, SIDE as i64);
    let rows = codebook().to_device(codes.device()).index_select(0, &codes.reshape([-1]));
    let tiles = rows.view([-1, grid, grid, 3, tile, tile]).permute([0, 3, 1, 4, 2, 5]);
    tiles.reshape([-1, 3, side, side])
}

/// Returns the pixels of each code, `[65,192]`.
fn codebook() -> Tensor {
    let alone = |tile: Option<Tile>| TileGrid { tiles: std::array::from_fn(|at| tile.filter(|_| at == 0)) };
    let grids: Vec<TileGrid> = std::iter::once(None).chain(Tile::all().map(Some)).map(alone).collect();
    patches(&render(&grids)).select(1, 0)
}

/// Returns the pixels of each tile, `[B,16,192]`.
fn patches(pixels: &Tensor) -> Tensor {
    let (grid, tile) = (GRID as i64, TILE as i64);
    let split = pixels.to_kind(Kind::Float).view([-1, 3, grid, tile, grid, tile]);
    split.permute([0, 2, 4, 1, 3, 5]).reshape([-1, grid * grid, 3 * tile * tile])
}

#[cfg(test)]
mod tests {
    use unirl_prompts::rng::Rng;

    use super::*;

    #[test]
    fn encode_and_decode_round_trip() {
        let mut rng = Rng::new(5);
        let grids: Vec<TileGrid> = (0..20).map(|_| TileGrid::scattered(&mut rng)).collect();
        let pixels = render(&grids);
        let codes = encode(&pixels);
        for (row, grid) in (0..).zip(&grids) {
            for (place, tile) in (0..).zip(grid.tiles) {
                let expected =
                    tile.map_or(0, |tile| Tile::all().position(|known| known == tile).unwrap() as i64 + 1);
                assert_eq!(codes.int64_value(&[row, place]), expected);
            }
        }
        assert!(decode(&codes).equal(&pixels));
        assert_eq!(codebook().size(), [CODES, 192]);
    }
}
