//! What is wrong with a file: collected by key, shown with file and line.

use std::fmt;
use std::ops::RangeInclusive;

/// One mistake, under the dotted key it belongs to, such as `training.micro_batch` or `class[3].parents`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Dotted key; empty for the document as a whole.
    pub key: String,
    /// What is wrong, naming the value found.
    pub problem: String,
    /// What would have been right, when that can be said.
    pub allowed: Option<String>,
}

/// Mistakes found so far. A check adds to it and goes on, so that one run shows them all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a mistake that needs no list of right values.
    pub fn add(&mut self, key: impl Into<String>, problem: impl Into<String>) {
        self.0.push(Problem { key: key.into(), problem: problem.into(), allowed: None });
    }

    /// Adds a mistake and what would have been right.
    pub fn add_allowed(
        &mut self,
        key: impl Into<String>,
        problem: impl Into<String>,
        allowed: impl Into<String>,
    ) {
        self.0.push(Problem { key: key.into(), problem: problem.into(), allowed: Some(allowed.into()) });
    }

    /// Adds a mistake when `value` lies outside `range` (a NaN does).
    pub fn in_range<T: PartialOrd + fmt::Display>(&mut self, key: &str, value: T, range: RangeInclusive<T>) {
        if !range.contains(&value) {
            let allowed = format!("{} to {}", range.start(), range.end());
            self.add_allowed(key, format!("{value} is out of range"), allowed);
        }
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The mistakes in order of discovery.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }

    /// `Ok` when nothing is wrong; otherwise the mistakes of a text without lines (JSON).
    ///
    /// # Errors
    /// [`Diagnostics`] of all mistakes.
    pub fn into_result(self, file: &str) -> Result<(), Diagnostics> {
        let items: Vec<_> = self.0.into_iter().map(|problem| Diagnostic { line: None, problem }).collect();
        Diagnostics::unless_empty(file, items)
    }
}

impl IntoIterator for Problems {
    type Item = Problem;
    type IntoIter = std::vec::IntoIter<Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// One mistake at its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// 1-based line, when the format has lines.
    pub line: Option<usize>,
    /// The mistake.
    pub problem: Problem,
}

/// All mistakes of one file, ready to be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostics {
    file: String,
    items: Vec<Diagnostic>,
    hint: Option<String>,
}

impl Diagnostics {
    /// `Ok` when there is no mistake.
    pub(super) fn unless_empty(file: &str, items: Vec<Diagnostic>) -> Result<(), Self> {
        if items.is_empty() {
            return Ok(());
        }
        Err(Self { file: file.to_owned(), items, hint: None })
    }

    /// A file with one mistake that belongs to no line.
    pub fn whole_file(file: &str, problem: impl Into<String>) -> Self {
        let problem = Problem { key: String::new(), problem: problem.into(), allowed: None };
        Self { file: file.to_owned(), items: vec![Diagnostic { line: None, problem }], hint: None }
    }

    /// Adds what the user can do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The mistakes, in order of line.
    pub fn items(&self) -> &[Diagnostic] {
        &self.items
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Diagnostic { line, problem }) in self.items.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\nerror: " };
            write!(f, "{separator}{}", self.file)?;
            if let Some(line) = line {
                write!(f, ":{line}")?;
            }
            if !problem.key.is_empty() {
                write!(f, ": `{}`", problem.key)?;
            }
            write!(f, ": {}", problem.problem)?;
            if let Some(allowed) = &problem.allowed {
                write!(f, "\n  allowed: {allowed}")?;
            }
        }
        match &self.hint {
            Some(hint) => write!(f, "\n\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Diagnostics {}
