//! The part of the configuration that is about watching the daemon.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Counters of calls, for Prometheus.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Address and port at which `/v1/metrics` is served; empty: nowhere.
    pub address: String,
}

/// A socket that tells people who look for a fault what the daemon does: `/debug/vars` and, with the calls under way and the
/// threads, `/debug/pprof/goroutine`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Debug {
    /// Path of the socket; empty: none.
    pub address: PathBuf,
    /// Owner of the socket.
    pub uid: u32,
    /// Group of the socket, whose members may look; 0: the owner alone.
    pub gid: u32,
}

/// Traces of calls, for OpenTelemetry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tracing {
    /// Base address of a collector that takes OTLP over HTTP, such as `http://127.0.0.1:4318`; empty: no traces.
    pub endpoint: String,
    /// What this daemon is called in traces.
    pub service_name: String,
}

impl Default for Tracing {
    fn default() -> Self {
        Self { endpoint: String::new(), service_name: "gantryd".into() }
    }
}
