//! Prompts: what is said about a class to a text encoder.

use std::{fmt, str::FromStr};

use super::error::TextError;

/// What stands for the name in a template.
const NAME: &str = "{}";

/// The templates of the paper's Table 1. The third is written as the published embedding has it, without a period at its end.
const PUBLISHED: [(&str, &str); 3] = [
    ("v1", "A photo of a {}."),
    ("v2", "There is {} in this computerized tomography."),
    ("v3", "A computerized tomography of a {}"),
];

/// A sentence with a place for the name of a class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(String);

impl Template {
    /// The sentence about a class; `name` is the taxonomy's `prompt_name`.
    pub fn prompt(&self, name: &str) -> String {
        self.0.replace(NAME, name)
    }
}

impl FromStr for Template {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let published = PUBLISHED.iter().find(|(name, _)| *name == text).map(|&(_, template)| template);
        let template = published.unwrap_or(text);
        if template.contains(NAME) {
            Ok(Self(template.to_owned()))
        } else {
            Err(TextError::Template(text.to_owned()))
        }
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_templates_have_names_and_any_other_has_a_place_for_the_class() {
        let prompt = |template: &str| template.parse::<Template>().map(|t| t.prompt("Liver"));
        assert_eq!(prompt("v1").unwrap(), "A photo of a Liver.");
        assert_eq!(prompt("v2").unwrap(), "There is Liver in this computerized tomography.");
        assert_eq!(prompt("v3").unwrap(), "A computerized tomography of a Liver");
        assert_eq!(prompt("the {} of a patient").unwrap(), "the Liver of a patient");
        for wrong in ["", "v4", "a liver"] {
            assert!(matches!(prompt(wrong), Err(TextError::Template(_))), "{wrong}");
        }
    }
}
