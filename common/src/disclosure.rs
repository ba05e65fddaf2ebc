//! The one rule about small numbers of patients, for all that a site tells of its scans: the label manifest and the
//! evaluation report.
//!
//! To leave out a count below `min_count` is not enough where another completes it: the scans that show a class and those
//! that do not add up to those that annotate it, and so do patients. So no count of a class leaves where one, or the rest
//! that it leaves of another, is of 1 to `min_count - 1` patients (complementary suppression). Mean scores leave all the same
//! where they give none away: else a consortium would hear nothing of an organ that two patients of thirty have lost.
//!
//! It looks at one class in one document. What two of them say together is not seen here; the guide for hospitals tells it.

use std::collections::BTreeSet;

/// What may leave of one class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disclosure {
    /// All of it.
    Counts,
    /// Scores over the patients that have the class, and no count.
    Scores,
    /// Nothing.
    Nothing,
}

/// The patients with scans that annotate one class, by what these show.
#[derive(Clone, Debug, Default)]
pub struct ClassPatients<P> {
    with: BTreeSet<P>,
    without: BTreeSet<P>,
}

impl<P: Ord> ClassPatients<P> {
    /// Adds a scan of `patient` that annotates the class.
    pub fn add(&mut self, patient: P, shows_class: bool) {
        let side = if shows_class { &mut self.with } else { &mut self.without };
        side.insert(patient);
    }

    /// What may leave. A group that is empty may be known to be; of a small one nobody learns how many patients it has.
    pub fn disclosure(&self, min_count: u32) -> Disclosure {
        let Self { with, without } = self;
        let in_all_scans = with.difference(without).count();
        let in_some = with.intersection(without).count();
        let in_none = without.difference(with).count();
        let groups = [in_all_scans, in_some, in_none];
        let least = min_count.max(1) as usize;
        // With fewer in all, those with the class being `least`, there is no room for each small number of the others.
        let room = 2 * least - 1;
        if groups.iter().all(|&patients| patients == 0 || patients >= least) {
            Disclosure::Counts
        } else if with.len() >= least && groups.iter().sum::<usize>() >= room {
            Disclosure::Scores
        } else {
            Disclosure::Nothing
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many patients who show the class in all their scans, in one of two, and in none.
    fn disclosure(in_all_scans: u32, in_some: u32, in_none: u32, min_count: u32) -> Disclosure {
        let mut patients = ClassPatients::default();
        let ends = [in_all_scans, in_all_scans + in_some, in_all_scans + in_some + in_none];
        (0..ends[1]).for_each(|patient| patients.add(patient, true));
        (ends[0]..ends[2]).for_each(|patient| patients.add(patient, false));
        patients.disclosure(min_count)
    }

    #[test]
    fn counts_leave_where_no_group_is_small() {
        for groups in [[20, 0, 0], [0, 0, 20], [5, 0, 15], [15, 0, 5], [5, 5, 5], [0, 9, 0], [0, 0, 0]] {
            assert_eq!(disclosure(groups[0], groups[1], groups[2], 5), Disclosure::Counts, "{groups:?}");
        }
    }

    #[test]
    fn a_small_group_keeps_the_counts_of_the_others_back() {
        for groups in [[18, 0, 2], [5, 0, 4], [19, 1, 0], [4, 16, 0], [3, 4, 13]] {
            assert_eq!(disclosure(groups[0], groups[1], groups[2], 5), Disclosure::Scores, "{groups:?}");
        }
        for groups in [[2, 0, 18], [4, 0, 0], [0, 0, 4], [1, 1, 18], [0, 2, 18]] {
            assert_eq!(disclosure(groups[0], groups[1], groups[2], 5), Disclosure::Nothing, "{groups:?}");
        }
    }

    #[test]
    fn scores_stay_where_the_number_of_patients_would_tell_the_rest() {
        // Of six, five of whom have it, one has not: nobody else could make up the six.
        assert_eq!(disclosure(5, 0, 1, 5), Disclosure::Nothing);
        assert_eq!(disclosure(7, 0, 1, 5), Disclosure::Nothing);
        assert_eq!(disclosure(8, 0, 1, 5), Disclosure::Scores);
    }

    #[test]
    fn a_smallest_count_of_one_keeps_nothing_back() {
        for min_count in [0, 1] {
            assert_eq!(disclosure(1, 1, 1, min_count), Disclosure::Counts);
        }
    }
}
