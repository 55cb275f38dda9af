//! `-v` and `--mount`: which part of the host a container sees.

use std::path::{Component, Path, PathBuf};

use gantry_proto::gantry::engine::v1::bind::Below;
use gantry_proto::gantry::engine::v1::{Bind, Tmpfs};

/// What `--mount` asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Mount {
    /// A part of the host.
    Bind(Bind),
    /// A file system in memory.
    Tmpfs(Tmpfs),
}

/// Parses `-v SOURCE:DESTINATION[:OPTIONS]`; a relative source is below `here`.
///
/// # Errors
/// Names the part that is missing, unknown, or not built yet.
pub fn volume(text: &str, here: &Path) -> Result<Bind, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, destination, options) = match parts[..] {
        [source, destination] => (source, destination, ""),
        [source, destination, options] => (source, destination, options),
        [_] => {
            return Err(format!("{text:?}: anonymous volumes are not supported yet; write HOST_PATH:CONTAINER_PATH"));
        }
        _ => return Err(format!("{text:?} has too many ':'; write HOST_PATH:CONTAINER_PATH[:ro]")),
    };
    if source.is_empty() || destination.is_empty() {
        return Err(format!("{text:?}: a path is empty; write HOST_PATH:CONTAINER_PATH[:ro]"));
    }
    if !source.contains('/') && !matches!(source, "." | "..") {
        return Err(format!(
            "{text:?}: named volumes are not supported yet; for a directory here write ./{source}:{destination}"
        ));
    }
    let (source, destination) = (absolute(source, here)?, destination.to_owned());
    let mut bind = Bind { source, destination, make_source: true, ..Bind::default() };
    let mut access = None;
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" | "readonly" | "rw" if access.is_some() => return Err(format!("{text:?}: says twice who may write")),
            "ro" | "readonly" => access = Some(true),
            "rw" => access = Some(false),
            // What they ask for is so: labels of files are none where nothing reads them, and there is one copy of a file.
            "cached" | "delegated" | "consistent" | "nocopy" => {}
            "z" | "Z" if !Path::new("/sys/fs/selinux/enforce").exists() => {}
            "z" | "Z" => return Err(format!("{text:?}: relabelling for SELinux is not supported yet")),
            _ => bind.propagation = propagation(option)?,
        }
    }
    bind.read_only = access.unwrap_or_default();
    Ok(bind)
}

/// Parses `--mount type=bind,source=…,target=…[,readonly][,bind-propagation=…][,bind-recursive=…]` and
/// `--mount type=tmpfs,target=…[,tmpfs-size=…][,tmpfs-mode=…]`; a field with a comma in it stands in quotes.
///
/// # Errors
/// As [`volume`].
pub fn mount(text: &str, here: &Path) -> Result<Mount, String> {
    let mut bind = Bind::default();
    let mut options = Vec::new();
    let mut kind = "volume".to_owned();
    for pair in fields(text)? {
        let (key, value) = pair.split_once('=').unwrap_or((&pair, ""));
        match key {
            "type" => value.clone_into(&mut kind),
            "source" | "src" => bind.source = absolute(value, here)?,
            "target" | "destination" | "dst" => value.clone_into(&mut bind.destination),
            "readonly" | "ro" => {
                bind.read_only = match value {
                    "" | "true" | "1" => true,
                    "false" | "0" => false,
                    _ => return Err(format!("{pair:?}: readonly is true or false")),
                };
            }
            "bind-propagation" => bind.propagation = propagation(value)?,
            "bind-recursive" => bind.set_below(below(value)?),
            // There is one copy of a file, which is as consistent as can be.
            "consistency" if matches!(value, "default" | "consistent" | "cached" | "delegated") => {}
            "tmpfs-size" => options.push(format!("size={}", super::size::bytes(value)?)),
            "tmpfs-mode" => {
                u16::from_str_radix(value, 8).map_err(|_| format!("{pair:?}: a mode is an octal number"))?;
                options.push(format!("mode={value}"));
            }
            _ => return Err(format!("{pair:?}: unknown mount field {key:?}")),
        }
    }
    match kind.as_str() {
        "bind" if options.is_empty() => {}
        "bind" => return Err(format!("{text:?}: tmpfs-size and tmpfs-mode are for type=tmpfs")),
        "tmpfs" if !bind.source.is_empty() || !bind.propagation.is_empty() || bind.below() != Below::Shown => {
            return Err(format!("{text:?}: a tmpfs has no source, bind-propagation or bind-recursive"));
        }
        "tmpfs" if bind.destination.is_empty() => return Err(format!("{text:?}: a tmpfs needs target=CONTAINER_PATH")),
        "tmpfs" => {
            options.extend(bind.read_only.then(|| "ro".to_owned()));
            return Ok(Mount::Tmpfs(Tmpfs { destination: bind.destination, options }));
        }
        _ => return Err(format!("{text:?}: mounts of type {kind:?} are not supported yet, only bind and tmpfs")),
    }
    if bind.source.is_empty() || bind.destination.is_empty() {
        return Err(format!("{text:?}: a bind needs source=HOST_PATH and target=CONTAINER_PATH"));
    }
    Ok(Mount::Bind(bind))
}

/// The fields of a line of comma-separated values, of which those in quotes may have commas; a quote in them is doubled.
fn fields(text: &str) -> Result<Vec<String>, String> {
    let (mut fields, mut rest) = (Vec::new(), text);
    loop {
        let mut field = String::new();
        if let Some(mut quoted) = rest.strip_prefix('"') {
            loop {
                let (part, after) = quoted.split_once('"').ok_or_else(|| format!("{text:?}: a quote is not closed"))?;
                field.push_str(part);
                match after.strip_prefix('"') {
                    Some(more) => (quoted, _) = (more, field.push('"')),
                    None => break rest = after,
                }
            }
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            field.push_str(&rest[..end]);
            rest = &rest[end..];
        }
        fields.push(field);
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None if rest.is_empty() => return Ok(fields),
            None => return Err(format!("{text:?}: something follows a quoted field")),
        }
    }
}

/// What becomes of what is mounted below a bind, in docker's words.
fn below(text: &str) -> Result<Below, String> {
    match text {
        "enabled" => Ok(Below::Shown),
        "disabled" => Ok(Below::Hidden),
        "writable" => Ok(Below::Writable),
        "readonly" => Ok(Below::ReadOnly),
        _ => Err(format!("bind-recursive={text}: known are enabled, disabled, writable and readonly")),
    }
}

fn propagation(text: &str) -> Result<String, String> {
    match text {
        "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave" => Ok(text.to_owned()),
        _ => Err(format!("unknown bind option {text:?}; known are ro, rw, and (r)private, (r)shared, (r)slave")),
    }
}

/// An absolute path without `.` and with `..` taken literally, since the daemon has no notion of where we are.
fn absolute(path: &str, here: &Path) -> Result<String, String> {
    let mut whole = PathBuf::new();
    for part in here.join(path).components() {
        match part {
            Component::CurDir => {}
            // Through a link, `a/..` is not here; the kernel knows, so leave it to the kernel unless it leads nowhere.
            Component::ParentDir if whole == Path::new("/") => {}
            other => whole.push(other),
        }
    }
    whole.into_os_string().into_string().map_err(|path| format!("{}: path is not UTF-8", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (String, String, bool, String) {
        let bind = volume(text, Path::new("/home/u")).unwrap();
        (bind.source, bind.destination, bind.read_only, bind.propagation)
    }

    #[test]
    fn volumes() {
        assert_eq!(parsed("/a:/b"), ("/a".into(), "/b".into(), false, String::new()));
        assert_eq!(parsed("./a:/b:ro"), ("/home/u/a".into(), "/b".into(), true, String::new()));
        assert_eq!(parsed("a/b:/b:ro,rslave"), ("/home/u/a/b".into(), "/b".into(), true, "rslave".into()));
        assert_eq!(parsed("/a:/b:ro,cached"), ("/a".into(), "/b".into(), true, String::new()));
        assert_eq!(parsed("..:/b").0, "/home/u/..");
        assert_eq!(parsed(".:/b").0, "/home/u");
        for bad in ["data:/b", "/b", "/a:", ":/b", "/a:/b:x", "/a:/b:ro:x", "/a:/b:ro,rw", "/a:/b:rw,rw"] {
            assert!(volume(bad, Path::new("/")).is_err(), "{bad}");
        }
    }

    #[test]
    fn mounts() {
        let parsed = |text: &str| mount(text, Path::new("/h")).unwrap();
        let Mount::Bind(bind) = parsed("type=bind,src=x/y,dst=/b,readonly,bind-propagation=shared") else {
            panic!("a bind")
        };
        assert_eq!((bind.source.as_str(), bind.destination.as_str()), ("/h/x/y", "/b"));
        assert!(bind.read_only && bind.propagation == "shared" && !bind.make_source);
        let Mount::Bind(bind) = parsed(r#"type=bind,"src=/a,""b",dst=/c,bind-recursive=disabled,consistency=cached"#)
        else {
            panic!("a bind")
        };
        assert_eq!((bind.source.as_str(), bind.below()), ("/a,\"b", Below::Hidden));
        let options = vec!["size=65536".to_owned(), "mode=1770".to_owned(), "ro".to_owned()];
        let tmpfs = Mount::Tmpfs(Tmpfs { destination: "/b".into(), options });
        assert_eq!(parsed("type=tmpfs,dst=/b,tmpfs-size=64k,tmpfs-mode=1770,ro"), tmpfs);
        for bad in [
            "",
            "type=tmpfs",
            "type=tmpfs,src=/a,dst=/b",
            "type=tmpfs,dst=/b,tmpfs-mode=9",
            "type=bind,src=/a",
            "type=bind,src=/a,dst=/b,nope=1",
            "type=bind,src=/a,dst=/b,bind-recursive=x",
            "type=bind,src=/a,dst=/b,consistency=x",
            "type=tmpfs,dst=/b,bind-recursive=disabled",
            "type=bind,src=/a,\"dst=/b",
            "type=bind,src=/a,\"dst=/b\"c",
            "src=/a,dst=/b",
        ] {
            assert!(mount(bad, Path::new("/")).is_err(), "{bad}");
        }
    }
}
