//! The AppArmor profile of containers that name none.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::Cri;
use super::spec::{APPARMOR_PARSER, DEFAULT_APPARMOR, apparmor_is_loaded};
use crate::error::{Doing as _, Error, Kind, Result};

/// How long compiling and loading may take: a second of processor time, which a machine that is emulated and busy spreads
/// over a minute.
const PATIENCE: Duration = Duration::from_secs(120);
/// What a container must not do, whatever its capabilities: change the kernel's settings, mount, or look at processes
/// outside.
const PROFILE: &str = "
#include <tunables/global>

profile gantry-default flags=(attach_disconnected,mediate_deleted) {
  #include <abstractions/base>

  network,
  capability,
  file,
  umount,
  signal (receive) peer=unconfined,
  signal (send,receive) peer=gantry-default,
  ptrace (trace,read,tracedby,readby) peer=gantry-default,

  deny @{PROC}/* w,
  deny @{PROC}/{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9]*}/** w,
  deny @{PROC}/sys/[^kn]** w,
  deny @{PROC}/sys/kernel/{?,??,[^s][^h][^m]**} w,
  deny @{PROC}/sysrq-trigger rwklx,
  deny @{PROC}/kcore rwklx,

  deny mount,

  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/kernel/security/** rwklx,
}
";

impl Cri {
    /// Sees to it that the kernel has the default profile.
    pub(super) async fn load_apparmor(&self) -> Result<()> {
        if apparmor_is_loaded(DEFAULT_APPARMOR)? {
            return Ok(());
        }
        let load = async {
            let mut command = Command::new(APPARMOR_PARSER);
            command.arg("-Kr").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
            let mut child = command.spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(PROFILE.as_bytes()).await?;
            }
            child.wait_with_output().await
        };
        let doing = || format!("load AppArmor profile {DEFAULT_APPARMOR}");
        let late = |_| Error::new(Kind::DeadlineExceeded, "apparmor_parser: no answer");
        let output = tokio::time::timeout(PATIENCE, load).await.map_err(late).doing(doing)?.doing(doing)?;
        match output.status.success() {
            true => Ok(()),
            false => {
                let said = String::from_utf8_lossy(&output.stderr);
                Err(Error::new(Kind::Unknown, format!("apparmor_parser: {}", said.trim()))).doing(doing)
            }
        }
    }
}
