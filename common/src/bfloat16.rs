//! bfloat16: the upper half of an f32. Half the bytes, the same range, 8 bits of precision.

/// The nearest bfloat16 to `number`, ties to even, little-endian.
///
/// A finite number that would round to an infinity becomes the largest finite one of its sign: who rounds keeps what is missing
/// (error feedback), and an infinity could be kept by nobody. Infinities and NaN stay what they are, and are refused as such.
pub fn round(number: f32) -> [u8; 2] {
    let bits = number.to_bits();
    let upper = match number.is_finite() {
        true => {
            // Half a unit of the last place that stays, and a bit less where that one is even: so a tie goes to the even one.
            let rounded = bits + 0x7fff + ((bits >> 16) & 1);
            let upper = (rounded >> 16) as u16;
            if upper & 0x7fff == INFINITY { upper - 1 } else { upper }
        }
        // What says that it is a NaN can be in the lower half alone.
        false if number.is_nan() => (bits >> 16) as u16 | QUIET,
        false => (bits >> 16) as u16,
    };
    upper.to_le_bytes()
}

/// What a bfloat16 is as f32: exact.
pub fn widen(le: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(le)) << 16)
}

/// Makes `wide` the f32 bytes of all numbers in `narrow`, little-endian both.
pub fn widen_all(narrow: &[u8], wide: &mut Vec<u8>) {
    wide.resize(2 * narrow.len(), 0);
    for (wide, &narrow) in wide.as_chunks_mut::<4>().0.iter_mut().zip(narrow.as_chunks::<2>().0) {
        *wide = widen(narrow).to_le_bytes();
    }
}

/// Bits of the positive infinity.
const INFINITY: u16 = 0x7f80;
/// The bit of a quiet NaN.
const QUIET: u16 = 0x0040;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rounded(bits: u32) -> u16 {
        u16::from_le_bytes(round(f32::from_bits(bits)))
    }

    /// 1 is `3f80`, the next bfloat16 `3f81`; half-way between them lies `3f80_8000`.
    #[test]
    fn rounding_is_to_the_nearest_and_ties_go_to_the_even_one() {
        assert_eq!(round(1.0), [0x80, 0x3f]);
        assert_eq!(round(-2.5), [0x20, 0xc0]);
        assert_eq!(rounded(0x3f80_7fff), 0x3f80);
        assert_eq!(rounded(0x3f80_8000), 0x3f80, "a tie, down to the even one");
        assert_eq!(rounded(0x3f80_8001), 0x3f81);
        assert_eq!(rounded(0x3f81_7fff), 0x3f81);
        assert_eq!(rounded(0x3f81_8000), 0x3f82, "a tie, up to the even one");
        assert_eq!(rounded(0xbf81_8000), 0xbf82, "and so below zero");
        assert_eq!(rounded(0x3fff_ffff), 0x4000, "up to the next power of two");
    }

    #[test]
    fn zeros_and_the_smallest_numbers_keep_their_sign() {
        assert_eq!((rounded(0), rounded(0x8000_0000)), (0, 0x8000));
        assert_eq!((rounded(1), rounded(0x8000_0001)), (0, 0x8000));
        assert_eq!(rounded(0x0000_8001), 1, "the smallest of all");
        assert_eq!(rounded(0x007f_ffff), 0x0080, "the largest subnormal becomes normal");
    }

    #[test]
    fn what_is_too_large_becomes_the_largest_and_what_is_no_number_stays_none() {
        assert_eq!((rounded(0x7f7f_8000), rounded(0xff7f_8000)), (0x7f7f, 0xff7f));
        let (most, least) = (widen(round(f32::MAX)), widen(round(f32::MIN)));
        assert!(most.is_finite() && least == -most);
        assert_eq!(widen(round(f32::INFINITY)), f32::INFINITY);
        assert_eq!(widen(round(f32::NEG_INFINITY)), f32::NEG_INFINITY);
        for bits in [0x7fc0_0000, 0x7f80_0001, 0xff80_ffff, 0x7fff_ffff] {
            assert!(widen(round(f32::from_bits(bits))).is_nan(), "{bits:x}");
        }
    }

    #[test]
    fn every_bfloat16_comes_back_as_itself() {
        for bits in 0..=u16::MAX {
            let number = widen(bits.to_le_bytes());
            match number.is_nan() {
                true => assert!(widen(round(number)).is_nan(), "{bits:x}"),
                false => assert_eq!(round(number), bits.to_le_bytes(), "{bits:x}"),
            }
        }
    }

    #[test]
    fn many_are_widened_as_one_is() {
        let narrow: Vec<u8> = [1.0, -2.5, 0.0].into_iter().flat_map(round).collect();
        let mut wide = vec![7; 3];
        widen_all(&narrow, &mut wide);
        let expected: Vec<u8> = [1.0f32, -2.5, 0.0].into_iter().flat_map(f32::to_le_bytes).collect();
        assert_eq!(wide, expected);
    }

    proptest! {
        #[test]
        fn no_other_bfloat16_is_nearer(number in -1e30f32..1e30) {
            let bits = u16::from_le_bytes(round(number));
            let distance = |bits: u16| (f64::from(widen(bits.to_le_bytes())) - f64::from(number)).abs();
            for other in [bits.wrapping_sub(1), bits.wrapping_add(1)] {
                // Next to zero lies a NaN: that is nearer to nothing.
                prop_assert!(distance(bits) <= distance(other) || distance(other).is_nan());
            }
        }
    }
}
