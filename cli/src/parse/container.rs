//! What options of `run` say of a container, in docker's words: limits, devices, settings, hosts, logs.

use std::collections::BTreeMap;

use gantry_proto::gantry::engine::v1::{Device, LogOptions, Security, Tmpfs, Ulimit};

use super::size;

/// `NAME=SOFT[:HARD]`, where -1 is any.
///
/// # Errors
/// Where it has another form.
pub fn ulimit(text: &str) -> Result<Ulimit, String> {
    let bad = || format!("{text:?} is not NAME=SOFT[:HARD], such as nofile=1024:4096");
    let (name, limits) = text.split_once('=').ok_or_else(bad)?;
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let number = |text: &str| text.parse::<i64>().ok().filter(|number| *number >= -1).ok_or_else(bad);
    let (soft, hard) = (number(soft)?, number(hard)?);
    // Docker knows them in small letters alone.
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(format!("{text:?}: there is no limit {name}; write {}", name.to_ascii_lowercase()));
    }
    if name.is_empty() || (hard != -1 && (soft == -1 || soft > hard)) {
        return Err(if name.is_empty() { bad() } else { format!("{text:?}: the soft limit is above the hard one") });
    }
    Ok(Ulimit { name: name.to_owned(), soft, hard })
}

/// `HOST_PATH[:PATH][:ACCESS]`, where access is made of r, w and m.
///
/// # Errors
/// Where it has another form.
pub fn device(text: &str) -> Result<Device, String> {
    let is_access = |part: &str| !part.is_empty() && part.bytes().all(|byte| b"rwm".contains(&byte));
    let parts: Vec<&str> = text.split(':').collect();
    let (source, destination, access) = match parts[..] {
        [source] => (source, "", ""),
        [source, access] if is_access(access) => (source, "", access),
        [source, destination] => (source, destination, ""),
        [source, destination, access] if is_access(access) => (source, destination, access),
        _ => return Err(format!("{text:?} is not HOST_PATH[:PATH][:ACCESS]")),
    };
    if !source.starts_with('/') {
        return Err(format!("{text:?}: {source:?} is not an absolute path"));
    }
    Ok(Device { source: source.to_owned(), destination: destination.to_owned(), access: access.to_owned() })
}

/// `KEY=VALUE`.
///
/// # Errors
/// Where there is no value.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not KEY=VALUE")),
    }
}

/// `PATH[:OPTIONS]`.
///
/// # Errors
/// Where the path is not absolute.
pub fn tmpfs(text: &str) -> Result<Tmpfs, String> {
    let (path, options) = text.split_once(':').unwrap_or((text, ""));
    if !path.starts_with('/') {
        return Err(format!("{path:?} is not an absolute path"));
    }
    let options = options.split(',').filter(|option| !option.is_empty()).map(str::to_owned).collect();
    Ok(Tmpfs { destination: path.to_owned(), options })
}

/// `NAME:ADDRESS` or `NAME=ADDRESS`; answers with the first form.
///
/// # Errors
/// Where it has another form.
pub fn host(text: &str) -> Result<String, String> {
    let (name, address) =
        text.split_once('=').or_else(|| text.split_once(':')).ok_or_else(|| format!("{text:?} is not NAME:ADDRESS"))?;
    let plain = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    if name.is_empty() || plain.parse::<std::net::IpAddr>().is_err() {
        return Err(format!("{text:?}: {address:?} is not an address"));
    }
    Ok(format!("{name}:{plain}"))
}

/// The lines of a `--label-file`.
///
/// # Errors
/// Names the line without a name.
pub fn label_file(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut labels = BTreeMap::new();
    for (number, line) in text.strip_prefix('\u{feff}').unwrap_or(text).lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (key, value) = line.split_once('=').unwrap_or((line, ""));
        if key.is_empty() || key.contains(char::is_whitespace) {
            return Err(format!("line {}: name {key:?} is empty or contains a space", number + 1));
        }
        labels.insert(key.to_owned(), value.to_owned());
    }
    Ok(labels)
}

/// All `--security-opt` together; `read` gives the profile in a file.
///
/// # Errors
/// Names the option that is unknown, or what `read` fails with.
pub fn security(texts: &[String], read: impl Fn(&str) -> Result<String, String>) -> Result<Security, String> {
    let mut security = Security::default();
    for text in texts {
        let (key, value) = text.split_once(['=', ':']).unwrap_or((text, ""));
        match (key, value) {
            ("no-new-privileges", "" | "true") => security.no_new_privileges = true,
            ("no-new-privileges", "false") => security.no_new_privileges = false,
            ("seccomp", "builtin") => security.seccomp.clear(),
            ("seccomp", "unconfined") => "unconfined".clone_into(&mut security.seccomp),
            ("seccomp", path) if !path.is_empty() => security.seccomp = read(path)?,
            ("apparmor", name) if !name.is_empty() => name.clone_into(&mut security.apparmor),
            ("systempaths", "unconfined") => security.open_system_paths = true,
            // No container has a label.
            ("label", "disable") => {}
            ("label", _) => return Err(format!("{text:?}: labels are not supported yet")),
            _ => return Err(format!("{text:?}: there is no such option")),
        }
    }
    Ok(security)
}

/// All `--log-opt` together.
///
/// # Errors
/// Names the option that is unknown or malformed.
pub fn log(texts: &[String]) -> Result<LogOptions, String> {
    let mut log = LogOptions::default();
    for text in texts {
        let (key, value) = pair(text)?;
        let bad = || format!("{text:?}: {value:?} is not a value of {key}");
        match key.as_str() {
            "mode" => {
                log.drop = match value.as_str() {
                    "blocking" => Some(false),
                    "non-blocking" => Some(true),
                    _ => return Err(bad()),
                };
            }
            "compress" => log.compress = Some(value.parse().map_err(|_| bad())?),
            "max-size" => {
                log.max_size = u64::try_from(size::bytes(&value)?).ok().filter(|size| *size > 0).ok_or_else(bad)?;
            }
            "max-file" => log.max_files = value.parse().ok().filter(|files| *files > 0).ok_or_else(bad)?,
            _ => return Err(format!("{text:?}: known are mode, max-size, max-file and compress")),
        }
    }
    Ok(log)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_and_devices() {
        let limit = |text: &str| ulimit(text).map(|limit| (limit.name, limit.soft, limit.hard));
        assert_eq!(limit("nofile=1024:4096"), Ok(("nofile".to_owned(), 1024, 4096)));
        assert_eq!(limit("core=-1"), Ok(("core".to_owned(), -1, -1)));
        assert_eq!(limit("nproc=5:-1"), Ok(("nproc".to_owned(), 5, -1)));
        for bad in [
            "nofile",
            "=1",
            "nofile=",
            "nofile=5:4",
            "nofile=-1:4",
            "nofile=a",
            "nofile=-2",
            "nofile=1:2:3",
            "NOFILE=1",
        ] {
            assert!(ulimit(bad).is_err(), "{bad}");
        }
        let parts =
            |text: &str| device(text).map(|device| [device.source, device.destination, device.access].join(" "));
        assert_eq!(parts("/dev/fuse").as_deref(), Ok("/dev/fuse  "));
        assert_eq!(parts("/dev/fuse:rw").as_deref(), Ok("/dev/fuse  rw"));
        assert_eq!(parts("/dev/a:/dev/b").as_deref(), Ok("/dev/a /dev/b "));
        assert_eq!(parts("/dev/a:/dev/b:r").as_deref(), Ok("/dev/a /dev/b r"));
        for bad in ["", "dev/a", "/dev/a:/b:x", "/dev/a:/b:r:w", "vendor.com/class=name"] {
            assert!(device(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn hosts_mounts_and_labels() {
        assert_eq!(host("db:10.0.0.1").as_deref(), Ok("db:10.0.0.1"));
        assert_eq!(host("db=::1").as_deref(), Ok("db:::1"));
        assert_eq!(host("db:[fe80::2]").as_deref(), Ok("db:fe80::2"));
        assert!(host("db").is_err() && host(":1.2.3.4").is_err() && host("db:host-gateway").is_err());
        let made = tmpfs("/run:size=1m,exec").expect("tmpfs");
        assert_eq!((made.destination.as_str(), made.options.join(" ")), ("/run", "size=1m exec".to_owned()));
        assert!(tmpfs("run").is_err());
        let labels = label_file("# mine\n\na=b=c\nflag\n").expect("labels");
        assert_eq!(labels.iter().map(|(key, value)| format!("{key}:{value}")).collect::<Vec<_>>(), ["a:b=c", "flag:"]);
        assert!(label_file("a b=c").is_err());
    }

    #[test]
    fn security_and_logs() {
        let read = |path: &str| if path == "p.json" { Ok("{}".to_owned()) } else { Err(format!("{path}: no")) };
        let all = |texts: &[&str]| security(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>(), read);
        let made =
            all(&["no-new-privileges", "seccomp=p.json", "apparmor:mine", "label=disable", "systempaths=unconfined"]);
        let made = made.expect("security");
        assert!(made.no_new_privileges && made.open_system_paths);
        assert_eq!((made.seccomp.as_str(), made.apparmor.as_str()), ("{}", "mine"));
        assert!(!all(&["no-new-privileges", "no-new-privileges=false"]).expect("last").no_new_privileges);
        for bad in ["seccomp=q.json", "seccomp", "label=type:x", "nope=1", "systempaths=x"] {
            assert!(all(&[bad]).is_err(), "{bad}");
        }
        let texts = ["mode=non-blocking", "max-size=10m", "max-file=3", "compress=false"].map(str::to_owned);
        let made = log(&texts).expect("log");
        assert_eq!((made.drop, made.max_size, made.max_files, made.compress), (Some(true), 10 << 20, 3, Some(false)));
        for bad in ["mode=x", "max-size=0", "max-file=0", "tag=x", "mode"] {
            assert!(log(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }
}
