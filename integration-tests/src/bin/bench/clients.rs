//! Programs that pull, push and pack images, each with its own words for it.

use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use integration_tests::{Daemon, Env, Result, output};

use crate::daemons::Containerd;
use crate::engines::Engine;
use crate::runtimes::time;
use crate::table::note;

/// A program and how it is told what to do: `IMAGE`, `NEW` and `FILE` stand for what is meant.
pub(crate) struct Client<'a> {
    pub(crate) name: String,
    verbs: &'static Verbs,
    command: Box<MakeCommand<'a>>,
    settle: Box<dyn Fn() -> Result<()> + 'a>,
}

type MakeCommand<'a> = dyn Fn(&[&str]) -> Result<Command> + 'a;

struct Verbs {
    pull: &'static str,
    push: &'static str,
    tag: &'static str,
    remove: &'static str,
    export: &'static str,
    import: &'static str,
}

const GANTRY: Verbs = Verbs {
    pull: "pull -q IMAGE",
    push: "push -q IMAGE",
    tag: "tag IMAGE NEW",
    remove: "rmi IMAGE",
    export: "save -o FILE IMAGE",
    import: "load -q -i FILE",
};
const CTR: Verbs = Verbs {
    pull: "images pull --plain-http IMAGE",
    push: "images push --plain-http IMAGE",
    tag: "images tag --force IMAGE NEW",
    remove: "images rm --sync IMAGE",
    export: "images export FILE IMAGE",
    import: "images import FILE",
};
const PODMAN: Verbs = Verbs {
    pull: "pull -q --tls-verify=false IMAGE",
    push: "push -q --tls-verify=false IMAGE",
    tag: "tag IMAGE NEW",
    remove: "rmi -f IMAGE",
    export: "save -q --format oci-archive -o FILE IMAGE",
    import: "load -q -i FILE",
};
const DOCKER: Verbs = Verbs {
    pull: "pull -q IMAGE",
    push: "push -q IMAGE",
    tag: "tag IMAGE NEW",
    remove: "rmi -f IMAGE",
    export: "save -o FILE IMAGE",
    import: "load -q -i FILE",
};

impl<'a> Client<'a> {
    /// `gantry`, for which what it removed is gone once `settle` returns.
    pub(crate) fn gantry(name: &str, daemon: &'a Daemon<'a>, settle: impl Fn() -> Result<()> + 'a) -> Self {
        let command = Box::new(|args: &[&str]| daemon.gantry_command(args));
        Self { name: name.to_owned(), verbs: &GANTRY, command, settle: Box::new(settle) }
    }

    /// `ctr` on a containerd.
    pub(crate) fn ctr(name: &str, env: &'a Env, containerd: &'a Containerd) -> Self {
        let command = Box::new(|args: &[&str]| Ok(containerd.ctr(env, args)));
        Self { name: name.to_owned(), verbs: &CTR, command, settle: Box::new(|| Ok(())) }
    }

    /// `podman` or `docker`.
    pub(crate) fn engine(engine: &'a Engine<'a>) -> Self {
        let verbs = if engine.program == "podman" { &PODMAN } else { &DOCKER };
        let command = Box::new(|args: &[&str]| Ok(engine.command(args)));
        Self { name: engine.program.to_owned(), verbs, command, settle: Box::new(|| Ok(())) }
    }

    fn words(&self, verb: &str, image: &str, file: &Path, new: &str) -> Result<Command> {
        let file = file.to_str().context("path is not UTF-8")?;
        let words: Vec<&str> = verb
            .split(' ')
            .map(|word| match word {
                "IMAGE" => image,
                "NEW" => new,
                "FILE" => file,
                word => word,
            })
            .collect();
        (self.command)(&words)
    }

    fn run(&self, verb: &str, image: &str, new: &str) -> Result<()> {
        output::run(self.words(verb, image, Path::new(""), new)?)?.ok().map(drop)
    }

    /// Milliseconds that a pull takes. What was pulled is removed before the next one.
    pub(crate) fn pull(&self, image: &str) -> Result<f64> {
        let took = time(self.words(self.verbs.pull, image, Path::new(""), "")?)?;
        self.remove(image)?;
        Ok(took)
    }

    /// Whether it can pull such an image at all; if not, that is said.
    pub(crate) fn can_pull(&self, image: &str) -> bool {
        self.pull(image).inspect_err(|error| note(&format!("{}: not measured: {error:#}", self.name))).is_ok()
    }

    /// Has the image, for exports and pushes.
    pub(crate) fn have(&self, image: &str) -> Result<()> {
        self.run(self.verbs.pull, image, "")
    }

    /// Removes the image, and waits until it is gone.
    pub(crate) fn remove(&self, image: &str) -> Result<()> {
        self.run(self.verbs.remove, image, "")?;
        (self.settle)()
    }

    /// Milliseconds that packing the image into `file` takes.
    pub(crate) fn export(&self, image: &str, file: &Path) -> Result<f64> {
        let _ = std::fs::remove_file(file);
        time(self.words(self.verbs.export, image, file, "")?)
    }

    /// Milliseconds that taking it out of `file` takes, and unpacking it.
    pub(crate) fn import(&self, image: &str, file: &Path) -> Result<f64> {
        let took = time(self.words(self.verbs.import, image, file, "")?)?;
        self.remove(image)?;
        Ok(took)
    }

    /// Milliseconds that pushing it takes, under a name that the registry does not know.
    pub(crate) fn push(&self, image: &str, new: &str) -> Result<f64> {
        self.run(self.verbs.tag, image, new)?;
        let took = time(self.words(self.verbs.push, new, Path::new(""), "")?)?;
        self.run(self.verbs.remove, new, "")?;
        Ok(took)
    }
}
