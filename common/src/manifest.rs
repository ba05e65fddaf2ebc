//! What a site says it has: per class, how many training volumes annotate it and how many show it.
//!
//! `annotated` is exact: it is a property of the annotation protocol, and the aggregation weights use it. `present` counts
//! findings and is left out where it, or the rest of `annotated`, would tell of fewer patients than the site's `min_count`
//! ([`crate::disclosure`]). Nothing here names a case.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::config::{Diagnostics, Problems};
use crate::disclosure::{ClassPatients, Disclosure};
use crate::ids::{ClassId, SiteId, TaxonomyDigest};
use crate::signed::SignedDocument;

const FORMAT: &str = "consilium label manifest 1";
/// What messages call it.
const DOCUMENT: &str = "label manifest";
/// What [`names_dataset`] asks for.
pub(crate) const DATASET_NAMES: &str = "1 to 60 of letters, digits, `-`, `_` and `.`";
/// Most data sets of a site.
const MAX_DATASETS: usize = 100;
/// Most training volumes of a site.
const MAX_VOLUMES: u32 = 10_000_000;

/// How often one class occurs in a site's training volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassCount {
    /// The class.
    pub class: ClassId,
    /// Volumes that annotate it, exact, at least 1.
    pub annotated: u32,
    /// Annotated volumes that contain it; none where there are none, or small numbers of patients keep it back.
    pub present: Option<u32>,
    /// Of `annotated`, volumes that a model labelled, exact. Not written where there are none: such a manifest has the bytes
    /// that it always had.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub pseudo: u32,
}

/// Size of one data set of a site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetCount {
    /// Key of its label map.
    pub name: String,
    /// Training volumes.
    pub volumes: u32,
}

/// A site's label manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelManifest {
    format: String,
    /// The site.
    pub site: SiteId,
    /// The taxonomy that the classes belong to.
    pub taxonomy: TaxonomyDigest,
    /// Training volumes n_s.
    pub volumes: u32,
    /// The annotated classes, ascending.
    pub classes: Vec<ClassCount>,
    /// The data sets, ascending by name.
    pub datasets: Vec<DatasetCount>,
}

/// The labels of one training volume.
#[derive(Clone, Copy, Debug)]
pub struct CaseLabels<'a> {
    /// Key of the data set's label map.
    pub dataset: &'a str,
    /// Whose it is, by a name that stays at the site.
    pub patient: &'a str,
    /// Classes that it annotates.
    pub annotated: &'a BTreeSet<ClassId>,
    /// Annotated classes with at least one voxel.
    pub present: &'a BTreeSet<ClassId>,
    /// Whether a model, and no annotator, labelled it.
    pub pseudo: bool,
}

impl LabelManifest {
    /// Counts a site's training volumes; `min_count` is in patients.
    pub fn count<'a>(
        site: SiteId,
        taxonomy: TaxonomyDigest,
        cases: impl IntoIterator<Item = CaseLabels<'a>>,
        min_count: u32,
    ) -> Self {
        let mut volumes = 0;
        let mut classes: BTreeMap<ClassId, Tally<'a>> = BTreeMap::new();
        let mut datasets: BTreeMap<&str, u32> = BTreeMap::new();
        for case in cases {
            volumes += 1;
            *datasets.entry(case.dataset).or_default() += 1;
            for &class in case.annotated {
                classes.entry(class).or_insert_with(|| Tally::of(class)).add(&case);
            }
        }
        let datasets = datasets.into_iter();
        Self {
            format: FORMAT.to_owned(),
            site,
            taxonomy,
            volumes,
            classes: classes.into_values().map(|tally| tally.told(min_count)).collect(),
            datasets: datasets
                .map(|(name, volumes)| DatasetCount { name: name.to_owned(), volumes })
                .collect(),
        }
    }

    /// n_sc: volumes that annotate `class`.
    pub fn annotated(&self, class: ClassId) -> u32 {
        self.count_of(class).map_or(0, |count| count.annotated)
    }

    /// What the manifest says about `class`; none when the site does not annotate it.
    pub fn count_of(&self, class: ClassId) -> Option<&ClassCount> {
        self.classes.binary_search_by_key(&class, |count| count.class).ok().map(|index| &self.classes[index])
    }

    /// The manifest, if its readers would take it. Who signs one asks before: what they would refuse must not leave either.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn checked(self) -> Result<Self, Diagnostics> {
        self.problems().into_result(DOCUMENT)?;
        Ok(self)
    }

    fn problems(&self) -> Problems {
        let mut problems = Problems::new();
        if self.format != FORMAT {
            problems.add_allowed("format", format!("`{}`", self.format), FORMAT);
        }
        problems.in_range("volumes", self.volumes, 0..=MAX_VOLUMES);
        if !self.classes.is_sorted_by(|a, b| a.class < b.class) {
            problems.add("classes", "are not in strictly ascending order");
        }
        for ClassCount { class, annotated, present, pseudo } in &self.classes {
            problems.in_range(&format!("classes.{class}.annotated"), *annotated, 1..=self.volumes.max(1));
            problems.in_range(&format!("classes.{class}.present"), present.unwrap_or(0), 0..=*annotated);
            problems.in_range(&format!("classes.{class}.pseudo"), *pseudo, 0..=*annotated);
        }
        self.check_datasets(&mut problems);
        problems
    }

    fn check_datasets(&self, problems: &mut Problems) {
        if self.datasets.len() > MAX_DATASETS || !self.datasets.is_sorted_by(|a, b| a.name < b.name) {
            problems.add_allowed(
                "datasets",
                "list",
                format!("at most {MAX_DATASETS}, in strictly ascending order"),
            );
        }
        let total: u64 = self.datasets.iter().map(|dataset| u64::from(dataset.volumes)).sum();
        if total != u64::from(self.volumes) {
            problems.add_allowed("datasets", format!("{total} volumes in all"), format!("{}", self.volumes));
        }
        for _ in self.datasets.iter().filter(|dataset| !names_dataset(&dataset.name)) {
            problems.add_allowed("datasets", "a name", DATASET_NAMES);
        }
    }
}

/// One class while its volumes are counted.
struct Tally<'a> {
    count: ClassCount,
    patients: ClassPatients<&'a str>,
    /// Those of the volumes that annotators labelled. What a model labelled shows the class, and how many these are is told:
    /// without them `present` is that of the others.
    of_annotators: ClassPatients<&'a str>,
}

impl<'a> Tally<'a> {
    fn of(class: ClassId) -> Self {
        let count = ClassCount { class, annotated: 0, present: None, pseudo: 0 };
        Self { count, patients: ClassPatients::default(), of_annotators: ClassPatients::default() }
    }

    fn add(&mut self, case: &CaseLabels<'a>) {
        let shown = case.present.contains(&self.count.class);
        self.count.annotated += 1;
        self.count.pseudo += u32::from(case.pseudo);
        if shown {
            *self.count.present.get_or_insert(0) += 1;
        }
        self.patients.add(case.patient, shown);
        if !case.pseudo {
            self.of_annotators.add(case.patient, shown);
        }
    }

    fn told(self, min_count: u32) -> ClassCount {
        let mut both = [self.patients, self.of_annotators].into_iter();
        let may_be_told = both.all(|patients| patients.disclosure(min_count) == Disclosure::Counts);
        ClassCount { present: self.count.present.filter(|_| may_be_told), ..self.count }
    }
}

/// Whether a manifest may name a data set so.
pub(crate) fn names_dataset(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (1..=60).contains(&name.len()) && name.chars().all(plain)
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

impl SignedDocument for LabelManifest {
    const MAX_BYTES: usize = 64 << 10;

    fn to_bytes(&self) -> Vec<u8> {
        // Invariant: every field has a JSON form.
        serde_json::to_vec(self).expect("a manifest has a JSON form")
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Diagnostics> {
        let manifest: Self = serde_json::from_slice(bytes)
            .map_err(|error| Diagnostics::whole_file(DOCUMENT, error.to_string()))?;
        manifest.checked()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Digest;
    use crate::signed::{Signed, SignedError, SigningKey};

    fn classes(ids: &[u8]) -> BTreeSet<ClassId> {
        ids.iter().filter_map(|&id| ClassId::new(id)).collect()
    }

    fn manifest(min_count: u32) -> LabelManifest {
        let (liver, both) = (classes(&[6]), classes(&[6, 27]));
        let case = |dataset, patient, annotated, present| CaseLabels {
            dataset,
            patient,
            annotated,
            present,
            pseudo: false,
        };
        let cases = [
            case("lits", "anna", &both, &both),
            case("lits", "bo", &both, &liver),
            case("chaos", "cy", &liver, &liver),
        ];
        let taxonomy = TaxonomyDigest(Digest::of(b"taxonomy"));
        LabelManifest::count("site-a".parse().unwrap(), taxonomy, cases, min_count)
    }

    #[test]
    fn annotated_is_exact_and_present_is_left_out_below_the_smallest_count() {
        let counts = |min_count| {
            let manifest = manifest(min_count);
            manifest.classes.iter().map(|c| (c.class.get(), c.annotated, c.present)).collect::<Vec<_>>()
        };
        assert_eq!(counts(1), [(6, 3, Some(3)), (27, 2, Some(1))]);
        assert_eq!(counts(2), [(6, 3, Some(3)), (27, 2, None)]);
        assert_eq!(counts(5), [(6, 3, None), (27, 2, None)]);
        assert_eq!((manifest(5).volumes, manifest(5).datasets.len()), (3, 2));
    }

    #[test]
    fn a_finding_that_no_patient_has_is_left_out_too() {
        let annotated = classes(&[27]);
        let present = BTreeSet::new();
        let (dataset, patient) = ("lits", "anna");
        let case = CaseLabels { dataset, patient, annotated: &annotated, present: &present, pseudo: false };
        let taxonomy = TaxonomyDigest(Digest::of(b"taxonomy"));
        let manifest = LabelManifest::count("a".parse().unwrap(), taxonomy, [case], 0);
        assert_eq!(manifest.classes[0].present, None);
    }

    /// What is told at a `min_count` of 5 of tumours in these volumes, each of a patient, with one or not, of a model or not.
    fn tumours(volumes: impl IntoIterator<Item = (u32, bool, bool)>) -> ClassCount {
        let (tumour, nothing) = (classes(&[27]), BTreeSet::new());
        let volumes: Vec<(String, bool, bool)> = volumes
            .into_iter()
            .map(|(patient, shown, pseudo)| (patient.to_string(), shown, pseudo))
            .collect();
        let cases = volumes.iter().map(|(patient, shown, pseudo)| CaseLabels {
            dataset: "lits",
            patient,
            annotated: &tumour,
            present: if *shown { &tumour } else { &nothing },
            pseudo: *pseudo,
        });
        let taxonomy = TaxonomyDigest(Digest::of(b"taxonomy"));
        LabelManifest::count("a".parse().unwrap(), taxonomy, cases, 5).classes[0]
    }

    #[test]
    fn scans_of_one_patient_are_one_finding() {
        let of_one = tumours((0..5).map(|_| (0, true, false)));
        assert_eq!((of_one.annotated, of_one.present), (5, None));
        assert_eq!(tumours((0..5).map(|patient| (patient, true, false))).present, Some(5));
        assert_eq!(tumours((0..10).map(|scan| (scan / 2, true, false))).present, Some(10));
    }

    #[test]
    fn how_few_lack_a_finding_does_not_follow_from_how_many_have_it() {
        let with = |shown: u32| tumours((0..20).map(|patient| (patient, patient < shown, false)));
        for few in [0, 1, 4, 16, 19] {
            assert_eq!((with(few).annotated, with(few).present), (20, None), "{few} of 20");
        }
        for many in [5, 15, 20] {
            assert_eq!(with(many).present, Some(many));
        }
    }

    #[test]
    fn what_a_model_labelled_does_not_hide_how_few_findings_are_of_annotators() {
        let with = |shown: u32| {
            let of_annotators = (0..20).map(move |patient| (patient, patient < shown, false));
            tumours(of_annotators.chain((20..30).map(|patient| (patient, true, true))))
        };
        assert_eq!((with(2).annotated, with(2).pseudo, with(2).present), (30, 10, None), "12 less 10 are 2");
        assert_eq!(with(6).present, Some(16));
    }

    #[test]
    fn a_signed_manifest_reads_back_under_its_key_alone() {
        let (key, other) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
        let signed = Signed::sign(&manifest(1), &key);
        assert_eq!(signed.verify(&key.verifying_key()).unwrap(), manifest(1));
        assert!(matches!(signed.verify(&other.verifying_key()), Err(SignedError::Signature)));
        for at in 0..signed.bytes().len() {
            let mut bytes = signed.bytes().to_vec();
            bytes[at] ^= 1;
            let damaged = Signed::<LabelManifest>::from_parts(bytes, *signed.signature());
            assert!(matches!(damaged.verify(&key.verifying_key()), Err(SignedError::Signature)));
        }
    }

    #[test]
    fn the_longest_manifest_is_taken() {
        let most = MAX_VOLUMES;
        let count = |class| ClassCount { class, annotated: most, present: Some(most), pseudo: most };
        let dataset = |number: usize| DatasetCount { name: format!("{number:060}"), volumes: most / 100 };
        let longest = LabelManifest {
            site: "s".repeat(40).parse().unwrap(),
            volumes: most,
            classes: (1..=u8::MAX).filter_map(ClassId::new).map(count).collect(),
            datasets: (0..MAX_DATASETS).map(dataset).collect(),
            ..manifest(1)
        };
        let key = SigningKey::from_bytes(&[1; 32]);
        assert_eq!(Signed::sign(&longest, &key).verify(&key.verifying_key()).unwrap(), longest);
    }

    #[test]
    fn a_signature_for_another_kind_of_document_is_worthless() {
        let key = SigningKey::from_bytes(&[1; 32]);
        let signed = Signed::sign(&manifest(1), &key);
        let as_report = Signed::<crate::report::EvaluationReport>::from_parts(
            signed.bytes().to_vec(),
            *signed.signature(),
        );
        assert!(matches!(as_report.verify(&key.verifying_key()), Err(SignedError::Document(_))));
    }

    #[test]
    fn a_manifest_that_contradicts_itself_is_refused() {
        let text = String::from_utf8(manifest(1).to_bytes()).unwrap();
        let damage = [
            ("\"present\":3", "\"present\":4"),
            ("\"annotated\":2", "\"annotated\":0"),
            ("\"volumes\":3", "\"volumes\":2"),
            ("\"class\":27", "\"class\":6"),
            ("label manifest 1", "label manifest 2"),
            ("\"name\":\"lits\"", "\"name\":\"Meier, Anna\""),
            ("{\"format\"", "{\"patients\":[],\"format\""),
        ];
        for (from, to) in damage {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text, "{from}");
            assert!(LabelManifest::from_bytes(changed.as_bytes()).is_err(), "{to}");
        }
    }

    #[test]
    fn what_a_model_labelled_is_counted_apart_and_named_only_where_there_is_any() {
        let (liver, both) = (classes(&[6]), classes(&[6, 27]));
        let (dataset, patient) = ("lits", "anna");
        let real = CaseLabels { dataset, patient, annotated: &both, present: &both, pseudo: false };
        let dataset = "pseudo-labels";
        let pseudo = CaseLabels { dataset, patient, annotated: &liver, present: &liver, pseudo: true };
        let taxonomy = TaxonomyDigest(Digest::of(b"taxonomy"));
        let count =
            |cases: Vec<CaseLabels<'_>>| LabelManifest::count("a".parse().unwrap(), taxonomy, cases, 1);
        let mixed = count(vec![real, pseudo, pseudo]);
        assert_eq!((mixed.annotated(classes(&[6]).pop_first().unwrap()), mixed.classes[0].pseudo), (3, 2));
        assert_eq!(mixed.classes[1].pseudo, 0);

        let text = String::from_utf8(mixed.to_bytes()).unwrap();
        assert_eq!(text.matches("\"pseudo\":").count(), 1, "{text}");
        assert_eq!(LabelManifest::from_bytes(text.as_bytes()).unwrap(), mixed);
        let more = text.replace("\"pseudo\":2", "\"pseudo\":4");
        assert!(LabelManifest::from_bytes(more.as_bytes()).is_err(), "more than are annotated");
        assert!(!String::from_utf8(count(vec![real]).to_bytes()).unwrap().contains("\"pseudo\":"));
    }
}
