//! Mounts that the daemon makes for others, and for tasks whose root file system needs them.

use std::fs;
use std::path::Path;

use gantry_proto::any;
use gantry_proto::containerd::services::containers::v1::containers_client::ContainersClient;
use gantry_proto::containerd::services::containers::v1::{self as containers, Container, container};
use gantry_proto::containerd::services::leases::v1 as leases;
use gantry_proto::containerd::services::leases::v1::leases_client::LeasesClient;
use gantry_proto::containerd::services::mounts::v1 as mounts;
use gantry_proto::containerd::services::mounts::v1::mounts_client::MountsClient;
use gantry_proto::containerd::services::tasks::v1 as tasks;
use gantry_proto::containerd::services::tasks::v1::tasks_client::TasksClient;
use gantry_proto::containerd::types::Mount;
use gantry_proto::namespace::LEASE_HEADER;
use integration_tests::{Bundle, Env, Result, Test, daemon, tests, wait};
use tonic::Code;

pub(crate) const TESTS: &[Test] = tests![
    mounts_are_made_for_whoever_asks[Root, Overlay],
    mounts_end_with_their_lease[Root, Overlay],
    a_root_is_put_together_by_the_daemon[Root, Overlay],
];

fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
    let options = options.iter().map(|option| (*option).to_owned()).collect();
    Mount { r#type: kind.into(), source: source.into(), options, ..Mount::default() }
}

/// Two directories, one over the other, and a writable one over both that is yet to be made.
fn stacked(env: &Env) -> Result<Vec<Mount>> {
    let (low, high) = (env.dir("low")?, env.dir("high")?);
    fs::write(low.join("low"), "low")?;
    fs::write(high.join("high"), "high")?;
    let upper = env.dir("root/scratch")?;
    let option = |name: &str| format!("X-containerd.mkdir.path={}:0755", upper.join(name).display());
    let word = |key: &str, name: &str| format!("{key}={}", upper.join(name).display());
    let options = [
        option("upper"),
        option("work"),
        word("upperdir", "upper"),
        word("workdir", "work"),
        "lowerdir={{ overlay 1 0 }}".to_owned(),
    ];
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let bind = |path: &Path| mount("bind", &path.to_string_lossy(), &["rbind", "ro"]);
    Ok(vec![bind(&low), bind(&high), mount("format/mkdir/overlay", "overlay", &options)])
}

fn mounts_are_made_for_whoever_asks(env: &Env) -> Result<()> {
    let daemon = env.daemon()?;
    daemon::runtime()?.block_on(async {
        let mut client = MountsClient::new(daemon.channel().await?);
        let activate = |name: &str, mounts: Vec<Mount>, temporary| {
            let labels = [("none".to_owned(), String::new())].into();
            env.request(mounts::ActivateRequest { name: name.into(), mounts, labels, temporary })
        };
        let plain = client.activate(activate("plain", vec![mount("bind", "/", &[])], false)).await;
        assert_eq!(plain.expect_err("the caller can do that").code(), Code::Unimplemented);
        let info = client.activate(activate("a/b c", stacked(env)?, true)).await?.into_inner().info.expect("info");
        assert_eq!((info.active.len(), info.system.len(), info.labels.len()), (3, 1, 0));
        let shown = &info.system[0].source;
        assert_eq!(fs::read_to_string(format!("{shown}/low"))?, "low");
        assert_eq!(fs::read_to_string(format!("{shown}/high"))?, "high");
        let again = client.activate(activate("a/b c", stacked(env)?, true)).await;
        assert_eq!(again.expect_err("it is there").code(), Code::AlreadyExists);
        let known = client.info(env.request(mounts::InfoRequest { name: "a/b c".into() })).await?.into_inner().info;
        assert_eq!(known.as_ref(), Some(&info));
        let mut listed = client.list(env.request(mounts::ListRequest::default())).await?.into_inner();
        assert_eq!(listed.message().await?.and_then(|message| message.info), Some(info.clone()));
        let end = || env.request(mounts::DeactivateRequest { name: "a/b c".into() });
        client.deactivate(end()).await?;
        assert!(!Path::new(shown).exists());
        assert_eq!(client.deactivate(end()).await.expect_err("it is gone").code(), Code::NotFound);
        anyhow::Ok(())
    })
}

fn mounts_end_with_their_lease(env: &Env) -> Result<()> {
    let daemon = env.daemon()?;
    let place = daemon::runtime()?.block_on(async {
        let channel = daemon.channel().await?;
        let id = "held".to_owned();
        let labels = Default::default();
        LeasesClient::new(channel.clone()).create(env.request(leases::CreateRequest { id, labels })).await?;
        let wish = mounts::ActivateRequest { name: "m".into(), mounts: stacked(env)?, ..Default::default() };
        let mut wish = env.request(wish);
        wish.metadata_mut().insert(LEASE_HEADER, "held".parse()?);
        let info = MountsClient::new(channel.clone()).activate(wish).await?.into_inner().info.expect("info");
        anyhow::Ok(info.active[0].mount_point.clone())
    })?;
    assert!(Path::new(&place).join("low").exists());
    // A daemon that was killed knows of it still.
    daemon.crash()?;
    let daemon = env.daemon()?;
    daemon::runtime()?.block_on(async {
        let channel = daemon.channel().await?;
        MountsClient::new(channel.clone()).info(env.request(mounts::InfoRequest { name: "m".into() })).await?;
        let end = leases::DeleteRequest { id: "held".into(), sync: true };
        LeasesClient::new(channel).delete(env.request(end)).await?;
        wait::until("the mounts to go with their lease", || (!Path::new(&place).exists()).then_some(()))
    })
}

fn a_root_is_put_together_by_the_daemon(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "bundle", &["sh", "-c", "test -e /low && test -e /high && exit 7"])?;
    let daemon = env.daemon()?;
    daemon::runtime()?.block_on(async {
        let channel = daemon.channel().await?;
        let id = env.id("root");
        let spec = Some(any::json(any::SPEC, serde_json::to_vec(&bundle.config)?));
        let runtime = Some(container::Runtime { name: "io.containerd.rung.v2".into(), options: None });
        let container = Some(Container { id: id.clone(), runtime, spec, ..Container::default() });
        let create = containers::CreateContainerRequest { container };
        ContainersClient::new(channel.clone()).create(env.request(create)).await?;
        let mut rootfs = stacked(env)?;
        // The lowest of all is the bundle's.
        rootfs[0].source = bundle.rootfs().to_string_lossy().into_owned();
        fs::write(bundle.rootfs().join("low"), "low")?;
        let mut client = TasksClient::new(channel.clone());
        let create = tasks::CreateTaskRequest { container_id: id.clone(), rootfs, ..Default::default() };
        client.create(env.request(create)).await?;
        let exec_id = String::new();
        client.start(env.request(tasks::StartRequest { container_id: id.clone(), exec_id })).await?;
        let wait = tasks::WaitRequest { container_id: id.clone(), exec_id: String::new() };
        assert_eq!(client.wait(env.request(wait)).await?.into_inner().exit_status, 7);
        client.delete(env.request(tasks::DeleteTaskRequest { container_id: id.clone() })).await?;
        let mut listed = MountsClient::new(channel.clone());
        let mut listed = listed.list(env.request(mounts::ListRequest::default())).await?.into_inner();
        assert_eq!(listed.message().await?, None, "what was made for the task is gone with it");
        ContainersClient::new(channel).delete(env.request(containers::DeleteContainerRequest { id })).await?;
        anyhow::Ok(())
    })
}
