//! The command line that daemons give a shim. Its flags have one dash, as Go's, so that it is read here and not by clap.

use std::io::Read as _;
use std::path::PathBuf;

use crate::{Doing as _, Error, Result};

/// Bytes that a daemon may write to standard input.
const MAX_INPUT: u64 = 10 << 20;

/// What a command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `-v`: print the version.
    Version,
    /// `-info`: describe the shim and its runtime.
    Info,
    /// `start`: make a supervisor, print its address.
    Start(Flags),
    /// `delete`: clean up after a supervisor that is gone.
    Delete(Flags),
    /// `compress`: the supervisor's own helper for rotated logs.
    Compress,
}

/// The flags of `start` and `delete`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    /// Namespace of the container.
    pub namespace: String,
    /// Container, or sandbox.
    pub id: String,
    /// The daemon's gRPC socket.
    pub address: String,
    /// Program that publishes events where the daemon offers no ttrpc socket.
    pub publish_binary: String,
    /// Bundle directory; empty: the working directory.
    pub bundle: PathBuf,
    /// Log more.
    pub debug: bool,
    /// Socket to serve on instead of the computed one.
    pub socket: String,
}

/// Reads the words after the program's name.
///
/// # Errors
/// Names the flag or action that is unknown, or what is missing.
pub fn parse(words: impl IntoIterator<Item = String>) -> Result<Command> {
    let mut words = words.into_iter();
    let mut flags = Flags::default();
    let mut version = false;
    let mut info = false;
    let mut action = Vec::new();
    while let Some(word) = words.next() {
        let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
            action.push(word);
            action.extend(words);
            break;
        };
        let (name, inline) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        let boolean = |inline: &Option<String>| match inline.as_deref() {
            None | Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(other) => Err(Error::invalid(format!("flag -{name}: {other:?} is neither true nor false"))),
        };
        match name {
            "v" | "version" => version = boolean(&inline)?,
            "info" => info = boolean(&inline)?,
            "debug" => flags.debug = boolean(&inline)?,
            "namespace" | "id" | "address" | "publish-binary" | "bundle" | "socket" => {
                let value = inline.or_else(|| words.next());
                let value = value.ok_or_else(|| Error::invalid(format!("flag -{name}: value is missing")))?;
                match name {
                    "namespace" => flags.namespace = value,
                    "id" => flags.id = value,
                    "address" => flags.address = value,
                    "publish-binary" => flags.publish_binary = value,
                    "bundle" => flags.bundle = value.into(),
                    _ => flags.socket = value,
                }
            }
            _ => return Err(Error::invalid(format!("unknown flag -{name}"))),
        }
    }
    if version {
        return Ok(Command::Version);
    }
    if info {
        return Ok(Command::Info);
    }
    match action.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["start"] => flags.checked().map(Command::Start),
        ["delete"] => flags.checked().map(Command::Delete),
        ["compress"] => Ok(Command::Compress),
        [] => Err(Error::invalid("no action: this program is started by a container daemon with start or delete")),
        [other, ..] => Err(Error::invalid(format!("unknown action {other:?}; the actions are start and delete"))),
    }
}

/// Reads what the daemon writes to standard input, up to a bound.
///
/// # Errors
/// Those of reading.
pub fn read_input() -> Result<Vec<u8>> {
    let mut input = Vec::new();
    std::io::stdin().take(MAX_INPUT).read_to_end(&mut input)?;
    Ok(input)
}

impl Flags {
    /// The bundle directory.
    ///
    /// # Errors
    /// Where no flag names one and the working directory is gone.
    pub fn bundle(&self) -> Result<PathBuf> {
        if self.bundle.as_os_str().is_empty() {
            return std::env::current_dir().doing(|| "find the bundle: working directory");
        }
        Ok(self.bundle.clone())
    }

    /// Identifiers become parts of paths, so that they are checked before anything else happens.
    fn checked(self) -> Result<Self> {
        use gantry_proto::namespace::check_identifier;
        check_identifier(&self.namespace).map_err(|error| Error::invalid(format!("flag -namespace: {error}")))?;
        check_identifier(&self.id).map_err(|error| Error::invalid(format!("flag -id: {error}")))?;
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Result<Command> {
        parse(text.split(' ').map(str::to_owned))
    }

    #[test]
    fn start_as_containerd_writes_it() {
        let parsed =
            words("-namespace k8s.io -address /run/c.sock -publish-binary /bin/c -id abc -bundle=/b -debug start");
        let Ok(Command::Start(flags)) = parsed else { panic!("{parsed:?}") };
        assert_eq!((flags.namespace.as_str(), flags.id.as_str(), flags.debug), ("k8s.io", "abc", true));
        assert_eq!(flags.bundle, PathBuf::from("/b"));
    }

    #[test]
    fn others() {
        assert_eq!(words("-v").expect("version"), Command::Version);
        assert_eq!(words("-info").expect("info"), Command::Info);
        assert!(matches!(words("--namespace a -id b delete"), Ok(Command::Delete(_))));
        for bad in ["start", "-namespace a -id ../x start", "-nope start", "-namespace a -id b stop", "-id"] {
            assert!(words(bad).is_err(), "{bad}");
        }
    }
}
