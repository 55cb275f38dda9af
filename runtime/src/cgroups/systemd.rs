//! The systemd driver: systemd makes the cgroup, as a transient scope or slice with the limits as properties, and the
//! rest is written into its files.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::Pid;
use oci_spec::runtime::LinuxResources;

use super::dbus::{Body, Connection, Target, Value};
use super::error::{Error, Result};
use super::properties;

/// How long systemd may take for one command of the runtime.
const LIMIT: Duration = Duration::from_secs(30);

/// How long the end of a unit is waited for. A scope without processes ends by itself, possibly without a word about
/// the job, and whether its cgroup is gone is seen from its directory anyway.
const STOP_LIMIT: Duration = Duration::from_secs(1);

/// The unit of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Its name: `prefix-name.scope`, or a slice.
    pub name: String,
    /// The slice it is in.
    pub slice: String,
    /// Whether the service manager of the user runs it.
    pub user: bool,
}

impl Unit {
    /// Reads `slice:prefix:name`; without one, the container is `rung-<id>.scope` in the slice of the system or user.
    ///
    /// # Errors
    /// When the path has another form or names no unit.
    pub fn parse(cgroups_path: Option<&Path>, id: &str, user: bool) -> Result<Self> {
        let wrong = |reason: String| Error::invalid("linux.cgroupsPath", reason);
        let text = match cgroups_path.map(|path| path.to_str()) {
            Some(None) => return Err(wrong("is not text".into())),
            Some(Some(text)) if !text.is_empty() => text.to_owned(),
            _ => format!(":rung:{id}"),
        };
        let parts: Vec<&str> = text.split(':').collect();
        let [slice, prefix, name] = parts[..] else {
            return Err(wrong(format!(
                "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {text:?} instead"
            )));
        };
        let slice = match (slice, user) {
            ("", false) => "system.slice",
            ("", true) => "user.slice",
            (named, _) => named,
        };
        let unit = match (prefix, name) {
            (_, "") => return Err(wrong(format!("{text:?} has no name"))),
            (_, slice) if slice.ends_with(".slice") => slice.to_owned(),
            // An empty prefix leaves its dash, with the other runtimes too.
            (prefix, name) => format!("{prefix}-{name}.scope"),
        };
        if unit.contains('/') {
            return Err(wrong(format!("{unit:?} is not the name of a unit")));
        }
        expand_slice(slice)?;
        Ok(Self { name: unit, slice: slice.to_owned(), user })
    }

    pub(super) fn is_slice(&self) -> bool {
        self.name.ends_with(".slice")
    }

    /// Its cgroup, from the root of the service manager.
    pub(super) fn path(&self) -> Result<PathBuf> {
        Ok(expand_slice(&self.slice)?.join(&self.name))
    }
}

/// The path of a slice: each dash in its name is a level. `a-b.slice` is `a.slice/a-b.slice`, `-.slice` the root.
fn expand_slice(slice: &str) -> Result<PathBuf> {
    let wrong = || Error::invalid("linux.cgroupsPath", format!("invalid slice name: {slice}"));
    let name = slice.strip_suffix(".slice").filter(|name| !name.is_empty() && !name.contains('/')).ok_or_else(wrong)?;
    if name == "-" {
        return Ok(PathBuf::new());
    }
    let mut path = PathBuf::new();
    let mut prefix = String::new();
    for part in name.split('-') {
        if part.is_empty() {
            return Err(wrong());
        }
        prefix.push_str(part);
        path.push(format!("{prefix}.slice"));
        prefix.push('-');
    }
    Ok(path)
}

/// Whether there is a session bus, and one that knows this process as another than root.
#[must_use]
pub fn session_of_ordinary_user() -> bool {
    let Ok((bus, uid)) = session_bus() else { return false };
    uid != 0 && Connection::open(&bus, uid, true, LIMIT).is_ok()
}

/// The address of the session bus and the user's id there. In a user namespace the user is root, and the bus knows him
/// under his own id: whose socket it is. A bus in the same user namespace knows him as root all the same.
fn session_bus() -> Result<(String, u32)> {
    let listed = std::env::var("DBUS_SESSION_BUS_ADDRESS").ok().and_then(|list| address(&list));
    let runtime = std::env::var("XDG_RUNTIME_DIR").ok().filter(|dir| !dir.is_empty());
    let bus = listed.or_else(|| runtime.map(|dir| format!("{dir}/bus"))).ok_or_else(|| {
        Error::Systemd("neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR is set; log in as a session user".into())
    })?;
    let uid = if bus.starts_with('@') {
        nix::unistd::geteuid().as_raw()
    } else {
        let found = std::fs::metadata(&bus).map_err(|e| Error::Systemd(format!("stat {bus}: {e}")))?;
        outside(found.uid())
    };
    Ok((bus, uid))
}

const MANAGER: Target<'static> = Target {
    destination: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
};

/// Names of errors that the service manager answers with.
const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";
/// Also the one for a property that cannot be changed.
const UNKNOWN_PROPERTY: &str = "org.freedesktop.DBus.Error.PropertyReadOnly";
const INVALID_VALUE: &str = "org.freedesktop.DBus.Error.InvalidArgs";

/// A connection to a service manager.
#[derive(Debug)]
pub(super) struct Systemd {
    bus: Connection,
}

impl Systemd {
    /// Connects to the service manager of the system, or of the user.
    pub(super) fn connect(user: bool) -> Result<Self> {
        let uid = nix::unistd::geteuid().as_raw();
        if user {
            let (bus, uid) = session_bus()?;
            return Ok(Self { bus: Connection::open(&bus, uid, true, LIMIT)? });
        }
        let bus = std::env::var("DBUS_SYSTEM_BUS_ADDRESS").ok().and_then(|list| address(&list));
        let bus = bus.unwrap_or_else(|| "/run/dbus/system_bus_socket".to_owned());
        match Connection::open(&bus, uid, true, LIMIT) {
            Ok(bus) => Ok(Self { bus }),
            // Systemd also listens by itself, for root, where no bus runs.
            Err(e) => match Connection::open("/run/systemd/private", uid, false, LIMIT) {
                Ok(bus) => Ok(Self { bus }),
                Err(_) => Err(e),
            },
        }
    }

    /// The cgroup under which the service manager makes its own: `/` for the one of the system.
    pub(super) fn root(&mut self) -> Result<PathBuf> {
        let properties = Target { interface: "org.freedesktop.DBus.Properties", ..MANAGER };
        let body = Body::default().with(&Value::text(MANAGER.interface)).with(&Value::text("ControlGroup"));
        let answer = self.bus.call(properties, "Get", body)?;
        let root = answer.variant_text().ok_or_else(|| Error::Systemd("ControlGroup is no text".into()))?;
        // systemd's own scope is below what it manages.
        Ok(PathBuf::from(root.strip_suffix("/init.scope").unwrap_or(&root)))
    }

    /// Starts the unit with `pid` in it, and waits until it is there.
    pub(super) fn start(&mut self, unit: &Unit, id: &str, pid: Option<Pid>, list: &[(String, Value)]) -> Result<()> {
        let mut all = base_properties(unit, id, pid);
        all.extend(list.iter().cloned());
        self.subscribe()?;
        loop {
            match self.start_once(unit, &all) {
                Err(error) if error.is_named(UNIT_EXISTS) => {
                    // A scope of that name that failed before stays until it is reset.
                    self.reset_failed(unit);
                    return self.start_once(unit, &all);
                }
                Err(error) if error.is_named(UNKNOWN_PROPERTY) && drop_newest(&mut all) => {}
                Err(error) if error.is_named(INVALID_VALUE) && drop_idleness(&mut all) => {}
                other => return other,
            }
        }
    }

    /// Without a subscription systemd announces no jobs, and without a rule a bus does not deliver the announcement.
    fn subscribe(&mut self) -> Result<()> {
        self.bus.listen(
            "type='signal',sender='org.freedesktop.systemd1',path='/org/freedesktop/systemd1',\
             interface='org.freedesktop.systemd1.Manager'",
        )?;
        self.bus.call(MANAGER, "Subscribe", Body::default()).map(drop)
    }

    fn start_once(&mut self, unit: &Unit, list: &[(String, Value)]) -> Result<()> {
        let body = Body::default()
            .with(&Value::text(&unit.name))
            .with(&Value::text("replace"))
            .with_properties(list)
            .with_no_units();
        let serial = self.bus.post(MANAGER, "StartTransientUnit", body)?;
        self.wait_for_job(serial, unit, "StartTransientUnit")
    }

    /// Waits for the answer, and for the end of the job that it names: which of the two comes first is not said.
    fn wait_for_job(&mut self, serial: u32, unit: &Unit, doing: &str) -> Result<()> {
        let mut answered = false;
        let mut result = None;
        while !answered || result.is_none() {
            let message = self.bus.next()?;
            answered |= message.answers(serial, doing)?;
            // A unit that is forgotten at once may take its job with it.
            if message.is_signal("UnitRemoved") && message.texts(0).is_some_and(|[name]| name == unit.name) {
                result.get_or_insert_with(|| "done".to_owned());
            }
            if message.is_signal("JobRemoved") {
                // (u job number, o job, s unit, s result)
                let Some([_, name, end]) = message.texts(4) else { continue };
                if name == unit.name {
                    result = Some(end);
                }
            }
        }
        match result.as_deref() {
            Some("done") | None => Ok(()),
            Some(other) => Err(Error::Systemd(format!("{doing}: unable to start unit {:?}: {other}", unit.name))),
        }
    }

    /// Changes properties of the running unit.
    pub(super) fn set(&mut self, unit: &Unit, list: &[(String, Value)]) -> Result<()> {
        if list.is_empty() {
            return Ok(());
        }
        let mut list = list.to_vec();
        loop {
            let body = Body::default().with(&Value::text(&unit.name)).with(&Value::Bool(true)).with_properties(&list);
            match self.bus.call(MANAGER, "SetUnitProperties", body).map(drop) {
                Err(error) if error.is_named(UNKNOWN_PROPERTY) && drop_newest(&mut list) => {}
                Err(error) if error.is_named(INVALID_VALUE) && drop_idleness(&mut list) => {}
                other => return other,
            }
        }
    }

    /// Puts a process into the cgroup of the unit, or into the one `below` it.
    pub(super) fn attach(&mut self, unit: &Unit, below: &Path, pid: Pid) -> Result<()> {
        let below = if below.as_os_str().is_empty() { String::new() } else { format!("/{}", below.display()) };
        let pids = Value::Array("u".into(), vec![Value::U32(pid.as_raw().cast_unsigned())]);
        let body = Body::default().with(&Value::text(&unit.name)).with(&Value::text(below)).with(&pids);
        self.bus.call(MANAGER, "AttachProcessesToUnit", body).map(drop)
    }

    /// Stops the unit; one that is gone already is fine.
    pub(super) fn stop(&mut self, unit: &Unit) -> Result<()> {
        let body = Body::default().with(&Value::text(&unit.name)).with(&Value::text("replace"));
        self.subscribe()?;
        let serial = self.bus.post(MANAGER, "StopUnit", body)?;
        // What matters is that the processes are dead and the directories go, which does not take the end of the job.
        self.bus.limit(STOP_LIMIT);
        let stopped = self.wait_for_job(serial, unit, "StopUnit");
        self.bus.limit(STOP_LIMIT);
        self.reset_failed(unit);
        match stopped {
            Err(Error::Silent) => Ok(()),
            Err(error) if error.is_named(NO_SUCH_UNIT) => Ok(()),
            other => other,
        }
    }

    fn reset_failed(&mut self, unit: &Unit) {
        // Fails for a unit that did not fail.
        let _ = self.bus.call(MANAGER, "ResetFailedUnit", Body::default().with(&Value::text(&unit.name)));
    }
}

/// Properties that came with systemd 242 to 253, the newest first. What they say is written into the cgroup's files too.
const RECENT: [&str; 4] = ["OOMPolicy", "AllowedMemoryNodes", "AllowedCPUs", "CPUQuotaPeriodUSec"];

/// Takes out the newest property, for a systemd that does not know one and says so before it changes anything. Whether
/// there was one to take out.
fn drop_newest(list: &mut Vec<(String, Value)>) -> bool {
    let found = RECENT.iter().find_map(|recent| list.iter().position(|(name, _)| name == recent));
    found.is_some_and(|at| {
        list.remove(at);
        true
    })
}

/// Takes out the weight of an idle group, which systemd before 252 refuses. It is written into the cgroup's file too.
fn drop_idleness(list: &mut Vec<(String, Value)>) -> bool {
    let all = list.len();
    list.retain(|(name, value)| name != "CPUWeight" || *value != Value::U64(0));
    list.len() < all
}

/// The first address of a list that is a socket of this machine.
fn address(list: &str) -> Option<String> {
    list.split(';').find_map(|one| {
        let keys = one.strip_prefix("unix:")?;
        keys.split(',').find_map(|pair| match pair.split_once('=')? {
            ("path", path) => Some(path.to_owned()),
            ("abstract", name) => Some(format!("@{name}")),
            _ => None,
        })
    })
}

/// The id outside of this user namespace of the id `inside` it.
fn outside(inside: u32) -> u32 {
    let table = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let found = table.lines().find_map(|line| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u32>);
        let (first, host, count) = (numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?);
        let offset = inside.checked_sub(first).filter(|&offset| offset < count)?;
        host.checked_add(offset)
    });
    found.unwrap_or(inside)
}

fn base_properties(unit: &Unit, id: &str, pid: Option<Pid>) -> Vec<(String, Value)> {
    let mut list = vec![("Description".to_owned(), Value::text(format!("rung container {id}")))];
    let mut yes = |name: &str, value: Value| list.push((name.to_owned(), value));
    if unit.is_slice() {
        yes("Wants", Value::Array("s".into(), vec![Value::text(&unit.slice)]));
    } else {
        yes("Slice", Value::text(&unit.slice));
        // The container may make cgroups of its own, and systemd leaves what is below alone.
        yes("Delegate", Value::Bool(true));
        if let Some(pid) = pid {
            yes("PIDs", Value::Array("u".into(), vec![Value::U32(pid.as_raw().cast_unsigned())]));
        }
    }
    let io = if super::is_unified() { "IOAccounting" } else { "BlockIOAccounting" };
    for name in ["MemoryAccounting", "CPUAccounting", io, "TasksAccounting"] {
        yes(name, Value::Bool(true));
    }
    // A container must not wait for, or be stopped by, what the system starts and stops by default.
    yes("DefaultDependencies", Value::Bool(false));
    list
}

/// All properties for the limits and device rules of a container and for what its annotations ask for.
pub(super) fn wanted(
    resources: Option<&LinuxResources>,
    unified: bool,
    annotations: &[(String, String)],
) -> Result<Vec<(String, Value)>> {
    let mut list = match resources {
        Some(resources) => properties::of(resources, unified)?,
        None => Vec::new(),
    };
    for (name, text) in annotations {
        list.push(properties::annotated(name, text)?);
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_named_as_by_other_runtimes() {
        for (path, named) in [("", "rung-id.scope"), ("system.slice:p:n", "p-n.scope"), (":p:n.slice", "n.slice")] {
            assert_eq!(Unit::parse(Some(Path::new(path)), "id", false).unwrap().name, named, "{path}");
        }
        assert_eq!(Unit::parse(Some(Path::new("system.slice::n")), "id", false).unwrap().name, "-n.scope");
    }

    #[test]
    fn what_an_older_systemd_does_not_know_is_left_out() {
        let names = ["CPUWeight", "AllowedCPUs", "OOMPolicy"];
        let mut list: Vec<_> = names.map(|name| (name.to_owned(), Value::U64(1))).into();
        assert!(drop_newest(&mut list) && list.len() == 2 && list[1].0 == "AllowedCPUs");
        assert!(drop_newest(&mut list));
        assert!(!drop_newest(&mut list));
        assert_eq!(list, [("CPUWeight".to_owned(), Value::U64(1))]);
        assert!(!drop_idleness(&mut list));
        list[0].1 = Value::U64(0);
        assert!(drop_idleness(&mut list) && list.is_empty());
    }
}
