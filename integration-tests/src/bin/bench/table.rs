//! Samples and the table they make.

use std::io::Write;
use std::time::Duration;

use integration_tests::{Chance, Result};

/// One thing that is measured, in rounds.
pub(crate) struct Subject<'a> {
    pub(crate) name: String,
    run: Box<dyn FnMut() -> Result<f64> + 'a>,
    samples: Vec<f64>,
}

impl<'a> Subject<'a> {
    pub(crate) fn new(name: &str, run: impl FnMut() -> Result<f64> + 'a) -> Self {
        Self { name: name.to_owned(), run: Box::new(run), samples: Vec::new() }
    }
}

/// Runs every subject `rounds` times, each round in another order, and before that once, which warms the caches.
pub(crate) fn interleave(subjects: &mut [Subject<'_>], rounds: usize) -> Result<()> {
    warm(subjects, rounds, REST)
}

/// The same without a rest between samples, for what leaves nothing to take down: after a rest a call first pays for waking
/// the processors, which in a virtual machine is more than the call.
pub(crate) fn interleave_without_rest(subjects: &mut [Subject<'_>], rounds: usize) -> Result<()> {
    warm(subjects, rounds, Duration::ZERO)
}

fn warm(subjects: &mut [Subject<'_>], rounds: usize, rest: Duration) -> Result<()> {
    take_turns(subjects, 1, rest)?;
    subjects.iter_mut().for_each(|subject| subject.samples.clear());
    take_turns(subjects, rounds, rest)
}

/// The same for subjects that were tried before.
pub(crate) fn interleave_warm(subjects: &mut [Subject<'_>], rounds: usize) -> Result<()> {
    take_turns(subjects, rounds, REST)
}

fn take_turns(subjects: &mut [Subject<'_>], rounds: usize, rest: Duration) -> Result<()> {
    let mut order: Vec<usize> = (0..subjects.len()).collect();
    // The same in every run.
    let mut chance = Chance::new(1);
    for _ in 0..rounds {
        for last in (1..order.len()).rev() {
            order.swap(last, chance.below(last + 1));
        }
        for &at in &order {
            let subject = &mut subjects[at];
            let sample = (subject.run)()?;
            subject.samples.push(sample);
            std::thread::sleep(rest);
        }
    }
    Ok(())
}

/// Time for the kernel to take down the namespaces of the sample before.
const REST: Duration = Duration::from_millis(20);

/// Prints medians and how they compare with the first subject and with `against`.
pub(crate) fn print(title: &str, unit: &str, subjects: &mut [Subject<'_>], against: &str) {
    let median_of = |subject: &Subject<'_>| quantile(&subject.samples, 0.5);
    let first =
        subjects.first().map_or((String::new(), f64::NAN), |subject| (subject.name.clone(), median_of(subject)));
    let other = subjects.iter().find(|subject| subject.name == against).map_or(f64::NAN, &median_of);
    let mut out = std::io::stdout().lock();
    let heads = (format!("x {}", first.0), format!("x {against}"));
    let _ = writeln!(out, "\n{title}");
    let _ =
        writeln!(out, "  {:<34} {:>10} {:>10} {:>12} {:>14}", "", format!("median {unit}"), "p90", heads.0, heads.1);
    for subject in subjects {
        let (median, high) = (quantile(&subject.samples, 0.5), quantile(&subject.samples, 0.9));
        let (to_first, to_other) = (ratio(median / first.1), ratio(median / other));
        let _ = writeln!(out, "  {:<34} {median:>10.2} {high:>10.2} {to_first:>12} {to_other:>14}", subject.name);
    }
}

/// Says something beside the tables.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// Milliseconds, with what is below them.
pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn ratio(value: f64) -> String {
    if value.is_nan() { "-".to_owned() } else { format!("{value:.2}") }
}

/// The sample below which `part` of all samples lie.
fn quantile(samples: &[f64], part: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    // Counts of samples are far below 2^52, and the product is within them.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let at = ((sorted.len().saturating_sub(1)) as f64 * part).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}
