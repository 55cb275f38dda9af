//! Intel resource control: the share of cache and memory bandwidth of a container, through the `resctrl` file system.

pub mod stats;

use std::fs::{DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxIntelRdt;
use rung_sys::process::Pid;

use crate::error::{Doing as _, Error, Kind, Result};

/// Where the kernel's documentation mounts it.
const ROOT: &str = "/sys/fs/resctrl";

/// The group of a container.
#[derive(Debug)]
pub struct Resctrl {
    directory: PathBuf,
    schemata: Vec<String>,
    /// A group of its own name is the container's; a named class is only entered where it exists.
    named: bool,
    monitor: Option<String>,
    made: bool,
    monitored: bool,
}

impl Resctrl {
    /// Decides what the configuration asks for.
    pub fn plan(wanted: &LinuxIntelRdt, id: &str) -> Result<Self> {
        Self::plan_below(Path::new(ROOT), wanted, id)
    }

    fn plan_below(root: &Path, wanted: &LinuxIntelRdt, id: &str) -> Result<Self> {
        if !root.join("schemata").exists() {
            return Err(Error::unsupported(format!(
                "linux.intelRdt: {} is not mounted, or this processor has no resource control",
                root.display()
            )));
        }
        let class = wanted.clos_id().as_deref();
        let directory = match class {
            Some("/") => root.to_owned(),
            other => root.join(other.unwrap_or(id)),
        };
        let monitor = (*wanted.enable_monitoring() == Some(true)).then(|| id.to_owned());
        Ok(Self {
            directory,
            schemata: schemata(wanted),
            named: class.is_some(),
            monitor,
            made: false,
            monitored: false,
        })
    }

    /// Where the group is.
    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// Whether [`Self::enter`] will make it for this container alone: what a record says before that.
    pub fn will_be_owned(&self) -> bool {
        !self.named && !self.directory.exists()
    }

    /// Makes the group where it does not exist, and puts `pids` in. The answer is whether it is the container's to remove:
    /// a named class may have others in it by then.
    ///
    /// # Errors
    /// When a named class exists with another share, or the kernel refuses.
    pub fn enter(&mut self, pids: &[Pid]) -> Result<bool> {
        if self.named && self.schemata.is_empty() && !self.directory.is_dir() {
            // Whoever names a class and says nothing of its share means one that somebody has set up.
            let message = format!("linux.intelRdt.closID: {} does not exist", self.directory.display());
            return Err(Error::new(Kind::Invalid, message));
        }
        let made = match DirBuilder::new().create(&self.directory) {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
            Err(error) => return Err(error).doing(|| format!("make {}", self.directory.display())),
        };
        self.made = made;
        let outcome = self.fill(pids, made);
        if outcome.is_err() {
            self.take_back();
        }
        outcome.map(|()| made && !self.named)
    }

    /// Removes what [`Self::enter`] made for a container that then could not start.
    pub fn take_back(&mut self) {
        if std::mem::take(&mut self.made) {
            // The failure that led here is what is reported.
            let _ = std::fs::remove_dir(&self.directory);
        } else if let Some(id) = self.monitor.as_ref().filter(|_| std::mem::take(&mut self.monitored)) {
            let _ = std::fs::remove_dir(self.directory.join("mon_groups").join(id));
        }
    }

    fn fill(&mut self, pids: &[Pid], made: bool) -> Result<()> {
        if !made && self.named && !self.schemata.is_empty() {
            self.require_same()?;
        } else if !self.schemata.is_empty() {
            write(&self.directory.join("schemata"), &format!("{}\n", self.schemata.join("\n")))?;
        }
        put(&self.directory, pids)?;
        if let Some(id) = &self.monitor {
            let group = self.directory.join("mon_groups").join(id);
            match DirBuilder::new().create(&group) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                other => {
                    other.doing(|| format!("make {}", group.display()))?;
                    self.monitored = true;
                }
            }
            put(&group, pids)?;
        }
        Ok(())
    }

    /// The class is shared: one container must not change the share of the others.
    fn require_same(&self) -> Result<()> {
        let file = self.directory.join("schemata");
        let found = std::fs::read_to_string(&file).doing(|| format!("read {}", file.display()))?;
        let present: Vec<String> = found.lines().map(normal).collect();
        match self.schemata.iter().find(|line| !present.contains(&normal(line))) {
            None => Ok(()),
            Some(line) => {
                let class = self.directory.display();
                Err(Error::new(Kind::Invalid, format!("linux.intelRdt: {class} exists and does not have {line:?}")))
            }
        }
    }
}

fn put(group: &Path, pids: &[Pid]) -> Result<()> {
    pids.iter().try_for_each(|pid| write(&group.join("tasks"), &pid.to_string()))
}

/// The lines to write; the newer field comes last, as the specification says.
fn schemata(wanted: &LinuxIntelRdt) -> Vec<String> {
    let lines = |text: &Option<String>| -> Vec<String> {
        text.iter().flat_map(|text| text.lines()).map(str::to_owned).filter(|line| !line.is_empty()).collect()
    };
    let mut all = lines(wanted.l3_cache_schema());
    // Bandwidth has its own field; a line of it here would be written twice.
    all.retain(|line| !line.trim_start().starts_with("MB:"));
    all.extend(lines(wanted.mem_bw_schema()));
    all.extend(wanted.schemata().iter().flatten().cloned());
    all
}

/// A line as it compares: the kernel pads with blanks.
fn normal(line: &str) -> String {
    line.chars().filter(|c| !c.is_whitespace()).collect()
}

fn write(file: &Path, value: &str) -> Result<()> {
    let written = OpenOptions::new().write(true).open(file).and_then(|mut open| open.write_all(value.as_bytes()));
    written.doing(|| {
        // The kernel keeps its reason for the last refusal in a file.
        let reason = std::fs::read_to_string(Path::new(ROOT).join("info/last_cmd_status")).unwrap_or_default();
        let reason = reason.trim();
        if reason.is_empty() || reason == "ok" {
            format!("write {value:?} to {}", file.display())
        } else {
            format!("write {value:?} to {} ({reason})", file.display())
        }
    })
}

/// Removes what was made for a container: its class when it is `owned`, and where its use is counted in another's.
pub fn remove(path: &Path, id: &str, owned: bool) -> Result<()> {
    let own = if owned { path.to_owned() } else { path.join("mon_groups").join(id) };
    match std::fs::remove_dir(&own) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).doing(|| format!("remove {}", own.display())),
        _ => Ok(()),
    }
}

/// Puts one more process of a container into its group, and where its use is counted. A group that is gone holds nobody.
pub fn join(path: &Path, id: &str, pid: Pid) -> Result<()> {
    let groups = [path.to_owned(), path.join("mon_groups").join(id)];
    groups.iter().filter(|group| group.is_dir()).try_for_each(|group| put(group, &[pid]))
}

/// Gives the group of a container another share of cache (`l3`) or memory bandwidth.
pub fn update(path: &Path, l3: Option<&str>, bandwidth: Option<&str>) -> Result<()> {
    if path.as_os_str().is_empty() {
        return Err(Error::unsupported("updating a non-existent Intel RDT configuration is not supported"));
    }
    let mut wanted = LinuxIntelRdt::default();
    wanted.set_l3_cache_schema(l3.map(str::to_owned)).set_mem_bw_schema(bandwidth.map(str::to_owned));
    write(&path.join("schemata"), &format!("{}\n", schemata(&wanted).join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(json: &str) -> LinuxIntelRdt {
        serde_json::from_str(json).expect("valid JSON")
    }

    #[test]
    fn lines_in_their_order() {
        let all =
            schemata(&wanted(r#"{"l3CacheSchema":"L3:0=f\nMB:0=20","memBwSchema":"MB:0=50","schemata":["L2:0=3"]}"#));
        assert_eq!(all, ["L3:0=f", "MB:0=50", "L2:0=3"]);
    }

    #[test]
    fn an_existing_class_must_have_the_share() {
        let root = tempfile::tempdir().expect("temp");
        for directory in ["", "gold"] {
            let directory = root.path().join(directory);
            std::fs::create_dir_all(&directory).expect("made");
            std::fs::write(directory.join("schemata"), "    L3:0=ff;1=ff\n").expect("written");
            std::fs::write(directory.join("tasks"), "").expect("written");
        }
        let enter = |json: &str| {
            Resctrl::plan_below(root.path(), &wanted(json), "web").and_then(|mut r| r.enter(&[Pid::this()]))
        };
        assert!(!enter(r#"{"closID":"gold","schemata":["L3:0=ff;1=ff"]}"#).expect("the same share"));
        let refused = enter(r#"{"closID":"gold","schemata":["L3:0=0f;1=ff"]}"#).expect_err("another share");
        assert!(refused.to_string().contains("does not have \"L3:0=0f;1=ff\""), "{refused}");
        assert!(!enter(r#"{"closID":"/"}"#).expect("the root class"));
        let missing = enter(r#"{"closID":"silver"}"#).expect_err("no such class");
        assert!(missing.to_string().contains("silver does not exist"), "{missing}");
        update(&root.path().join("gold"), Some("L3:0=3"), Some("MB:0=30")).expect("updated");
        assert_eq!(
            std::fs::read_to_string(root.path().join("gold/schemata")).expect("read").lines().next(),
            Some("L3:0=3")
        );
        assert!(update(Path::new(""), Some("L3:0=3"), None).is_err());
        std::fs::write(root.path().join("gold/tasks"), "").expect("written");
        join(&root.path().join("gold"), "web", Pid::from_raw(77)).expect("joined");
        assert_eq!(std::fs::read_to_string(root.path().join("gold/tasks")).expect("read"), "77");
        join(&root.path().join("silver"), "web", Pid::this()).expect("nothing to join");
    }

    #[test]
    fn a_host_without_it_is_named() {
        let root = tempfile::tempdir().expect("temp");
        let refused = Resctrl::plan_below(root.path(), &wanted("{}"), "web").expect_err("not mounted");
        assert!(refused.to_string().starts_with("linux.intelRdt:"), "{refused}");
    }
}
