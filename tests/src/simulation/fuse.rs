//! Kills at durable writes: every one can be the last, and where in it the process dies decides what the disk has.

/// Where a kill finds a durable write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Nothing of it is on the disk.
    Before,
    /// A part of it is. A file that is renamed into its place is then not there at all; a line of a journal is there up to
    /// some byte, and is cut off at the next start.
    Torn,
    /// All of it is, and nothing was done about it.
    After,
}

impl Moment {
    /// Whether the disk has what was written by a rename or in a transaction.
    pub(super) fn wrote(self) -> bool {
        self == Self::After
    }
}

/// Kills a process at one of its durable writes to come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fuse {
    /// Writes that it still completes.
    pub(super) writes: u32,
    pub(super) moment: Moment,
}

impl Fuse {
    /// Counts a write; says where in it the process dies, when it is the last.
    pub(super) fn burn(fuse: &mut Option<Self>) -> Option<Moment> {
        let burning = fuse.as_mut()?;
        if let Some(left) = burning.writes.checked_sub(1) {
            burning.writes = left;
            return None;
        }
        fuse.take().map(|burnt| burnt.moment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fuse_burns_once_after_its_writes() {
        let mut fuse = Some(Fuse { writes: 2, moment: Moment::Torn });
        let burnt = [(); 4].map(|()| Fuse::burn(&mut fuse));
        assert_eq!(burnt, [None, None, Some(Moment::Torn), None]);
    }
}
