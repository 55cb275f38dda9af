//! The order of calls and what plugins are told, with plugins that write it down.

use super::*;

struct Machine {
    dir: tempfile::TempDir,
    cni: Cni,
}

/// A plugin that adds a line to `log` for each call, keeps its input, and fails where a file `fail-NAME-COMMAND` is.
const PLUGIN: &str = r#"#!/bin/sh
here=$(dirname "$0"); name=$(basename "$0")
echo "$name $CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME netns=$CNI_NETNS" >> "$here/log"
cat > "$here/in-$name-$CNI_COMMAND"
if [ -e "$here/fail-$name-$CNI_COMMAND" ]; then echo '{"code":7,"msg":"no"}'; exit 1; fi
[ "$CNI_COMMAND" = ADD ] && echo '{"cniVersion":"1.1.0","ips":[{"address":"10.9.0.2/24"}]}'
exit 0
"#;

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let (bin, conf) = (dir.path().join("bin"), dir.path().join("conf"));
        for made in [&bin, &conf] {
            std::fs::create_dir(made).expect("make");
        }
        for name in ["one", "two"] {
            std::fs::write(bin.join(name), PLUGIN).expect("write");
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(bin.join(name), mode).expect("mode");
        }
        let list = r#"{"cniVersion":"1.1.0","name":"net","plugins":[{"type":"one","capabilities":{"portMappings":true}},
            {"type":"two"}]}"#;
        std::fs::write(conf.join("10-net.conflist"), list).expect("write");
        let config = config::Cni {
            conf_dir: conf,
            bin_dirs: vec![bin],
            cache_dir: dir.path().join("cache"),
            collect: true,
            ..config::Cni::default()
        };
        let other = Source { dir: dir.path().join("other"), max: 1 };
        Self { dir, cni: Cni::new(config, vec![other]) }
    }

    async fn connect(&self, attachment: &Attachment) -> Result<Vec<String>> {
        self.cni.connect(&self.cni.usual(), attachment, &CancellationToken::new()).await
    }

    async fn status(&self) -> Result<()> {
        self.cni.status(&self.cni.usual()).await
    }

    fn bin(&self, name: &str) -> PathBuf {
        self.dir.path().join("bin").join(name)
    }

    fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.bin("log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn input(&self, name: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.bin(&format!("in-{name}"))).expect("input")).expect("JSON")
    }
}

fn attachment(container: &str) -> Attachment {
    let capabilities = json!({"portMappings": [{"hostPort": 80}], "dns": {}});
    Attachment {
        container: container.to_owned(),
        netns: "/none/netns".into(),
        args: "IgnoreUnknown=1;K8S_POD_NAME=p".to_owned(),
        capabilities: capabilities.as_object().cloned().unwrap_or_default(),
    }
}

#[tokio::test]
async fn a_chain_there_and_back() {
    let machine = Machine::new();
    let addresses = machine.connect(&attachment("c1")).await.expect("connect");
    assert_eq!(addresses, ["10.9.0.2"]);
    // Each is told what it can do something about, and what the one before answered.
    assert_eq!(machine.input("one-ADD")["runtimeConfig"], json!({"portMappings": [{"hostPort": 80}]}));
    assert!(machine.input("two-ADD").get("runtimeConfig").is_none());
    assert_eq!(machine.input("two-ADD")["prevResult"]["ips"][0]["address"], "10.9.0.2/24");
    machine.cni.check("c1").await.expect("check");
    // The configuration is gone and the namespace too; what was connected is disconnected all the same.
    std::fs::remove_file(machine.dir.path().join("conf/10-net.conflist")).expect("remove");
    machine.cni.disconnect("c1").await.expect("disconnect");
    assert_eq!(machine.input("two-DEL")["prevResult"]["ips"][0]["address"], "10.9.0.2/24");
    let calls = machine.calls();
    assert_eq!(calls[4..], ["two DEL c1 eth0 netns=", "one DEL c1 eth0 netns="], "{calls:?}");
    machine.cni.disconnect("c1").await.expect("again");
    assert_eq!(machine.calls().len(), calls.len());
    assert_eq!(machine.connect(&attachment("c2")).await.expect_err("unconfigured").kind(), Kind::Unavailable);
    assert_eq!(machine.status().await.expect_err("unconfigured").kind(), Kind::Unavailable);
}

#[tokio::test]
async fn what_cannot_be_read_any_more_is_disconnected_as_it_is_configured() {
    let machine = Machine::new();
    machine.connect(&attachment("c1")).await.expect("connect");
    let entry = machine.dir.path().join("cache/results/net-c1-eth0");
    std::fs::write(&entry, "{").expect("damage");
    machine.cni.disconnect("c1").await.expect("disconnect");
    let calls = machine.calls();
    assert_eq!(calls[2..], ["two DEL c1 eth0 netns=", "one DEL c1 eth0 netns="], "{calls:?}");
    assert!(!entry.exists());
    machine.connect(&attachment("c1")).await.expect("connect");
    std::fs::write(&entry, "{").expect("damage");
    std::fs::remove_file(machine.dir.path().join("conf/10-net.conflist")).expect("remove");
    machine.cni.disconnect("c1").await.expect("it is not known what to call");
    assert_eq!((machine.calls().len(), entry.exists()), (6, false));
}

#[tokio::test]
async fn a_namespace_that_was_unbound_is_gone() {
    let machine = Machine::new();
    let left = machine.dir.path().join("netns");
    std::fs::write(&left, "").expect("write");
    for (container, netns, told) in [("c1", left, ""), ("c2", "/proc/self/ns/net".into(), "/proc/self/ns/net")] {
        machine.connect(&Attachment { netns, ..attachment(container) }).await.expect("connect");
        machine.cni.disconnect(container).await.expect("disconnect");
        let calls = machine.calls();
        assert_eq!(calls.last(), Some(&format!("one DEL {container} eth0 netns={told}")), "{calls:?}");
    }
}

#[tokio::test]
async fn what_fails_is_taken_back_and_what_cannot_be_is_kept() {
    let machine = Machine::new();
    std::fs::write(machine.bin("fail-two-ADD"), "").expect("write");
    std::fs::write(machine.bin("fail-one-DEL"), "").expect("write");
    let error = machine.connect(&attachment("c1")).await.expect_err("fails");
    assert!(error.to_string().contains("no (code 7)"), "{error}");
    // The removal failed in part: a repeat finds it.
    std::fs::remove_file(machine.bin("fail-one-DEL")).expect("remove");
    machine.cni.disconnect("c1").await.expect("repeat");
    let deleted = machine.calls().iter().filter(|call| call.contains("DEL")).count();
    assert_eq!(deleted, 4, "{:?}", machine.calls());
}

#[tokio::test]
async fn what_is_given_up_is_not_written_down() {
    let machine = Machine::new();
    let given_up = CancellationToken::new();
    given_up.cancel();
    for number in 0..20 {
        let container = format!("c{number}");
        let error =
            machine.cni.connect(&machine.cni.usual(), &attachment(&container), &given_up).await.expect_err("given up");
        assert_eq!(error.kind(), Kind::Canceled, "{error}");
        assert_eq!(machine.cni.cache.of(&container).expect("read"), []);
    }
}

#[tokio::test]
async fn what_belongs_to_nobody_is_collected() {
    let machine = Machine::new();
    machine.connect(&attachment("kept")).await.expect("connect");
    machine.connect(&attachment("stale")).await.expect("connect");
    machine.cni.collect(|container| container == "kept", |_| ()).await.expect("collect");
    let calls = machine.calls();
    assert!(calls.iter().any(|call| call.starts_with("one DEL stale")), "{calls:?}");
    assert!(!calls.iter().any(|call| call.contains("DEL kept")), "{calls:?}");
    let told = machine.input("one-GC");
    assert_eq!(told["cni.dev/valid-attachments"], json!([{"containerID": "kept", "ifname": "eth0"}]));
    // A plugin would take back what a container has of which nothing can be read.
    std::fs::write(machine.dir.path().join("cache/results/net-kept-eth0"), "{").expect("damage");
    let collections = || machine.calls().iter().filter(|call| call.contains(" GC ")).count();
    let before = collections();
    machine.cni.collect(|_| true, |_| ()).await.expect("collect");
    assert_eq!(collections(), before);
    machine.status().await.expect("ready");
}

#[tokio::test]
async fn a_handler_has_networks_of_its_own() {
    let machine = Machine::new();
    let own = &machine.cni.others()[0];
    let nowhere = machine.cni.connect(own, &attachment("c1"), &CancellationToken::new()).await;
    assert!(nowhere.expect_err("unconfigured").to_string().contains("other"));
    assert!(machine.cni.status(own).await.is_err() && machine.status().await.is_ok());
    std::fs::create_dir(&own.dir).expect("make");
    let list = r#"{"cniVersion":"1.1.0","name":"own","plugins":[{"type":"two"}]}"#;
    std::fs::write(own.dir.join("10-own.conflist"), list).expect("write");
    machine.cni.status(own).await.expect("ready");
    machine.cni.connect(own, &attachment("c1"), &CancellationToken::new()).await.expect("connect");
    machine.connect(&attachment("c2")).await.expect("connect");
    // Both kinds of networks hear of what there is.
    machine.cni.collect(|_| true, |_| ()).await.expect("collect");
    let calls = machine.calls();
    let of = |command: &str| calls.iter().filter(|call| call.contains(command)).cloned().collect::<Vec<_>>();
    assert_eq!(of("ADD c1"), ["two ADD c1 eth0 netns=/none/netns"], "{calls:?}");
    assert_eq!(of(" GC ").len(), 3, "{calls:?}");
    // Nothing of the directory is needed for the end.
    std::fs::remove_dir_all(&own.dir).expect("remove");
    machine.cni.disconnect("c1").await.expect("disconnect");
    assert_eq!(machine.input("two-DEL")["name"], "own");
}

#[tokio::test]
async fn plugins_say_whether_they_are_ready() {
    let machine = Machine::new();
    machine.status().await.expect("ready");
    let asked: Vec<String> = machine.calls();
    assert_eq!(asked, ["one STATUS   netns=", "two STATUS   netns="]);
    assert_eq!(machine.input("two-STATUS")["name"], "net");
    std::fs::write(machine.bin("fail-two-STATUS"), "").expect("write");
    let error = machine.status().await.expect_err("one is not");
    assert!(error.to_string().contains("two STATUS") && error.to_string().contains("no (code 7)"), "{error}");
    // Plugins of an older version are not asked what they do not know.
    let list = r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"two"}]}"#;
    std::fs::write(machine.dir.path().join("conf/10-net.conflist"), list).expect("write");
    machine.status().await.expect("it is there, which is all that is asked");
    std::fs::remove_file(machine.bin("two")).expect("remove");
    assert_eq!(machine.status().await.expect_err("no program").kind(), Kind::NotFound);
}
