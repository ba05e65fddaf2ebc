//! The inner loops: a tile of `P` rows × `V` vectors of `N` lanes held in registers while a reduction runs past.
//!
//! Written with arrays of fixed length and inlined into functions compiled for one instruction set each; the compiler
//! turns [`Lanes`] into one register and the loops over lanes into one instruction. No intrinsics are needed for that.

use super::isa::Isa;

/// One vector register.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Lanes<const N: usize>([f32; N]);

impl<const N: usize> Lanes<N> {
    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; N])
    }

    #[inline(always)]
    fn load(from: &[f32]) -> Self {
        let mut lanes = [0.0; N];
        lanes.copy_from_slice(&from[..N]);
        Self(lanes)
    }

    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        to[..N].copy_from_slice(&self.0);
    }

    /// `self + a · b`, rounded once where `FUSED`. Without the instruction a fused multiply-add is a slow library call.
    #[inline(always)]
    fn add_product<const FUSED: bool>(self, a: Self, b: Self) -> Self {
        let mut sum = self.0;
        for (sum, (a, b)) in sum.iter_mut().zip(a.0.into_iter().zip(b.0)) {
            *sum = if FUSED { a.mul_add(b, *sum) } else { a * b + *sum };
        }
        Self(sum)
    }
}

/// Where the factors of a tile lie: `tile[p][lane] += Σ_segment Σ_k left[start + segment + p·row + k·step] · right[…]`.
///
/// The right factors are read at `right_step` intervals, one vector per `(segment, k)`, beginning at 0.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    /// Left factors, broadcast to all lanes.
    pub(super) left: &'a [f32],
    /// Offset of row 0 in `left`.
    pub(super) start: usize,
    /// Distance of the rows of the tile in `left`.
    pub(super) row: usize,
    /// Distance of successive terms in `left`.
    pub(super) step: usize,
    /// Offsets in `left` of the segments of the reduction.
    pub(super) segments: &'a [usize],
    /// Terms of each segment.
    pub(super) terms: usize,
    /// Right factors, one vector of lanes for each term.
    pub(super) right: &'a [f32],
    /// Distance of successive vectors in `right`.
    pub(super) right_step: usize,
}

#[inline(always)]
#[expect(
    clippy::needless_range_loop,
    reason = "an index loads each factor where it is used; iterators load all of them first and halve the speed"
)]
fn tile<const N: usize, const V: usize, const P: usize, const FUSED: bool>(p: Product<'_>, out: &mut [f32]) {
    let mut sums = [[Lanes::<N>::splat(0.0); V]; P];
    for (i, row) in sums.iter_mut().enumerate() {
        for (v, sum) in row.iter_mut().enumerate() {
            *sum = Lanes::load(&out[(i * V + v) * N..]);
        }
    }
    let mut rest = p.right;
    for &segment in p.segments {
        let left = &p.left[p.start + segment..];
        let right = |k: usize| -> [Lanes<N>; V] {
            let vectors = &rest[k * p.right_step..][..V * N];
            std::array::from_fn(|v| Lanes::load(&vectors[v * N..]))
        };
        // Both layouts are read without a bounds check for each row: those would cost as much as the products.
        if p.step == 1 {
            let rows: [&[f32]; P] = std::array::from_fn(|i| &left[i * p.row..][..p.terms]);
            for k in 0..p.terms {
                let right = right(k);
                for i in 0..P {
                    let a = Lanes::splat(rows[i][k]);
                    for v in 0..V {
                        sums[i][v] = sums[i][v].add_product::<FUSED>(a, right[v]);
                    }
                }
            }
        } else {
            for k in 0..p.terms {
                let right = right(k);
                let column = &left[k * p.step..][..P];
                for i in 0..P {
                    let a = Lanes::splat(column[i]);
                    for v in 0..V {
                        sums[i][v] = sums[i][v].add_product::<FUSED>(a, right[v]);
                    }
                }
            }
        }
        rest = rest.get(p.terms * p.right_step..).unwrap_or(&[]);
    }
    for (i, row) in sums.iter().enumerate() {
        for (v, sum) in row.iter().enumerate() {
            sum.store(&mut out[(i * V + v) * N..]);
        }
    }
}

/// Vectors of `lanes` that a tile is wide, and rows that it is high at most: as many as the registers hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Lanes of a vector: 8 or 16.
    pub(super) lanes: usize,
    /// Vectors side by side: 1 or 2.
    pub(super) vectors: usize,
}

impl Shape {
    /// The widest tile that `columns` columns fill. With AVX-512 half a vector may stay empty: that costs less than tiles of
    /// half its width, which need an address for twice as many rows.
    pub(super) fn for_columns(isa: Isa, columns: usize) -> Self {
        let lanes = if isa == Isa::Avx512 { 16 } else { 8 };
        Self { lanes, vectors: if columns > lanes { 2 } else { 1 } }
    }

    /// Columns of a tile.
    pub(super) fn columns(self) -> usize {
        self.lanes * self.vectors
    }

    /// Most rows of a tile. Its sums, one vector of each factor and nothing else stay in registers: 16 of AVX2 hold 6 rows
    /// of two vectors, 32 of AVX-512 hold 8 with ease. Rows need an address each, too: with 16
    /// registers there are enough for 8.
    pub(super) fn rows(self) -> usize {
        match (self.lanes, self.vectors) {
            (8, 1) => 8,
            (_, 1) => 12,
            (8, _) => 6,
            _ => 8,
        }
    }

    /// The largest tile height, of those compiled, that fits `rows`.
    pub(super) fn fit(self, rows: usize) -> usize {
        [12, 8, 6, 4, 3, 2, 1].into_iter().find(|&p| p <= rows.min(self.rows())).unwrap_or(1)
    }

    /// Cuts `0..rows` into runs `(first, height)` of nearly equal height that a tile of this shape can hold.
    pub(super) fn strips(self, rows: usize) -> Vec<(usize, usize)> {
        let most = rows.div_ceil(rows.div_ceil(self.rows()));
        let mut strips = Vec::new();
        let mut first = 0;
        while first < rows {
            let height = self.fit(most.min(rows - first));
            strips.push((first, height));
            first += height;
        }
        strips
    }
}

macro_rules! tiles {
    ($fused:literal, $p:expr, $shape:expr, $rows:expr, $out:expr; $(($lanes:literal, $vectors:literal, [$($height:literal)*]))*) => {
        match ($shape.lanes, $shape.vectors, $rows) {
            $($(($lanes, $vectors, $height) => tile::<$lanes, $vectors, $height, $fused>($p, $out),)*)*
            other => unreachable!("no tile of this shape is compiled: {other:?}"),
        }
    };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx2,fma")]
fn tile_avx512(p: Product<'_>, shape: Shape, rows: usize, out: &mut [f32]) {
    tiles!(true, p, shape, rows, out; (16, 1, [1 2 3 4 6 8 12]) (16, 2, [1 2 3 4 6 8]));
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn tile_avx2(p: Product<'_>, shape: Shape, rows: usize, out: &mut [f32]) {
    tiles!(true, p, shape, rows, out; (8, 1, [1 2 3 4 6 8]) (8, 2, [1 2 3 4 6]));
}

fn tile_portable(p: Product<'_>, shape: Shape, rows: usize, out: &mut [f32]) {
    tiles!(false, p, shape, rows, out; (8, 1, [1 2 3 4 6 8]) (8, 2, [1 2 3 4 6]));
}

/// Adds a product to the `rows × shape.columns()` numbers of `out`. `rows` must come from [`Shape::fit`].
pub(super) fn add_product(isa: Isa, p: Product<'_>, shape: Shape, rows: usize, out: &mut [f32]) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Isa::Avx512` is made by `Isa::best` alone, which has seen every feature that the function enables.
        Isa::Avx512 => unsafe { tile_avx512(p, shape, rows, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Isa::Avx2` is made by `Isa::best` or `at_most`, both after AVX2 and FMA were seen.
        Isa::Avx2 => unsafe { tile_avx2(p, shape, rows, out) },
        _ => tile_portable(p, shape, rows, out),
    }
}
