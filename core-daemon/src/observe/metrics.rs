//! Counters of calls, under the names that every gRPC server's have, and of this process.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

use tonic::Code;

/// Upper bounds in seconds of what a call may take to be counted with it.
const BOUNDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];
/// Methods that are told apart. Paths come from clients, and could be anything.
const MAX_METHODS: usize = 512;

/// Calls by method.
#[derive(Default)]
pub(super) struct Metrics {
    methods: Mutex<BTreeMap<String, Method>>,
}

#[derive(Default)]
struct Method {
    codes: BTreeMap<i32, u64>,
    buckets: [u64; BOUNDS.len()],
    count: u64,
    seconds: f64,
}

impl Metrics {
    pub(super) fn ended(&self, path: &str, code: i32, seconds: f64) {
        // Whoever calls what is not there may call it by any name.
        if Code::from(code) == Code::Unimplemented {
            return;
        }
        let mut methods = self.methods.lock().unwrap_or_else(PoisonError::into_inner);
        if methods.len() >= MAX_METHODS && !methods.contains_key(path) {
            return;
        }
        let method = methods.entry(path.to_owned()).or_default();
        *method.codes.entry(code).or_default() += 1;
        method.count += 1;
        method.seconds += seconds;
        for (bucket, bound) in method.buckets.iter_mut().zip(BOUNDS) {
            *bucket += u64::from(seconds <= *bound);
        }
    }

    /// All of them as Prometheus reads them.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        let methods = self.methods.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a string does not fail.
        let _ = write_calls(&mut out, &methods);
        drop(methods);
        let _ = write_process(&mut out);
        out
    }
}

fn write_calls(out: &mut String, methods: &BTreeMap<String, Method>) -> std::fmt::Result {
    writeln!(out, "# HELP grpc_server_handled_total Calls that have ended, by code.")?;
    writeln!(out, "# TYPE grpc_server_handled_total counter")?;
    for (path, method) in methods {
        for (code, count) in &method.codes {
            let code = name(Code::from(*code));
            writeln!(out, "grpc_server_handled_total{{grpc_code=\"{code}\",{}}} {count}", labels(path))?;
        }
    }
    writeln!(out, "# HELP grpc_server_handling_seconds How long calls took.")?;
    writeln!(out, "# TYPE grpc_server_handling_seconds histogram")?;
    for (path, method) in methods {
        let labels = labels(path);
        for (bucket, bound) in method.buckets.iter().zip(BOUNDS) {
            writeln!(out, "grpc_server_handling_seconds_bucket{{{labels},le=\"{bound}\"}} {bucket}")?;
        }
        writeln!(out, "grpc_server_handling_seconds_bucket{{{labels},le=\"+Inf\"}} {}", method.count)?;
        writeln!(out, "grpc_server_handling_seconds_sum{{{labels}}} {}", method.seconds)?;
        writeln!(out, "grpc_server_handling_seconds_count{{{labels}}} {}", method.count)?;
    }
    Ok(())
}

/// A code by the name that servers written in Go, and so everybody's dashboards, have for it.
fn name(code: Code) -> String {
    match code {
        Code::Ok => "OK".to_owned(),
        Code::Cancelled => "Canceled".to_owned(),
        other => format!("{other:?}"),
    }
}

/// In the order of their names, as servers written in Go have them.
fn labels(path: &str) -> String {
    let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or((path, ""));
    let kind = gantry_proto::kind_of_method(path);
    format!("grpc_method=\"{}\",grpc_service=\"{}\",grpc_type=\"{kind}\"", escape(method), escape(service))
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// What the kernel says of this process.
fn write_process(out: &mut String) -> std::fmt::Result {
    writeln!(out, "# TYPE gantryd_build_info gauge\ngantryd_build_info{{version=\"{}\"}} 1", crate::VERSION)?;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let value = |key: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    let descriptors = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    writeln!(out, "# TYPE process_resident_memory_bytes gauge")?;
    writeln!(out, "process_resident_memory_bytes {}", value("VmRSS:") * 1024)?;
    writeln!(out, "# TYPE process_threads gauge\nprocess_threads {}", value("Threads:"))?;
    writeln!(out, "# TYPE process_open_fds gauge\nprocess_open_fds {descriptors}")?;
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF);
    let seconds = usage.map_or(0.0, |usage| {
        let of = |time: nix::sys::time::TimeVal| std::time::Duration::try_from_secs_f64(in_seconds(time));
        of(usage.user_time()).unwrap_or_default().as_secs_f64()
            + of(usage.system_time()).unwrap_or_default().as_secs_f64()
    });
    writeln!(out, "# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total {seconds}")
}

#[allow(clippy::cast_precision_loss, reason = "seconds of processor time are far below 2^52")]
fn in_seconds(time: nix::sys::time::TimeVal) -> f64 {
    time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_method_and_code() {
        let metrics = Metrics::default();
        metrics.ended("/runtime.v1.RuntimeService/Version", 0, 0.02);
        metrics.ended("/runtime.v1.RuntimeService/Version", 1, 100.0);
        metrics.ended("/runtime.v1.RuntimeService/Version", 5, 100.0);
        metrics.ended("/no\"such/Thing", 12, 0.0);
        let text = metrics.text();
        let labels = "grpc_method=\"Version\",grpc_service=\"runtime.v1.RuntimeService\",grpc_type=\"unary\"";
        for line in [
            format!("grpc_server_handled_total{{grpc_code=\"OK\",{labels}}} 1"),
            format!("grpc_server_handled_total{{grpc_code=\"Canceled\",{labels}}} 1"),
            format!("grpc_server_handled_total{{grpc_code=\"NotFound\",{labels}}} 1"),
            format!("grpc_server_handling_seconds_bucket{{{labels},le=\"0.01\"}} 0"),
            format!("grpc_server_handling_seconds_bucket{{{labels},le=\"0.025\"}} 1"),
            format!("grpc_server_handling_seconds_bucket{{{labels},le=\"+Inf\"}} 3"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("Thing"));
    }

    #[test]
    fn names_of_clients_do_not_grow_without_bound() {
        let metrics = Metrics::default();
        (0..2 * MAX_METHODS).for_each(|number| metrics.ended(&format!("/s/{number}"), 0, 0.0));
        assert_eq!(metrics.methods.lock().expect("lock").len(), MAX_METHODS);
    }
}
