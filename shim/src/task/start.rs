//! Start of the first process.

use std::ffi::OsString;

use gantry_proto::containerd::events::TaskStart;

use crate::arguments;
use crate::rung::Ends;
use crate::task::Container;
use crate::task::state::State;
use crate::{Error, Result};

impl Container {
    /// Starts the process of `exec_id`; the first one where that is empty.
    ///
    /// # Errors
    /// Where it does not wait for its start, and what the runtime says.
    pub async fn start(&mut self, exec_id: &str) -> Result<u32> {
        let what = if exec_id.is_empty() { String::new() } else { format!("exec {exec_id} of ") };
        let started = if exec_id.is_empty() { self.start_init().await } else { self.start_exec(exec_id).await };
        started.map_err(|error| error.context(format_args!("start {what}container {}", self.id)))
    }

    async fn start_init(&mut self) -> Result<u32> {
        self.init.state.require(&[State::Created], "start")?;
        if let Some(io) = &self.init.io {
            io.before_start();
        }
        if self.restore.is_some() {
            self.start_restored().await?;
        } else if self.init.pid == 0 {
            // The streams of the first attempt are gone with it.
            return Err(Error::precondition("it could not be restored; delete it and create it again"));
        } else {
            self.run(&["start", &self.id.clone()], Ends::default()).await?;
        }
        self.init.state = State::Running;
        let pid = self.init.wire_pid();
        self.shim.events.publish("/tasks/start", &TaskStart { container_id: self.id.clone(), pid });
        Ok(pid)
    }

    async fn start_restored(&mut self) -> Result<()> {
        let _expecting = self.shim.reaper.expect();
        let mut arguments = arguments!["restore", "--detach"];
        let console = self.restore.as_ref().and_then(|restore| restore.console.as_ref());
        self.init_arguments(&mut arguments, console);
        let restore = self.restore.take().ok_or_else(|| Error::internal("nothing to restore"))?;
        arguments.extend(arguments!["--image-path", &restore.checkpoint]);
        let work = &self.options.criu_work_path;
        arguments
            .extend(arguments!["--work-path", if work.is_empty() { self.bundle.join("work") } else { work.into() }]);
        arguments.push(OsString::from(&self.id));
        self.init.starting = true;
        let made = self.run(&arguments, restore.ends).await;
        self.init.starting = false;
        self.take_made(made, restore.console).await?;
        self.claim("", self.init.pid);
        Ok(())
    }
}
