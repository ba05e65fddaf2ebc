//! How far a command is within a scan, which may take minutes: a bar on a terminal, a line of the log now and then elsewhere.

use std::cell::RefCell;
use std::fmt::Display;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::printable;
use crate::infer::{InferError, Predictor};

/// Between two lines of the log, and before the first: a scan that is quicker has its own line soon enough.
const EVERY: Duration = Duration::from_secs(30);

/// A network that shows how many windows of a scan it has seen.
pub(super) struct WindowProgress<'a> {
    network: &'a dyn Predictor,
    scan: RefCell<Scan>,
}

/// The scan at hand.
struct Scan {
    place: String,
    windows: usize,
    done: usize,
    /// It draws on a terminal alone.
    bar: ProgressBar,
    told: Instant,
}

impl<'a> WindowProgress<'a> {
    pub(super) fn new(network: &'a dyn Predictor) -> Self {
        Self {
            network,
            scan: RefCell::new(Scan::new(String::new(), 0, ProgressBar::hidden(), Instant::now())),
        }
    }

    /// Says which scan comes next: the `number`th of so many.
    pub(super) fn scan(&self, number: usize, of: usize, name: impl Display) {
        self.scan.borrow_mut().place = printable(&format!("[{number}/{of}] {name}"));
    }

    /// Makes room for lines about the scan.
    pub(super) fn clear(&self) {
        self.scan.borrow().bar.finish_and_clear();
    }
}

impl Predictor for WindowProgress<'_> {
    fn classes(&self) -> usize {
        self.network.classes()
    }

    fn logits(&self, patch: &[f32], shape: [usize; 3]) -> Result<Vec<f32>, InferError> {
        self.batch_logits(patch, shape)
    }

    fn batch_logits(&self, patches: &[f32], shape: [usize; 3]) -> Result<Vec<f32>, InferError> {
        let logits = self.network.batch_logits(patches, shape)?;
        let windows = patches.len() / shape.iter().product::<usize>().max(1);
        let mut scan = self.scan.borrow_mut();
        if let Some(words) = scan.advance(windows, Instant::now()).filter(|_| scan.bar.is_hidden()) {
            tracing::info!("{words}");
        }
        Ok(logits)
    }

    fn begin(&self, windows: usize) {
        self.network.begin(windows);
        let mut scan = self.scan.borrow_mut();
        let place = std::mem::take(&mut scan.place);
        *scan = Scan::new(place.clone(), windows, bar(place, windows), Instant::now());
    }
}

impl Scan {
    fn new(place: String, windows: usize, bar: ProgressBar, told: Instant) -> Self {
        Self { place, windows, done: 0, bar, told }
    }

    /// Counts windows; what to say of it, when it is time to say something.
    fn advance(&mut self, windows: usize, now: Instant) -> Option<String> {
        self.done += windows;
        self.bar.set_position(self.done as u64);
        if now.duration_since(self.told) < EVERY {
            return None;
        }
        self.told = now;
        Some(format!("{}: {} of {} windows", self.place, self.done, self.windows))
    }
}

fn bar(place: String, windows: usize) -> ProgressBar {
    let bar = ProgressBar::new(windows as u64);
    // The template is ours; should it not parse, the default bar does.
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} windows {eta}") {
        bar.set_style(style);
    }
    bar.set_message(place);
    // It stands there before the first window, which may take a while.
    bar.tick();
    bar
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infer::sliding_window::{WindowPlan, sliding_window};
    use crate::infer::testing::Bright;

    #[test]
    fn lines_come_half_a_minute_apart_and_say_scan_and_windows() {
        let start = Instant::now();
        let mut scan = Scan::new("[2/7] ct-17".to_owned(), 125, ProgressBar::hidden(), start);
        let mut after = |seconds: u64, windows| scan.advance(windows, start + Duration::from_secs(seconds));
        assert_eq!(after(29, 39), None);
        assert_eq!(after(31, 1).as_deref(), Some("[2/7] ct-17: 40 of 125 windows"));
        assert_eq!(after(60, 1), None);
        assert_eq!(after(61, 4).as_deref(), Some("[2/7] ct-17: 45 of 125 windows"));
    }

    #[test]
    fn every_window_of_a_scan_is_counted_and_the_logits_are_those_of_the_network() {
        let (shape, plan) = ([6, 9, 7], WindowPlan::gaussian([4; 3], 0.5).with_batch(4));
        let image: Vec<f32> = (0..6 * 9 * 7).map(|i| (i % 11) as f32 / 11.0).collect();
        let planes = |network: &dyn Predictor| {
            let mut all = Vec::new();
            sliding_window(&image, shape, &plan, network, |_, logits| all.extend_from_slice(logits)).unwrap();
            all
        };
        let (network, windows) = (Bright(&[6]), plan.windows(shape));
        let progress = WindowProgress::new(&network);
        for number in 1..3 {
            progress.scan(number, 2, "ct");
            assert!(planes(&progress) == planes(&network));
            progress.clear();
            let scan = progress.scan.borrow();
            assert_eq!((scan.done, scan.windows), (windows, windows), "a scan begins at zero");
            assert_eq!(scan.place, format!("[{number}/2] ct"));
        }
    }
}
