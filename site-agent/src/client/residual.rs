//! What rounding has taken from this site's updates and no update has brought yet, study by study ([`error_feedback`]). As large as the
//! model; read and written a chunk at a time.
//!
//! | file | what remains if |
//! | --- | --- |
//! | `ATTEMPT.next` | the update of this attempt counts; it was not offered yet |
//! | `STUDY-ROUND-ATTEMPT.offered` | the same; it may count by now |
//! | `STUDY-ROUND.state` | an update of this round counted: what the next one begins with |
//!
//! An update is durable after its `.next`, and a receipt is journalled after its `.state`: so a residual is added to one update that counts, and
//! to no other. An update that is refused, or that never left, leaves the residual of before as it was. One that left, and whose round closes
//! without an answer, may have counted or not: then the residual is forgotten. That costs less than the rounding of one update, and adding
//! it twice would never end.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use common::ids::{AttemptId, RoundId, StudyDigest};

use super::files::{self, FileError};
use crate::train::error_feedback;

const NEXT: &str = "next";
const OFFERED: &str = "offered";
const STATE: &str = "state";

/// The folder of residuals.
#[derive(Clone, Debug)]
pub struct Residuals(PathBuf);

impl Residuals {
    /// Opens the folder and makes it if need be.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn open(folder: &Path) -> Result<Self, FileError> {
        files::make_private_folder(folder)?;
        Ok(Self(folder.to_owned()))
    }

    /// Begins to round the update of `attempt`, so many numbers, with what the rounds before left. Where that is damaged it begins with
    /// nothing, and says so.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn begin(
        &self,
        study: StudyDigest,
        round: RoundId,
        attempt: AttemptId,
        numbers: usize,
    ) -> Result<Rounding, FileError> {
        let newest = self.states(&study.to_string()).into_iter().filter(|(after, _)| *after < round).max();
        let before = newest.and_then(|(_, path)| match open_whole(&path, numbers) {
            Ok(Some(file)) => Some((file, path)),
            Ok(None) | Err(_) => {
                let file = path.display();
                tracing::warn!("{file} is damaged: what rounding took from earlier updates is lost");
                None
            }
        });
        let (after, path) = (files::Unnamed::begin(&self.0)?, self.next(attempt));
        Ok(Rounding { before, after, hasher: blake3::Hasher::new(), path, buffer: Vec::new() })
    }

    /// The update of `attempt` is about to leave. Does nothing when that was said already, or it was not rounded.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn offered(&self, study: StudyDigest, round: RoundId, attempt: AttemptId) -> Result<(), FileError> {
        let next = self.next(attempt);
        if !next.exists() {
            return Ok(());
        }
        files::rename(&next, &self.0.join(format!("{study}-{round}-{attempt}.{OFFERED}")))
    }

    /// The coordinator counts the update of `attempt`. What remains of earlier rounds goes, but for the one before: a coordinator that was
    /// restored from a backup may ask for this round again.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn counted(&self, attempt: AttemptId) -> Result<(), FileError> {
        let Some(Offered { path, study, round }) = self.find(attempt) else { return Ok(()) };
        files::rename(&path, &self.0.join(format!("{study}-{round}.{STATE}")))?;
        let states = self.states(&study);
        let before = states.iter().map(|(after, _)| *after).filter(|after| *after < round).max();
        let is_spent = |after: RoundId| after != round && Some(after) != before;
        let spent = states.into_iter().filter(|(after, _)| is_spent(*after));
        spent.map(|(_, path)| path).try_for_each(|path| files::remove(&path))
    }

    /// The update of `attempt` will never count: what remained before it remains.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn not_counted(&self, attempt: AttemptId) -> Result<(), FileError> {
        files::remove(&self.next(attempt))?;
        self.find(attempt).map_or(Ok(()), |offered| files::remove_durably(&offered.path))
    }

    /// The last word on `round` was that its update is refused: as [`Residuals::not_counted`] of what was offered of it. After a
    /// crash that came before, [`Residuals::prune`] would take it for an update that nobody answered for.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn refused(&self, study: StudyDigest, round: RoundId) -> Result<(), FileError> {
        let of_round = format!("{study}-{round}-");
        let is_refused = |name: &String| name.starts_with(&of_round) && name.ends_with(OFFERED);
        let refused = self.names().into_iter().filter(is_refused);
        refused.map(|name| self.0.join(name)).try_for_each(|path| files::remove_durably(&path))
    }

    /// Nobody will say any more whether the update of `attempt` counted. If it was offered, what remains is forgotten.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn unanswered(&self, attempt: AttemptId) -> Result<(), FileError> {
        files::remove(&self.next(attempt))?;
        let Some(Offered { path, study, .. }) = self.find(attempt) else { return Ok(()) };
        self.states(&study).iter().try_for_each(|(_, path)| files::remove(path))?;
        // Last: after a crash before it, all this is done again.
        files::remove(&path)
    }

    /// Forgets what remained of a study, whatever of it counts: no update of it will be rounded again.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn forget(&self, study: StudyDigest) -> Result<(), FileError> {
        let of_study = format!("{study}-");
        let names = self.names().into_iter().filter(|name| name.starts_with(&of_study));
        names.map(|name| self.0.join(name)).try_for_each(|path| files::remove(&path))
    }

    /// Forgets every attempt but these: a crash came between the end of each and its consequences.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn prune(&self, keep: &BTreeSet<AttemptId>) -> Result<(), FileError> {
        let attempt = |name: &String| {
            let id = match name.rsplit_once('.')? {
                (attempt, NEXT) => attempt,
                (offered, OFFERED) => offered.rsplit_once('-')?.1,
                _ => return None,
            };
            id.parse::<AttemptId>().ok()
        };
        let attempts: Vec<AttemptId> = self.names().iter().filter_map(attempt).collect();
        attempts.into_iter().filter(|attempt| !keep.contains(attempt)).try_for_each(|a| self.unanswered(a))
    }

    /// What remained after each round that is kept of a study.
    fn states(&self, study: &str) -> Vec<(RoundId, PathBuf)> {
        let after = |name: String| {
            let round =
                name.strip_prefix(study)?.strip_prefix('-')?.strip_suffix(STATE)?.strip_suffix('.')?;
            Some((RoundId(round.parse().ok()?), self.0.join(&name)))
        };
        self.names().into_iter().filter_map(after).collect()
    }

    fn find(&self, attempt: AttemptId) -> Option<Offered> {
        let ending = format!("-{attempt}.{OFFERED}");
        self.names().into_iter().find_map(|name| {
            let (study, round) = name.strip_suffix(&ending)?.rsplit_once('-')?;
            let (study, round) = (study.to_owned(), RoundId(round.parse().ok()?));
            Some(Offered { path: self.0.join(&name), study, round })
        })
    }

    fn names(&self) -> Vec<String> {
        // A folder that is not there holds nothing.
        let listed = std::fs::read_dir(&self.0).into_iter().flatten().flatten();
        listed.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    fn next(&self, attempt: AttemptId) -> PathBuf {
        self.0.join(format!("{attempt}.{NEXT}"))
    }
}

/// What remains if an update counts that was offered.
struct Offered {
    path: PathBuf,
    study: String,
    round: RoundId,
}

/// An update on its way into bfloat16, chunk by chunk.
#[derive(Debug)]
pub struct Rounding {
    before: Option<(File, PathBuf)>,
    after: files::Unnamed,
    hasher: blake3::Hasher,
    path: PathBuf,
    buffer: Vec<u8>,
}

impl Rounding {
    /// Rounds the next numbers of the update into `sent`.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn round(&mut self, deltas: &[f32], sent: &mut Vec<u8>) -> Result<(), FileError> {
        self.buffer.resize(4 * deltas.len(), 0);
        match &mut self.before {
            Some((file, path)) => {
                let read = file.read_exact(&mut self.buffer);
                read.map_err(|source| FileError::new("read", path, source))?;
            }
            None => self.buffer.fill(0),
        }
        error_feedback::round(deltas, &mut self.buffer, sent);
        self.hasher.update(&self.buffer);
        self.after.write(&self.buffer)
    }

    /// Keeps what remains: durable when it returns, and to be done before the update counts as finished.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn finish(mut self) -> Result<(), FileError> {
        self.after.write(self.hasher.finalize().as_bytes())?;
        self.after.place(&self.path)
    }
}

/// A file of so many numbers and their digest; `None` when it is something else.
fn open_whole(path: &Path, numbers: usize) -> io::Result<Option<File>> {
    let mut file = File::open(path)?;
    let (mut hasher, mut digest) = (blake3::Hasher::new(), Vec::new());
    hasher.update_reader((&file).take(4 * numbers as u64))?;
    (&file).take(blake3::OUT_LEN as u64 + 1).read_to_end(&mut digest)?;
    file.rewind()?;
    Ok((digest == hasher.finalize().as_bytes()).then_some(file))
}

#[cfg(test)]
mod tests {
    use common::bfloat16;
    use common::ids::Digest;

    use super::*;

    /// Between 1 and the next bfloat16: rounding takes 2⁻⁸ of it.
    const TIE: f32 = 1.0 + 1.0 / 256.0;

    struct Site {
        residuals: Residuals,
        _folder: tempfile::TempDir,
    }

    fn study() -> StudyDigest {
        StudyDigest(Digest::of(b"study"))
    }

    fn attempt(id: u8) -> AttemptId {
        AttemptId::from_bytes([id; 16])
    }

    impl Site {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            Self { residuals: Residuals::open(&folder.path().join("residual")).unwrap(), _folder: folder }
        }

        /// Rounds an update of two numbers, in two chunks; what is sent.
        fn round(&self, round: u32, id: u8) -> [f32; 2] {
            let mut rounding = self.residuals.begin(study(), RoundId(round), attempt(id), 2).unwrap();
            let sent = [TIE, 0.5].map(|delta| {
                let mut sent = Vec::new();
                rounding.round(&[delta], &mut sent).unwrap();
                bfloat16::widen([sent[0], sent[1]])
            });
            rounding.finish().unwrap();
            sent
        }

        fn offer(&self, round: u32, id: u8) {
            self.residuals.offered(study(), RoundId(round), attempt(id)).unwrap();
        }

        /// A round whose update counts; what was sent.
        fn count(&self, round: u32, id: u8) -> [f32; 2] {
            let sent = self.round(round, id);
            self.offer(round, id);
            self.residuals.counted(attempt(id)).unwrap();
            sent
        }

        fn files(&self) -> usize {
            self.residuals.names().len()
        }
    }

    const FIRST: [f32; 2] = [1.0, 0.5];
    const SECOND: [f32; 2] = [1.007_812_5, 0.5];

    #[test]
    fn what_remains_is_added_once_to_what_counts() {
        let site = Site::new();
        assert_eq!(site.round(1, 1), FIRST);
        site.offer(1, 1);
        // Offered again after a cut.
        site.offer(1, 1);
        site.residuals.counted(attempt(1)).unwrap();
        // The receipt came twice.
        site.residuals.counted(attempt(1)).unwrap();
        assert_eq!(site.round(2, 2), SECOND);
        // Trained again, it is the same.
        assert_eq!(site.round(2, 3), SECOND);
        site.offer(2, 3);
        site.residuals.counted(attempt(3)).unwrap();
        site.residuals.not_counted(attempt(2)).unwrap();
        assert_eq!(site.round(3, 4), FIRST, "nothing remained");
    }

    #[test]
    fn an_update_that_never_counts_leaves_what_remained_before_it() {
        let site = Site::new();
        site.count(1, 1);
        assert_eq!(site.round(2, 2), SECOND);
        site.offer(2, 2);
        site.residuals.not_counted(attempt(2)).unwrap();
        // And one that was left before it was offered.
        assert_eq!(site.round(3, 3), SECOND);
        site.residuals.unanswered(attempt(3)).unwrap();
        assert_eq!(site.round(4, 4), SECOND);
        assert_eq!(site.files(), 2, "what remains after round 1, and if attempt 4 counts");
    }

    #[test]
    fn an_update_that_is_trained_again_after_it_was_offered_is_the_same_and_leaves_one_residual() {
        let site = Site::new();
        site.count(1, 1);
        for _ in 0..2 {
            assert_eq!(site.round(2, 2), SECOND);
            site.offer(2, 2);
        }
        assert_eq!(site.files(), 2);
        // Once more, and its round closes meanwhile: the first offer may count.
        assert_eq!(site.round(2, 2), SECOND);
        site.residuals.unanswered(attempt(2)).unwrap();
        assert_eq!(site.files(), 0);
    }

    #[test]
    fn without_an_answer_nothing_is_added_twice() {
        let site = Site::new();
        site.count(1, 1);
        site.round(2, 2);
        site.offer(2, 2);
        site.residuals.unanswered(attempt(2)).unwrap();
        assert_eq!(site.files(), 0);
        assert_eq!(site.round(3, 3), FIRST);
    }

    #[test]
    fn after_a_crash_the_attempt_under_way_stays_and_others_go() {
        let site = Site::new();
        site.count(1, 1);
        site.round(2, 2);
        site.offer(2, 2);
        site.round(2, 3);
        site.residuals.prune(&BTreeSet::from([attempt(2)])).unwrap();
        site.residuals.counted(attempt(2)).unwrap();
        assert_eq!(site.files(), 2, "after round 2 and the one before");
        site.round(3, 4);
        site.residuals.prune(&BTreeSet::new()).unwrap();
        assert_eq!(site.files(), 2, "it was not offered");
        site.round(3, 5);
        site.offer(3, 5);
        site.residuals.prune(&BTreeSet::new()).unwrap();
        assert_eq!(site.files(), 0, "it was offered, and nobody knows");
    }

    #[test]
    fn after_a_crash_a_refused_update_leaves_what_remained_before_it() {
        let site = Site::new();
        site.count(1, 1);
        site.round(2, 2);
        site.offer(2, 2);
        // The journal has the refusal, and the attempt is left to be pruned.
        site.residuals.refused(study(), RoundId(2)).unwrap();
        site.residuals.prune(&BTreeSet::new()).unwrap();
        assert_eq!(site.files(), 1, "what remains after round 1");
        assert_eq!(site.round(21, 3), SECOND);
        site.offer(21, 3);
        // Of another round.
        site.residuals.refused(study(), RoundId(2)).unwrap();
        site.residuals.counted(attempt(3)).unwrap();
        assert_eq!(site.round(22, 4), FIRST);
    }

    #[test]
    fn a_round_that_is_asked_for_again_begins_with_what_remained_before_it() {
        let site = Site::new();
        for (round, expected) in [(1, FIRST), (2, SECOND), (3, FIRST)] {
            assert_eq!(site.count(round, round as u8), expected);
        }
        assert_eq!(site.files(), 2);
        // Round 3 again: of a coordinator that was restored from a backup.
        assert_eq!(site.count(3, 9), FIRST);
        assert_eq!(site.round(4, 10), SECOND);
    }

    #[test]
    fn a_study_that_is_over_leaves_nothing_and_others_stay() {
        let site = Site::new();
        for round in 1..=2 {
            site.count(round, round as u8);
        }
        site.round(3, 3);
        site.offer(3, 3);
        assert_eq!(site.files(), 3);
        site.residuals.forget(StudyDigest(Digest::of(b"another"))).unwrap();
        assert_eq!(site.files(), 3);
        site.residuals.forget(study()).unwrap();
        site.residuals.forget(study()).unwrap();
        assert_eq!(site.files(), 0);
        // A receipt that came after all brings nothing back.
        site.residuals.counted(attempt(3)).unwrap();
        assert_eq!(site.files(), 0);
    }

    #[test]
    fn a_damaged_residual_is_not_used() {
        let site = Site::new();
        site.count(1, 1);
        let path = site.residuals.0.join(format!("{}-1.state", study()));
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(whole.len(), 8 + 32);
        let mut changed = whole.clone();
        changed[0] ^= 1;
        let longer = [&whole[..], &[0]].concat();
        for damaged in [&changed[..], &whole[..39], &longer[..], &[][..]] {
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(site.round(2, 2), FIRST);
        }
        std::fs::write(&path, whole).unwrap();
        assert_eq!(site.round(2, 2), SECOND);
    }
}
