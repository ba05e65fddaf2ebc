//! Points of named groups in a plane as a drawing.
//!
//! Knows groups with names and colours, nothing of classes. Every group has its name in its middle, so that the drawing can
//! be read without its colours. A plane of t-SNE has no axes worth a number: none are drawn.

use super::picture::{escape, open_svg, write_infallibly};

/// Points of one name.
pub(super) struct Group {
    pub name: String,
    /// Red, green, blue.
    pub colour: [u8; 3],
    pub points: Vec<[f64; 2]>,
}

/// Groups in one plane.
pub(super) struct Scatter<'a> {
    pub title: &'a str,
    /// A line below the title.
    pub note: &'a str,
    pub groups: &'a [Group],
}

/// Side of the plane and the size of the margins, in SVG user units.
const SIDE: f64 = 720.0;
const MARGIN: f64 = 20.0;
const TOP: f64 = 56.0;
const LEGEND: f64 = 230.0;
const LEGEND_STEP: f64 = 20.0;
const RADIUS: f64 = 3.0;

impl Scatter<'_> {
    /// The drawing as SVG.
    pub(super) fn svg(&self) -> String {
        let names = LEGEND_STEP * self.groups.len() as f64;
        let (width, height) = (2.0 * MARGIN + SIDE + LEGEND, TOP + SIDE.max(names) + MARGIN);
        let (title, note) = (escape(self.title), escape(self.note));
        let mut svg = open_svg(width, height, self.title);
        write_infallibly(
            &mut svg,
            format_args!(
                r##"<text x="20" y="24" font-size="15">{title}</text><text x="20" y="42" font-size="11" fill="#555">{note}</text><rect x="{MARGIN}" y="{TOP}" width="{SIDE}" height="{SIDE}" fill="none" stroke="#ddd"/>"##
            ),
        );
        let frame = Frame::around(self.groups);
        for group in self.groups {
            draw_points(&mut svg, group, &frame);
        }
        // Over all points, so that none hides a name.
        for (number, group) in self.groups.iter().enumerate() {
            draw_name(&mut svg, group, &frame);
            draw_legend(&mut svg, group, TOP + LEGEND_STEP * (number as f64 + 0.5));
        }
        svg.push_str("</svg>\n");
        svg
    }
}

/// From the plane of the points to the drawing, the same scale along both axes.
struct Frame {
    middle: [f64; 2],
    scale: f64,
}

impl Frame {
    fn around(groups: &[Group]) -> Self {
        let points = || groups.iter().flat_map(|group| &group.points);
        let range = [0, 1].map(|axis| {
            let along = points().map(|point| point[axis]);
            along.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)))
        });
        let widest = range.iter().map(|(low, high)| high - low).fold(0.0, f64::max);
        let scale = if widest > 0.0 { (SIDE - 8.0 * RADIUS) / widest } else { 1.0 };
        Self { middle: range.map(|(low, high)| (low + high) / 2.0), scale }
    }

    fn place(&self, point: [f64; 2]) -> [f64; 2] {
        let along = |axis: usize| (point[axis] - self.middle[axis]) * self.scale + SIDE / 2.0;
        [MARGIN + along(0), TOP + along(1)]
    }
}

fn draw_points(svg: &mut String, group: &Group, frame: &Frame) {
    let (name, fill) = (escape(&group.name), hexadecimal(group.colour));
    write_infallibly(svg, format_args!(r#"<g fill="{fill}" fill-opacity="0.75"><title>{name}</title>"#));
    for &point in &group.points {
        let [x, y] = frame.place(point);
        write_infallibly(svg, format_args!(r#"<circle cx="{x:.1}" cy="{y:.1}" r="{RADIUS}"/>"#));
    }
    svg.push_str("</g>");
}

/// In the middle of most of its points: beside stray ones.
fn draw_name(svg: &mut String, group: &Group, frame: &Frame) {
    let Some(middle) = median(&group.points) else { return };
    let ([x, y], name) = (frame.place(middle), escape(&group.name));
    write_infallibly(
        svg,
        format_args!(
            r##"<text x="{x:.1}" y="{y:.1}" font-size="12" text-anchor="middle" stroke="#fff" stroke-width="3" paint-order="stroke">{name}</text>"##
        ),
    );
}

fn draw_legend(svg: &mut String, group: &Group, y: f64) {
    let (name, fill, count) = (escape(&group.name), hexadecimal(group.colour), group.points.len());
    let (x, text, base) = (2.0 * MARGIN + SIDE, 2.0 * MARGIN + SIDE + 12.0, y + 4.0);
    write_infallibly(
        svg,
        format_args!(
            r#"<circle cx="{x:.1}" cy="{y:.1}" r="5" fill="{fill}"/><text x="{text:.1}" y="{base:.1}" font-size="12">{name} ({count})</text>"#
        ),
    );
}

/// The median of each coordinate.
fn median(points: &[[f64; 2]]) -> Option<[f64; 2]> {
    if points.is_empty() {
        return None;
    }
    Some([0, 1].map(|axis| {
        let mut along: Vec<f64> = points.iter().map(|point| point[axis]).collect();
        along.sort_by(f64::total_cmp);
        along[along.len() / 2]
    }))
}

fn hexadecimal([r, g, b]: [u8; 3]) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(name: &str, points: &[[f64; 2]]) -> Group {
        Group { name: name.to_owned(), colour: [255, 0, 16], points: points.to_vec() }
    }

    #[test]
    fn every_point_lies_in_the_frame_and_every_group_is_named() {
        let groups = [
            group("Liver", &[[-40.0, 3.0], [60.0, 5.0]]),
            group("a & <b>", &[[0.0, -1.0]]),
            group("none", &[]),
        ];
        let svg = Scatter { title: "t", note: "n", groups: &groups }.svg();
        assert_eq!(svg.matches("<circle").count(), 3 + 3);
        assert_eq!(svg.matches("a &amp; &lt;b>").count(), 3, "title, name and legend: {svg}");
        assert!(svg.contains(r##"fill="#ff0010""##) && svg.contains(">Liver (2)</text>"), "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        let frame = Frame::around(&groups);
        for point in groups.iter().flat_map(|group| &group.points) {
            let [x, y] = frame.place(*point);
            assert!((MARGIN..=MARGIN + SIDE).contains(&x) && (TOP..=TOP + SIDE).contains(&y), "{x} {y}");
        }
    }

    #[test]
    fn one_point_lies_in_the_middle() {
        let frame = Frame::around(&[group("Liver", &[[7.0, -2.0]])]);
        assert_eq!(frame.place([7.0, -2.0]), [MARGIN + SIDE / 2.0, TOP + SIDE / 2.0]);
        assert_eq!(median(&[[1.0, 9.0], [5.0, 2.0], [3.0, 4.0]]), Some([3.0, 4.0]));
    }
}
