//! Which instruction set the kernels run on.

use std::sync::OnceLock;

/// An instruction set that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// 16 lanes.
    Avx512,
    /// 8 lanes with fused multiply-add.
    Avx2,
    /// Whatever the target guarantees.
    Portable,
}

impl Isa {
    /// The best set that this machine has. `CONSILIUM_ISA=avx2|portable` asks for less, to measure or to reproduce.
    pub fn detect() -> Self {
        static ISA: OnceLock<Isa> = OnceLock::new();
        *ISA.get_or_init(|| Self::best().at_most(std::env::var("CONSILIUM_ISA").ok().as_deref()))
    }

    #[cfg(target_arch = "x86_64")]
    fn best() -> Self {
        let fma = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        if fma && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") {
            Self::Avx512
        } else if fma {
            Self::Avx2
        } else {
            Self::Portable
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn best() -> Self {
        Self::Portable
    }

    fn at_most(self, wish: Option<&str>) -> Self {
        match (wish, self) {
            (Some("portable"), _) => Self::Portable,
            (Some("avx2"), Self::Avx512) => Self::Avx2,
            _ => self,
        }
    }

    /// Every set that this machine can run: tests compare them.
    pub fn available() -> Vec<Self> {
        match Self::best() {
            Self::Avx512 => vec![Self::Portable, Self::Avx2, Self::Avx512],
            Self::Avx2 => vec![Self::Portable, Self::Avx2],
            Self::Portable => vec![Self::Portable],
        }
    }
}

/// Compiles a function for each instruction set: `fn f(a: A)` becomes `fn f(isa: Isa, a: A)`, whose loops over slices are
/// vectorised as wide as the set allows. The bits are the same for each set: nothing is fused or reordered. What the body
/// calls profits only where it is inlined.
macro_rules! for_each_isa {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        $vis fn $name(isa: $crate::kernels::isa::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn portable($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512vl,avx2,fma")]
            fn avx512($($arg: $ty),*) $(-> $ret)? {
                portable($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                portable($($arg),*)
            }

            match isa {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `Isa::Avx512` is made by `Isa::best` alone, which has seen every feature that is enabled.
                $crate::kernels::isa::Isa::Avx512 => unsafe { avx512($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `Isa::Avx2` is made by `Isa::best` or `at_most`, both after AVX2 and FMA were seen.
                $crate::kernels::isa::Isa::Avx2 => unsafe { avx2($($arg),*) },
                _ => portable($($arg),*),
            }
        }
    };
}
pub(super) use for_each_isa;
