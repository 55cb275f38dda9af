//! The whole stack ready to run containers: a registry with a busybox image, and a daemon.

use std::process::Command;

use crate::{Daemon, Env, Ran, Registry, Result};

/// A registry, an image in it, and a daemon. Containers of the test's namespace are removed when it is dropped.
#[derive(Debug)]
pub struct Stack<'env> {
    /// The daemon.
    pub daemon: Daemon<'env>,
    /// The registry.
    pub registry: Registry,
    /// Name of the busybox image in the registry.
    pub image: String,
}

impl<'env> Stack<'env> {
    /// Starts all of it. The image is not pulled yet.
    pub fn start(env: &'env Env) -> Result<Self> {
        Self::start_configured(env, "")
    }

    /// The same with this configuration of the daemon.
    pub fn start_configured(env: &'env Env, config: &str) -> Result<Self> {
        let (registry, image) = Registry::with_busybox(env)?;
        let daemon = if config.is_empty() { env.daemon()? } else { env.daemon_configured(config)? };
        Ok(Self { daemon, registry, image })
    }

    /// Runs `gantry` to its end. `IMAGE` among the arguments is the busybox image.
    pub fn gantry(&self, args: &[&str]) -> Result<Ran> {
        self.daemon.gantry(&self.named(args))
    }

    /// A command that runs `gantry`, with `IMAGE` as in [`gantry`](Self::gantry).
    pub fn command(&self, args: &[&str]) -> Result<Command> {
        self.daemon.gantry_command(&self.named(args))
    }

    /// Runs a shell script in a new container to its end.
    pub fn script(&self, options: &[&str], script: &str) -> Result<Ran> {
        let words: Vec<&str> =
            ["run", "--rm"].iter().chain(options).chain(&["IMAGE", "sh", "-c", script]).copied().collect();
        self.gantry(&words)
    }

    fn named<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        args.iter().map(|arg| if *arg == "IMAGE" { self.image.as_str() } else { arg }).collect()
    }
}

impl Drop for Stack<'_> {
    fn drop(&mut self) {
        // A test that failed half-way leaves containers; what this cannot remove, the search for leaks reports.
        if let Ok(all) = self.gantry(&["ps", "-aq", "--no-trunc"]) {
            let ids: Vec<&str> = all.stdout.split_whitespace().collect();
            if !ids.is_empty() {
                let _ = self.gantry(&[&["rm", "-f"], &ids[..]].concat());
            }
        }
    }
}
