//! Pods' networks as the field's own plugins make them: two families of addresses, ports of the host, limits.

use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;

use gantry_proto::runtime::v1;
use integration_tests::pods::{Pods, network};
use integration_tests::{Env, Registry, Result, Test, tests, wait};
use nix::sched::{CloneFlags, unshare};

pub(crate) const TESTS: &[Test] = tests![
    pods_have_addresses_of_both_families_and_ports_of_the_host [Root, Overlay],
    a_handler_has_networks_of_its_own [Root],
    a_network_that_nobody_knows_of_is_taken_back_in_the_end [Root],
];

/// What a server at the address says first.
fn said(address: IpAddr, port: u16) -> Result<String> {
    wait::until("the server answers", || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(address, port), wait::seconds(2)).ok()?;
        stream.set_read_timeout(Some(wait::seconds(2))).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        (!text.is_empty()).then(|| text.trim().to_owned())
    })
}

/// The address of a pod run by `handler`, and its id.
fn address(pods: &mut Pods<'_>, name: &str, handler: &str) -> Result<(String, String)> {
    let config = pods.networked_config(name);
    let request = v1::RunPodSandboxRequest { config: Some(config), runtime_handler: handler.to_owned() };
    let pod = pods.runtime.block_on(pods.pods.run_pod_sandbox(request))?.into_inner().pod_sandbox_id;
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: pod.clone(), verbose: false };
    let status = pods.runtime.block_on(pods.pods.pod_sandbox_status(request))?.into_inner().status;
    Ok((status.and_then(|status| status.network).unwrap_or_default().ip, pod))
}

/// A configuration of the daemon with the networks in `usual` for all pods but those of the handler `own`.
fn with_handler(env: &Env, usual: &Path, own: &Path) -> String {
    format!(
        "[cri.cni]\nconf_dir = {usual:?}\nbin_dirs = [\"/usr/lib/cni\", \"/opt/cni/bin\"]\nnetns_dir = {:?}\n\
         [cri.runtimes.rung]\n[cri.runtimes.own]\ncni_conf_dir = {own:?}\ncni_max_networks = 1\n",
        env.path("netns")
    )
}

/// A network in `dir` whose pods have addresses that begin with 10.213. and `third`.
fn bridge(env: &Env, dir: &Path, third: u8) -> Result<()> {
    let ipam = serde_json::json!({"type": "host-local", "dataDir": env.path("ipam"),
        "ranges": [[{"subnet": format!("10.213.{third}.0/24")}]]});
    let network = serde_json::json!({"cniVersion": "1.0.0", "name": format!("{}-{third}", env.token()), "plugins": [
        {"type": "bridge", "bridge": format!("pods{third}"), "ipam": ipam}]});
    Ok(std::fs::write(dir.join("10-test.conflist"), network.to_string())?)
}

/// How many addresses of the network are given away.
fn taken(env: &Env, third: u8) -> usize {
    let given = std::fs::read_dir(env.path("ipam").join(format!("{}-{third}", env.token())));
    let names = given.into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter(|name| name.to_string_lossy().starts_with("10.")).count()
}

fn a_handler_has_networks_of_its_own(env: &Env) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    env.run("ip", &["link", "set", "lo", "up"])?.ok()?;
    let (usual, own) = (env.dir("net.d")?, env.dir("own.d")?);
    bridge(env, &usual, 81)?;
    let daemon = env.daemon_configured(&with_handler(env, &usual, &own))?;
    let mut pods = Pods::connect(env, &daemon)?;
    let (first, _) = address(&mut pods, "first", "")?;
    assert!(first.starts_with("10.213.81."), "{first}");
    let refused = address(&mut pods, "second", "own").expect_err("its directory is empty").to_string();
    assert!(refused.contains("own.d"), "{refused}");
    let status = v1::StatusRequest { verbose: true };
    let status = pods.runtime.block_on(pods.pods.status(status))?.into_inner();
    assert!(status.status.is_some_and(|status| status.conditions.iter().all(|it| it.status)), "it has the usual ones");
    assert!(status.info["lastCNILoadStatus.own"].contains("own.d"), "{:?}", status.info);
    // What is put there counts from now on.
    bridge(env, &own, 82)?;
    let (second, pod) = address(&mut pods, "second", "own")?;
    assert!(second.starts_with("10.213.82.") && (taken(env, 81), taken(env, 82)) == (1, 1), "{second}");
    // Its end is the end of that network, whatever the configuration says by then.
    daemon.crash()?;
    std::fs::remove_dir_all(&own)?;
    let daemon = env.daemon_configured(&with_handler(env, &usual, &usual))?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.remove(&pod)?;
    assert_eq!((taken(env, 81), taken(env, 82)), (1, 0));
    Ok(())
}

fn a_network_that_nobody_knows_of_is_taken_back_in_the_end(env: &Env) -> Result<()> {
    let (bin, conf, stuck, log) = (env.dir("bin")?, env.dir("net.d")?, env.path("stuck"), env.path("calls"));
    let text = format!(
        "#!/bin/sh\necho $CNI_COMMAND >> {log}\n[ $CNI_COMMAND = DEL ] && [ -e {stuck} ] && exit 1\n\
         echo '{{\"cniVersion\":\"1.0.0\",\"ips\":[{{\"address\":\"10.9.0.2/24\"}}]}}'\n",
        log = log.display(),
        stuck = stuck.display()
    );
    env.script("bin/stubborn", &text)?;
    let (config, netns) = (env.path("config.toml"), env.path("netns"));
    std::fs::write(&config, network(env, &conf, &serde_json::json!([{"type": "stubborn"}]), &[&bin])?)?;
    let arguments = ["--config", &config.to_string_lossy()];
    let mut daemon = env.daemon_dying_with("cri.network", &arguments)?;
    let mut pods = Pods::connect(env, &daemon)?;
    address(&mut pods, "pod", "").expect_err("the daemon dies");
    assert!(daemon.died());
    std::fs::write(&stuck, "")?;
    drop(pods);
    let daemon = env.daemon_with(&arguments)?;
    assert_eq!(std::fs::read_dir(&netns)?.count(), 1, "the plugin will not let go of it");
    std::fs::remove_file(&stuck)?;
    wait::until("the network is taken back", || (std::fs::read_dir(&netns).ok()?.count() == 0).then_some(()))?;
    let calls = std::fs::read_to_string(&log)?;
    assert!(calls.lines().filter(|call| *call == "DEL").count() >= 2, "{calls}");
    // The rest of the pod goes after its network.
    let pods = env.path("state/cri/pods");
    wait::until("the pod is gone", || (std::fs::read_dir(&pods).ok()?.count() == 0).then_some(()))?;
    drop(daemon);
    Ok(())
}

fn pods_have_addresses_of_both_families_and_ports_of_the_host(env: &Env) -> Result<()> {
    // All of it, the bridge and the rules of ports, is in a network of the test's own.
    unshare(CloneFlags::CLONE_NEWNET)?;
    env.run("ip", &["link", "set", "lo", "up"])?.ok()?;
    let (_registry, image) = Registry::with_busybox(env)?;
    let ranges = serde_json::json!([[{"subnet": "10.213.80.0/24"}], [{"subnet": "fd00:213:80::/64"}]]);
    let ipam = serde_json::json!({"type": "host-local", "dataDir": env.path("ipam"), "ranges": ranges,
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]});
    let plugins = serde_json::json!([
        {"type": "bridge", "bridge": "pods0", "isGateway": true, "ipam": ipam},
        {"type": "portmap", "capabilities": {"portMappings": true}},
        {"type": "bandwidth", "capabilities": {"bandwidth": true}},
    ]);
    let daemon = env.daemon_configured(&network(env, &env.dir("net.d")?, &plugins, &[])?)?;
    let mut pods = Pods::connect(env, &daemon)?;
    pods.pull(&image)?;
    let mut config = pods.networked_config("pod");
    config.port_mappings.push(v1::PortMapping { container_port: 8080, host_port: 18080, ..Default::default() });
    config.annotations.insert("kubernetes.io/ingress-bandwidth".to_owned(), "8M".to_owned());
    let pod = pods.run(&config)?;
    pods.start(&pod, &config, &image, &["nc", "-ll", "-p", "8080", "-e", "echo", "hello"], |_| {})?;
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: pod.clone(), verbose: false };
    let status = pods.runtime.block_on(pods.pods.pod_sandbox_status(request))?.into_inner().status.expect("status");
    let given = status.network.expect("network");
    let others: Vec<&str> = given.additional_ips.iter().map(|address| address.ip.as_str()).collect();
    assert!(given.ip.starts_with("10.213.80."), "{given:?}");
    assert!(others.len() == 1 && others[0].starts_with("fd00:213:80::"), "{given:?}");
    for address in [given.ip.as_str(), others[0]] {
        assert_eq!(said(address.parse()?, 8080)?, "hello", "{address}");
    }
    assert_eq!(said("10.213.80.1".parse()?, 18080)?, "hello", "by the port of the host");
    let limits = || Ok::<_, anyhow::Error>(env.run("tc", &["qdisc"])?.ok()?.text().contains("rate 8Mbit"));
    assert!(limits()?, "the plugin limits what comes in");
    pods.remove(&pod)?;
    assert!(!limits()?);
    let rules = env.run("iptables-save", &["-t", "nat"])?.ok()?;
    assert!(!rules.text().contains("--to-destination"), "{}", rules.text());
    let left = std::fs::read_dir(env.path("ipam").join(env.token()))?.flatten();
    let left: Vec<_> =
        left.map(|entry| entry.file_name()).filter(|name| !name.to_string_lossy().starts_with('l')).collect();
    assert!(left.is_empty(), "addresses of no pod: {left:?}");
    Ok(())
}
