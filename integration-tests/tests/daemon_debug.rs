//! The socket for people who look for a fault.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;

use gantry_proto::runtime::v1;
use integration_tests::pods::Pods;
use integration_tests::{Env, Result, Test, tests, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub(crate) const TESTS: &[Test] = tests![the_debug_socket_says_what_is_under_way [Root, Containerd]];

fn the_debug_socket_says_what_is_under_way(env: &Env) -> Result<()> {
    let path = env.path("debug.sock");
    let daemon = env.daemon_configured(&format!("[debug]\naddress = {path:?}\n"))?;
    let get = |path_of: &str| -> Result<(String, String)> {
        let mut stream = UnixStream::connect(&path)?;
        write!(stream, "GET {path_of} HTTP/1.1\r\nHost: debug\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        Ok((head.lines().next().unwrap_or_default().to_owned(), body.to_owned()))
    };
    assert_eq!(std::fs::metadata(&path)?.mode() & 0o777, 0o600, "others could look");
    let mut pods = Pods::connect(env, &daemon)?;
    let events = pods.runtime.block_on(pods.pods.get_container_events(v1::GetEventsRequest {}))?;
    let (status, vars) = get("/debug/vars")?;
    let vars: serde_json::Value = serde_json::from_str(&vars)?;
    assert!(status.contains(" 200 ") && vars["calls"]["under_way"].as_u64() >= Some(1), "{status} {vars}");
    let socket = path.to_string_lossy();
    let dump = daemon.ctr(&["pprof", "--debug-socket", &socket, "goroutines"])?.ok()?;
    let call = "\"/runtime.v1.RuntimeService/GetContainerEvents\"";
    assert!(dump.stdout.contains(call) && dump.stdout.contains("\nthread "), "{dump:?}");
    drop(events);
    wait::until("the call has ended", || {
        // What is dropped is told to the daemon while something else is done.
        let request = v1::VersionRequest { version: "v1".to_owned() };
        pods.runtime.block_on(pods.pods.version(request)).ok()?;
        get("/debug/pprof/goroutine").ok().filter(|(_, dump)| !dump.contains(call)).map(drop)
    })?;
    // What the file says now counts as far as it was taken over.
    let (pid, file) = (Pid::from_raw(daemon.pid().try_into()?), env.path("config.toml"));
    let text = format!("[debug]\naddress = {path:?}\nuid = 7\n[cri]\nexec_drain = 77\n");
    std::fs::write(&file, text)?;
    kill(pid, Signal::SIGHUP)?;
    let config = wait::until("the configuration is taken over", || {
        get("/debug/config").ok().map(|(_, config)| config).filter(|config| config.contains("exec_drain = 77"))
    })?;
    assert!(config.contains("[debug]") && !config.contains("uid = 7"), "{config}");
    let refused = daemon.ctr(&["pprof", "--debug-socket", &socket, "heap"])?;
    assert!(refused.ok().is_err(), "there is no heap of Go's");
    let (status, said) = get("/debug/pprof/heap")?;
    assert!(status.contains(" 501 ") && said.contains("has no such profile"), "{status} {said}");
    drop(pods);
    daemon.stop()?;
    assert!(!path.exists(), "the socket goes with the daemon");
    Ok(())
}
