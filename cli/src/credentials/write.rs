//! Accounts entered into docker's configuration and taken from it, by `login` and `logout`.

use std::io::Write;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::{Account, broken, config_path, helper_for, run};
use crate::client::reason;
use crate::error::{Failure, Result};

/// Keeps an account for the registry `host`.
///
/// # Errors
/// Where the configuration cannot be read or written, or its credential program refuses.
pub async fn keep(host: &str, account: &Account) -> Result<()> {
    let key = super::key_of(host);
    let (path, mut document) = read()?;
    if let Some(helper) = helper_for(&document, key) {
        let text = json!({"ServerURL": key, "Username": account.username, "Secret": account.password}).to_string();
        run(&helper, "store", &text).await?;
        // The entry says that the program knows this registry.
        entries(&mut document).insert(key.to_owned(), json!({}));
    } else {
        let auth = STANDARD.encode(format!("{}:{}", account.username, account.password));
        entries(&mut document).insert(key.to_owned(), json!({"auth": auth}));
    }
    write(&path, &document)
}

/// Forgets the account for the registry `host`, and says whether there was one.
///
/// # Errors
/// As [`keep`].
pub async fn forget(host: &str) -> Result<bool> {
    let key = super::key_of(host);
    let (path, mut document) = read()?;
    let mut known = false;
    if let Some(helper) = helper_for(&document, key) {
        known = run(&helper, "erase", key).await?.is_some();
    }
    let all = entries(&mut document);
    let before = all.len();
    all.retain(|name, _| super::host_of(name) != super::host_of(key));
    if all.len() < before {
        write(&path, &document)?;
        known = true;
    }
    Ok(known)
}

fn read() -> Result<(std::path::PathBuf, Value)> {
    let path = config_path().ok_or_else(|| {
        Failure::new("there is no place for accounts").hint("set HOME, or name a directory in DOCKER_CONFIG")
    })?;
    let document = match std::fs::read(&path) {
        Ok(text) if text.is_empty() => json!({}),
        Ok(text) => serde_json::from_slice(&text).map_err(|error| broken(&path, &error.to_string()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => json!({}),
        Err(error) => return Err(broken(&path, &reason(&error))),
    };
    if !Value::is_object(&document) {
        return Err(broken(&path, "it is no JSON object"));
    }
    Ok((path, document))
}

/// The member `auths`, made where it is missing.
fn entries(document: &mut Value) -> &mut Map<String, Value> {
    if !document["auths"].is_object() {
        document["auths"] = json!({});
    }
    match &mut document["auths"] {
        Value::Object(entries) => entries,
        _ => unreachable!("it has just been made an object"),
    }
}

/// Writes the file whole or not at all, for nobody else to read; where there is one already, it stays where a link leads
/// to, and its owner's.
fn write(path: &Path, document: &Value) -> Result<()> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
    let failed = |error: std::io::Error| Failure::new(format!("write {}: {}", path.display(), reason(&error)));
    let directory = path.parent().unwrap_or(Path::new("/"));
    // As docker has it, one link is followed.
    let path = &std::fs::read_link(path).map_or_else(|_| path.to_owned(), |target| directory.join(target));
    let directory = path.parent().unwrap_or(directory);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
    let part = directory.join(format!(".config.json.{}", std::process::id()));
    let text = serde_json::to_string_pretty(document).map_err(|error| Failure::new(error.to_string()))?;
    let written = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&part).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.write_all(b"\n")?;
        if let Ok(before) = std::fs::metadata(path) {
            // Only root can give it to somebody.
            let _ = fchown(&file, Some(before.uid()), Some(before.gid()));
            file.set_permissions(before.permissions())?;
        }
        file.sync_all()
    });
    let placed = written.and_then(|()| std::fs::rename(&part, path));
    if placed.is_err() {
        // It is ours, and not whole.
        let _ = std::fs::remove_file(&part);
    }
    placed.map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_link_stays_one_and_its_file_is_as_readable_as_before() {
        let dir = tempfile::tempdir().unwrap();
        let (link, file) = (dir.path().join("config.json"), dir.path().join("of-another-name"));
        std::fs::write(&file, "{}").unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("of-another-name", &link).unwrap();
        write(&link, &json!({"a": 1})).unwrap();
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(serde_json::from_slice::<Value>(&std::fs::read(&file).unwrap()).unwrap(), json!({"a": 1}));
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        let fresh = dir.path().join("new/config.json");
        write(&fresh, &json!({})).unwrap();
        assert_eq!(std::fs::metadata(&fresh).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
    }
}
