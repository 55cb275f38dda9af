//! Files of a container's cgroup by annotation: `FILE=VALUE`, several with semicolons between.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// What is written, by the name of the file.
pub(in crate::cri) type Files = BTreeMap<String, String>;

/// Most files that one container may have.
const MOST: usize = 64;
/// Begin of the names of files that are not limits: by these processes would be moved and ended.
const CORE: &str = "cgroup.";

pub(super) fn parse(value: &str) -> Result<Files, String> {
    let mut files = Files::new();
    for entry in value.split(';').filter(|entry| !entry.is_empty()) {
        let (name, text) = entry.split_once('=').ok_or_else(|| format!("{entry:?} is not FILE=VALUE"))?;
        let is_file = name.contains('.')
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
            && !name.starts_with('.');
        if !is_file || name.starts_with(CORE) {
            return Err(format!("{name:?} is not the name of a limit's file"));
        }
        files.insert(name.to_owned(), decoded(text));
        if files.len() > MOST {
            return Err(format!("names more than {MOST} files"));
        }
    }
    Ok(files)
}

/// A value may be packed in base64, because it may have semicolons in it. What is a text only without unpacking is none that
/// is packed: `1000` and `max` are themselves.
fn decoded(text: &str) -> String {
    let bytes = STANDARD.decode(text).ok();
    let unpacked = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    let is_text = |text: &String| !text.is_empty() && text.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\n'));
    unpacked.filter(is_text).unwrap_or_else(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_and_packed_values() {
        let files = parse("memory.high=10000000;io.max=ODowIHJicHM9MTA=;;pids.max=max;memory.low=1000").expect("files");
        let value = |name: &str| files[name].as_str();
        assert_eq!((value("memory.high"), value("io.max"), value("pids.max")), ("10000000", "8:0 rbps=10", "max"));
        assert_eq!(value("memory.low"), "1000");
        assert!(parse("").expect("nothing").is_empty());
    }

    #[test]
    fn files_that_are_no_limits_are_refused() {
        for wrong in ["memory.high", "memory=1", "../x.y=1", "a/b.c=1", ".x=1", "cgroup.procs=1", "cgroup.kill=1", "=1"]
        {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        let many: Vec<_> = (0..=MOST).map(|number| format!("a.{number}=1")).collect();
        assert!(parse(&many.join(";")).is_err());
    }
}
