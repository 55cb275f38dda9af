//! `make bench`: Gantry beside what people use today, on this machine, in one run.
//!
//! Each round runs every subject once, in an order drawn anew, so that a machine that slows down slows all of them and none
//! always pays for what another leaves to the kernel to clear away. What counts is the median. A subject that is not installed is named as missing, not left out in silence.
#![allow(clippy::disallowed_methods)]

mod clients;
mod crio;
mod crowds;
mod daemons;
mod engines;
mod pods;
mod pulls;
mod runtimes;
mod stores;
mod table;
mod wire;

use std::io::Write;
use std::process::ExitCode;

use integration_tests::{Env, Result};

fn main() -> ExitCode {
    let rounds = std::env::var("BENCH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(100);
    match measure(rounds) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(rounds: usize) -> Result<()> {
    let scratch = format!("gtbench{:06x}", std::process::id());
    let env = Env::new(&scratch)?;
    // A part of it, by name, while one works on it.
    let measured = match std::env::var("BENCH_ONLY").as_deref() {
        Ok("runtimes") => runtimes::measure(&env, rounds),
        Ok("daemons") => daemons::measure(&env, rounds),
        Ok("crowds") => crowds::measure(&env),
        Ok("pods") => pods::measure(&env, rounds),
        Ok("records") => stores::measure(&env, rounds),
        Ok("images") => stores::measure(&env, rounds).and_then(|()| pulls::measure(&env, rounds)),
        _ => everything(&env, rounds),
    };
    let left = integration_tests::leaks::settle_and_clear(&scratch);
    measured?;
    anyhow::ensure!(left.is_empty(), "left behind: {}", left.join(", "));
    Ok(())
}

fn everything(env: &Env, rounds: usize) -> Result<()> {
    runtimes::measure(env, rounds.div_ceil(2))?;
    daemons::measure(env, rounds.div_ceil(4))?;
    crowds::measure(env)?;
    pods::measure(env, rounds.div_ceil(5))?;
    stores::measure(env, rounds)?;
    pulls::measure(env, rounds)
}
