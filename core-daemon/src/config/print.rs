//! The configuration as a file for people: every setting below what the documentation of its field says.

use serde_json::Value;

use super::Config;
use crate::error::{Error, Result};

/// Columns of a line of comment.
const WIDTH: usize = 100;

impl Config {
    /// A configuration file that says the same, with a comment on every setting.
    ///
    /// # Errors
    /// When a value has no form in TOML.
    pub fn to_commented_toml(&self) -> Result<String> {
        let text = toml::to_string(self).map_err(|error| Error::internal(format!("configuration: {error}")))?;
        let schema = Schema(schemars::schema_for!(Self).to_value());
        let mut out = String::new();
        let mut table = Vec::new();
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            if let Some(header) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                table = keys(header);
                comment(&schema.told(&table), &mut out);
            } else if let Some((key, _)) = line.split_once(" = ") {
                comment(&schema.told(&[&table[..], &keys(key)].concat()), &mut out);
            }
            out.push_str(line);
            out.push('\n');
            if line.starts_with('[') && lines.peek().is_none_or(|next| next.is_empty()) {
                schema.list(&table, &mut out);
            }
        }
        Ok(out)
    }
}

/// The names in a dotted key of TOML, as this configuration has them: those with dots in them are quoted.
fn keys(dotted: &str) -> Vec<String> {
    let parts = dotted.split('"').enumerate();
    let names = parts.flat_map(|(number, part)| match number % 2 {
        0 => part.split('.').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
        _ => vec![part.to_owned()],
    });
    names.collect()
}

/// Writes a text as lines of comment.
fn comment(text: &str, out: &mut String) {
    let mut width = 0;
    for word in text.split_whitespace() {
        if width == 0 || width + 1 + word.len() > WIDTH {
            out.push_str(if width == 0 { "#" } else { "\n#" });
            width = 1;
        }
        out.push(' ');
        out.push_str(word);
        width += 1 + word.len();
    }
    if width > 0 {
        out.push('\n');
    }
}

/// What the types of the configuration say of themselves.
struct Schema(Value);

impl Schema {
    /// The documentation of the setting or table at `path`, with its choices if it has some; nothing for an entry whose
    /// name is the user's.
    fn told(&self, path: &[String]) -> String {
        let Some(setting) = path.iter().try_fold(&self.0, |at, name| self.below(at, name)) else {
            return String::new();
        };
        let said = |at: &Value| at["description"].as_str().unwrap_or_default().to_owned();
        // Of an entry of a table only its type says something.
        let told = if setting["description"].is_string() { setting } else { self.resolved(setting) };
        let choices = self.resolved(setting)["oneOf"].as_array().map(Vec::as_slice).unwrap_or_default();
        let choice = |at: &Value| format!("{}: {}", at["const"], said(at).trim_end_matches('.'));
        let choices: Vec<_> = choices.iter().map(choice).collect();
        [said(told), choices.join("; ")].join(" ")
    }

    /// Lists the settings of an entry of a table that has none.
    fn list(&self, path: &[String], out: &mut String) {
        let table = path.iter().try_fold(&self.0, |at, name| self.below(at, name));
        let entry = table.map(|table| self.resolved(&self.resolved(table)["additionalProperties"]));
        let Some(settings) = entry.and_then(|entry| entry["properties"].as_object()) else { return };
        comment(&format!("[{}.NAME]", path.join(".")), out);
        for (name, setting) in settings {
            let told = setting["description"].as_str().unwrap_or_default();
            comment(&format!("{name} = {}: {told}", setting["type"].as_str().unwrap_or("…")), out);
        }
    }

    fn below<'a>(&'a self, at: &'a Value, name: &str) -> Option<&'a Value> {
        let at = self.resolved(at);
        at["properties"].get(name).or_else(|| at.get("additionalProperties").filter(|entry| entry.is_object()))
    }

    /// What a schema refers to, or itself.
    fn resolved<'a>(&'a self, at: &'a Value) -> &'a Value {
        let definition = at["$ref"].as_str().and_then(|path| self.0.pointer(path.trim_start_matches('#')));
        definition.unwrap_or(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_explained_and_means_the_same() {
        let text = Config::default().to_commented_toml().expect("print");
        assert_eq!(Config::parse(&text).expect("read"), Config::default());
        let mut table = "";
        for (before, line) in text.lines().zip(text.lines().skip(1)) {
            if line.starts_with('[') {
                table = line;
            }
            // The names of aliases are the user's.
            let is_setting = !line.is_empty() && !line.starts_with('#') && table != "[runtime.aliases]";
            assert!(!is_setting || before.starts_with("# "), "{table} {line} is not explained:\n{text}");
            assert!(line.starts_with('#') <= (line.len() <= WIDTH), "{line}");
        }
    }

    #[test]
    fn choices_and_tables_without_entries_are_listed() {
        let text = Config::default().to_commented_toml().expect("print");
        let expected =
            "# How lines are written. \"text\": For people; \"json\": One object a line\nformat = \"text\"\n";
        assert!(text.contains(expected), "{text}");
        let expected = "[proxy_plugins]\n# [proxy_plugins.NAME]\n";
        assert!(text.contains(expected), "{text}");
        assert!(text.contains("# address = string: Path of its socket.\n"), "{text}");
    }

    #[test]
    fn names_with_dots_are_one() {
        assert_eq!(keys("cri.runtimes.rung"), ["cri", "runtimes", "rung"]);
        assert_eq!(keys("\"io.containerd.runc.v2\""), ["io.containerd.runc.v2"]);
    }
}
