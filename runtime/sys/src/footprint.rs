//! What a program holds of memory: without need, where it lives long, and from the first moment, where it ends soon.

use std::path::Path;

/// Has the kernel provide the next `bytes` of the stack in one call. A program that will use them anyway is spared an
/// exception for each page.
pub fn expect_stack(bytes: usize) {
    let here = 0_u8;
    let top = std::ptr::from_ref(&here).addr();
    provide(top.saturating_sub(bytes), bytes);
}

/// Has the kernel provide the pages of what is writable here. Only spares time, so nobody minds where it cannot: kernels
/// before 5.14 do not know it.
pub(crate) fn provide(start: usize, bytes: usize) {
    let aligned = start & !(PAGE - 1);
    let address = std::ptr::with_exposed_provenance_mut::<libc::c_void>(aligned);
    // SAFETY: this changes no byte of what is mapped there, only when its pages come.
    unsafe {
        libc::madvise(address, bytes + (start - aligned), libc::MADV_POPULATE_WRITE);
    }
}

/// The least size of a page. Where pages are larger, the call above is refused.
const PAGE: usize = 4096;

/// At most so many heaps for all threads together: what one thread has freed, another uses. Before the first thread.
pub fn limit_heaps(count: u8) {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes numbers only.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, libc::c_int::from(count));
    }
    // Other libraries have one heap.
    #[cfg(not(target_env = "gnu"))]
    let _ = count;
}

/// Gives what is free in the heaps back to the kernel. Others wait meanwhile who allocate.
pub fn give_back_heaps() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes a number only, and touches nothing that is handed out.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Lets go of the pages of the program's own code. They stay in the kernel's cache of files, and what is executed again
/// is mapped again from there.
pub fn give_back_code() {
    let Ok(program) = std::fs::read_link("/proc/self/exe") else { return };
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return };
    for (start, end) in maps.lines().filter_map(|line| code(line, &program)) {
        let address = std::ptr::with_exposed_provenance_mut::<libc::c_void>(start);
        // SAFETY: the range is a private mapping of a file that nothing was ever written to, for it was never writable:
        // each page of it that is touched again is read from the file again, as it was.
        unsafe {
            libc::madvise(address, end - start, libc::MADV_DONTNEED);
        }
    }
}

/// The range of a line of `/proc/self/maps`, if it is of the program's code.
fn code(line: &str, program: &Path) -> Option<(usize, usize)> {
    let mut words = line.splitn(6, ' ').map(str::trim);
    let (start, end) = words.next()?.split_once('-')?;
    let of_code = words.next()? == "r-xp" && Path::new(words.nth(3)?) == program;
    let number = |text: &str| usize::from_str_radix(text, 16).ok();
    Some((number(start)?, number(end)?)).filter(|_| of_code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_code_of_the_program_is_let_go() {
        let program = Path::new("/usr/bin/a b (deleted)");
        let line = |permissions: &str, path: &str| {
            let line = format!("55d0c000-55d0f000 {permissions} 00003000 fd:00 4242                       {path}");
            code(&line, program)
        };
        assert_eq!(line("r-xp", "/usr/bin/a b (deleted)"), Some((0x55d0_c000, 0x55d0_f000)));
        assert_eq!(line("r--p", "/usr/bin/a b (deleted)"), None);
        assert_eq!(line("rwxp", "/usr/bin/a b (deleted)"), None);
        assert_eq!(line("r-xp", "/usr/lib/libc.so.6"), None);
        assert_eq!(code("7ffd1000-7ffd2000 r-xp 00000000 00:00 0 ", program), None);
        assert_eq!(code("", program), None);
    }

    #[test]
    fn the_program_goes_on_after_it() {
        limit_heaps(2);
        let kept: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
        for _ in 0..3 {
            give_back_heaps();
            give_back_code();
        }
        assert_eq!(kept.iter().map(String::len).sum::<usize>(), 10 + 180 + 2700);
        // Some code was executed, and so mapped again.
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let program = std::fs::read_link("/proc/self/exe").unwrap();
        assert!(maps.lines().any(|line| code(line, &program).is_some()), "{maps}");
    }
}
