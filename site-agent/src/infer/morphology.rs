//! Dilation, erosion and closing of a mask with a box; outside of the volume nothing is set.
//!
//! A box works along one axis at a time, so each pass counts set voxels in a sliding window of a line.

/// The mask grown by `radius` voxels along each axis: a voxel is set when any of the box around it is.
///
/// # Panics
/// When the mask does not fill `shape`: a mistake of the caller.
pub fn dilate(mask: &[bool], shape: [usize; 3], radius: [usize; 3]) -> Vec<bool> {
    filter(mask, shape, radius, |_| 1)
}

/// The mask shrunk by `radius` voxels along each axis: a voxel stays when all of the box around it is set, so that the
/// border of the volume is lost.
///
/// # Panics
/// As [`dilate`].
pub fn erode(mask: &[bool], shape: [usize; 3], radius: [usize; 3]) -> Vec<bool> {
    filter(mask, shape, radius, |radius| 2 * radius + 1)
}

/// Dilation and then erosion: holes and gaps up to the box are filled, the border of the volume is lost.
///
/// # Panics
/// As [`dilate`].
pub fn close(mask: &[bool], shape: [usize; 3], radius: [usize; 3]) -> Vec<bool> {
    erode(&dilate(mask, shape, radius), shape, radius)
}

/// Sets the voxels around which, axis by axis, at least `least(radius)` of the window are set.
fn filter(mask: &[bool], shape: [usize; 3], radius: [usize; 3], least: impl Fn(usize) -> usize) -> Vec<bool> {
    assert_eq!(mask.len(), shape.iter().product::<usize>(), "the mask must fill {shape:?}");
    (0..3).fold(mask.to_vec(), |mask, axis| along(&mask, shape, axis, radius[axis], least(radius[axis])))
}

/// One axis of [`filter`].
fn along(mask: &[bool], shape: [usize; 3], axis: usize, radius: usize, least: usize) -> Vec<bool> {
    let stride: usize = shape[axis + 1..].iter().product();
    let length = shape[axis];
    let mut out = vec![false; mask.len()];
    for first in (0..mask.len()).filter(|offset| (offset / stride).is_multiple_of(length)) {
        let is_set = |index: usize| mask[first + index * stride];
        let mut count = (0..radius.min(length)).filter(|&index| is_set(index)).count();
        for index in 0..length {
            count += usize::from(index + radius < length && is_set(index + radius));
            count -= usize::from(index > radius && is_set(index - radius - 1));
            out[first + index * stride] = count >= least;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: [usize; 3] = [7, 8, 9];

    fn index(offset: usize) -> [usize; 3] {
        [offset / 72, offset / 9 % 8, offset % 9]
    }

    fn mask(inside: impl Fn([usize; 3]) -> bool) -> Vec<bool> {
        (0..7 * 8 * 9).map(|offset| inside(index(offset))).collect()
    }

    /// Voxels by a rule that no two neighbours share.
    fn speckled() -> Vec<bool> {
        mask(|[i, j, k]| (i * 31 + j * 17 + k * 7) % 11 < 2)
    }

    /// Looks at every voxel of the box, as the definition says.
    fn by_definition(mask: &[bool], radius: [usize; 3], all: bool) -> Vec<bool> {
        let voxel = |[x, y, z]: [isize; 3]| {
            let inside = |at: isize, size: usize| usize::try_from(at).ok().filter(|&at| at < size);
            let (i, j, k) = (inside(x, 7)?, inside(y, 8)?, inside(z, 9)?);
            Some(mask[(i * 8 + j) * 9 + k])
        };
        let radius = radius.map(|r| r as isize);
        let boxed = |offset: usize| {
            let [i, j, k] = index(offset).map(|at| at as isize);
            let mut values = Vec::new();
            for x in i - radius[0]..=i + radius[0] {
                for y in j - radius[1]..=j + radius[1] {
                    values.extend(
                        (k - radius[2]..=k + radius[2]).map(|z| voxel([x, y, z]).unwrap_or_default()),
                    );
                }
            }
            values
        };
        let decide = |values: Vec<bool>| {
            if all { values.iter().all(|set| *set) } else { values.iter().any(|set| *set) }
        };
        (0..mask.len()).map(|offset| decide(boxed(offset))).collect()
    }

    #[test]
    fn sliding_windows_do_what_the_definition_says() {
        for radius in [[2; 3], [1, 0, 3], [8, 1, 2]] {
            let mask = speckled();
            assert_eq!(dilate(&mask, SHAPE, radius), by_definition(&mask, radius, false), "{radius:?}");
            let grown = dilate(&mask, SHAPE, [1, 1, 1]);
            assert_eq!(erode(&grown, SHAPE, radius), by_definition(&grown, radius, true), "{radius:?}");
        }
    }

    #[test]
    fn closing_fills_a_hole_and_loses_the_border() {
        let holed = mask(|at| at != [3, 4, 4]);
        let closed = close(&holed, SHAPE, [2; 3]);
        let kept = mask(|at| (0..3).all(|axis| (2..SHAPE[axis] - 2).contains(&at[axis])));
        assert_eq!(closed, kept);
    }

    #[test]
    fn an_empty_volume_has_nothing_to_grow() {
        assert!(dilate(&[], [3, 0, 2], [1; 3]).is_empty());
    }
}
