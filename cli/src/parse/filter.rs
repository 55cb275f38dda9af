//! `--filter KEY=VALUE`, and what several of them mean together.

use std::collections::BTreeMap;

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

/// Whether something meets the filters, of which `meets` says it of one: all labels, and of each other key any value.
pub fn all_met(filters: &[Filter], meets: impl Fn(&Filter) -> bool) -> bool {
    filters.iter().all(|filter| {
        if filter.key == "label" {
            meets(filter)
        } else {
            filters.iter().any(|other| other.key == filter.key && meets(other))
        }
    })
}

/// Whether there is the label `KEY`, or `KEY=VALUE`.
pub fn has_label(labels: &BTreeMap<String, String>, wanted: &str) -> bool {
    match wanted.split_once('=') {
        Some((key, value)) => labels.get(key).is_some_and(|held| held == value),
        None => labels.contains_key(wanted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_add_up_and_other_keys_do_not() {
        let labels: BTreeMap<String, String> =
            [("a".to_owned(), "1".to_owned()), ("b".to_owned(), String::new())].into();
        let met = |texts: &[&str]| {
            let filters: Vec<Filter> = texts.iter().map(|text| filter(text).unwrap()).collect();
            all_met(&filters, |filter| match filter.key.as_str() {
                "label" => has_label(&labels, &filter.value),
                _ => filter.value == "web",
            })
        };
        assert!(met(&[]) && met(&["label=a=1", "label=b"]) && met(&["name=web", "name=db"]));
        assert!(!met(&["label=a=2"]) && !met(&["label=a", "label=c"]) && !met(&["name=db", "label=a"]));
        assert!(filter("x").is_err());
    }
}
