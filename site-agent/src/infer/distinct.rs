//! Names of files and folders that must not meet.

use std::collections::BTreeSet;

/// The names in their order; where several are equal, the later ones get a number.
pub(crate) fn distinct(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut taken = BTreeSet::new();
    let told_apart = |plain: String| {
        let (mut name, mut number) = (plain.clone(), 1);
        while !taken.insert(name.clone()) {
            number += 1;
            name = format!("{plain}-{number}");
        }
        name
    };
    names.into_iter().map(told_apart).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_get_numbers_that_no_other_name_has() {
        let names = ["a", "b", "a", "a-2", "a"].map(str::to_owned);
        assert_eq!(distinct(names), ["a", "b", "a-2", "a-2-2", "a-3"]);
    }
}
