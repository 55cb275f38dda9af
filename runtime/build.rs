//! Links `rung` at a fixed address.
//!
//! A static position-independent program relocates itself at each start: for this one 77 pages of tables are written,
//! a third of the time from exec to main. See docs/decisions for what that costs in address randomisation.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is_gnu = std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|env| env == "gnu");
    let is_static =
        std::env::var("CARGO_CFG_TARGET_FEATURE").is_ok_and(|list| list.split(',').any(|f| f == "crt-static"));
    if is_gnu && is_static {
        println!("cargo::rustc-link-arg-bins=-static");
        println!("cargo::rustc-link-arg-bins=-no-pie");
    }
}
