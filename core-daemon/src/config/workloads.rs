//! The part of the configuration that is about workloads: kinds of pods whose containers get other limits of processors than
//! the kubelet says, and other annotations.

use std::ops::RangeInclusive;

use rung_sys::sched::NumberSet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Annotation;
use crate::error::{Error, Result};

/// Microseconds for which the kernel counts a share of time.
const PERIODS: RangeInclusive<u64> = 1_000..=1_000_000;
/// Microseconds, where nobody says otherwise.
pub const PERIOD: i64 = 100_000;
/// Fewest microseconds of time in each of them.
pub const LEAST_QUOTA: i64 = 1_000;
/// Weights that the kernel takes.
const SHARES: RangeInclusive<u64> = 2..=262_144;
/// Thousandths in a processor.
const MILLI: i64 = 1_000;
/// More thousandths of processors than a machine has.
const MOST_MILLI: i64 = 10_000_000;

/// A kind of pods, which a pod is of that has an annotation of this name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Workload {
    /// Name of the annotation, whatever its value, by which a pod is of this kind.
    pub activation_annotation: String,
    /// Begin of the names of annotations by which such a pod changes the limits of one of its containers:
    /// `PREFIX/CONTAINER` with an object of JSON, or `PREFIX.LIMIT/CONTAINER` with a value; empty: it cannot.
    pub annotation_prefix: String,
    /// Annotations that such a pod may have, beside those that its handler allows.
    pub allowed_annotations: Vec<String>,
    /// Limits of each container that has none by annotation.
    pub resources: WorkloadResources,
}

/// Limits of processors of a container, in place of the kubelet's. What is 0 or empty stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WorkloadResources {
    /// Processors, as in `0-3,7`.
    pub cpuset: String,
    /// Weight of its share of time.
    pub cpushares: u64,
    /// Microseconds of time in each period; -1: no limit.
    pub cpuquota: i64,
    /// Microseconds of a period. A limit of time that is the kubelet's is as much of this one as it was of the kubelet's.
    pub cpuperiod: u64,
    /// Thousandths of a processor, in place of `cpuquota`.
    pub cpulimit: i64,
}

impl Workload {
    pub(super) fn check(&self, field: &str) -> Result<()> {
        if self.activation_annotation.is_empty() {
            return Err(Error::invalid(format!("{field}.activation_annotation: is required")));
        }
        Annotation::allowed(&self.allowed_annotations)
            .map_err(|error| Error::invalid(format!("{field}.allowed_annotations: {error}")))?;
        self.resources.check(&format!("{field}.resources."))
    }
}

impl WorkloadResources {
    /// Names of the limits, as annotations have them.
    pub const NAMES: [&str; 5] = ["cpuset", "cpushares", "cpuquota", "cpuperiod", "cpulimit"];

    /// Sets the limit that is called `name` to what a text says.
    ///
    /// # Errors
    /// `InvalidArgument` for another name, and for what is no value of that limit.
    pub fn set(&mut self, name: &str, text: &str) -> Result<()> {
        let wrong = |_| Error::invalid(format!("{text:?} is not a number"));
        match name {
            "cpuset" => text.clone_into(&mut self.cpuset),
            "cpushares" => self.cpushares = text.parse().map_err(wrong)?,
            "cpuquota" => self.cpuquota = text.parse().map_err(wrong)?,
            "cpuperiod" => self.cpuperiod = text.parse().map_err(wrong)?,
            "cpulimit" => self.cpulimit = text.parse().map_err(wrong)?,
            _ => return Err(Error::invalid(format!("{name:?} is not one of {}", Self::NAMES.join(", ")))),
        }
        Ok(())
    }

    /// These, and of what they leave open what `others` say.
    #[must_use]
    pub fn or(self, others: &Self) -> Self {
        // One way to say how much time replaces the other.
        let says_time = self.cpuquota != 0 || self.cpulimit != 0;
        let (cpuquota, cpulimit) =
            if says_time { (self.cpuquota, self.cpulimit) } else { (others.cpuquota, others.cpulimit) };
        Self {
            cpuset: if self.cpuset.is_empty() { others.cpuset.clone() } else { self.cpuset },
            cpushares: if self.cpushares == 0 { others.cpushares } else { self.cpushares },
            cpuquota,
            cpuperiod: if self.cpuperiod == 0 { others.cpuperiod } else { self.cpuperiod },
            cpulimit,
        }
    }

    /// Microseconds of time in each period of so many microseconds, 0: where nobody says how many; none where it is not limited
    /// here.
    pub fn quota(&self, period: u64) -> Option<i64> {
        let period = if period == 0 { PERIOD } else { i64::try_from(period).unwrap_or(i64::MAX) };
        match (self.cpulimit, self.cpuquota) {
            (0, 0) => None,
            (0, quota) => Some(quota),
            (limit, _) => Some((limit.saturating_mul(period) / MILLI).max(LEAST_QUOTA)),
        }
    }

    /// Refuses limits that the kernel would not take.
    ///
    /// # Errors
    /// `InvalidArgument` that names the limit, after `prefix`.
    pub fn check(&self, prefix: &str) -> Result<()> {
        let wrong = |name: &str, what: String| Err(Error::invalid(format!("{prefix}{name}: {what}")));
        if !self.cpuset.is_empty() && NumberSet::parse(&self.cpuset).is_none() {
            return wrong("cpuset", format!("{:?} is not a list like 0-3,7", self.cpuset));
        }
        if self.cpushares != 0 && !SHARES.contains(&self.cpushares) {
            return wrong(
                "cpushares",
                format!("{} is not between {} and {}", self.cpushares, SHARES.start(), SHARES.end()),
            );
        }
        if !(self.cpuquota == 0 || self.cpuquota == -1 || self.cpuquota >= LEAST_QUOTA) {
            return wrong("cpuquota", format!("{} is neither -1 nor at least {LEAST_QUOTA}", self.cpuquota));
        }
        if self.cpuperiod != 0 && !PERIODS.contains(&self.cpuperiod) {
            let (least, most) = (PERIODS.start(), PERIODS.end());
            return wrong("cpuperiod", format!("{} is not between {least} and {most}", self.cpuperiod));
        }
        if !(0..=MOST_MILLI).contains(&self.cpulimit) {
            return wrong("cpulimit", format!("{} is not between 0 and {MOST_MILLI}", self.cpulimit));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_make_no_sense_are_named() {
        let check = |name: &str, text: &str| {
            let mut limits = WorkloadResources::default();
            limits.set(name, text).and_then(|()| limits.check("f.")).map_err(|error| error.to_string())
        };
        for (name, text) in [
            ("cpuset", "0-3,7"),
            ("cpushares", "2"),
            ("cpuquota", "-1"),
            ("cpuquota", "1000"),
            ("cpuperiod", "1000"),
            ("cpulimit", "1500"),
        ] {
            assert_eq!(check(name, text), Ok(()), "{name} {text}");
        }
        for (name, text) in [
            ("cpuset", "a"),
            ("cpuset", "3-1"),
            ("cpushares", "1"),
            ("cpushares", "-5"),
            ("cpuquota", "999"),
            ("cpuquota", "-2"),
            ("cpuperiod", "999"),
            ("cpulimit", "-1"),
            ("cpulimit", "99999999999"),
            ("memory", "1"),
        ] {
            let error = check(name, text).expect_err(name);
            assert!(error.contains(name) || error.contains("is not a number"), "{error}");
        }
    }

    #[test]
    fn time_is_counted_in_the_period_that_counts() {
        let limits = |cpuquota, cpulimit| WorkloadResources { cpuquota, cpulimit, ..WorkloadResources::default() };
        assert_eq!(limits(0, 0).quota(0), None);
        assert_eq!(limits(0, 1500).quota(0), Some(150_000));
        assert_eq!(limits(7000, 1500).quota(10_000), Some(15_000), "the limit counts");
        assert_eq!(limits(-1, 0).quota(0), Some(-1));
        assert_eq!(limits(0, 1).quota(1_000), Some(1_000), "the least there is");
        // Who says a quota does not get the default limit beside it.
        assert_eq!(limits(7000, 0).or(&limits(0, 1500)), limits(7000, 0));
        assert_eq!(limits(0, 0).or(&limits(0, 1500)), limits(0, 1500));
    }
}
