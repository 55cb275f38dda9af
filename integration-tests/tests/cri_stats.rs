//! What containers use, what happens to them, and how the daemon itself is watched.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;

use gantry_proto::runtime::v1;
use integration_tests::pods::Pods;
use integration_tests::{Env, Result, Stack, Test, http, tests, wait};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;

pub(crate) const TESTS: &[Test] = tests![
    counters_of_a_container_grow [Root, Overlay, EveryHost],
    metrics_have_the_labels_of_their_descriptions [Root, Overlay],
    events_come_in_order [Root, Overlay],
    every_call_of_a_kubelet_is_counted_and_traced [Root],
    a_collector_that_hangs_holds_up_no_stop [Root],
];

const BUSY: &[&str] =
    &["sh", "-c", "dd if=/dev/zero of=/big bs=1M count=2 2>/dev/null; echo written; while true; do :; done"];

fn counters_of_a_container_grow(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let mut pods = Pods::connect(env, &stack.daemon)?;
    pods.pull(&stack.image)?;
    let config = pods.pod_config("pod");
    let pod = pods.run(&config)?;
    let container = pods.start(&pod, &config, &stack.image, BUSY, |config| {
        config.labels.insert("app".into(), "busy".into());
        config.log_path = "container.log".into();
    })?;
    // What is on the disk is measured at the first look, and then not for a while.
    wait::until("the file is written", || {
        std::fs::read_to_string(env.path("logs/container.log")).ok()?.contains("written").then_some(())
    })?;
    let (runtime, client) = (&pods.runtime, &mut pods.pods.clone());
    let stats = wait::until("the counters grow", || {
        let request = v1::ContainerStatsRequest { container_id: container.clone() };
        let stats = runtime.block_on(client.container_stats(request)).ok()?.into_inner().stats?;
        let used = |value: &Option<v1::UInt64Value>| value.map_or(0, |value| value.value);
        let cpu = stats.cpu.as_ref()?;
        let done = used(&cpu.usage_core_nano_seconds) > 0
            && used(&cpu.usage_nano_cores) > 0
            && used(&stats.memory.as_ref()?.working_set_bytes) > 0
            && used(&stats.writable_layer.as_ref()?.used_bytes) >= 2 << 20;
        done.then_some(stats)
    })?;
    assert_eq!(stats.attributes.expect("attributes").id, container);
    let list = |labels: &[(&str, &str)], client: &mut v1::runtime_service_client::RuntimeServiceClient<_>| {
        let label_selector = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let filter = Some(v1::ContainerStatsFilter { label_selector, ..Default::default() });
        let listed = runtime.block_on(client.list_container_stats(v1::ListContainerStatsRequest { filter }));
        listed.map(|listed| listed.into_inner().stats.len())
    };
    assert_eq!(list(&[("app", "busy")], client)?, 1);
    assert_eq!(list(&[("app", "idle")], client)?, 0);
    let request = v1::PodSandboxStatsRequest { pod_sandbox_id: pod.clone() };
    let linux = runtime.block_on(client.pod_sandbox_stats(request))?.into_inner().stats.and_then(|stats| stats.linux);
    let linux = linux.expect("statistics of the pod");
    assert!(linux.cpu.and_then(|cpu| cpu.usage_core_nano_seconds).is_some_and(|used| used.value > 0));
    assert!(linux.process.and_then(|process| process.process_count).is_some_and(|count| count.value > 0));
    assert_eq!(linux.containers.len(), 1);
    // One that is created has statistics of its own, and so in its pod's.
    let created = v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: "created".into(), attempt: 0 }),
        image: Some(integration_tests::pods::spec(&stack.image)),
        command: vec!["true".into()],
        ..Default::default()
    };
    let request =
        v1::CreateContainerRequest { pod_sandbox_id: pod.clone(), config: Some(created), sandbox_config: Some(config) };
    let created = runtime.block_on(client.create_container(request))?.into_inner().container_id;
    let request = v1::PodSandboxStatsRequest { pod_sandbox_id: pod.clone() };
    let linux = runtime.block_on(client.pod_sandbox_stats(request))?.into_inner().stats.and_then(|stats| stats.linux);
    let all = linux.expect("statistics of the pod").containers.into_iter().filter_map(|stats| stats.attributes);
    assert!(all.map(|attributes| attributes.id).any(|id| id == created), "{created}");
    pods.remove(&pod)
}

fn metrics_have_the_labels_of_their_descriptions(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let mut pods = Pods::connect(env, &stack.daemon)?;
    pods.pull(&stack.image)?;
    let config = pods.pod_config("pod");
    let pod = pods.run(&config)?;
    pods.start(&pod, &config, &stack.image, BUSY, |_| {})?;
    let client = &mut pods.pods.clone();
    let described = pods.runtime.block_on(client.list_metric_descriptors(v1::ListMetricDescriptorsRequest {}))?;
    let described: BTreeMap<String, usize> =
        described.into_inner().descriptors.into_iter().map(|it| (it.name, it.label_keys.len())).collect();
    let metrics = pods.runtime.block_on(client.list_pod_sandbox_metrics(v1::ListPodSandboxMetricsRequest {}))?;
    let metrics = metrics.into_inner().pod_metrics.into_iter().find(|metrics| metrics.pod_sandbox_id == pod);
    let metrics = metrics.expect("the pod's metrics");
    let mut seen = BTreeSet::new();
    for metric in metrics.metrics.iter().chain(metrics.container_metrics.iter().flat_map(|it| &it.metrics)) {
        assert_eq!(described.get(&metric.name), Some(&metric.label_values.len()), "{}", metric.name);
        seen.insert(metric.name.as_str());
    }
    for name in ["container_cpu_usage_seconds_total", "container_processes", "container_fs_usage_bytes"] {
        assert!(seen.contains(name), "{name} is not among {seen:?}");
    }
    pods.remove(&pod)
}

fn events_come_in_order(env: &Env) -> Result<()> {
    use v1::ContainerEventType::{
        ContainerCreatedEvent, ContainerDeletedEvent, ContainerStartedEvent, ContainerStoppedEvent,
    };
    let stack = Stack::start(env)?;
    let mut pods = Pods::connect(env, &stack.daemon)?;
    pods.pull(&stack.image)?;
    let config = pods.pod_config("pod");
    let client = &mut pods.pods.clone();
    let mut events = pods.runtime.block_on(client.get_container_events(v1::GetEventsRequest {}))?.into_inner();
    let pod = pods.run(&config)?;
    let container = pods.start(&pod, &config, &stack.image, &["true"], |_| {})?;
    pods.exit_code(&container)?;
    pods.remove(&pod)?;
    let (mut of_pod, mut of_container) = (Vec::new(), Vec::new());
    while of_pod.last() != Some(&ContainerDeletedEvent) {
        let next = async { tokio::time::timeout(wait::seconds(10), events.message()).await };
        let event = pods.runtime.block_on(next)??.expect("the stream goes on");
        // A kubelet leaves out what comes without it, so the last word on a pod has it too.
        assert_eq!(event.pod_sandbox_status.as_ref().map(|status| status.id.as_str()), Some(pod.as_str()), "{event:?}");
        let kind = event.container_event_type();
        if event.container_id == pod { of_pod.push(kind) } else { of_container.push((event.container_id, kind)) }
    }
    let whole = [ContainerCreatedEvent, ContainerStartedEvent, ContainerStoppedEvent, ContainerDeletedEvent];
    assert_eq!(of_pod, whole);
    assert_eq!(of_container, whole.map(|kind| (container.clone(), kind)));
    Ok(())
}

/// The interface, as `Service/Method` and whether the answer is a stream.
fn interface() -> Vec<(String, bool)> {
    let mut service = "";
    let mut all = Vec::new();
    for line in include_str!("../../proto/protos/runtime/v1.proto").lines() {
        if let Some(name) = line.strip_prefix("service ") {
            service = name.trim_end_matches([' ', '{']);
        } else if let Some(rest) = line.trim_start().strip_prefix("rpc ") {
            let method = rest.split('(').next().unwrap_or_default();
            all.push((format!("{service}/{method}"), rest.contains("returns (stream ")));
        }
    }
    all
}

/// Makes a call with an empty request. Whether it succeeds does not matter.
async fn call(channel: Channel, name: &str, streams: bool) -> Result<()> {
    let path: PathAndQuery = format!("/runtime.v1.{name}").parse()?;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await?;
    let (codec, request) = (tonic_prost::ProstCodec::<(), ()>::default(), tonic::Request::new(()));
    match streams {
        true => drop(client.server_streaming(request, path, codec).await),
        false => drop(client.unary(request, path, codec).await),
    }
    Ok(())
}

fn every_call_of_a_kubelet_is_counted_and_traced(env: &Env) -> Result<()> {
    let free = || TcpListener::bind("127.0.0.1:0");
    let metrics = free()?.local_addr()?;
    let collector = free()?;
    let file = env.path("config.toml");
    let endpoint = collector.local_addr()?;
    std::fs::write(
        &file,
        format!("[metrics]\naddress = \"{metrics}\"\n[tracing]\nendpoint = \"http://{endpoint}\"\n"),
    )?;
    let methods = interface();
    assert!(methods.len() > 40, "{methods:?}");
    let names: Vec<String> = methods.iter().map(|(name, _)| format!("runtime.v1.{name}")).collect();
    let collected = std::thread::spawn(move || collect(&collector, &names));
    let daemon = env.daemon_with(&["--config", &file.to_string_lossy()])?;
    let runtime = integration_tests::daemon::runtime()?;
    runtime.block_on(async {
        let channel = daemon.channel().await?;
        for (name, streams) in &methods {
            call(channel.clone(), name, *streams).await?;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    wait::until("the calls are counted", || {
        let answer = http::request(metrics, "GET", "/v1/metrics", &[], &[]).ok()?.expect(200).ok()?;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let counted = |name: &str, streams: bool| {
            let (service, method) = name.split_once('/').unwrap_or_default();
            let kind = if streams { "server_stream" } else { "unary" };
            let labels =
                format!("grpc_method=\"{method}\",grpc_service=\"runtime.v1.{service}\",grpc_type=\"{kind}\"}} 1");
            let begin = "grpc_server_handled_total{grpc_code=\"";
            text.lines().any(|found| found.starts_with(begin) && found.ends_with(&labels))
        };
        // What answers that it is not implemented could be anything that a client makes up.
        methods.iter().all(|(name, streams)| counted(name, *streams) || name.ends_with("/RestorePod")).then_some(())
    })?;
    let text = http::request(metrics, "GET", "/metrics", &[], &[])?.expect(200)?.body;
    assert!(
        String::from_utf8_lossy(&text).contains("\ngantryd_gc_uncollectable 0\n"),
        "what cannot be collected is seen"
    );
    http::request(metrics, "GET", "/secrets", &[], &[])?.expect(404)?;
    drop(runtime);
    daemon.stop()?;
    let spans = collected.join().expect("collector")?;
    assert!(spans.starts_with("POST /v1/traces "), "{spans}");
    assert!(spans.contains("\"service.name\""), "{spans}");
    Ok(())
}

/// Takes what is sent to a collector, answering each request, until spans of all these names have come, and gives all of it.
fn collect(collector: &TcpListener, wanted: &[String]) -> Result<String> {
    let (stream, _) = collector.accept()?;
    stream.set_read_timeout(Some(wait::seconds(20)))?;
    let (mut stream, mut all) = (BufReader::new(stream), String::new());
    while let Some(missing) = wanted.iter().find(|name| !all.contains(&format!("\"name\":\"{name}\""))) {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(stream.read_line(&mut head)? > 0, "{missing} was not sent: {head}");
        }
        let length = head.to_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        let mut body = vec![0; length.expect("a request with its length")];
        stream.read_exact(&mut body)?;
        stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")?;
        all.push_str(&head);
        all.push_str(&String::from_utf8(body)?);
    }
    Ok(all)
}

fn a_collector_that_hangs_holds_up_no_stop(env: &Env) -> Result<()> {
    let collector = TcpListener::bind("127.0.0.1:0")?;
    let file = env.path("config.toml");
    std::fs::write(&file, format!("[tracing]\nendpoint = \"http://{}\"\n", collector.local_addr()?))?;
    let daemon = env.daemon_with(&["--config", &file.to_string_lossy()])?;
    let pods = Pods::connect(env, &daemon)?;
    pods.runtime.block_on(pods.pods.clone().version(v1::VersionRequest::default()))?;
    drop(pods);
    daemon.stop()?;
    collector.accept().expect("it was called");
    Ok(())
}
