//! Results files and what they add up to: one line per test and place, merged at the end over all places.
//!
//! A line is `place`, `outcome`, `name`, milliseconds and reason, with tabs between.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};

use crate::output::say;
use crate::{Result, runner};

/// How a test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As it should.
    Passed,
    /// With an error, a panic, at its deadline, or with something left behind.
    Failed,
    /// Not run: the place does not meet its needs.
    Skipped,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        })
    }
}

impl FromStr for Outcome {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        [Self::Passed, Self::Failed, Self::Skipped]
            .into_iter()
            .find(|outcome| outcome.to_string() == text)
            .ok_or_else(|| anyhow!("unknown outcome {text:?}"))
    }
}

/// One test in one place.
#[derive(Debug, Clone)]
pub struct Record {
    /// The machine it ran on, and as whom: `host`, `vm-v2`, `vm-v2-user`, ...
    pub place: String,
    /// Full name of the test.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took.
    pub took: Duration,
    /// Why it was skipped or failed.
    pub reason: String,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = self.reason.lines().next().unwrap_or_default().replace('\t', " ");
        write!(f, "{}\t{}\t{}\t{}\t{reason}", self.place, self.outcome, self.name, self.took.as_millis())
    }
}

impl FromStr for Record {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> Result<Self> {
        let fields: Vec<&str> = line.split('\t').collect();
        let [place, outcome, name, millis, reason] = fields.as_slice() else { bail!("not a result: {line:?}") };
        Ok(Self {
            place: (*place).to_owned(),
            name: (*name).to_owned(),
            outcome: outcome.parse()?,
            took: Duration::from_millis(millis.parse().with_context(|| format!("milliseconds in {line:?}"))?),
            reason: (*reason).to_owned(),
        })
    }
}

/// How many of each outcome; prints as `3 passed, 0 failed, 1 skipped`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Counts {
    /// Counts records.
    pub fn of<'a>(records: impl Iterator<Item = &'a Record>) -> Self {
        records.fold(Self::default(), |mut counts, record| {
            match record.outcome {
                Outcome::Passed => counts.passed += 1,
                Outcome::Failed => counts.failed += 1,
                Outcome::Skipped => counts.skipped += 1,
            }
            counts
        })
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// The place this program runs in: `GANTRY_TEST_PLACE`, else `host`.
pub fn place() -> String {
    std::env::var("GANTRY_TEST_PLACE").unwrap_or_else(|_| "host".to_owned())
}

/// Adds the records to the file that `GANTRY_TEST_RESULTS` names, if it names one.
pub(crate) fn append(records: &[Record]) -> Result<()> {
    let Some(path) = std::env::var_os("GANTRY_TEST_RESULTS") else { return Ok(()) };
    let text: String = records.iter().map(|record| format!("{record}\n")).collect();
    runner::append_to(&path, &text).with_context(|| format!("add results to {}", path.display()))
}

/// Prints what ran where, merged from results files, and whether all is well: nothing failed, nothing skipped everywhere.
pub(crate) fn report(files: &[String]) -> Result<bool> {
    let mut records = Vec::new();
    for file in files {
        let text = fs::read_to_string(file).with_context(|| format!("read results {file}"))?;
        for line in text.lines() {
            records.push(line.parse::<Record>()?);
        }
    }
    let mut places: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
    for record in &records {
        places.entry(&record.place).or_default().push(record);
    }
    for (place, records) in &places {
        let took: Duration = records.iter().map(|record| record.took).sum();
        let counts = Counts::of(records.iter().copied());
        say(&format!("{place:<14} {counts} ({:.1} s of test time)", took.as_secs_f64()));
    }
    for record in slowest(&records) {
        say(&format!("slowest: {:.1} s {} in {}", record.took.as_secs_f64(), record.name, record.place));
    }
    for record in records.iter().filter(|record| record.outcome == Outcome::Failed) {
        say(&format!("FAILED {} in {}: {}", record.name, record.place, record.reason));
    }
    let nowhere = skipped_everywhere(&records);
    for (name, reason) in &nowhere {
        say(&format!("RAN NOWHERE {name}: {reason}"));
    }
    let counts = Counts::of(records.iter());
    let names: BTreeSet<&str> = records.iter().map(|record| record.name.as_str()).collect();
    say(&format!(
        "integration: {} tests in {} places, {} skipped everywhere: {counts}",
        names.len(),
        places.len(),
        nowhere.len()
    ));
    Ok(counts.failed == 0 && nowhere.is_empty() && !records.is_empty())
}

/// The few tests that took longest: where to look when all of it takes too long.
fn slowest(records: &[Record]) -> impl Iterator<Item = &Record> {
    let mut sorted: Vec<&Record> = records.iter().collect();
    sorted.sort_by_key(|record| std::cmp::Reverse(record.took));
    sorted.into_iter().take(10)
}

/// Tests that no place ran, each with the reasons.
fn skipped_everywhere(records: &[Record]) -> BTreeMap<&str, String> {
    let mut by_name: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
    for record in records {
        by_name.entry(&record.name).or_default().push(record);
    }
    by_name
        .into_iter()
        .filter(|(_, records)| records.iter().all(|record| record.outcome == Outcome::Skipped))
        .map(|(name, records)| {
            let reasons: Vec<String> =
                records.iter().map(|record| format!("{} ({})", record.reason, record.place)).collect();
            (name, reasons.join("; "))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(place: &str, outcome: Outcome, name: &str) -> Record {
        let took = Duration::from_millis(7);
        Record { place: place.into(), name: name.into(), outcome, took, reason: "a\treason\nand more".into() }
    }

    #[test]
    fn a_record_survives_its_line() {
        let back: Record = record("host", Outcome::Skipped, "a::b").to_string().parse().unwrap();
        assert_eq!((back.place.as_str(), back.outcome, back.name.as_str()), ("host", Outcome::Skipped, "a::b"));
        assert_eq!(back.reason, "a reason");
        assert!("host\tpassed".parse::<Record>().is_err());
    }

    #[test]
    fn a_test_that_ran_nowhere_is_a_failure() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let holds = |records: &[Record]| {
            fs::write(file.path(), records.iter().map(|record| format!("{record}\n")).collect::<String>()).unwrap();
            report(&[file.path().to_string_lossy().into_owned()]).unwrap()
        };
        let skipped = record("host", Outcome::Skipped, "a");
        assert!(!holds(std::slice::from_ref(&skipped)));
        assert!(holds(&[skipped.clone(), record("vm", Outcome::Passed, "a")]));
        assert!(!holds(&[skipped, record("vm", Outcome::Failed, "a")]));
        assert!(!holds(&[]), "nothing ran");
    }

    #[test]
    fn finds_what_ran_nowhere() {
        let records = [
            record("host", Outcome::Skipped, "a"),
            record("vm", Outcome::Passed, "a"),
            record("host", Outcome::Skipped, "b"),
            record("vm", Outcome::Skipped, "b"),
        ];
        assert_eq!(skipped_everywhere(&records).into_keys().collect::<Vec<_>>(), ["b"]);
        assert_eq!(Counts::of(records.iter()).to_string(), "1 passed, 0 failed, 3 skipped");
    }
}
