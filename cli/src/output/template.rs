//! `--format`: the part of Go's templates that people use with docker: `{{.State.Running}}`, `{{json .}}`, `{{.Names}}`,
//! `{{index .Labels "key"}}`, `{{len .Mounts}}`, `{{range $key, $value := .Labels}}`, `{{if}}`, and functions in a pipe.

mod eval;
mod functions;
mod parse;

use std::collections::BTreeMap;

use serde_json::Value;

use crate::error::Failure;

/// The labels of a row.
pub type Labels = BTreeMap<String, String>;

/// What `.Label "key"` asks.
#[derive(Debug, Clone, Copy)]
pub enum Row<'a> {
    /// Nothing: it is no row.
    None,
    /// The row of headings, where it stands for the key.
    Headings,
    /// A row with these labels.
    Labelled(&'a Labels),
}

/// A parsed template.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    nodes: Vec<parse::Node>,
}

impl Template {
    /// Parses `text`. `\t` and `\n` in it mean what they say, since shells make them hard to type.
    ///
    /// # Errors
    /// Names what is malformed or not supported.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.replace("\\t", "\t").replace("\\n", "\n");
        parse::template(&text).map(|nodes| Self { nodes }).map_err(|error| format!("format: {error}"))
    }

    /// The template of a `--format` for one thing, where `json` stands for all of it.
    ///
    /// # Errors
    /// As [`Template::parse`].
    pub fn of_format(format: &str) -> Result<Self, Failure> {
        Self::parse(if format == "json" { "{{json .}}" } else { format }).map_err(Failure::new)
    }

    /// The text for one value.
    ///
    /// # Errors
    /// Names the field that is not there.
    pub fn render(&self, value: &Value) -> Result<String, String> {
        self.render_row(value, Row::None)
    }

    /// As [`Template::render`], for a row of a list.
    ///
    /// # Errors
    /// As [`Template::render`].
    pub fn render_row(&self, value: &Value, row: Row<'_>) -> Result<String, String> {
        eval::render(&self.nodes, value, row).map_err(|error| format!("format: {error}"))
    }
}

#[cfg(test)]
mod tests;
