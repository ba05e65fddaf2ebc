//! Rows on one scale as a drawing: scores as boxes with whiskers, differences as intervals.
//!
//! Knows names and numbers, nothing of classes. Hovering over a dot names it.

use super::picture::{escape, open_svg, write_infallibly};
use super::quartiles::Quartiles;

/// Rows from top to bottom.
pub(super) struct RowPlot<'a> {
    pub title: &'a str,
    /// Least and largest number of the scale.
    pub range: [f64; 2],
    pub rows: &'a [Row],
}

/// One row.
pub(super) struct Row {
    pub name: String,
    pub mark: Mark,
}

/// What a row shows.
pub(super) enum Mark {
    /// Quartiles of many values; few values are dots.
    Box(Vec<Dot>),
    /// A mean between the ends of its interval.
    Interval { mean: f64, low: f64, high: f64 },
}

/// One value, and what it is of.
pub(super) struct Dot {
    pub value: f64,
    pub name: String,
}

/// Fewest values that have a box.
pub(super) const FEWEST_FOR_A_BOX: usize = 5;

/// Sizes in SVG user units.
const NAMES: f64 = 200.0;
const WIDTH: f64 = 460.0;
const NOTES: f64 = 80.0;
const TOP: f64 = 30.0;
const ROW: f64 = 20.0;
const BOTTOM: f64 = 22.0;
/// Parts of the scale between labels.
const PARTS: u32 = 4;

const INK: &str = "#1f5f8b";
const FILL: &str = "#cfe0ea";

impl RowPlot<'_> {
    /// The drawing as SVG.
    pub(super) fn svg(&self) -> String {
        let foot = TOP + ROW * self.rows.len() as f64;
        let (width, height) = (NAMES + WIDTH + NOTES, foot + BOTTOM);
        let title = escape(self.title);
        let mut svg = open_svg(width, height, self.title);
        write_infallibly(&mut svg, format_args!(r##"<text x="10" y="18" font-size="14">{title}</text>"##));
        self.draw_scale(&mut svg, foot);
        for (number, row) in self.rows.iter().enumerate() {
            let y = TOP + ROW * (number as f64 + 0.5);
            let (x, base, name) = (NAMES - 8.0, y + 4.0, escape(&row.name));
            write_infallibly(
                &mut svg,
                format_args!(
                    r#"<text x="{x:.1}" y="{base:.1}" font-size="11" text-anchor="end">{name}</text>"#
                ),
            );
            match &row.mark {
                Mark::Box(dots) => self.draw_box(&mut svg, dots, y),
                &Mark::Interval { mean, low, high } => self.draw_interval(&mut svg, [low, mean, high], y),
            }
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn draw_scale(&self, svg: &mut String, foot: f64) {
        let [low, high] = self.range;
        for part in 0..=PARTS {
            let value = low + (high - low) * f64::from(part) / f64::from(PARTS);
            let (x, label, base) = (self.x(value), short(value), foot + 14.0);
            write_infallibly(
                svg,
                format_args!(
                    r##"<line x1="{x:.1}" x2="{x:.1}" y1="{TOP}" y2="{foot:.1}" stroke="#ddd"/><text x="{x:.1}" y="{base:.1}" font-size="10" fill="#555" text-anchor="middle">{label}</text>"##
                ),
            );
        }
    }

    fn draw_box(&self, svg: &mut String, dots: &[Dot], y: f64) {
        let values: Vec<f64> = dots.iter().map(|dot| dot.value).collect();
        let quartiles = Quartiles::of(&values).filter(|_| values.len() >= FEWEST_FOR_A_BOX);
        if let Some(quartiles) = &quartiles {
            self.draw_quartiles(svg, quartiles, y);
        }
        for dot in dots.iter().filter(|dot| quartiles.is_none_or(|quartiles| quartiles.is_beyond(dot.value)))
        {
            let (x, name, value) = (self.x(dot.value), escape(&dot.name), dot.value);
            write_infallibly(
                svg,
                format_args!(
                    r#"<circle cx="{x:.1}" cy="{y:.1}" r="2.6" fill="{INK}" fill-opacity="0.7"><title>{name}: {value:.3}</title></circle>"#
                ),
            );
        }
        note(svg, &format!("n = {}", dots.len()), y);
    }

    fn draw_quartiles(&self, svg: &mut String, quartiles: &Quartiles, y: f64) {
        let Quartiles { low, first, median, third, high } = *quartiles;
        let [low, first, middle, third, high] = [low, first, median, third, high].map(|value| self.x(value));
        let (top, base, width) = (y - 6.0, y + 6.0, third - first);
        write_infallibly(
            svg,
            format_args!(
                r#"<line x1="{low:.1}" x2="{high:.1}" y1="{y:.1}" y2="{y:.1}" stroke="{INK}"/><rect class="box" x="{first:.1}" y="{top:.1}" width="{width:.1}" height="12" fill="{FILL}" stroke="{INK}"/><line x1="{middle:.1}" x2="{middle:.1}" y1="{top:.1}" y2="{base:.1}" stroke="{INK}" stroke-width="2"><title>median {median:.3}</title></line>"#
            ),
        );
    }

    fn draw_interval(&self, svg: &mut String, [low, mean, high]: [f64; 3], y: f64) {
        let [from, x, to] = [low, mean, high].map(|value| self.x(value));
        write_infallibly(
            svg,
            format_args!(
                r#"<line x1="{from:.1}" x2="{to:.1}" y1="{y:.1}" y2="{y:.1}" stroke="{INK}" stroke-width="2"/><circle cx="{x:.1}" cy="{y:.1}" r="3.4" fill="{INK}"><title>{mean:+.3} ({low:+.3} to {high:+.3})</title></circle>"#
            ),
        );
        note(svg, &format!("{mean:+.3}"), y);
    }

    fn x(&self, value: f64) -> f64 {
        let [low, high] = self.range;
        let share = (value - low) / (high - low).max(f64::MIN_POSITIVE);
        NAMES + share.clamp(0.0, 1.0) * WIDTH
    }
}

/// Words at the end of a row.
fn note(svg: &mut String, words: &str, y: f64) {
    let (x, base) = (NAMES + WIDTH + 10.0, y + 4.0);
    write_infallibly(
        svg,
        format_args!(r##"<text x="{x:.1}" y="{base:.1}" font-size="10" fill="#555">{words}</text>"##),
    );
}

/// Three decimals without zeros at the end.
fn short(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dots(values: &[f64]) -> Mark {
        let dot = |&value: &f64| Dot { value, name: format!("<{value}>") };
        Mark::Box(values.iter().map(dot).collect())
    }

    fn svg(range: [f64; 2], marks: Vec<Mark>) -> String {
        let rows: Vec<Row> = marks.into_iter().map(|mark| Row { name: "a & b".to_owned(), mark }).collect();
        let svg = RowPlot { title: "<t>", range, rows: &rows }.svg();
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert!(svg.contains("&lt;t>") && svg.contains(">a &amp; b</text>"), "{svg}");
        svg
    }

    #[test]
    fn many_values_have_a_box_and_only_those_beyond_the_whiskers_a_dot() {
        let svg = svg([0.0, 1.0], vec![dots(&[0.125, 0.25, 0.375, 0.5, 1.0])]);
        // The scale is 460 wide from 200 on: the box is a quarter of it, from a quarter on.
        assert!(svg.contains(r#"<rect class="box" x="315.0" y="34.0" width="115.0""#), "{svg}");
        assert!(svg.contains(r#"<line x1="257.5" x2="430.0" y1="40.0" y2="40.0""#), "{svg}");
        assert_eq!(svg.matches("<circle").count(), 1);
        assert!(svg.contains("<title>&lt;1>: 1.000</title>") && svg.contains(">n = 5<"), "{svg}");
    }

    #[test]
    fn few_values_are_dots_and_none_is_an_empty_row() {
        let svg = svg([0.0, 1.0], vec![dots(&[0.1, 0.2, 0.3, 0.4]), dots(&[])]);
        assert_eq!(svg.matches("<circle").count(), 4);
        assert!(!svg.contains("class=\"box\"") && svg.contains(">n = 0<"), "{svg}");
    }

    #[test]
    fn an_interval_lies_where_its_ends_are_and_stays_on_the_scale() {
        let wide = Mark::Interval { mean: 0.05, low: -0.05, high: 7.0 };
        let svg = svg([-0.1, 0.1], vec![wide]);
        assert!(svg.contains(r#"<line x1="315.0" x2="660.0""#), "{svg}");
        assert!(
            svg.contains(">+0.050<") && svg.contains(">-0.05</text>") && svg.contains(">0</text>"),
            "{svg}"
        );
    }
}
