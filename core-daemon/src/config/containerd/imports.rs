//! Files that a configuration file imports.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use crate::error::{Doing, Error, Kind, Result};

/// Puts a file and those that it imports over `all`, each once. What is imported has the last word.
pub(super) fn put_over(all: &mut Table, mut file: Table, path: &Path, seen: &mut HashSet<PathBuf>) -> Result<()> {
    seen.insert(path.to_owned());
    let imports = match file.remove("imports") {
        Some(Value::Array(imports)) => imports,
        _ => Vec::new(),
    };
    merge(all, file);
    let directory = path.parent().unwrap_or(Path::new("/"));
    for pattern in imports.iter().filter_map(Value::as_str) {
        for path in matching(&directory.join(pattern)) {
            if seen.contains(&path) {
                continue;
            }
            let doing = || format!("import {}", path.display());
            let text = std::fs::read_to_string(&path).doing(doing)?;
            let imported: Table = text
                .parse()
                .map_err(|error: toml::de::Error| Error::new(Kind::InvalidArgument, error.to_string().trim_end()))
                .doing(doing)?;
            put_over(all, imported, &path, seen)?;
        }
    }
    Ok(())
}

fn merge(all: &mut Table, more: Table) {
    for (key, value) in more {
        match (all.get_mut(&key), value) {
            (Some(Value::Table(there)), Value::Table(value)) => merge(there, value),
            (_, value) => drop(all.insert(key, value)),
        }
    }
}

/// The files that a path stands for, of which the last part may have stars, in the order of their names.
fn matching(pattern: &Path) -> Vec<PathBuf> {
    let (Some(directory), Some(name)) = (pattern.parent(), pattern.file_name().and_then(|name| name.to_str())) else {
        return Vec::new();
    };
    if !name.contains('*') {
        return vec![pattern.to_owned()];
    }
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let fits = |path: &PathBuf| path.file_name().and_then(|it| it.to_str()).is_some_and(|it| is_match(name, it));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(fits).collect();
    files.sort();
    files
}

/// Whether `name` fits a pattern with stars.
fn is_match(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, after)) => name.strip_prefix(before).is_some_and(|rest| {
            rest.char_indices().map(|(at, _)| at).chain([rest.len()]).any(|at| is_match(after, &rest[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_anything() {
        assert!(is_match("*", "x") && is_match("a*c*", "abcd") && !is_match("a*c", "abcd"));
    }
}
