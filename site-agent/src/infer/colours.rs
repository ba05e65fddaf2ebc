//! A colour for each class, and the tables by which viewers show a label file with names and colours.
//!
//! Classes keep their colours in whatever numbering a label file is written, so that pictures of several data sets can be
//! laid side by side. Where several classes share a value, the first lends its colour and all lend their names.

use std::fmt::Write as _;

use common::ids::ClassId;
use common::label_map::MergeTable;
use common::taxonomy::Taxonomy;

use super::picture::Colour;

/// Part of the colour circle between one class and the next: the golden ratio never comes back to the same place.
const STEP: f64 = 0.618_034;
/// Saturations and brightnesses, by turns: neighbours on the circle differ in one of them.
const SATURATIONS: [f64; 3] = [0.9, 0.55, 0.75];
const BRIGHTNESSES: [f64; 3] = [1.0, 0.8, 0.6];

/// The colour of a class, by its id.
pub fn colour(class: ClassId) -> Colour {
    let id = usize::from(class.get());
    let hue = (f64::from(class.get()) * STEP).fract() * 6.0;
    let (saturation, brightness) = (SATURATIONS[id % 3], BRIGHTNESSES[id / 3 % 3]);
    // Red, green and blue reach their peak at a third of the circle from one another.
    [5.0, 3.0, 1.0].map(|shift: f64| {
        let place = (shift + hue) % 6.0;
        let lack = saturation * place.min(4.0 - place).clamp(0.0, 1.0);
        (255.0 * brightness * (1.0 - lack)).round() as u8
    })
}

/// One row of a colour table.
struct Row {
    value: u8,
    name: String,
    colour: Colour,
}

fn rows(table: &MergeTable, taxonomy: &Taxonomy) -> Vec<Row> {
    let row = |(value, classes): (u8, Vec<ClassId>)| {
        let names: Vec<String> = classes.iter().map(|&class| taxonomy.name(class)).collect();
        let colour = classes.first().map_or([0; 3], |&class| colour(class));
        // A name from a study must not end its field.
        let name = names.join(" + ").replace(['"', '\n', '\r'], "'");
        Row { value, name, colour }
    };
    table.classes_by_value().into_iter().map(row).collect()
}

/// A label description file of ITK-SNAP, by convention `*.label.txt`: value, red, green, blue, opacity, whether visible in
/// slices and as a mesh, name.
pub fn itk_snap(table: &MergeTable, taxonomy: &Taxonomy) -> String {
    let mut text = String::from(concat!(
        "# ITK-SnAP Label Description File\n",
        "# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL\n",
        "    0     0    0    0        0  0  0    \"Clear Label\"\n",
    ));
    for Row { value, name, colour: [r, g, b] } in rows(table, taxonomy) {
        // Writing into a string never fails.
        let _ = writeln!(text, "{value:5}  {r:4} {g:4} {b:4}        1  1  1    \"{name}\"");
    }
    text
}

/// A colour table of 3D Slicer (`*.ctbl`): value, name with underscores for spaces, red, green, blue, opacity.
pub fn slicer(table: &MergeTable, taxonomy: &Taxonomy) -> String {
    let mut text = String::from("# Color table for 3D Slicer: value name R G B A\n0 background 0 0 0 0\n");
    for Row { value, name, colour: [r, g, b] } in rows(table, taxonomy) {
        let name = name.split_whitespace().collect::<Vec<_>>().join("_");
        // Writing into a string never fails.
        let _ = writeln!(text, "{value} {name} {r} {g} {b} 255");
    }
    text
}

#[cfg(test)]
mod tests {
    use common::label_map::LabelMap;

    use super::*;

    #[test]
    fn no_two_classes_look_alike() {
        let colours: Vec<Colour> = (1..=32).map(|id| colour(ClassId::new(id).unwrap())).collect();
        assert_eq!(colours[..2], [[115, 156, 255], [175, 255, 64]]);
        for (index, a) in colours.iter().enumerate() {
            for b in &colours[..index] {
                let apart: u32 = a.iter().zip(b).map(|(a, b)| u32::from(a.abs_diff(*b))).sum();
                assert!(apart >= 50, "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn viewers_get_a_row_for_each_value_with_the_names_behind_it() {
        let taxonomy = Taxonomy::standard();
        let table = MergeTable::of(&LabelMap::standard("kits").unwrap(), &taxonomy).unwrap();
        let snap = itk_snap(&table, &taxonomy);
        let lines: Vec<&str> = snap.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[1], "    1   175  255   64        1  1  1    \"Right Kidney + Left Kidney\"");
        let slicer = slicer(&table, &taxonomy);
        let lines: Vec<&str> = slicer.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(lines[..2], ["0 background 0 0 0 0", "1 Right_Kidney_+_Left_Kidney 175 255 64 255"]);
        assert_eq!(lines.len(), 4);
    }
}
