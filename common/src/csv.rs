//! Lines of comma-separated values, as spreadsheets and statistics programs read them (RFC 4180 but for the line's end).

/// One line with its end. A field that holds a comma, a quote or a line's end is quoted.
pub fn line<S: AsRef<str>>(fields: impl IntoIterator<Item = S>) -> String {
    let quoted: Vec<String> = fields.into_iter().map(|field| quote(field.as_ref())).collect();
    quoted.join(",") + "\n"
}

/// What a missing number looks like: nothing.
pub fn optional<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

fn quote(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_fields_that_would_break_the_line_are_quoted() {
        assert_eq!(line(["scan", "liver tumor", ""]), "scan,liver tumor,\n");
        assert_eq!(line(["a,b", "say \"a\"", "two\nlines"]), "\"a,b\",\"say \"\"a\"\"\",\"two\nlines\"\n");
        assert_eq!(line([optional(Some(0.5)), optional(None::<u32>)]), "0.5,\n");
    }
}
