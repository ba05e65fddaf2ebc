//! The part of the page that says who annotated what: trainers × classes, a square each.

use common::ids::{ClassId, Role, SiteId};

use crate::report::{ClassSummary, CoverageCell, ReportData};

/// The heat map.
pub(super) struct Coverage {
    pub names: Vec<ClassName>,
    pub rows: Vec<CoverageRow>,
    /// Trainers that annotate each class.
    pub totals: Vec<usize>,
    /// Whether any square is marked.
    pub pseudo: bool,
}

/// The head of a column.
pub(super) struct ClassName {
    pub name: String,
    pub lesion: bool,
}

/// One trainer.
pub(super) struct CoverageRow {
    pub site: String,
    pub volumes: String,
    pub cells: Vec<Cell>,
}

/// One square.
pub(super) struct Cell {
    /// 0 to 100.
    pub shade: u32,
    pub annotated: u32,
    /// Whether a model labelled some of these.
    pub pseudo: bool,
    pub title: String,
}

impl Coverage {
    pub(super) fn of(data: &ReportData) -> Self {
        let most = data.coverage.iter().map(|cell| cell.annotated).max().unwrap_or(1).max(1);
        let trainers = data.sites.iter().filter(|site| site.role == Role::Trainer);
        let cells = |site: &SiteId| -> Vec<Cell> {
            let cell = |class: &ClassSummary| Cell::of(find_cell(data, site, class.class), class, most);
            data.classes.iter().map(cell).collect()
        };
        let rows = trainers.map(|site| CoverageRow {
            site: site.site.to_string(),
            volumes: site.volumes.map_or(String::new(), |n| n.to_string()),
            cells: cells(&site.site),
        });
        let count = |class: &ClassSummary| {
            data.coverage.iter().filter(|c| c.class == class.class && c.annotated > 0).count()
        };
        let name = |class: &ClassSummary| ClassName { name: class.name.clone(), lesion: class.lesion };
        Self {
            names: data.classes.iter().map(name).collect(),
            rows: rows.collect(),
            totals: data.classes.iter().map(count).collect(),
            pseudo: data.coverage.iter().any(|cell| cell.pseudo > 0),
        }
    }
}

fn find_cell<'a>(data: &'a ReportData, site: &SiteId, class: ClassId) -> Option<&'a CoverageCell> {
    data.coverage.iter().find(|cell| cell.site == *site && cell.class == class)
}

impl Cell {
    fn of(cell: Option<&CoverageCell>, class: &ClassSummary, most: u32) -> Self {
        let Some(cell) = cell.filter(|cell| cell.annotated > 0) else {
            let title = format!("{}: not annotated", class.name);
            return Self { shade: 0, annotated: 0, pseudo: false, title };
        };
        let present = cell.present.map_or("a number that is kept back".to_owned(), |n| n.to_string());
        let mut title = format!("{}: annotated in {}, present in {present}", class.name, cell.annotated);
        if cell.pseudo > 0 {
            title.push_str(&format!(", labelled by a model in {}", cell.pseudo));
        }
        Self {
            // From 15: one volume of a hundred must still be seen.
            shade: 15 + 75 * cell.annotated / most,
            annotated: cell.annotated,
            pseudo: cell.pseudo > 0,
            title,
        }
    }
}
