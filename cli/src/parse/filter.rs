//! `--filter KEY=VALUE`, as `ps` and `images` take it.

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// What is looked at.
    pub key: String,
    /// What it must be.
    pub value: String,
}

/// Parses `KEY=VALUE`.
///
/// # Errors
/// Where there is no `=`.
pub fn filter(text: &str) -> Result<Filter, String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("filter {text:?} is not KEY=VALUE"))?;
    Ok(Filter { key: key.trim().to_ascii_lowercase(), value: value.trim().to_owned() })
}
