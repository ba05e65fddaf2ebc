//! What sites signed: whether each label manifest and each report is still, to the byte, what its site has signed.
//!
//! A site that enrolled again has another key, and the one before is kept nowhere: of what it signed before nothing can be said.

use common::ids::StudyDigest;
use common::manifest::LabelManifest;
use common::report::EvaluationReport;
use common::signed::{Signed, VerifyingKey};

use super::{Examination, Level};
use crate::store::{SignedRecord, Store, StoreError};

const CHANGED: &str = "the report page and `study promote` would go by it: restore the state folder, `coordinator restore BACKUP` into an \
     empty one, beside this one; a label manifest comes anew when its site connects";

const PERHAPS: &str = "if this machine's clock was ahead when it came, the site signed it with its key of before: nothing to do. Otherwise it has changed \
     here, and a backup of before has it as it was";

/// What a document is about that was put under another's name.
const ELSEWHERE: &str = "it is about another site, model or study";

/// Looks at the signed documents of a study, called `name`.
///
/// # Errors
/// The database.
pub(super) async fn examine(
    store: &Store,
    study: &StudyDigest,
    name: &str,
    examination: &mut Examination<'_>,
) -> Result<(), StoreError> {
    let (mut whole, mut unknown) = (0, 0);
    for record in store.signed_records(study).await? {
        match check(study, &record) {
            Ok(()) => whole += 1,
            Err(_) if record.by_former_key => unknown += 1,
            Err(why) => {
                let what = match record.model {
                    None => format!("{name}, label manifest of {}", record.site),
                    Some(model) => format!("{name}, report of {} on model {}", record.site, model.short()),
                };
                let (level, is_not, remedy) = match record.has_enrolled_again && why != ELSEWHERE {
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
            "signed with keys that their sites do not have any more, not checked: {unknown} documents"
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
            let manifest = Signed::<LabelManifest>::from_parts(document.clone(), signature).verify(&key);
            manifest.map_err(|e| e.to_string())?.site == *site
        }
        Some(model) => {
            let report = Signed::<EvaluationReport>::from_parts(document.clone(), signature).verify(&key);
            let subject = report.map_err(|e| e.to_string())?.subject;
            subject.site == *site && subject.model == *model && subject.study == *study
        }
    };
    if is_its_own { Ok(()) } else { Err(ELSEWHERE.to_owned()) }
}
