//! The last step: the program.

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::stat::{SFlag, stat};
use nix::unistd::{AccessFlags, faccessat};
use rung_sys::process::{CStringArray, exec};

use crate::error::{Error, Kind, Result};
use crate::log;

use super::hint;

/// A program that was found, ready to be executed.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    argv: CStringArray,
    env: CStringArray,
    /// The environment as text, for hooks that inherit it.
    pub variables: Vec<String>,
}

/// Exit codes of a program that cannot be run, as shells have them.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

impl Program {
    /// Looks the program up in the container, along the container's `PATH`.
    pub fn find(args: &[String], env: &[String]) -> Result<Self> {
        let name = args.first().map(String::as_str).unwrap_or_default();
        let search = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default();
        let path = look_up(name, search)?;
        Ok(Self { path, argv: CStringArray::new(args)?, env: CStringArray::new(env)?, variables: env.to_vec() })
    }

    /// Executes it; returns only the reason why that failed.
    pub fn execute(&self) -> Error {
        let error = exec(&self.path, &self.argv, &self.env);
        let code = if error.errno() == libc::ENOENT { NOT_FOUND } else { NOT_EXECUTABLE };
        let hint = if log::takes_hints() { hint::of(&self.path, error.errno()) } else { String::new() };
        let message = format!("exec {}: {}{hint}", self.path.display(), error.cause());
        Error::new(kind(code), message).with_exit_code(code)
    }
}

/// Callers of `create` see the kind alone, because its exit code is 1 for everything.
fn kind(code: u8) -> Kind {
    if code == NOT_FOUND { Kind::ProgramNotFound } else { Kind::CannotExecute }
}

fn look_up(name: &str, search: &str) -> Result<PathBuf> {
    let fail =
        |cause: &str, code: u8| Err(Error::new(kind(code), format!("exec: {name:?}: {cause}")).with_exit_code(code));
    if name.is_empty() {
        return fail("executable file not found in $PATH", NOT_FOUND);
    }
    if name.contains('/') {
        return match check(Path::new(name)) {
            Ok(()) => Ok(PathBuf::from(name)),
            Err(Errno::ENOENT) => fail(&format!("stat {name}: no such file or directory"), NOT_FOUND),
            // Engines know by the kernel's own answer, EACCES, that this is for 126: podman has only the text to tell.
            Err(Errno::EISDIR) => fail("is a directory: permission denied", NOT_EXECUTABLE),
            Err(errno) => fail(&refusal(Path::new(name), errno), NOT_EXECUTABLE),
        };
    }
    // An empty directory would be the current one, which may be anybody's.
    let directories = search.split(':').filter(|directory| !directory.is_empty());
    match directories.map(|directory| Path::new(directory).join(name)).find(|candidate| check(candidate).is_ok()) {
        Some(program) => Ok(program),
        // As with runc also where a file of that name may not be executed: it is not the program that was asked for.
        None => fail("executable file not found in $PATH", NOT_FOUND),
    }
}

fn refusal(path: &Path, errno: Errno) -> String {
    let hint = if log::takes_hints() { hint::of(path, errno as i32) } else { String::new() };
    format!("{}{hint}", rung_sys::error::describe(errno as i32))
}

fn check(path: &Path) -> std::result::Result<(), Errno> {
    // The container's filter may be in force, and an old one forbids statx(2), which the standard library would use.
    let found = stat(path)?;
    if SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFDIR {
        return Err(Errno::EISDIR);
    }
    // With the effective ids: what counts is who executes, and with which capabilities.
    match faccessat(AT_FDCWD, path, AccessFlags::X_OK, AtFlags::AT_EACCESS) {
        // So does a filter answer that is older than faccessat2(2). The exec itself decides in the end.
        Err(Errno::EPERM | Errno::ENOSYS) if found.st_mode & 0o111 != 0 => Ok(()),
        Err(Errno::EPERM | Errno::ENOSYS) => Err(Errno::EACCES),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lookups_tell_what_is_wrong() {
        let message = |name: &str| look_up(name, "/usr/bin:/bin").expect_err(name).to_string();
        assert_eq!(message("no-such-program"), "exec: \"no-such-program\": executable file not found in $PATH");
        // In a directory of the search, but no program.
        assert_eq!(
            look_up("passwd", "/etc").expect_err("no program").to_string(),
            "exec: \"passwd\": executable file not found in $PATH"
        );
        assert_eq!(message("/nope"), "exec: \"/nope\": stat /nope: no such file or directory");
        assert_eq!(message("/etc"), "exec: \"/etc\": is a directory: permission denied");
        assert_eq!(message("/etc/passwd"), "exec: \"/etc/passwd\": permission denied");
        assert!(look_up("sh", "/usr/bin:/bin").is_ok());
        assert!(look_up("src", "").is_err() && look_up("Cargo.toml", "::").is_err());
    }
}
