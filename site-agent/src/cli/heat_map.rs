//! A square table of numbers as a drawing.
//!
//! Knows rows with names, nothing of classes. Every cell shows its number, so that the picture can be read without its
//! colours.

use super::picture::{escape, open_svg, write_infallibly};

/// Names of rows and columns, and rows of numbers as long as there are names.
pub(super) struct HeatMap<'a> {
    pub title: &'a str,
    pub names: &'a [String],
    pub rows: Vec<&'a [f64]>,
}

/// Side of a cell and the size of the margins, in SVG user units.
const CELL: f64 = 22.0;
const NAMES: f64 = 190.0;
const TOP: f64 = 34.0;
const SCALE_WIDTH: f64 = 90.0;
/// From the least number to the largest.
const COLOURS: [[f64; 3]; 5] = [
    [247.0, 246.0, 240.0],
    [200.0, 221.0, 226.0],
    [118.0, 175.0, 196.0],
    [46.0, 114.0, 152.0],
    [13.0, 44.0, 84.0],
];

impl HeatMap<'_> {
    /// The drawing as SVG.
    pub(super) fn svg(&self) -> String {
        let side = CELL * self.names.len() as f64;
        let (left, top) = (NAMES, TOP + NAMES);
        let (width, height) = (left + side + SCALE_WIDTH, top + side + 10.0);
        let mut svg = open_svg(width, height, self.title);
        write_infallibly(
            &mut svg,
            format_args!(
                r##"<text x="10" y="22" font-size="15">{title}</text>"##,
                title = escape(self.title)
            ),
        );
        for (i, name) in self.names.iter().enumerate() {
            draw_name(&mut svg, name, [left, top], CELL * (i as f64 + 0.5));
        }
        let (low, high) = self.range();
        for (y, (row, row_name)) in self.rows.iter().zip(self.names).enumerate() {
            for (x, (&value, name)) in row.iter().zip(self.names).enumerate() {
                let corner = [left + CELL * x as f64, top + CELL * y as f64];
                draw_cell(&mut svg, corner, value, share(value, low, high), &format!("{row_name}, {name}"));
            }
        }
        draw_scale(&mut svg, [left + side + 20.0, top], side.min(240.0), low, high);
        svg.push_str("</svg>\n");
        svg
    }

    /// Least and largest number off the diagonal, which may be all the same and would use up the colours.
    fn range(&self) -> (f64, f64) {
        let rows = self.rows.iter().enumerate();
        let others = rows.flat_map(|(y, row)| row.iter().enumerate().filter(move |(x, _)| *x != y));
        let (low, high) = others.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), (_, &value)| {
            (low.min(value), high.max(value))
        });
        if low <= high { (low, high) } else { (0.0, 1.0) }
    }
}

/// One name beside its row and above its column, `at` from the corner of the cells.
fn draw_name(svg: &mut String, name: &str, [left, top]: [f64; 2], at: f64) {
    let name = escape(name);
    let (x, y) = (left - 6.0, top + at + 4.0);
    write_infallibly(
        svg,
        format_args!(r#"<text x="{x:.1}" y="{y:.1}" font-size="11" text-anchor="end">{name}</text>"#),
    );
    let (x, y) = (left + at + 4.0, top - 6.0);
    write_infallibly(
        svg,
        format_args!(
            r#"<text x="{x:.1}" y="{y:.1}" font-size="11" transform="rotate(-90 {x:.1} {y:.1})">{name}</text>"#
        ),
    );
}

fn draw_cell(svg: &mut String, [x, y]: [f64; 2], value: f64, share: f64, names: &str) {
    let (fill, names) = (colour(share), escape(names));
    let ink = if share > 0.55 { "#fff" } else { "#222" };
    let (middle, base) = (x + CELL / 2.0, y + CELL / 2.0 + 3.0);
    write_infallibly(
        svg,
        format_args!(
            r#"<g><title>{names}: {value:.4}</title><rect x="{x:.1}" y="{y:.1}" width="{CELL}" height="{CELL}" fill="{fill}"/><text x="{middle:.1}" y="{base:.1}" font-size="8" text-anchor="middle" fill="{ink}">{}</text></g>"#,
            short(value)
        ),
    );
}

/// What the colours mean: a bar with the least number at its foot.
fn draw_scale(svg: &mut String, [x, y]: [f64; 2], height: f64, low: f64, high: f64) {
    const STEPS: u32 = 60;
    let step = height / f64::from(STEPS);
    for i in 0..STEPS {
        let share = 1.0 - (f64::from(i) + 0.5) / f64::from(STEPS);
        let (at, fill) = (y + step * f64::from(i), colour(share));
        // A little taller than a step: no seams.
        let tall = step + 0.5;
        write_infallibly(
            svg,
            format_args!(r#"<rect x="{x:.1}" y="{at:.1}" width="14" height="{tall:.1}" fill="{fill}"/>"#),
        );
    }
    for i in 0..=4 {
        let share = f64::from(i) / 4.0;
        let (at, value) = (y + height * (1.0 - share) + 4.0, low + (high - low) * share);
        let label = x + 20.0;
        write_infallibly(
            svg,
            format_args!(r#"<text x="{label:.1}" y="{at:.1}" font-size="11">{value:.2}</text>"#),
        );
    }
}

/// Where a value lies between the least and the largest.
fn share(value: f64, low: f64, high: f64) -> f64 {
    if high > low { ((value - low) / (high - low)).clamp(0.0, 1.0) } else { 0.5 }
}

fn colour(share: f64) -> String {
    let place = share.clamp(0.0, 1.0) * (COLOURS.len() - 1) as f64;
    let below = (place as usize).min(COLOURS.len() - 2);
    let part = place - below as f64;
    let [r, g, b] = [0, 1, 2].map(|c| {
        // Between two colours of 0 to 255.
        (COLOURS[below][c] * (1.0 - part) + COLOURS[below + 1][c] * part).round() as u8
    });
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// Two decimals without the zero before them: four characters fit into a cell.
fn short(value: f64) -> String {
    let text = format!("{value:.2}");
    match text.strip_prefix("-0.") {
        Some("00") => ".00".to_owned(),
        Some(decimals) => format!("−.{decimals}"),
        None => text.strip_prefix('0').map_or_else(|| text.clone(), str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_has_its_number_and_the_colours_are_for_what_differs() {
        let names = ["Liver".to_owned(), "<b>".to_owned()];
        let (first, second) = ([1.0, 0.25], [0.25, 1.0]);
        let map = HeatMap { title: "a & b", names: &names, rows: vec![&first[..], &second[..]] };
        let svg = map.svg();
        assert_eq!(map.range(), (0.25, 0.25));
        assert!(svg.contains("a &amp; b") && !svg.contains("<b>"), "{svg}");
        assert!(svg.contains("<title>Liver, &lt;b>: 0.2500</title>"), "{svg}");
        assert_eq!(svg.matches(">.25</text>").count(), 2);
        assert_eq!(svg.matches(">1.00</text>").count(), 2);
    }

    #[test]
    fn colours_go_from_the_least_to_the_largest() {
        assert_eq!([colour(0.0), colour(1.0), colour(7.0)], ["#f7f6f0", "#0d2c54", "#0d2c54"]);
        assert_eq!([share(0.0, 0.0, 2.0), share(1.0, 0.0, 2.0), share(1.0, 1.0, 1.0)], [0.0, 0.5, 0.5]);
    }

    #[test]
    fn numbers_in_cells_are_short() {
        assert_eq!([0.994, 1.0, -0.5, -0.001].map(short), [".99", "1.00", "−.50", ".00"]);
    }
}
