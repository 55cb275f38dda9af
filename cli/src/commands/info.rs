//! `gantry info`: what the daemon says of itself and its machine.

use gantry_proto::gantry::engine::v1::{InfoResponse, State};
use serde_json::json;

use super::Context;
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::output;
use crate::output::human::binary_size;
use crate::output::template::Template;

/// `gantry info`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// json, or a template such as '{{.ServerVersion}}'
    #[arg(long, short, value_name = "FORMAT")]
    format: Option<String>,
}

impl Args {
    pub(super) async fn run(self, context: &Context) -> Result<Code> {
        let mut client = context.connect().await?;
        let info = client.info().await?;
        let Some(format) = &self.format else {
            output::bytes(text(&info).as_bytes())?;
            return Ok(Code::SUCCESS);
        };
        let template = Template::of_format(format)?;
        let paused = client.list(false).await?.iter().filter(|it| it.state() == State::Paused).count() as u64;
        let value = json!({
            "ServerVersion": info.version,
            "Root": info.root,
            "DockerRootDir": info.root,
            "State": info.state,
            "Address": info.socket,
            "Driver": info.snapshotter,
            "DefaultRuntime": info.runtime,
            "Containers": info.containers,
            "ContainersRunning": info.containers_running.saturating_sub(paused),
            "ContainersPaused": paused,
            "ContainersStopped": info.containers.saturating_sub(info.containers_running),
            "Images": info.images,
            "KernelVersion": info.kernel,
            "OperatingSystem": info.operating_system,
            "OSType": "linux",
            "LoggingDriver": "json-file",
            "CgroupDriver": "cgroupfs",
            "Architecture": info.architecture,
            "NCPU": info.cpus,
            "MemTotal": info.memory,
            "CgroupVersion": info.cgroup,
            "SecurityOptions": info.security,
        });
        output::line(template.render(&value).map_err(Failure::new)?)?;
        Ok(Code::SUCCESS)
    }
}

fn text(info: &InfoResponse) -> String {
    let stopped = info.containers.saturating_sub(info.containers_running);
    let rows = [
        ("Version", info.version.clone()),
        ("Socket", info.socket.clone()),
        ("Data", info.root.clone()),
        ("State", info.state.clone()),
        ("Containers", format!("{} ({} running, {stopped} not running)", info.containers, info.containers_running)),
        ("Images", info.images.to_string()),
        ("Snapshotter", info.snapshotter.clone()),
        ("Runtime", info.runtime.clone()),
        ("Cgroups", info.cgroup.clone()),
        ("Security", info.security.join(", ")),
        ("Kernel", info.kernel.clone()),
        ("System", info.operating_system.clone()),
        ("Architecture", info.architecture.clone()),
        ("Processors", info.cpus.to_string()),
        ("Memory", binary_size(info.memory)),
    ];
    rows.iter().map(|(name, value)| format!("{:<14}{value}\n", format!("{name}:"))).collect()
}
