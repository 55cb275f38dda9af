//! Templates of a network's configuration, in the words of containerd's: what such files are written with, and no more.

use crate::error::{Error, Result};

/// Every range of addresses as plugins list them, in one word.
const RANGES: &str = "RANGES";

/// The addresses that a node's pods have.
pub(super) struct Ranges {
    /// Each of them.
    pub(super) all: Vec<String>,
}

/// A value of a `range`, in its body.
#[derive(Clone, Copy)]
struct Element<'a> {
    index: usize,
    value: &'a str,
    names: (&'a str, &'a str),
}

/// One part of a template.
enum Part<'t> {
    Text(&'t str),
    Action(&'t str),
}

impl Ranges {
    /// The template with these ranges filled in.
    ///
    /// # Errors
    /// `InvalidArgument` naming what is not understood.
    pub(super) fn fill(&self, template: &str) -> Result<String> {
        let parts = split(template)?;
        let mut out = String::new();
        let end = self.block(&parts, 0, None, true, &mut out)?;
        match end == parts.len() {
            true => Ok(out),
            false => Err(Error::invalid("{{end}} or {{else}} without a beginning")),
        }
    }

    /// Writes the parts from `at` to the end of their block, whose place is the answer; nothing is written unless `live`.
    fn block(
        &self,
        parts: &[Part<'_>],
        mut at: usize,
        element: Option<Element<'_>>,
        live: bool,
        out: &mut String,
    ) -> Result<usize> {
        while let Some(part) = parts.get(at) {
            let action = match part {
                Part::Text(text) => {
                    out.push_str(if live { text } else { "" });
                    at += 1;
                    continue;
                }
                Part::Action(action) => *action,
            };
            let (word, rest) = action.split_once(char::is_whitespace).unwrap_or((action, ""));
            at = match word {
                "end" | "else" => return Ok(at),
                "range" => self.range(parts, at + 1, rest, live, out)?,
                "if" => self.choice(parts, at + 1, (rest, element), live, out)?,
                _ => {
                    let value = self.value(action, element)?;
                    out.push_str(if live { &value } else { "" });
                    at + 1
                }
            };
        }
        Ok(at)
    }

    /// `range [$index, $value :=] LIST`: the body once for each.
    fn range(&self, parts: &[Part<'_>], body: usize, rest: &str, live: bool, out: &mut String) -> Result<usize> {
        let (names, list) = match rest.split_once(":=") {
            None => (("", ""), rest.trim()),
            Some((names, list)) => match names.split_once(',') {
                Some((index, value)) => ((index.trim(), value.trim()), list.trim()),
                None => (("", names.trim()), list.trim()),
            },
        };
        let values = match list {
            ".PodCIDRRanges" => self.all.clone(),
            ".Routes" => self.routes(),
            other => return Err(unknown(other)),
        };
        let end = self.block(parts, body, Some(Element { index: 0, value: "", names }), false, out)?;
        for (index, value) in values.iter().enumerate() {
            self.block(parts, body, Some(Element { index, value, names }), live, out)?;
        }
        expect_end(parts, end)
    }

    /// `if $index`: the body for all but the first.
    fn choice(
        &self,
        parts: &[Part<'_>],
        body: usize,
        (rest, element): (&str, Option<Element<'_>>),
        live: bool,
        out: &mut String,
    ) -> Result<usize> {
        let value = self.value(rest.trim(), element)?;
        let holds = !value.is_empty() && value != "0";
        let end = self.block(parts, body, element, live && holds, out)?;
        match parts.get(end) {
            Some(Part::Action("else")) => {
                let end = self.block(parts, end + 1, element, live && !holds, out)?;
                expect_end(parts, end)
            }
            _ => expect_end(parts, end),
        }
    }

    fn value(&self, word: &str, element: Option<Element<'_>>) -> Result<String> {
        match (word, element) {
            (".PodCIDR", _) => Ok(self.all.first().cloned().unwrap_or_default()),
            (RANGES, _) => {
                let each: Vec<_> = self.all.iter().map(|range| serde_json::json!([{"subnet": range}])).collect();
                Ok(serde_json::Value::from(each).to_string())
            }
            (".", Some(element)) => Ok(element.value.to_owned()),
            (name, Some(element)) if name.starts_with('$') && name == element.names.0 => Ok(element.index.to_string()),
            (name, Some(element)) if name.starts_with('$') && name == element.names.1 => Ok(element.value.to_owned()),
            (other, _) => Err(unknown(other)),
        }
    }

    /// A way to everywhere for each family of addresses.
    fn routes(&self) -> Vec<String> {
        let mut routes: Vec<String> = Vec::new();
        for range in &self.all {
            let route = if range.contains(':') { "::/0" } else { "0.0.0.0/0" };
            if !routes.iter().any(|there| there == route) {
                routes.push(route.to_owned());
            }
        }
        routes
    }
}

/// Cuts a template at its actions; `{{-` and `-}}` take the white space beside them away.
fn split(mut rest: &str) -> Result<Vec<Part<'_>>> {
    let mut parts = Vec::new();
    while let Some((text, after)) = rest.split_once("{{") {
        let (action, after) = after.split_once("}}").ok_or_else(|| Error::invalid("{{ without }}"))?;
        let (text, action) = match action.strip_prefix("- ") {
            Some(action) => (text.trim_end(), action),
            None => (text, action),
        };
        let (action, after) = match action.strip_suffix(" -") {
            Some(action) => (action, after.trim_start()),
            None => (action, after),
        };
        parts.extend([Part::Text(text), Part::Action(action.trim())]);
        rest = after;
    }
    parts.push(Part::Text(rest));
    Ok(parts)
}

fn expect_end(parts: &[Part<'_>], at: usize) -> Result<usize> {
    match parts.get(at) {
        Some(Part::Action("end")) => Ok(at + 1),
        _ => Err(Error::invalid("{{range}} or {{if}} without {{end}}")),
    }
}

fn unknown(what: &str) -> Error {
    Error::invalid(format!("{{{{{what}}}}}: only .PodCIDR, range over .PodCIDRRanges and .Routes, and if are known"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both() -> Ranges {
        Ranges { all: vec!["10.0.0.0/24".to_owned(), "fd00::/64".to_owned()] }
    }

    #[test]
    fn as_such_files_are_written() {
        let text = "{\"ranges\": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{\"subnet\": \"{{$range}}\"}]{{end}}],\
                    \"routes\": [{{range $i, $route := .Routes}}{{if $i}}, {{end}}{\"dst\": \"{{$route}}\"}{{end}}]}";
        let filled: serde_json::Value = serde_json::from_str(&both().fill(text).expect("filled")).expect("json");
        let wanted = serde_json::json!({
            "ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        });
        assert_eq!(filled, wanted);
        assert_eq!(both().fill("a {{.PodCIDR}} b").expect("one"), "a 10.0.0.0/24 b");
        assert_eq!(both().fill("{{RANGES}}").expect("all"), r#"[[{"subnet":"10.0.0.0/24"}],[{"subnet":"fd00::/64"}]]"#);
        assert_eq!(both().fill("x\n{{- range .Routes -}}\n {{.}};{{end}}").expect("trimmed"), "x0.0.0.0/0;::/0;");
        let choice = "{{range $i, $_ := .Routes}}{{if $i}}more{{else}}first {{end}}{{end}}";
        assert_eq!(both().fill(choice).expect("else"), "first more");
        assert_eq!(Ranges { all: Vec::new() }.fill("[{{range .Routes}}{{.}}{{end}}]").expect("none"), "[]");
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for text in [
            "{{.Other}}",
            "{{range .Routes}}",
            "{{end}}",
            "{{",
            "{{if $x}}{{end}}",
            "{{template \"x\"}}",
            "{{else}}",
            "{{range .Routes}}{{.Other}}{{end}}",
            "{{range .Else}}{{end}}",
        ] {
            assert!(both().fill(text).is_err(), "{text}");
        }
    }
}
