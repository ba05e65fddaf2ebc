//! A TOML text that knows on which line each of its keys stands.

use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::report::{Diagnostic, Diagnostics, Problem, Problems};

/// A syntactically valid TOML text and its name.
#[derive(Clone, Debug)]
pub struct Document<'t> {
    file: &'t str,
    text: &'t str,
    root: Spanned<DeTable<'t>>,
}

impl<'t> Document<'t> {
    /// Parses `text`; `file` is the name shown in messages.
    ///
    /// # Errors
    /// All syntax errors.
    pub fn parse(file: &'t str, text: &'t str) -> Result<Self, Diagnostics> {
        let (root, errors) = DeTable::parse_recoverable(text);
        let place = |error: &toml::de::Error| Diagnostic {
            line: error.span().map(|span| line_at(text, span.start)),
            problem: Problem { key: String::new(), problem: error.message().to_owned(), allowed: None },
        };
        let mut items: Vec<_> = errors.iter().map(place).collect();
        items.sort_by_key(|item| item.line);
        Diagnostics::unless_empty(file, items)?;
        Ok(Self { file, text, root })
    }

    /// Reads the raw form. A refused key is taken out and reading tried again, so that one run finds the others too.
    ///
    /// # Errors
    /// All unknown keys and wrong types that do not follow from one another.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Diagnostics> {
        let mut table = self.root.clone();
        let mut items = Vec::new();
        let mut removed: Vec<String> = Vec::new();
        loop {
            let error = match T::deserialize(toml::de::Deserializer::from(table.clone())) {
                Ok(value) if items.is_empty() => return Ok(value),
                Ok(_) => break,
                Err(error) => error,
            };
            let follows = removed.iter().any(|key| error.message() == format!("missing field `{key}`"));
            let entry = error.span().and_then(|span| remove_entry(table.get_mut(), &span, ""));
            if !follows {
                items.push(self.refusal(&error, entry.as_ref()));
            }
            let Some(entry) = entry else { break };
            removed.push(entry.key);
        }
        items.sort_by_key(|item| item.line);
        // Invariant: nothing is taken out before a first item, so the loop ends with at least one.
        Err(Diagnostics::unless_empty(self.file, items).expect_err("at least one refusal"))
    }

    /// `Ok` when nothing is wrong; otherwise each problem with the line of its key.
    ///
    /// # Errors
    /// [`Diagnostics`] of all problems, in order of line.
    pub fn locate(&self, problems: Problems) -> Result<(), Diagnostics> {
        let place = |problem: Problem| Diagnostic { line: self.line_of(&problem.key), problem };
        let mut items: Vec<_> = problems.into_iter().map(place).collect();
        items.sort_by_key(|item| item.line);
        Diagnostics::unless_empty(self.file, items)
    }

    /// The line of a dotted key, or of the nearest key around it that the text has.
    fn line_of(&self, path: &str) -> Option<usize> {
        let mut found = None;
        let mut table = Some(self.root.get_ref());
        let mut array = None;
        for step in path.split(['.', '[']).filter(|step| !step.is_empty()) {
            let value: &Spanned<DeValue<'_>> = if let Some(index) = step.strip_suffix(']') {
                let element = array.and_then(|a: &toml::de::DeArray<'_>| a.get(index.parse::<usize>().ok()?));
                let Some(value) = element else { break };
                found = Some(value.span());
                value
            } else {
                let Some((key, value)) = table.and_then(|t| t.get_key_value(step)) else { break };
                found = Some(key.span());
                value
            };
            table = value.get_ref().as_table();
            array = value.get_ref().as_array();
        }
        found.map(|span| line_at(self.text, span.start))
    }

    fn refusal(&self, error: &toml::de::Error, entry: Option<&Removed>) -> Diagnostic {
        let line = error.span().map(|span| line_at(self.text, span.start));
        let key = entry.map(|entry| entry.path.clone()).unwrap_or_default();
        Diagnostic { line, problem: Problem { key, problem: error.message().to_owned(), allowed: None } }
    }
}

/// An entry taken out of a table.
struct Removed {
    key: String,
    path: String,
}

/// Takes out the innermost entry whose key, value or array element stands at `span`.
fn remove_entry(table: &mut DeTable<'_>, span: &Range<usize>, prefix: &str) -> Option<Removed> {
    if let Some((key, _)) = table.iter().find(|(key, value)| key.span() == *span || stands_at(value, span)) {
        let key = key.clone();
        table.remove(&key);
        let path = format!("{prefix}{}", key.get_ref());
        return Some(Removed { key: key.into_inner().into_owned(), path });
    }
    table.iter_mut().find_map(|(key, value)| {
        let path = format!("{prefix}{}", key.get_ref());
        remove_inside(value.get_mut(), span, &path)
    })
}

/// Whether the value or one of its elements is what an error points at.
fn stands_at(value: &Spanned<DeValue<'_>>, span: &Range<usize>) -> bool {
    let elements = value.get_ref().as_array().into_iter().flatten();
    value.span() == *span || elements.into_iter().any(|element| element.span() == *span)
}

fn remove_inside(value: &mut DeValue<'_>, span: &Range<usize>, path: &str) -> Option<Removed> {
    match value {
        DeValue::Table(table) => remove_entry(table, span, &format!("{path}.")),
        DeValue::Array(array) => array
            .iter_mut()
            .enumerate()
            .find_map(|(index, element)| remove_inside(element.get_mut(), span, &format!("{path}[{index}]"))),
        _ => None,
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|&byte| byte == b'\n').count() + 1
}
