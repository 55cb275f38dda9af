//! Lists as `--format` wants them: a table, JSON lines, or a template for each row.

use serde_json::{Map, Value};

use super::table::Table;
use super::template::{Labels, Row as Listed, Template};
use crate::error::{Failure, Result};

/// A field's name for templates and JSON, and its heading in tables.
pub type Column = (&'static str, &'static str);

/// A list with all that may be asked of its rows.
#[derive(Debug)]
pub struct Listing {
    columns: &'static [Column],
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    cells: Map<String, Value>,
    labels: Labels,
}

impl Listing {
    /// A list without rows.
    pub fn new(columns: &'static [Column]) -> Self {
        Self { columns, rows: Vec::new() }
    }

    /// Adds a row: one text for each column.
    pub fn row(&mut self, cells: Vec<String>) {
        self.labelled_row(cells, Labels::new());
    }

    /// As [`Listing::row`], of what has labels.
    pub fn labelled_row(&mut self, cells: Vec<String>, labels: Labels) {
        let keys = self.columns.iter().map(|(key, _)| (*key).to_owned());
        self.rows.push(Row { cells: keys.zip(cells.into_iter().map(Value::String)).collect(), labels });
    }

    /// Prints as `format` says; without one, a table of the columns `shown`.
    ///
    /// # Errors
    /// Where the format is malformed or nothing can be written.
    pub fn print(&self, format: Option<&str>, shown: &[&str]) -> Result<()> {
        super::bytes(self.render(format, shown)?.as_bytes())
    }

    fn render(&self, format: Option<&str>, shown: &[&str]) -> Result<String> {
        match format {
            None | Some("" | "table") => Ok(self.table(shown)),
            Some("json") => {
                Ok(self.rows.iter().map(|row| format!("{}\n", Value::Object(row.cells.clone()))).collect::<String>())
            }
            Some(format) => match format.strip_prefix("table ") {
                Some(template) => self.templated_table(template),
                None => {
                    let template = Template::parse(format).map_err(Failure::new)?;
                    let lines = self.rows.iter().map(|row| {
                        template.render_row(&Value::Object(row.cells.clone()), Listed::Labelled(&row.labels))
                    });
                    let lines: Vec<String> = lines.collect::<Result<_, _>>().map_err(Failure::new)?;
                    Ok(lines.iter().map(|line| format!("{line}\n")).collect::<String>())
                }
            },
        }
    }

    fn table(&self, shown: &[&str]) -> String {
        let heading =
            |key: &&str| self.columns.iter().find(|(known, _)| known == key).map_or("", |(_, heading)| heading);
        let mut table = Table::new(&shown.iter().map(heading).collect::<Vec<_>>());
        for row in &self.rows {
            let cell = |key: &&str| row.cells.get(*key).and_then(Value::as_str).unwrap_or_default().to_owned();
            table.row(shown.iter().map(cell).collect());
        }
        table.render()
    }

    /// `table {{.ID}}\t{{.Names}}`: the headings are what the template makes of a row of headings.
    fn templated_table(&self, template: &str) -> Result<String> {
        let template = Template::parse(template).map_err(Failure::new)?;
        let headings = self
            .columns
            .iter()
            .map(|(key, heading)| ((*key).to_owned(), Value::String((*heading).to_owned())))
            .collect();
        let cells = |row: &Map<String, Value>, listed: Listed<'_>| -> Result<Vec<String>> {
            let line = template.render_row(&Value::Object(row.clone()), listed).map_err(Failure::new)?;
            Ok(line.split('\t').map(str::to_owned).collect())
        };
        let heading = cells(&headings, Listed::Headings)?;
        let mut table = Table::new(&heading.iter().map(String::as_str).collect::<Vec<_>>());
        for row in &self.rows {
            table.row(cells(&row.cells, Listed::Labelled(&row.labels))?);
        }
        Ok(table.render())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        let mut listing = Listing::new(&[("ID", "CONTAINER ID"), ("Names", "NAMES")]);
        listing.row(vec!["1".into(), "web".into()]);
        let render = |format| listing.render(format, &["Names"]).unwrap();
        assert_eq!((render(None), render(Some(""))), ("NAMES\nweb\n".to_owned(), "NAMES\nweb\n".to_owned()));
        assert_eq!(render(Some("json")), "{\"ID\":\"1\",\"Names\":\"web\"}\n");
        assert_eq!(render(Some("{{.Names}}-{{.ID}}")), "web-1\n");
        assert_eq!(render(Some("table {{.ID}}\\t{{.Names}}")), "CONTAINER ID   NAMES\n1              web\n");
        assert!(listing.render(Some("{{.Nope}}"), &[]).is_err());
    }
}
