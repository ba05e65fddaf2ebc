//! What sites signed: whether each label manifest and each report is still, to the byte, what its site has signed.
//!
//! A site that enrolled again has another key, and the one before is kept nowhere. Of what it signed before, a report is still
//! known by its digest, which the journal has; of a label manifest nothing can be said, and one comes anew by itself.

use common::ids::{Digest, StudyDigest};
use common::manifest::LabelManifest;
use common::report::EvaluationReport;
use common::signed::{Signed, SignedError, VerifyingKey};

use super::{Examination, Level};
use crate::driver::{Rehearsal, read_manifest};
use crate::store::{SignedRecord, Store, StoreError};

const CHANGED: &str = "the report page and `study promote` would go by it: restore the state folder, `coordinator restore BACKUP` into an \
     empty one, beside this one; a label manifest comes anew when its site connects";

const PERHAPS: &str = "if this machine's clock was ahead when it came, the site signed it with its key of before: nothing to do. Otherwise it has changed \
     here, and a backup of before has it as it was";

/// Of a label manifest that an earlier build took.
const COMES_ANEW: &str = "nothing: its site registers another when it connects; if that is refused too, the lines of `run` and its own log say why";

/// What a document is about that was put under another's name.
const ELSEWHERE: &str = "it is about another site, model or study";

/// Looks at the signed documents of a study, called `name`.
///
/// # Errors
/// The database.
pub(super) async fn examine(
    store: &Store,
    study: &Rehearsal,
    name: &str,
    examination: &mut Examination<'_>,
) -> Result<(), StoreError> {
    let (mut whole, mut unknown) = (0, 0);
    let digest = study.document.digest();
    for record in store.signed_records(&digest).await? {
        let journalled = record.model.and_then(|model| study.evaluation.report_of(&record.site, &model));
        let is_as_journalled = journalled.map(|journalled| journalled == Digest::of(&record.document));
        if record.model.is_none()
            && let Err(why) = read_manifest(&record.document, &record.site, study.document.study())
        {
            let what = format!("{name}, label manifest of {}", record.site);
            let words = format!("does not count, as if there were none: {why}");
            examination.find(Level::Warn, what, words, COMES_ANEW);
        }
        match check(&digest, &record) {
            Ok(()) => whole += 1,
            Err(_) if record.by_former_key && is_as_journalled != Some(false) => unknown += 1,
            Err(_) if record.has_enrolled_again && is_as_journalled == Some(true) => unknown += 1,
            Err(why) => {
                let what = match record.model {
                    None => format!("{name}, label manifest of {}", record.site),
                    Some(model) => format!("{name}, report of {} on model {}", record.site, model.short()),
                };
                let is_unsure = is_as_journalled.is_none() && record.has_enrolled_again && why != ELSEWHERE;
                let (level, is_not, remedy) = match is_unsure {
                    true => (
                        Level::Warn,
                        "is not signed with the key that the site has since it enrolled anew",
                        PERHAPS,
                    ),
                    false => (Level::Bad, "is not what the site signed", CHANGED),
                };
                examination.find(level, &what, format!("{is_not}: {why}"), remedy);
            }
        }
    }
    if whole > 0 {
        examination.good(name, format!("signed by its sites, and as they were: {whole} documents"));
    }
    if unknown > 0 {
        let words = format!(
            "signed with keys that their sites have no more, signatures not checked: {unknown} documents"
        );
        examination.good(name, words);
    }
    Ok(())
}

/// Whether the site has signed this very document, and it is about what the record says.
fn check(study: &StudyDigest, record: &SignedRecord) -> Result<(), String> {
    let SignedRecord { site, model, document, signature, signing_key, .. } = record;
    let signature = signature.as_slice().try_into().map_err(|_| "the signature is of another length")?;
    let key = VerifyingKey::from_bytes(signing_key).map_err(|_| "the site's own key is none")?;
    let is_its_own = match model {
        None => {
            match Signed::<LabelManifest>::from_parts(document.clone(), signature).verify(&key) {
                Ok(manifest) => manifest.site == *site,
                // Signed all the same; that it does not count is told beside.
                Err(SignedError::Document(_)) => true,
                Err(error) => return Err(error.to_string()),
            }
        }
        Some(model) => {
            let report = Signed::<EvaluationReport>::from_parts(document.clone(), signature).verify(&key);
            let subject = report.map_err(|e| e.to_string())?.subject;
            subject.site == *site && subject.model == *model && subject.study == *study
        }
    };
    if is_its_own { Ok(()) } else { Err(ELSEWHERE.to_owned()) }
}
