//! Prediction and truth drawn over the scan, on three axes: so that a person sees in a second whether left is left.
//!
//! Slices go through the centre of the organs, as `slices` hangs them. The truth's contours are green, the
//! prediction's magenta, white where both agree. Pictures never leave the site.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::distinct::distinct;
use super::picture::{Colour, Picture};
use super::slices::{Plane, Slice, centre_of, side_by_side};
use crate::client::files::{self, FileError};
use crate::data::dataset::Case;
use crate::data::volume::Volume;

/// What to draw, all on one grid with axes R, A, S.
pub struct Overlay<'a> {
    /// The scan, HU.
    pub image: &'a Volume<f32>,
    /// Class id of each voxel by the annotation, 0 for none.
    pub truth: &'a [u8],
    /// Class id of each voxel by the network, 0 for none.
    pub prediction: &'a [u8],
    /// HU shown as black and as white.
    pub window_hu: (f32, f32),
}

/// Where the overlay of each case goes.
#[derive(Clone, Debug)]
pub struct OverlayFiles(BTreeMap<String, PathBuf>);

impl OverlayFiles {
    /// Files in `folder` with the names of their cases; where two would have one, as `a/b-c` and `a-b/c`, the later one in the order
    /// of `cases` gets a number.
    pub fn new(folder: &Path, cases: &[&Case]) -> Self {
        let plain = distinct(cases.iter().map(|case| case.name.replace('/', "-")));
        let file = |(case, plain): (&&Case, String)| (case.name.clone(), folder.join(format!("{plain}.png")));
        Self(cases.iter().zip(plain).map(file).collect())
    }

    /// The file of a case; none for one that was not named.
    pub fn of(&self, case: &Case) -> Option<&Path> {
        self.0.get(&case.name).map(PathBuf::as_path)
    }
}

const TRUTH: Colour = [0, 230, 90];
const PREDICTION: Colour = [255, 60, 220];
const AGREEMENT: Colour = [255, 255, 255];

/// Draws and writes a PNG.
///
/// # Errors
/// [`FileError`].
pub fn write(path: &Path, overlay: &Overlay<'_>) -> Result<(), FileError> {
    let picture = draw(overlay);
    let bytes = picture.png().map_err(|error| FileError::new("draw", path, std::io::Error::other(error)))?;
    files::write(path, &bytes)
}

/// The picture: axial, coronal and sagittal slice side by side.
pub fn draw(overlay: &Overlay<'_>) -> Picture {
    let centre = overlay.centre();
    let panels = Plane::ALL.map(|plane| overlay.panel(plane, centre));
    side_by_side(&panels, &[("TRUTH", TRUTH), ("PREDICTION", PREDICTION)])
}

impl Overlay<'_> {
    /// Mean position of all labelled voxels, or the middle of the scan when nothing is labelled.
    fn centre(&self) -> [usize; 3] {
        let labelled = self.truth.iter().zip(self.prediction).map(|(t, p)| *t != 0 || *p != 0);
        centre_of(self.image.shape(), labelled)
    }

    fn panel(&self, plane: Plane, centre: [usize; 3]) -> Picture {
        let slice = Slice::of(self.image, plane, centre, self.window_hu);
        slice.draw(|pixel| {
            match (slice.is_contour(self.truth, pixel), slice.is_contour(self.prediction, pixel)) {
                (true, true) => AGREEMENT,
                (true, false) => TRUTH,
                (false, true) => PREDICTION,
                (false, false) => [slice.grey(pixel); 3],
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use common::label_map::LabelMap;
    use nalgebra::{Matrix4, Vector4};

    use super::*;
    use crate::data::dataset::Split;
    use crate::data::geometry::Affine;
    use crate::data::volume::Grid;

    /// 20 × 30 × 10 voxels of 2 × 1 × 4 mm.
    fn image() -> Volume<f32> {
        let affine = Affine::new(Matrix4::from_diagonal(&Vector4::new(2.0, 1.0, 4.0, 1.0))).unwrap();
        Volume::from_fn(Grid { shape: [20, 30, 10], affine }, |_| -175.0)
    }

    fn block(image: &Volume<f32>, from: [usize; 3], to: [usize; 3]) -> Vec<u8> {
        let inside = |index: [usize; 3]| (0..3).all(|a| (from[a]..to[a]).contains(&index[a]));
        Volume::from_fn(image.grid().clone(), |index| u8::from(inside(index))).into_voxels()
    }

    fn find(panel: &Picture, colour: Colour) -> Vec<[usize; 2]> {
        let all = (0..panel.height).flat_map(|y| (0..panel.width).map(move |x| [x, y]));
        all.filter(|&at| panel.pixel(at) == colour).collect()
    }

    #[test]
    fn no_two_cases_share_a_picture() {
        let label_map = Arc::new(LabelMap::standard("lits").unwrap());
        let cases = ["a-b/c", "a/b-c", "a/d"].map(|name| Case {
            name: name.to_owned(),
            dataset: "a".to_owned(),
            image: PathBuf::new(),
            labels: PathBuf::new(),
            label_map: Arc::clone(&label_map),
            annotated: BTreeSet::new(),
            patient: name.to_owned(),
            split: Split::Validation,
            assume_hounsfield: false,
            assume_orientation: false,
            pseudo: false,
        });
        let files = OverlayFiles::new(Path::new("scores"), &cases.each_ref());
        let names = cases.each_ref().map(|case| files.of(case).unwrap().display().to_string());
        assert_eq!(names, ["scores/a-b-c.png", "scores/a-b-c-2.png", "scores/a-d.png"]);
    }

    #[test]
    fn pixels_are_square_in_millimetres() {
        let image = image();
        let nothing = vec![0; image.grid().len()];
        let overlay =
            Overlay { image: &image, truth: &nothing, prediction: &nothing, window_hu: (-175.0, 250.0) };
        let sizes = Plane::ALL.map(|plane| overlay.panel(plane, [10, 15, 5]));
        // 40 × 30 mm, 40 × 40 mm, 30 × 40 mm.
        assert_eq!(sizes.map(|p| [p.width, p.height]), [[420, 315], [420, 420], [315, 420]]);
    }

    #[test]
    fn right_is_on_the_left_and_anterior_and_superior_are_up() {
        let image = image();
        // Truth on the patient's right, anterior, superior; prediction on the left, posterior, inferior.
        let truth = block(&image, [14, 22, 6], [18, 28, 9]);
        let prediction = block(&image, [2, 2, 1], [6, 8, 4]);
        let overlay =
            Overlay { image: &image, truth: &truth, prediction: &prediction, window_hu: (-175.0, 250.0) };
        for (plane, right, left) in [
            (Plane::ALL[0], [15, 0, 7], [3, 0, 2]),
            (Plane::ALL[1], [0, 24, 0], [0, 4, 0]),
            (Plane::ALL[2], [15, 0, 0], [3, 0, 0]),
        ] {
            let mean = |panel: &Picture, colour| {
                let found = find(panel, colour);
                assert!(!found.is_empty());
                let sum = found.iter().fold([0; 2], |s, at| [s[0] + at[0], s[1] + at[1]]);
                sum.map(|s| s / found.len())
            };
            let truth_at = mean(&overlay.panel(plane, right), TRUTH);
            let prediction_at = mean(&overlay.panel(plane, left), PREDICTION);
            assert!(truth_at[0] < prediction_at[0], "towards R or A is left");
            assert!(truth_at[1] < prediction_at[1], "towards A or S is up");
        }
    }

    #[test]
    fn agreement_is_white_and_the_inside_stays_visible() {
        let image = image();
        let both = block(&image, [5, 8, 2], [15, 22, 8]);
        let overlay = Overlay { image: &image, truth: &both, prediction: &both, window_hu: (-175.0, 250.0) };
        let panel = overlay.panel(Plane::ALL[0], overlay.centre());
        assert!(find(&panel, TRUTH).is_empty() && find(&panel, PREDICTION).is_empty());
        assert!(!find(&panel, AGREEMENT).is_empty());
        assert_eq!(panel.pixel([210, 100]), [0; 3]);
    }

    #[test]
    fn a_written_picture_is_a_png_of_the_size_drawn() {
        let image = image();
        let nothing = vec![0; image.grid().len()];
        let overlay =
            Overlay { image: &image, truth: &nothing, prediction: &nothing, window_hu: (-175.0, 250.0) };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("case.png");
        write(&path, &overlay).unwrap();
        let decoder = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(&path).unwrap()));
        let reader = decoder.read_info().unwrap();
        assert_eq!(reader.info().width, 420 + 420 + 315 + 40);
    }
}
