//! The windows that a block has cut, kept for its next pass.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::kernels::windows::Windows;

/// Volumes that are kept: training's patch and inference's window, which may be of two sizes.
const KEPT: usize = 2;

/// The windows of the volumes that a block met last. Its copies, of which every optimiser step and every inference window make
/// one, share them.
#[derive(Clone, Default)]
pub(super) struct Cuts(Arc<Mutex<Vec<Cut>>>);

struct Cut {
    space: [usize; 3],
    shifted: bool,
    windows: Arc<Windows>,
}

impl Cuts {
    /// The windows of a volume with these sides.
    pub(super) fn of(&self, space: [usize; 3], shifted: bool) -> Arc<Windows> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cut) = kept.iter().find(|cut| (cut.space, cut.shifted) == (space, shifted)) {
            return Arc::clone(&cut.windows);
        }
        let windows = Arc::new(Windows::new(space, shifted));
        kept.truncate(KEPT - 1);
        kept.insert(0, Cut { space, shifted, windows: Arc::clone(&windows) });
        windows
    }
}

/// Without the windows, which would be most of what a printed model says.
impl fmt::Debug for Cuts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cuts")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_made_once_for_a_block_and_its_copies() {
        let cuts = Cuts::default();
        let shifted = cuts.of([9, 10, 8], true);
        let plain = cuts.clone().of([9, 10, 8], false);
        assert_eq!(*shifted, Windows::new([9, 10, 8], true));
        assert_eq!(*plain, Windows::new([9, 10, 8], false));
        assert!(Arc::ptr_eq(&shifted, &cuts.clone().of([9, 10, 8], true)));
        assert!(Arc::ptr_eq(&plain, &cuts.of([9, 10, 8], false)));
    }

    #[test]
    fn windows_of_volumes_that_are_met_no_more_are_dropped() {
        let cuts = Cuts::default();
        let first = cuts.of([4, 5, 9], true);
        for side in 2..6 {
            cuts.of([side; 3], true);
        }
        assert_eq!(Arc::strong_count(&first), 1);
        assert_eq!(cuts.of([4, 5, 9], true), first);
        assert_eq!(cuts.0.lock().unwrap().len(), KEPT);
    }
}
