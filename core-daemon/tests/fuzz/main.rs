//! Input from strangers, changed at random: whatever comes, there is an answer or an error, and nothing else happens.
//!
//! Each target begins with the inputs of `corpus/` or of its own, and goes on with changes of them. `cargo test` does a
//! fixed number of rounds from a fixed seed; `make fuzz` sets `FUZZ_SECONDS` and goes on for so long from a seed of its
//! own. An input that causes a failure is kept in `target/tmp/fuzz` and, once it is mended, belongs into the corpus.
#![allow(clippy::disallowed_methods, clippy::print_stderr, reason = "a test, which says where the input is")]

mod mutate;
mod targets;
mod tars;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mutate::Random;

/// Runs a target on its corpus and on changes of it.
fn fuzz(name: &str, corpus: &[Vec<u8>], rounds: u32, repair: fn(&mut [u8]), run: &dyn Fn(&[u8])) {
    assert!(!corpus.is_empty(), "{name} has no corpus");
    let seconds = std::env::var("FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).map(Duration::from_secs);
    let seed = std::env::var("FUZZ_SEED").ok().and_then(|text| text.parse().ok());
    let clock = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |at| at.as_secs());
    let seed: u64 = seed.unwrap_or_else(|| if seconds.is_some() { clock() } else { 1 });
    let (mut random, begun, mut done) = (Random::new(seed), Instant::now(), 0_u32);
    corpus.iter().for_each(|input| guarded(name, input, run));
    while seconds.map_or(done < rounds, |seconds| begun.elapsed() < seconds) {
        let mut input = mutate::change(&mut random, corpus);
        if random.below(4) > 0 {
            repair(&mut input);
        }
        guarded(name, &input, run);
        done += 1;
    }
    eprintln!("{name}: {done} inputs from seed {seed}");
}

/// Runs a target once; what makes it panic is kept.
fn guarded(name: &str, input: &[u8], run: &dyn Fn(&[u8])) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(input))) {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz");
        let path = dir.join(format!("{name}-{}", rung_spec::digest::Digest::of(input).hex()));
        std::fs::create_dir_all(&dir).and_then(|()| std::fs::write(&path, input)).expect("keep the input");
        eprintln!("{name}: the input is {}", path.display());
        resume_unwind(panic);
    }
}

/// The inputs of a target's directory, one a file or, in `lines`, one a line.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&dir).expect("corpus").flatten().map(|it| it.path()).collect();
    files.sort();
    let mut inputs = Vec::new();
    for path in files {
        let bytes = std::fs::read(&path).expect("input");
        match path.file_name().is_some_and(|name| name == "lines") {
            true => inputs.extend(bytes.split(|byte| *byte == b'\n').map(<[u8]>::to_vec)),
            false => inputs.push(bytes),
        }
    }
    inputs
}
