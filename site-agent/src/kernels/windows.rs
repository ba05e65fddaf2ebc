//! Which voxels attend to each other: the cubes of (shifted) window attention, as index lists.
//!
//! Sides of 7 (fewer where the volume is smaller); in shifted blocks the volume is rolled by 3 first, and what then lies
//! beside each other but comes from opposite ends is kept apart by regions. As in MONAI 0.9.0: a volume that windows do not
//! divide is padded at the end of each axis, and the padding attends and is attended to like any other voxel.

/// Side of a window, in voxels.
pub const SIDE: usize = 7;
/// By how much shifted windows are moved.
const SHIFT: usize = 3;
/// Rows of the table of relative positions: one for each offset within a window.
pub const OFFSETS: usize = (2 * SIDE - 1).pow(3);

/// The windows of one volume. Token `t` of window `w` is entry `w * tokens + t` of every list.
///
/// All that attention looks up and that depends on shapes alone is in here: it is made once, and both passes read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Voxels of the volume.
    pub voxels: usize,
    /// Tokens of each window.
    pub tokens: usize,
    /// The voxel of each token; `None` is padding.
    pub voxel: Vec<Option<u32>>,
    /// Tokens of different regions do not see each other. Empty when all do.
    pub region: Vec<u8>,
    entries: Vec<u32>,
}

/// One axis, cut into windows.
#[derive(Clone, Copy)]
struct Axis {
    length: usize,
    padded: usize,
    window: usize,
    shift: usize,
}

impl Axis {
    fn new(length: usize, shifted: bool) -> Self {
        let window = length.min(SIDE);
        let shift = if shifted && length > SIDE { SHIFT } else { 0 };
        Self { length, padded: length.next_multiple_of(window), window, shift }
    }

    /// The position in the volume of a place in the rolled one.
    fn origin(self, place: usize) -> Option<usize> {
        Some((place + self.shift) % self.padded).filter(|&at| at < self.length)
    }

    /// Which of the three bands that rolling brings together.
    fn band(self, place: usize) -> usize {
        match self.padded - place {
            _ if self.shift == 0 => 0,
            left if left <= self.shift => 2,
            left if left <= self.window => 1,
            _ => 0,
        }
    }
}

impl Windows {
    /// The windows of a volume with these sides, each at least 1.
    pub fn new(space: [usize; 3], shifted: bool) -> Self {
        let axes = space.map(|length| Axis::new(length, shifted));
        let counts = axes.map(|axis| axis.padded / axis.window);
        let sides = axes.map(|axis| axis.window);
        let is_rolled = axes.iter().any(|axis| axis.shift > 0);
        let (mut voxel, mut region) = (Vec::new(), Vec::new());
        for window in grid(counts) {
            for token in grid(sides) {
                let place: [usize; 3] = std::array::from_fn(|a| window[a] * sides[a] + token[a]);
                let origin = [0, 1, 2].map(|a| axes[a].origin(place[a]));
                voxel.push(match origin {
                    [Some(x), Some(y), Some(z)] => Some(((x * space[1] + y) * space[2] + z) as u32),
                    _ => None,
                });
                if is_rolled {
                    region.push((0..3).fold(0, |id, a| id * 3 + axes[a].band(place[a])) as u8);
                }
            }
        }
        let (voxels, tokens) = (space.iter().product(), sides.iter().product());
        let mut entries = vec![0; voxels];
        for (entry, voxel) in (0..).zip(&voxel) {
            if let Some(voxel) = voxel {
                entries[*voxel as usize] = entry;
            }
        }
        Self { voxels, tokens, voxel, region, entries }
    }

    /// How many windows there are.
    pub fn count(&self) -> usize {
        self.voxel.len() / self.tokens
    }

    /// For each window and each pair of its tokens, whether they are not to see each other.
    pub fn pairs_apart(&self) -> impl Iterator<Item = bool> {
        let of_window = |region: &'_ [u8]| {
            let region = region.to_vec();
            let pairs = region.len() * region.len();
            (0..pairs).map(move |pair| region[pair / region.len()] != region[pair % region.len()])
        };
        self.region.chunks(self.tokens).flat_map(of_window)
    }

    /// For each voxel, its entry in the lists: where its result is found.
    pub fn entries(&self) -> &[u32] {
        &self.entries
    }
}

/// Row of the table of relative positions for tokens `i` and `j`.
///
/// Tokens are numbered as in a window of 7×7×7, in smaller windows too: MONAI 0.9.0 takes the corner of the full window's
/// table there, in which a number stands for another place than in the window itself.
#[inline]
pub fn offset_row(i: usize, j: usize) -> usize {
    usize::from(PLACES[i] + MIDDLE - PLACES[j])
}

/// Rows between token 0 and each token of a full window. A table of all pairs would be 343 times as long and say no more.
static PLACES: [u16; SIDE.pow(3)] = {
    let mut places = [0; SIDE.pow(3)];
    let mut token = 0;
    while token < places.len() {
        let (x, y, z) = (token / (SIDE * SIDE), token / SIDE % SIDE, token % SIDE);
        places[token] = ((x * (2 * SIDE - 1) + y) * (2 * SIDE - 1) + z) as u16;
        token += 1;
    }
    places
};

/// The row of a token and itself.
const MIDDLE: u16 = (OFFSETS / 2) as u16;

/// All places of a grid, last axis fastest.
fn grid([x, y, z]: [usize; 3]) -> impl Iterator<Item = [usize; 3]> {
    (0..x * y * z).map(move |i| [i / (y * z), i / z % y, i % z])
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::golden::Golden;

    #[test]
    fn every_voxel_is_one_token_and_the_rest_is_padding() {
        for (space, shifted) in
            [([9, 10, 8], false), ([9, 10, 8], true), ([4, 5, 9], true), ([7, 7, 7], true)]
        {
            let windows = Windows::new(space, shifted);
            let mut seen: Vec<u32> = windows.voxel.iter().flatten().copied().collect();
            seen.sort_unstable();
            assert!(seen.iter().copied().eq(0..windows.voxels as u32), "{space:?}");
            let entries = windows.entries();
            assert!((0..windows.voxels).all(|v| windows.voxel[entries[v] as usize] == Some(v as u32)));
        }
    }

    #[test]
    fn regions_keep_apart_as_many_pairs_as_in_the_reference() {
        let Some(golden) = Golden::open() else { return };
        let facts = golden.facts("d_swin_pieces.json");
        for tag in ["blk_9_10_8", "blk_4_5_9", "blk_6_6_6"] {
            let list = |key: &str| Vec::<usize>::deserialize(&facts[tag][key]).unwrap();
            let (space, counts): ([usize; 3], _) =
                (list("dims").try_into().unwrap(), list("mask_window_nonzero"));
            let windows = Windows::new(space, true);
            assert_eq!(windows.count(), counts.len());
            let apart = |w: usize| {
                let region = windows.region.get(w * windows.tokens..(w + 1) * windows.tokens).unwrap_or(&[]);
                region.iter().map(|a| region.iter().filter(|b| a != *b).count()).sum::<usize>()
            };
            assert!((0..counts.len()).map(apart).eq(counts.iter().copied()), "{space:?}");
        }
    }

    #[test]
    fn rows_of_relative_positions_are_those_of_the_reference() {
        let Some(golden) = Golden::open() else { return };
        let facts = golden.facts("d_swin_pieces.json");
        let index = &facts["relative_position_index"];
        for [i, j, row] in Vec::<[usize; 3]>::deserialize(&index["checks"]).unwrap() {
            assert_eq!(offset_row(i, j), row, "{i}, {j}");
        }
        let tokens = SIDE.pow(3);
        let sum: usize = (0..tokens * tokens).map(|pair| offset_row(pair / tokens, pair % tokens)).sum();
        assert_eq!(index["sum"], sum);
    }

    #[test]
    fn rows_of_relative_positions_count_offsets_along_each_axis() {
        let at = |token: usize| [token / (SIDE * SIDE), token / SIDE % SIDE, token % SIDE];
        let tokens = SIDE.pow(3);
        for pair in 0..tokens * tokens {
            let (i, j) = (at(pair / tokens), at(pair % tokens));
            let row = (0..3).fold(0, |row, a| row * (2 * SIDE - 1) + i[a] + SIDE - 1 - j[a]);
            assert_eq!(offset_row(pair / tokens, pair % tokens), row, "{i:?}, {j:?}");
        }
    }
}
