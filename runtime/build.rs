//! How `rung` is linked: at a fixed address, and with the functions of a start side by side.
//!
//! A static position-independent program relocates itself at each start: for this one 77 pages of tables are written,
//! a third of the time from exec to main. See docs/decisions for what that costs in address randomisation, and for
//! `hot-functions.ld`, which the build for use follows.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let libc = env::var("CARGO_CFG_TARGET_ENV").unwrap_or_default();
    let is_static = env::var("CARGO_CFG_TARGET_FEATURE").is_ok_and(|list| list.split(',').any(|f| f == "crt-static"));
    if libc == "gnu" && is_static {
        println!("cargo::rustc-link-arg-bins=-static");
        println!("cargo::rustc-link-arg-bins=-no-pie");
    }
    if let ("musl", Ok(here)) = (libc.as_str(), env::var("CARGO_MANIFEST_DIR")) {
        println!("cargo::rerun-if-changed=hot-functions.ld");
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{here}/hot-functions.ld");
        // Two segments and not four to map in each exec, and fewer pages that are half used. A static program at a fixed
        // address never makes what relocation has written read-only, so it needs no pages of its own for that.
        println!("cargo::rustc-link-arg-bins=-Wl,-z,noseparate-code,-z,norelro");
    }
}
