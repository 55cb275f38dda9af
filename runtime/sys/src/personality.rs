//! The execution domain of a process.

use crate::error::{Result, check};

/// The domains that the specification names.
pub const DOMAINS: [(&str, u64); 2] = [("LINUX", 0), ("LINUX32", 8)];

/// Sets the execution domain of this process, for what it executes.
pub fn set(domain: u64) -> Result<()> {
    // SAFETY: one number.
    let result = unsafe { libc::syscall(libc::SYS_personality, domain) };
    check(result, "personality", || format!("{domain:#x}")).map(drop)
}

/// The execution domain of this process.
pub fn get() -> Result<u64> {
    // SAFETY: one number, which means to ask.
    let result = unsafe { libc::syscall(libc::SYS_personality, 0xffff_ffff_u64) };
    check(result, "personality", || "0xffffffff".to_owned()).map(|found| u64::try_from(found).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_and_says() {
        // Belongs to the thread.
        std::thread::spawn(|| {
            set(8).unwrap();
            assert_eq!(get().unwrap(), 8);
        })
        .join()
        .unwrap();
    }
}
