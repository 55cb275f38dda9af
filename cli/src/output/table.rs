//! Columns, aligned as docker aligns them.

/// Between columns, and the least that one takes with what is after it.
const GAP: usize = 3;
const LEAST: usize = 10;

/// A table that grows a row at a time.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with a heading.
    pub fn new(heading: &[&str]) -> Self {
        Self { rows: vec![heading.iter().map(|text| (*text).to_owned()).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells.iter().map(|cell| super::human::harmless(cell)).collect());
    }

    /// The whole table as text. The last column is as wide as it is.
    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(|column| (width(column) + GAP).max(LEAST)).collect();
        let mut out = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:<width$}"));
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligns() {
        let mut table = Table::new(&["ID", "NAME"]);
        table.row(vec!["1".into(), "a".into()]);
        table.row(vec!["12345".into(), "\u{1b}b…".into()]);
        assert_eq!(table.render(), "ID        NAME\n1         a\n12345     \u{fffd}b…\n");
        table.row(vec!["12345678".into(), String::new()]);
        assert!(table.render().starts_with("ID         NAME\n"));
    }
}
