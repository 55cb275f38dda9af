//! `--format`: the part of Go's templates that people use with docker: `{{.State.Running}}`, `{{json .}}`, `{{.Names}}`,
//! `{{index .Labels "key"}}`, `{{len .Mounts}}`, `{{range}}`, `{{if}}`, and functions in a pipe.

mod eval;
mod parse;

use serde_json::Value;

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

    /// The text for one value.
    ///
    /// # Errors
    /// Names the field that is not there.
    pub fn render(&self, value: &Value) -> Result<String, String> {
        eval::render(&self.nodes, value).map_err(|error| format!("format: {error}"))
    }
}

#[cfg(test)]
mod tests;
