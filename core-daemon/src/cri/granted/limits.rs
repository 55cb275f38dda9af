//! A container's limits of processors, where its pod is of a workload: those that an annotation says, else the workload's, else
//! the kubelet's.

use gantry_proto::runtime::v1;
use serde_json::{Map, Value};

use super::Annotations;
use crate::config::{LEAST_QUOTA, PERIOD, Workload, WorkloadResources};
use crate::error::{Error, Result};

pub(super) fn put_over(
    workload: &Workload,
    container: &str,
    annotations: &Annotations,
    wanted: &mut v1::LinuxContainerResources,
) -> Result<()> {
    let limits = annotated(&workload.annotation_prefix, container, annotations)?.or(&workload.resources);
    if !limits.cpuset.is_empty() {
        wanted.cpuset_cpus.clone_from(&limits.cpuset);
    }
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    if limits.cpushares != 0 {
        wanted.cpu_shares = number(limits.cpushares);
    }
    if limits.cpuperiod != 0 {
        let period = number(limits.cpuperiod);
        wanted.cpu_quota = in_period(wanted.cpu_quota, wanted.cpu_period, period);
        wanted.cpu_period = period;
    }
    if let Some(quota) = limits.quota(u64::try_from(wanted.cpu_period).unwrap_or_default()) {
        wanted.cpu_quota = quota;
    }
    Ok(())
}

/// The time of a period in one of another length, so that the share is the same. What is no time stays what it is.
fn in_period(quota: i64, period: i64, other: i64) -> i64 {
    match (quota, if period > 0 { period } else { PERIOD }) {
        (..=0, _) => quota,
        (_, period) if period == other => quota,
        (_, period) => (quota.saturating_mul(other) / period).max(LEAST_QUOTA),
    }
}

/// What annotations say of a container: one with all limits, and one for each, which counts more.
fn annotated(prefix: &str, container: &str, annotations: &Annotations) -> Result<WorkloadResources> {
    let mut limits = WorkloadResources::default();
    if prefix.is_empty() {
        return Ok(limits);
    }
    let wrong = |key: &str, error: &Error| Error::invalid(format!("annotation {key}: {error}"));
    let key = format!("{prefix}/{container}");
    if let Some(value) = annotations.get(&key) {
        object(value, &mut limits).and_then(|()| limits.check("")).map_err(|error| wrong(&key, &error))?;
    }
    for name in WorkloadResources::NAMES {
        let key = format!("{prefix}.{name}/{container}");
        if let Some(value) = annotations.get(&key) {
            limits.set(name, value).and_then(|()| limits.check("")).map_err(|error| wrong(&key, &error))?;
            if name == "cpuquota" {
                // Whoever says a quota means it.
                limits.cpulimit = 0;
            }
        }
    }
    Ok(limits)
}

fn object(value: &str, limits: &mut WorkloadResources) -> Result<()> {
    let object: Map<String, Value> =
        serde_json::from_str(value).map_err(|error| Error::invalid(format!("is not an object: {error}")))?;
    for (name, value) in object {
        match value {
            Value::Null => {}
            Value::String(text) => limits.set(&name, &text)?,
            Value::Number(number) => limits.set(&name, &number.to_string())?,
            _ => return Err(Error::invalid(format!("{name}: is neither a text nor a number"))),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(pairs: &[(&str, &str)]) -> Result<v1::LinuxContainerResources> {
        let annotations = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let resources =
            WorkloadResources { cpushares: 100, cpuset: "0-1".into(), cpulimit: 500, ..WorkloadResources::default() };
        let workload = Workload { annotation_prefix: "r.example.org".into(), resources, ..Workload::default() };
        let mut wanted = v1::LinuxContainerResources { cpu_period: 50_000, cpu_shares: 7, ..Default::default() };
        put_over(&workload, "web", &annotations, &mut wanted).map(|()| wanted)
    }

    #[test]
    fn annotations_stand_over_the_workload_and_that_over_the_kubelet() {
        let said = |pairs: &[(&str, &str)]| {
            let limits = limits(pairs).expect("limits");
            (limits.cpuset_cpus, limits.cpu_shares, limits.cpu_quota, limits.cpu_period)
        };
        let of_workload = ("0-1".to_owned(), 100, 25_000, 50_000);
        assert_eq!(said(&[]), of_workload);
        assert_eq!(said(&[("r.example.org/other", r#"{"cpushares": 5}"#)]), of_workload);
        let object = r#"{"cpushares": 5, "cpuset": "3", "cpulimit": "2000", "cpuperiod": null}"#;
        assert_eq!(said(&[("r.example.org/web", object)]), ("3".to_owned(), 5, 100_000, 50_000));
        let each = [("r.example.org/web", object), ("r.example.org.cpuquota/web", "7000")];
        assert_eq!(said(&each), ("3".to_owned(), 5, 7_000, 50_000));
        assert_eq!(said(&[("r.example.org.cpuperiod/web", "10000")]), ("0-1".to_owned(), 100, 5_000, 10_000));
    }

    /// Who chooses how long a period is gets no more time by that.
    #[test]
    fn another_period_has_the_same_share_of_time() {
        let resources = WorkloadResources { cpuperiod: 10_000, ..WorkloadResources::default() };
        let workload = Workload { resources, ..Workload::default() };
        let said = |cpu_quota, cpu_period| {
            let mut wanted = v1::LinuxContainerResources { cpu_quota, cpu_period, ..Default::default() };
            put_over(&workload, "web", &Annotations::new(), &mut wanted).expect("limits");
            assert_eq!(wanted.cpu_period, 10_000);
            wanted.cpu_quota
        };
        assert_eq!(said(50_000, 100_000), 5_000);
        assert_eq!(said(50_000, 0), 5_000);
        assert_eq!(said(5_000, 10_000), 5_000, "once is enough");
        assert_eq!(said(2_000, 100_000), 1_000, "the least there is");
        assert_eq!((said(0, 100_000), said(-1, 100_000)), (0, -1));
    }

    #[test]
    fn what_makes_no_sense_names_its_annotation() {
        for (key, value, what) in [
            ("r.example.org/web", "5", "is not an object"),
            ("r.example.org/web", "{\"memory\": 5}", "memory"),
            ("r.example.org/web", "{\"cpuset\": []}", "cpuset"),
            ("r.example.org/web", "{\"cpushares\": 1.5}", "is not a number"),
            ("r.example.org/web", "{\"cpushares\": 1}", "cpushares"),
            ("r.example.org.cpuset/web", "x", "cpuset"),
            ("r.example.org.cpuquota/web", "", "is not a number"),
        ] {
            let error = limits(&[(key, value)]).expect_err(value).to_string();
            assert!(error.starts_with(&format!("annotation {key}: ")) && error.contains(what), "{error}");
        }
    }
}
