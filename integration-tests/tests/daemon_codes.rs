//! Which code answers which call: clients of containerd branch on it.

use gantry_proto::any;
use gantry_proto::containerd::services::containers::v1::containers_client::ContainersClient;
use gantry_proto::containerd::services::containers::v1::*;
use gantry_proto::containerd::services::content::v1::InfoRequest;
use gantry_proto::containerd::services::content::v1::content_client::ContentClient;
use gantry_proto::containerd::services::images::v1::images_client::ImagesClient;
use gantry_proto::containerd::services::images::v1::{CreateImageRequest, DeleteImageRequest, GetImageRequest, Image};
use gantry_proto::containerd::services::leases::v1::leases_client::LeasesClient;
use gantry_proto::containerd::services::leases::v1::{
    AddResourceRequest, CreateRequest as CreateLease, DeleteRequest as DeleteLease, Resource,
};
use gantry_proto::containerd::services::namespaces::v1::namespaces_client::NamespacesClient;
use gantry_proto::containerd::services::namespaces::v1::*;
use gantry_proto::containerd::services::sandbox::v1::store_client::StoreClient;
use gantry_proto::containerd::services::sandbox::v1::{StoreCreateRequest, StoreDeleteRequest, StoreUpdateRequest};
use gantry_proto::containerd::services::snapshots::v1::StatSnapshotRequest;
use gantry_proto::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use gantry_proto::containerd::services::tasks::v1::tasks_client::TasksClient;
use gantry_proto::containerd::services::tasks::v1::*;
use gantry_proto::containerd::types::{Descriptor, Mount, Sandbox, sandbox};
use integration_tests::{Bundle, Env, Result, Test, daemon, tests};
use serde_json::json;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

pub(crate) const TESTS: &[Test] = tests![
    calls_about_records_have_their_codes[Root],
    calls_about_tasks_have_their_codes[Root],
    containers_without_a_spec_have_no_tasks[Root],
];

/// A runtime that is configured, but has no program.
const NOWHERE: &str = "io.containerd.nowhere.v2";

/// A call, the code it came to, and the one that it should come to.
type Row = (&'static str, Code, Code);

fn row<T>(call: &'static str, answer: Result<T, Status>, wanted: Code) -> Row {
    (call, answer.map_or_else(|status| status.code(), |_| Code::Ok), wanted)
}

fn check(rows: &[Row]) {
    let wrong: Vec<_> = rows.iter().filter(|(_, code, wanted)| code != wanted).collect();
    assert!(wrong.is_empty(), "call, code, wanted: {wrong:#?}");
}

/// Asks in one namespace over one connection.
struct Asks<'env> {
    env: &'env Env,
    channel: Channel,
}

impl Asks<'_> {
    async fn namespaces(&self) -> Result<Vec<Row>> {
        let mut client = NamespacesClient::new(self.channel.clone());
        let name = self.env.id("fresh");
        let get = || GetNamespaceRequest { name: name.clone() };
        let set = |path: &str| UpdateNamespaceRequest {
            namespace: Some(Namespace { name: name.clone(), labels: [("a".to_owned(), "1".to_owned())].into() }),
            update_mask: Some(prost_types::FieldMask { paths: vec![path.to_owned()] }),
        };
        let delete = || DeleteNamespaceRequest { name: name.clone() };
        let create = |name: &str| CreateNamespaceRequest {
            namespace: Some(Namespace { name: name.to_owned(), ..Namespace::default() }),
        };
        let rows = vec![
            row("Namespaces/Get of a new one", client.get(get()).await, Code::Ok),
            row("Namespaces/Update of labels", client.update(set("labels")).await, Code::InvalidArgument),
            row("Namespaces/Delete of a new one", client.delete(delete()).await, Code::NotFound),
            row("Namespaces/Update of a new one", client.update(set("labels.a")).await, Code::Ok),
            row("Namespaces/Create of one there is", client.create(create(&name)).await, Code::AlreadyExists),
            row("Namespaces/Create of a bad name", client.create(create("../up")).await, Code::InvalidArgument),
        ];
        let made = client.get(get()).await?.into_inner().namespace.unwrap_or_default();
        assert_eq!(made.labels["a"], "1");
        client.delete(delete()).await?;
        Ok(rows)
    }

    async fn leases_and_sandboxes(&self) -> Result<Vec<Row>> {
        let mut leases = LeasesClient::new(self.channel.clone());
        let create = |id: &str| self.env.request(CreateLease { id: id.to_owned(), ..CreateLease::default() });
        let made = leases.create(create("")).await?.into_inner().lease.unwrap_or_default();
        assert!(!made.id.is_empty(), "a lease without a name gets one");
        let end_lease = |id: &str| self.env.request(DeleteLease { id: id.to_owned(), sync: false });
        let delete = || end_lease(&made.id);
        // As long as clients make them.
        let (long, endless) = ("l".repeat(1000), "l".repeat(10_000));
        let hold = |kind: &str, id: &str| {
            let resource = Some(Resource { r#type: kind.to_owned(), id: id.to_owned() });
            self.env.request(AddResourceRequest { id: made.id.clone(), resource })
        };
        let mut store = StoreClient::new(self.channel.clone());
        let pod = |runtime: &str| Sandbox {
            sandbox_id: self.env.id("pod"),
            runtime: Some(sandbox::Runtime { name: runtime.to_owned(), options: None }),
            ..Sandbox::default()
        };
        let update = |runtime: &str, fields: &[&str]| {
            let fields = fields.iter().map(|field| (*field).to_owned()).collect();
            self.env.request(StoreUpdateRequest { sandbox: Some(pod(runtime)), fields })
        };
        let new = || self.env.request(StoreCreateRequest { sandbox: Some(pod("one")) });
        let end = || self.env.request(StoreDeleteRequest { sandbox_id: self.env.id("pod") });
        Ok(vec![
            row("Leases/Create of one there is", leases.create(create(&made.id)).await, Code::AlreadyExists),
            row("Leases/Create of a long name", leases.create(create(&long)).await, Code::Ok),
            row("Leases/Delete of a long name", leases.delete(end_lease(&long)).await, Code::Ok),
            row("Leases/Create of an endless name", leases.create(create(&endless)).await, Code::InvalidArgument),
            row("Leases/AddResource", leases.add_resource(hold("images", "i")).await, Code::Ok),
            row("Leases/AddResource of no kind", leases.add_resource(hold("x", "i")).await, Code::Unimplemented),
            row(
                "Leases/AddResource below one",
                leases.add_resource(hold("images/x", "i")).await,
                Code::InvalidArgument,
            ),
            row(
                "Leases/AddResource of no name",
                leases.add_resource(hold("snapshots/", "i")).await,
                Code::InvalidArgument,
            ),
            row("Leases/Delete", leases.delete(delete()).await, Code::Ok),
            row("Leases/Delete again", leases.delete(delete()).await, Code::NotFound),
            row("Store/Update of none", store.update(update("one", &[])).await, Code::NotFound),
            row("Store/Create", store.create(new()).await, Code::Ok),
            row("Store/Create again", store.create(new()).await, Code::AlreadyExists),
            row("Store/Update of all", store.update(update("one", &[])).await, Code::Ok),
            row("Store/Update to another runtime", store.update(update("two", &[])).await, Code::InvalidArgument),
            row("Store/Update of the id", store.update(update("one", &["sandbox_id"])).await, Code::InvalidArgument),
            row("Store/Delete", store.delete(end()).await, Code::Ok),
            row("Store/Delete again", store.delete(end()).await, Code::NotFound),
        ])
    }

    async fn images_and_layers(&self) -> Vec<Row> {
        let digest = format!("sha256:{}", "0".repeat(64));
        let info = |digest: &str| self.env.request(InfoRequest { digest: digest.to_owned() });
        let stat = |snapshotter: &str| {
            self.env.request(StatSnapshotRequest { snapshotter: snapshotter.to_owned(), key: "none".to_owned() })
        };
        let mut content = ContentClient::new(self.channel.clone());
        let mut snapshots = SnapshotsClient::new(self.channel.clone());
        let mut images = ImagesClient::new(self.channel.clone());
        let image = images.get(self.env.request(GetImageRequest { name: "none".into() })).await;
        let media_type = "application/vnd.oci.image.manifest.v1+json".to_owned();
        let target = Descriptor { media_type, digest: digest.clone(), size: 1, ..Descriptor::default() };
        let mut create = self.env.request(CreateImageRequest {
            image: Some(Image { name: "one".into(), target: Some(target), ..Image::default() }),
            source_date_epoch: None,
        });
        create.metadata_mut().insert("containerd-lease", "ended".parse().expect("a header"));
        let create = images.create(create).await;
        let remove = |digest: &str| {
            let target = Some(Descriptor { digest: digest.to_owned(), ..Descriptor::default() });
            self.env.request(DeleteImageRequest { name: "one".into(), sync: false, target })
        };
        let other = format!("sha256:{}", "1".repeat(64));
        vec![
            row("Images/Get of none", image, Code::NotFound),
            row("Images/Create under a lease that has ended", create, Code::Ok),
            row("Images/Delete of another target", images.delete(remove(&other)).await, Code::NotFound),
            row("Images/Delete of any target", images.delete(remove("")).await, Code::Ok),
            row("Content/Info of none", content.info(info(&digest)).await, Code::NotFound),
            row("Content/Info of no digest", content.info(info("x")).await, Code::InvalidArgument),
            row("Snapshots/Stat of none", snapshots.stat(stat("native")).await, Code::NotFound),
            row("Snapshots/Stat by nobody", snapshots.stat(stat("nobody")).await, Code::InvalidArgument),
        ]
    }
}

fn calls_about_records_have_their_codes(env: &Env) -> Result<()> {
    let daemon = env.daemon()?;
    daemon::runtime()?.block_on(async {
        let asks = Asks { env, channel: daemon.channel().await? };
        let rows = [asks.namespaces().await?, asks.leases_and_sandboxes().await?, asks.images_and_layers().await];
        check(&rows.concat());
        Ok(())
    })
}

fn exec(env: &Env, id: &str, exec_id: &str) -> Request<ExecProcessRequest> {
    let process =
        json!({ "args": ["sleep", "1000"], "cwd": "/", "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 } });
    let spec = Some(any::json(any::PROCESS, process.to_string().into_bytes()));
    let (container_id, exec_id) = (id.to_owned(), exec_id.to_owned());
    env.request(ExecProcessRequest { container_id, exec_id, spec, ..ExecProcessRequest::default() })
}

fn calls_about_tasks_have_their_codes(env: &Env) -> Result<()> {
    // A runtime whose program is nowhere, as the one that most clients ask for may be: ours stands in for it.
    let aliases = "[runtime.aliases]\n\"io.containerd.nowhere.v2\" = \"io.containerd.rung.v2\"\n\
                   \"io.containerd.rung.v2\" = \"io.containerd.missing.v2\"\n";
    let daemon = env.daemon_configured(aliases)?;
    // One whose stand-in is nowhere is not taken for it.
    let said = "runtime.aliases: io.containerd.missing.v2 stands in for io.containerd.rung.v2";
    assert!(daemon.log().contains(said), "{}", daemon.log());
    let bundle = Bundle::new(env, "task", &["sleep", "1000"])?;
    daemon::runtime()?.block_on(async {
        let channel = daemon.channel().await?;
        let (mut containers, mut tasks) = (ContainersClient::new(channel.clone()), TasksClient::new(channel));
        let id = env.id("task");
        let of = |runtime: &str| Container {
            id: id.clone(),
            runtime: Some(container::Runtime { name: runtime.to_owned(), options: None }),
            spec: Some(any::json(any::SPEC, bundle.config.to_string().into_bytes())),
            extensions: [("untyped".to_owned(), prost_types::Any::default())].into(),
            ..Container::default()
        };
        let source = bundle.rootfs().to_string_lossy().into_owned();
        let options = vec!["rbind".to_owned(), "ro".to_owned()];
        let rootfs = vec![Mount { r#type: "bind".to_owned(), source, options, ..Mount::default() }];
        let create = || {
            let (container_id, rootfs) = (id.clone(), rootfs.clone());
            env.request(CreateTaskRequest { container_id, rootfs, ..CreateTaskRequest::default() })
        };
        let new = |container: Container| env.request(CreateContainerRequest { container: Some(container) });
        let start = |exec_id: &str| env.request(StartRequest { container_id: id.clone(), exec_id: exec_id.to_owned() });
        let delete = || env.request(DeleteTaskRequest { container_id: id.clone() });
        let kill = || env.request(KillRequest { container_id: id.clone(), signal: 9, ..KillRequest::default() });
        let resize = || env.request(ResizePtyRequest { container_id: id.clone(), ..ResizePtyRequest::default() });
        let wait = |exec_id: &str| env.request(WaitRequest { container_id: id.clone(), exec_id: exec_id.to_owned() });
        let get = || env.request(GetRequest { container_id: id.clone(), exec_id: String::new() });
        let pause = || env.request(PauseTaskRequest { container_id: id.clone() });
        let resume = || env.request(ResumeTaskRequest { container_id: id.clone() });
        let end = || env.request(DeleteContainerRequest { id: id.clone() });
        let mut rows = vec![
            row("Tasks/Create without a container", tasks.create(create()).await, Code::NotFound),
            row("Containers/Create without a runtime", containers.create(new(of(""))).await, Code::InvalidArgument),
            row("Containers/Create of ours", containers.create(new(of("io.containerd.rung.v2"))).await, Code::Ok),
            row("Tasks/Create without its stand-in", tasks.create(create()).await, Code::NotFound),
            row("Containers/Delete of ours", containers.delete(end()).await, Code::Ok),
            row("Containers/Create", containers.create(new(of(NOWHERE))).await, Code::Ok),
            row("Containers/Create again", containers.create(new(of(NOWHERE))).await, Code::AlreadyExists),
            row("Tasks/Get of none", tasks.get(get()).await, Code::NotFound),
            row("Tasks/Create", tasks.create(create()).await, Code::Ok),
            row("Tasks/Create again", tasks.create(create()).await, Code::AlreadyExists),
            row("Tasks/Start", tasks.start(start("")).await, Code::Ok),
            row("Tasks/Delete of a running one", tasks.delete(delete()).await, Code::FailedPrecondition),
            row("Tasks/Exec", tasks.exec(exec(env, &id, "one")).await, Code::Ok),
            row("Tasks/Exec again", tasks.exec(exec(env, &id, "one")).await, Code::AlreadyExists),
            row("Tasks/Start of no exec", tasks.start(start("none")).await, Code::NotFound),
            row("Tasks/Pause", tasks.pause(pause()).await, Code::Ok),
            row("Tasks/Exec in a paused one", tasks.exec(exec(env, &id, "two")).await, Code::Unknown),
            row("Tasks/Resume", tasks.resume(resume()).await, Code::Ok),
            row("Tasks/Kill", tasks.kill(kill()).await, Code::Ok),
            row("Tasks/Wait", tasks.wait(wait("")).await, Code::Ok),
        ];
        rows.extend([
            row("Tasks/Kill of a stopped one", tasks.kill(kill()).await, Code::NotFound),
            row("Tasks/Exec in a stopped one", tasks.exec(exec(env, &id, "late")).await, Code::Unknown),
            row("Tasks/ResizePty of a stopped one", tasks.resize_pty(resize()).await, Code::Unknown),
            row("Tasks/Delete", tasks.delete(delete()).await, Code::Ok),
            row("Tasks/Delete again", tasks.delete(delete()).await, Code::NotFound),
            row("Tasks/Wait for none", tasks.wait(wait("")).await, Code::NotFound),
            row("Containers/Delete", containers.delete(end()).await, Code::Ok),
            row("Containers/Delete again", containers.delete(end()).await, Code::NotFound),
        ]);
        check(&rows);
        Ok(())
    })
}

fn containers_without_a_spec_have_no_tasks(env: &Env) -> Result<()> {
    let daemon = env.daemon()?;
    daemon::runtime()?.block_on(async {
        let channel = daemon.channel().await?;
        let (mut containers, mut tasks) = (ContainersClient::new(channel.clone()), TasksClient::new(channel));
        let bare = |id: &str| {
            let runtime = Some(container::Runtime { name: "io.containerd.rung.v2".to_owned(), options: None });
            Some(Container { id: id.to_owned(), runtime, ..Container::default() })
        };
        let new = env.request(CreateContainerRequest { container: bare("bare") });
        let update = |id: &str| env.request(UpdateContainerRequest { container: bare(id), update_mask: None });
        let create = env.request(CreateTaskRequest { container_id: "bare".to_owned(), ..CreateTaskRequest::default() });
        let end = env.request(DeleteContainerRequest { id: "bare".to_owned() });
        check(&[
            row("Containers/Update of none", containers.update(update("no/id")).await, Code::NotFound),
            row("Containers/Update of no id", containers.update(update("")).await, Code::InvalidArgument),
            row("Containers/Create without a spec", containers.create(new).await, Code::Ok),
            row("Tasks/Create without a spec", tasks.create(create).await, Code::InvalidArgument),
            row("Containers/Delete", containers.delete(end).await, Code::Ok),
        ]);
        Ok(())
    })
}
