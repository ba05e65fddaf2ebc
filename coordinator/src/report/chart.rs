//! Line charts and intervals as inline SVG, in the page's own colours: `var(--…)` follows light, dark and print.
//!
//! Knows points and axes, nothing of studies. Numbers are written with one decimal so that pages differ only where
//! data does.

use std::fmt::Write;

/// A line, and perhaps a band around it.
pub(super) struct Line {
    /// Index of its colour.
    pub colour: usize,
    /// `(x, y)`, by x.
    pub points: Vec<(f64, f64)>,
    /// `(x, low, high)`, by x.
    pub band: Vec<(f64, f64, f64)>,
    /// What a reader without eyes for it is told.
    pub title: String,
}

/// A chart's frame. Sizes are in SVG user units.
pub(super) struct Frame {
    pub width: f64,
    pub height: f64,
    /// Largest x; the smallest is `x_min`.
    pub x_max: f64,
    pub x_min: f64,
    /// Largest y; the smallest is 0.
    pub y_max: f64,
    /// Values at which to draw a horizontal rule, labelled.
    pub y_ticks: Vec<f64>,
    /// Values at which to label the x axis.
    pub x_ticks: Vec<f64>,
    /// Room for the labels of the y axis.
    pub left: f64,
}

/// Colours of lines; the page defines as many.
pub(super) const COLOURS: usize = 6;

const TOP: f64 = 8.0;
const RIGHT: f64 = 10.0;
const BOTTOM: f64 = 20.0;

impl Frame {
    /// Draws `lines` in this frame.
    pub(super) fn draw(&self, lines: &[Line], label: &str) -> String {
        let mut svg = format!(
            r#"<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">"#,
            self.width,
            self.height,
            escape(label)
        );
        self.draw_axes(&mut svg);
        for line in lines {
            self.draw_line(&mut svg, line);
        }
        svg.push_str("</svg>");
        svg
    }

    fn draw_axes(&self, svg: &mut String) {
        for &y in &self.y_ticks {
            let at = self.y(y);
            let right = self.width - RIGHT;
            write_infallibly(
                svg,
                format_args!(
                    r#"<line class="rule" x1="{:.1}" x2="{right:.1}" y1="{at:.1}" y2="{at:.1}"/><text class="tick" text-anchor="end" x="{:.1}" y="{:.1}">{}</text>"#,
                    self.left,
                    self.left - 5.0,
                    at + 3.2,
                    number(y)
                ),
            );
        }
        for &x in &self.x_ticks {
            write_infallibly(
                svg,
                format_args!(
                    r#"<text class="tick" text-anchor="middle" x="{:.1}" y="{:.1}">{}</text>"#,
                    self.x(x),
                    self.height - 5.0,
                    number(x)
                ),
            );
        }
    }

    fn draw_line(&self, svg: &mut String, line: &Line) {
        let colour = line.colour % COLOURS;
        if line.band.len() > 1 {
            let upper = line.band.iter().map(|&(x, _, high)| self.point(x, high));
            let lower = line.band.iter().rev().map(|&(x, low, _)| self.point(x, low));
            let path = upper.chain(lower).collect::<Vec<_>>().join(" ");
            write_infallibly(svg, format_args!(r#"<polygon class="band c{colour}" points="{path}"/>"#));
        }
        let path = line.points.iter().map(|&(x, y)| self.point(x, y)).collect::<Vec<_>>().join(" ");
        let title = escape(&line.title);
        write_infallibly(
            svg,
            format_args!(
                r#"<polyline class="line c{colour}" points="{path}"><title>{title}</title></polyline>"#
            ),
        );
        if let Some(&(x, y)) = line.points.last() {
            let (x, y) = (self.x(x), self.y(y));
            write_infallibly(
                svg,
                format_args!(r#"<circle class="dot c{colour}" cx="{x:.1}" cy="{y:.1}" r="2.6"/>"#),
            );
        }
    }

    fn point(&self, x: f64, y: f64) -> String {
        format!("{:.1},{:.1}", self.x(x), self.y(y))
    }

    fn x(&self, x: f64) -> f64 {
        let share = (x - self.x_min) / (self.x_max - self.x_min).max(f64::MIN_POSITIVE);
        self.left + share.clamp(0.0, 1.0) * (self.width - self.left - RIGHT)
    }

    fn y(&self, y: f64) -> f64 {
        let share = y / self.y_max.max(f64::MIN_POSITIVE);
        TOP + (1.0 - share.clamp(0.0, 1.0)) * (self.height - TOP - BOTTOM)
    }
}

/// A value from 0 to 1 with its interval.
pub(super) struct Mark {
    /// Index of its colour.
    pub colour: usize,
    pub value: f64,
    pub interval: Option<[f64; 2]>,
}

/// Marks with whiskers, each below the one before, on a scale from 0 to 1.
pub(super) fn interval_marks(marks: &[Mark], width: f64) -> String {
    const STEP: f64 = 8.0;
    const FIRST: f64 = 7.0;
    let height = 2.0 * FIRST + STEP * (marks.len() as f64 - 1.0).max(0.0);
    let right = width - 2.0;
    let x = |share: f64| 2.0 + share.clamp(0.0, 1.0) * (right - 2.0);
    let mut svg = format!(
        r#"<svg class="mark" width="{width}" height="{height}" viewBox="0 0 {width} {height}" aria-hidden="true">"#
    );
    for (i, mark) in marks.iter().enumerate() {
        let (y, colour) = (FIRST + STEP * i as f64, mark.colour % COLOURS);
        write_infallibly(
            &mut svg,
            format_args!(r#"<line class="rule" x1="2" x2="{right}" y1="{y}" y2="{y}"/>"#),
        );
        if let Some([low, high]) = mark.interval {
            let (from, to) = (x(low), x(high));
            write_infallibly(
                &mut svg,
                format_args!(
                    r#"<line class="whisker c{colour}" x1="{from:.1}" x2="{to:.1}" y1="{y}" y2="{y}"/>"#
                ),
            );
        }
        let at = x(mark.value);
        write_infallibly(
            &mut svg,
            format_args!(r#"<circle class="dot c{colour}" cx="{at:.1}" cy="{y}" r="3.4"/>"#),
        );
    }
    svg.push_str("</svg>");
    svg
}

/// Round values from 0 to at least `max`, five or so.
pub(super) fn ticks(max: f64) -> Vec<f64> {
    if !(max > 0.0 && max.is_finite()) {
        return vec![0.0, 1.0];
    }
    let power = 10f64.powf((max / 4.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].iter().map(|m| m * power).find(|step| max / step <= 5.0);
    let step = step.unwrap_or(max);
    let count = (max / step).ceil() as u32;
    (0..=count).map(|i| f64::from(i) * step).collect()
}

/// Whole values from `first` to `last`, at most `most` of them, the last one always.
pub(super) fn whole_ticks(first: u32, last: u32, most: u32) -> Vec<f64> {
    let span = last.saturating_sub(first);
    let step = span.div_ceil(most.max(1)).max(1);
    let mut ticks: Vec<u32> = (first..=last).step_by(step as usize).collect();
    if ticks.last() != Some(&last) {
        // The last value replaces a neighbour that its label would touch.
        if ticks.last().is_some_and(|&t| last - t < step.div_ceil(2)) {
            ticks.pop();
        }
        ticks.push(last);
    }
    ticks.into_iter().map(f64::from).collect()
}

fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

fn write_infallibly(to: &mut String, what: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = to.write_fmt(what);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_reach_the_top() {
        assert_eq!(ticks(0.93), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(ticks(3.0), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(ticks(f64::NAN), [0.0, 1.0]);
        assert_eq!(whole_ticks(0, 3, 6), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(whole_ticks(0, 50, 5), [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]);
        assert_eq!(whole_ticks(0, 51, 5).last(), Some(&51.0));
    }

    #[test]
    fn marks_lie_below_each_other_in_their_own_colours() {
        let mark = |colour, value, interval| Mark { colour, value, interval };
        let svg = interval_marks(&[mark(0, 0.5, Some([0.25, 0.75])), mark(7, 2.0, None)], 124.0);
        assert!(svg.contains(r#"width="124" height="22""#), "{svg}");
        assert!(svg.contains(r#"<line class="whisker c0" x1="32.0" x2="92.0" y1="7" y2="7"/>"#), "{svg}");
        assert!(svg.contains(r#"<circle class="dot c1" cx="122.0" cy="15" r="3.4"/>"#), "{svg}");
        assert_eq!(svg.matches("whisker").count(), 1);
    }

    #[test]
    fn what_is_drawn_stays_in_the_frame() {
        let frame = Frame {
            width: 100.0,
            height: 50.0,
            x_min: 0.0,
            x_max: 2.0,
            y_max: 1.0,
            y_ticks: vec![],
            x_ticks: vec![],
            left: 10.0,
        };
        let line =
            Line { colour: 7, points: vec![(9.0, -3.0), (1.0, 4.0)], band: vec![], title: "<a>".to_owned() };
        let svg = frame.draw(&[line], "x");
        assert!(svg.contains(r#"class="line c1" points="90.0,30.0 50.0,8.0""#), "{svg}");
        assert!(svg.contains("&lt;a>"));
    }
}
