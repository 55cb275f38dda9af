//! Environment variables: `KEY=VALUE`, `KEY` alone taken from our own environment, and files of them.

/// One `-e` value. `KEY` alone takes our own value; without one it stays `KEY`, which removes the image's.
///
/// # Errors
/// Where there is no name, or our own value is not UTF-8.
pub fn variable(text: &str, own: impl Fn(&str) -> Option<std::ffi::OsString>) -> Result<String, String> {
    if text.is_empty() || text.starts_with('=') {
        return Err(format!("environment variable {text:?} has no name"));
    }
    if text.contains('=') {
        return Ok(text.to_owned());
    }
    match own(text).map(std::ffi::OsString::into_string) {
        Some(Ok(value)) => Ok(format!("{text}={value}")),
        Some(Err(_)) => Err(format!("environment variable {text}: its value here is not UTF-8")),
        None => Ok(text.to_owned()),
    }
}

/// The variables of an `--env-file`: one a line, `#` starts a comment line, quotes are kept as they are.
///
/// # Errors
/// Names the line that has no name or a name with a space in it.
pub fn file(text: &str, own: impl Fn(&str) -> Option<std::ffi::OsString>) -> Result<Vec<String>, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut variables = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let name = line.split('=').next().unwrap_or_default();
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(format!("line {}: variable name {name:?} is empty or contains a space", number + 1));
        }
        let variable = variable(line, &own).map_err(|error| format!("line {}: {error}", number + 1))?;
        // In a file, a name that we have no value for says nothing at all.
        if variable.contains('=') {
            variables.push(variable);
        }
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(name: &str) -> Option<std::ffi::OsString> {
        (name == "HERE").then(|| "value".into())
    }

    #[test]
    fn variables() {
        assert_eq!(variable("A=b=c", own).unwrap(), "A=b=c");
        assert_eq!(variable("A=", own).unwrap(), "A=");
        assert_eq!(variable("HERE", own).unwrap(), "HERE=value");
        assert_eq!(variable("GONE", own).unwrap(), "GONE");
        assert!(variable("", own).is_err());
        assert!(variable("=x", own).is_err());
    }

    #[test]
    fn files() {
        let text = "\u{feff}# note\n\nA=1\r\n  B=\"x y\"\nHERE\nGONE\n";
        assert_eq!(file(text, own).unwrap(), ["A=1", "B=\"x y\"", "HERE=value"]);
        assert!(file("A=1\nB C=2\n", own).unwrap_err().starts_with("line 2"));
        assert!(file("=x", own).is_err());
    }
}
