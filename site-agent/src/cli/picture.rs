//! What our drawings share: self-contained SVG, or the same in a page of HTML. Nothing is loaded from elsewhere.

use std::fmt::Write;
use std::path::Path;

use super::error_report::CliError;

/// In which of the two forms a drawing is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Picture {
    Svg,
    Html,
}

impl Picture {
    /// The form that the name of a file asks for.
    pub(super) fn of(path: &Path) -> Result<Self, CliError> {
        match path.extension().and_then(|end| end.to_str()) {
            Some("svg") => Ok(Self::Svg),
            Some("html") => Ok(Self::Html),
            _ => {
                let error = anyhow::anyhow!("{}: expected a name that ends in .svg or .html", path.display());
                Err(CliError::new(error))
            }
        }
    }

    /// The text of the file; `title` is plain text, `svg` is the whole drawing.
    pub(super) fn text(self, title: &str, svg: String) -> String {
        match self {
            Self::Svg => svg,
            Self::Html => format!(
                "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>{}</title>\n<body style=\"margin:16px\">\n{svg}</body>\n</html>\n",
                escape(title)
            ),
        }
    }
}

/// Plain text within SVG and HTML, in attributes too.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

/// The begin of a drawing of this size in user units, on white; `title` is plain text, for readers who do not see it.
pub(super) fn open_svg(width: f64, height: f64, title: &str) -> String {
    let title = escape(title);
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0} {height:.0}" width="{width:.0}" height="{height:.0}" font-family="system-ui, sans-serif" role="img"><title>{title}</title><rect width="100%" height="100%" fill="#fff"/>"##
    )
}

pub(super) fn write_infallibly(to: &mut String, what: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = to.write_fmt(what);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_holds_the_drawing_and_its_title_as_plain_text() {
        let page = Picture::of(Path::new("a.html")).unwrap().text("a & <b>", "<svg></svg>\n".to_owned());
        assert!(page.starts_with("<!doctype html>") && page.contains("<svg></svg>"), "{page}");
        assert!(page.contains("<title>a &amp; &lt;b></title>"), "{page}");
        assert_eq!(Picture::of(Path::new("a.svg")).unwrap().text("a", "<svg/>".to_owned()), "<svg/>");
        assert!(Picture::of(Path::new("svg")).is_err());
    }
}
