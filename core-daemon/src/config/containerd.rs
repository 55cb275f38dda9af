//! Configuration files of containerd, of any of its versions: what means the same here is taken over, and what does not is
//! named once. Nothing of it is an error: the file was written for another program.

mod imports;
mod nri;
mod server;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use gantry_proto::stdio::MIN_LINE;
use toml::{Table, Value};

use super::{CgroupDriver, Config, IpPreference, ProxyPlugin, RuntimeHandler, SharingPolicy};
use crate::error::Result;

/// Keys that a file of ours never has, one of which a file of containerd has.
const MARKS: [&str; 5] = ["version", "plugins", "imports", "disabled_plugins", "required_plugins"];
/// Snapshotters that are part of the daemon.
const SNAPSHOTTERS: [&str; 3] = ["overlayfs", "native", "erofs"];
/// Names of the plugin of pods, newest first.
const PODS: [&str; 3] = ["io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri", "cri"];
/// Names of the plugin of pods' images.
const IMAGES: [&str; 3] = ["io.containerd.cri.v1.images", "io.containerd.grpc.v1.cri", "cri"];
/// Most settings that are named one by one.
const MOST_NAMED: usize = 40;

/// Whether a file is one of containerd's.
pub(super) fn is_theirs(file: &Table) -> bool {
    MARKS.iter().any(|mark| file.contains_key(*mark))
}

/// What the file at `path`, and those that it imports, say in our terms.
///
/// # Errors
/// Where an imported file cannot be read.
pub(super) fn read(file: Table, path: &Path) -> Result<Config> {
    let mut theirs = Theirs { left: Table::new() };
    imports::put_over(&mut theirs.left, file, path, &mut Default::default())?;
    let mut config = Config::default();
    theirs.sockets(&mut config);
    theirs.stores(&mut config);
    theirs.timeouts(&mut config);
    theirs.pods(&mut config);
    theirs.runtimes(&mut config);
    theirs.networks(&mut config);
    theirs.node_resources(&mut config);
    theirs.registries(&mut config);
    theirs.left.remove("version");
    let mut left = Vec::new();
    name_settings(&theirs.left, "", &mut left);
    if !left.is_empty() {
        let mut note = format!("settings of {} that mean nothing here: ", path.display());
        note.push_str(&left.iter().take(MOST_NAMED).map(String::as_str).collect::<Vec<_>>().join(", "));
        if left.len() > MOST_NAMED {
            let _ = write!(note, " and {} more", left.len() - MOST_NAMED);
        }
        config.notes.push(note);
    }
    Ok(config)
}

/// What of a table says something: a list of everything that could be set is full of nothing.
fn name_settings(table: &Table, prefix: &str, names: &mut Vec<String>) {
    for (key, value) in table {
        let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            Value::Table(table) => name_settings(table, &name, names),
            Value::String(text) if text.is_empty() => {}
            Value::Array(list) if list.is_empty() => {}
            Value::Integer(0) | Value::Boolean(false) => {}
            _ => names.push(name),
        }
    }
}

/// A merged file, of which what is understood is taken away.
struct Theirs {
    left: Table,
}

impl Theirs {
    fn take(&mut self, path: &[&str]) -> Option<Value> {
        let (last, parents) = path.split_last()?;
        let mut at = &mut self.left;
        for parent in parents {
            at = at.get_mut(*parent)?.as_table_mut()?;
        }
        at.remove(*last)
    }

    fn text(&mut self, path: &[&str]) -> Option<String> {
        self.take(path)?.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
    }

    fn path(&mut self, path: &[&str]) -> Option<PathBuf> {
        self.text(path).map(PathBuf::from).filter(|path| path.is_absolute())
    }

    fn flag(&mut self, path: &[&str]) -> Option<bool> {
        self.take(path)?.as_bool()
    }

    fn number<N: TryFrom<i64>>(&mut self, path: &[&str]) -> Option<N> {
        N::try_from(self.take(path)?.as_integer()?).ok()
    }

    /// A span of time such as `1m30s`, in whole seconds.
    fn seconds(&mut self, path: &[&str]) -> Option<u64> {
        let span: jiff::SignedDuration = self.text(path)?.parse().ok()?;
        u64::try_from(span.as_secs()).ok().filter(|seconds| *seconds > 0)
    }

    fn texts(&mut self, path: &[&str]) -> Option<Vec<String>> {
        let list = self.take(path)?;
        Some(list.as_array()?.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect())
    }

    /// The names in a table, which stays.
    fn names(&self, path: &[&str]) -> Vec<String> {
        let mut at = Some(&self.left);
        for part in path {
            at = at.and_then(|table| table.get(*part)?.as_table());
        }
        at.map(|table| table.keys().cloned().collect()).unwrap_or_default()
    }

    fn stores(&mut self, config: &mut Config) {
        let policy = self.text(&["plugins", "io.containerd.metadata.v1.bolt", "content_sharing_policy"]);
        if policy.is_some_and(|policy| policy == "isolated") {
            config.content.sharing_policy = SharingPolicy::Isolated;
        }
        let overlay = ["plugins", "io.containerd.snapshotter.v1.overlayfs", "upperdir_label"];
        set(&mut config.snapshotters.overlayfs.upperdir_label, self.flag(&overlay));
        for name in self.names(&["proxy_plugins"]) {
            let plugin = self.take(&["proxy_plugins", name.as_str()]);
            match plugin.and_then(|plugin| plugin.try_into::<ProxyPlugin>().ok()) {
                Some(plugin) if plugin.kind == "snapshot" && plugin.address.is_absolute() => {
                    config.proxy_plugins.insert(name, plugin);
                }
                _ => config.notes.push(format!("proxy_plugins.{name}: only snapshotters can be other programs")),
            }
        }
        match self.take(&["stream_processors"]).map(Value::try_into).transpose() {
            Ok(processors) => set(&mut config.stream_processors, processors),
            Err(error) => config.notes.push(format!("stream_processors: {}", error.to_string().trim_end())),
        }
        for images in IMAGES {
            self.pinned(images, config);
            for key in [&["plugins", images, "snapshotter"][..], &["plugins", images, "containerd", "snapshotter"]] {
                let Some(name) = self.text(key) else { continue };
                if SNAPSHOTTERS.contains(&name.as_str()) || config.proxy_plugins.contains_key(&name) {
                    config.runtime.snapshotter = name;
                } else {
                    config.notes.push(format!("snapshotter {name}: is not there"));
                }
            }
        }
        let verifier = |key| ["plugins", "io.containerd.image-verifier.v1.bindir", key];
        set(&mut config.image_verifier.bin_dir, self.path(&verifier("bin_dir")));
        set(&mut config.image_verifier.max_verifiers, self.number(&verifier("max_verifiers")));
        set(&mut config.image_verifier.per_verifier_timeout, self.seconds(&verifier("per_verifier_timeout")));
    }

    /// Images that stay: that of pods' own containers too, without which containerd could not take over again.
    fn pinned(&mut self, images: &'static str, config: &mut Config) {
        let mut pinned = Vec::from_iter(self.text(&["plugins", images, "sandbox_image"]));
        for name in self.names(&["plugins", images, "pinned_images"]) {
            pinned.extend(self.text(&["plugins", images, "pinned_images", &name]));
        }
        config.cri.pinned_images.extend(pinned);
    }

    fn timeouts(&mut self, config: &mut Config) {
        let timeouts = &mut config.timeouts;
        let key = |name| ["timeouts", name];
        set(&mut timeouts.shim_load, self.seconds(&key("io.containerd.timeout.shim.load")));
        set(&mut timeouts.shim_shutdown, self.seconds(&key("io.containerd.timeout.shim.shutdown")));
        set(&mut timeouts.shim_state, self.seconds(&key("io.containerd.timeout.task.state")));
        // Our shims take longer where they have to, and are not to be ended in the middle of it.
        let cleanup = self.seconds(&key("io.containerd.timeout.shim.cleanup")).unwrap_or(0);
        timeouts.shim_cleanup = timeouts.shim_cleanup.max(cleanup);
        for monitor in ["io.containerd.internal.v1.restart", "io.containerd.monitor.container.v1.restart"] {
            let interval = self.seconds(&["plugins", monitor, "interval"]);
            set(&mut config.runtime.restart_interval, interval);
        }
    }

    fn pods(&mut self, config: &mut Config) {
        let classes = self.path(&["plugins", "io.containerd.service.v1.tasks-service", "blockio_config_file"]);
        set(&mut config.cri.blockio_config, classes);
        for pods in PODS {
            let key = |name| ["plugins", pods, name];
            let cri = &mut config.cri;
            set(&mut cri.unprivileged_ports, self.flag(&key("enable_unprivileged_ports")));
            set(&mut cri.unprivileged_icmp, self.flag(&key("enable_unprivileged_icmp")));
            set(&mut cri.selinux, self.flag(&key("enable_selinux")));
            let range: Option<u32> = self.number(&key("selinux_category_range"));
            set(&mut cri.selinux_category_range, range.filter(|range| (2..=1024).contains(range)));
            set(&mut cri.unset_seccomp_profile, self.text(&key("unset_seccomp_profile")));
            for (place, name) in [
                (&mut cri.disable_apparmor, "disable_apparmor"),
                (&mut cri.ignore_image_defined_volumes, "ignore_image_defined_volumes"),
                (&mut cri.device_ownership_from_security_context, "device_ownership_from_security_context"),
                (&mut cri.restrict_oom_score_adj, "restrict_oom_score_adj"),
            ] {
                set(place, self.flag(&key(name)));
            }
            set(&mut cri.cdi_dirs, self.texts(&key("cdi_spec_dirs")).map(to_paths));
            match self.number::<i64>(&key("max_container_log_line_size")).map(usize::try_from) {
                // To containerd this is no limit, and a line takes all the memory that it wants.
                Some(Ok(0) | Err(_)) => config.notes.push("max_container_log_line_size: has a limit here".into()),
                line => set(&mut cri.max_log_line, line.and_then(Result::ok).map(|line| line.max(MIN_LINE))),
            }
            set(&mut cri.exec_drain, self.seconds(&key("drain_exec_sync_io_timeout")));
            let streaming = &mut cri.streaming;
            let (address, port) = (self.text(&key("stream_server_address")), self.text(&key("stream_server_port")));
            if address.is_some() || port.is_some() {
                let address = address.unwrap_or_else(|| "127.0.0.1".to_owned());
                let address = if address.contains(':') { format!("[{address}]") } else { address };
                streaming.address = format!("{address}:{}", port.unwrap_or_else(|| "0".to_owned()));
            }
            set(&mut streaming.idle_timeout, self.seconds(&key("stream_idle_timeout")));
            if self.flag(&key("enable_tls_streaming")) == Some(true) {
                let pair = |name| ["plugins", pods, "x509_key_pair_streaming", name];
                set(&mut streaming.certificate, self.path(&pair("tls_cert_file")));
                set(&mut streaming.key, self.path(&pair("tls_key_file")));
            }
        }
    }

    fn runtimes(&mut self, config: &mut Config) {
        let shims = &mut config.runtime.shim_env;
        set(shims, self.texts(&["plugins", "io.containerd.shim.v1.manager", "env"]));
        if self.flag(&["plugins", "io.containerd.runtime.v2.task", "sched_core"]) == Some(true) {
            shims.push("SCHED_CORE=1".to_owned());
        }
        for pods in PODS {
            let cri = &mut config.cri;
            for name in self.names(&["plugins", pods, "containerd", "runtimes"]) {
                let key = |rest: &[&'static str]| -> Vec<String> {
                    let all = ["plugins", pods, "containerd", "runtimes", name.as_str()]
                        .into_iter()
                        .chain(rest.iter().copied());
                    all.map(str::to_owned).collect()
                };
                let mut handler = RuntimeHandler::default();
                set(&mut handler.runtime, self.text(&borrowed(&key(&["runtime_type"]))));
                set(&mut handler.runtime, self.text(&borrowed(&key(&["runtime_path"]))));
                set(&mut handler.binary, self.text(&borrowed(&key(&["options", "BinaryName"]))));
                set(&mut handler.snapshotter, self.text(&borrowed(&key(&["snapshotter"]))));
                set(&mut handler.base_runtime_spec, self.path(&borrowed(&key(&["base_runtime_spec"]))));
                set(&mut handler.pod_annotations, self.texts(&borrowed(&key(&["pod_annotations"]))));
                set(&mut handler.container_annotations, self.texts(&borrowed(&key(&["container_annotations"]))));
                let privileged = self.flag(&borrowed(&key(&["privileged_without_host_devices"])));
                set(&mut handler.privileged_without_host_devices, privileged);
                let all = self.flag(&borrowed(&key(&["privileged_without_host_devices_all_devices_allowed"])));
                set(&mut handler.privileged_without_host_devices_all_devices_allowed, all);
                set(&mut handler.cgroup_writable, self.flag(&borrowed(&key(&["cgroup_writable"]))));
                set(&mut handler.cni_conf_dir, self.path(&borrowed(&key(&["cni_conf_dir"]))));
                set(&mut handler.cni_max_networks, self.number(&borrowed(&key(&["cni_max_conf_num"]))));
                if self.flag(&borrowed(&key(&["options", "SystemdCgroup"]))) == Some(true) {
                    cri.cgroup_driver = CgroupDriver::Systemd;
                }
                cri.runtimes.insert(name, handler);
            }
            let default = self.text(&["plugins", pods, "containerd", "default_runtime_name"]);
            set(&mut cri.default_runtime, default.filter(|name| cri.runtimes.contains_key(name)));
        }
    }

    fn networks(&mut self, config: &mut Config) {
        for pods in PODS {
            let key = |name| ["plugins", pods, "cni", name];
            let cni = &mut config.cri.cni;
            set(&mut cni.conf_dir, self.path(&key("conf_dir")));
            set(&mut cni.bin_dirs, self.path(&key("bin_dir")).map(|dir| vec![dir]));
            set(&mut cni.bin_dirs, self.texts(&key("bin_dirs")).filter(|dirs| !dirs.is_empty()).map(to_paths));
            set(&mut cni.max_networks, self.number(&key("max_conf_num")));
            set(&mut cni.serially, self.flag(&key("setup_serially")));
            set(&mut cni.conf_template, self.path(&key("conf_template")));
            let preference = self.text(&key("ip_pref"));
            set(
                &mut cni.ip_preference,
                preference.and_then(|preference| match preference.as_str() {
                    "ipv4" => Some(IpPreference::Ipv4),
                    "ipv6" => Some(IpPreference::Ipv6),
                    "cni" => Some(IpPreference::Cni),
                    _ => None,
                }),
            );
        }
    }

    fn registries(&mut self, config: &mut Config) {
        let registry = &mut config.registry;
        let transfer = "io.containerd.transfer.v1.local";
        let mut slice = 0;
        let at_most: fn(Option<usize>) -> Option<usize> = |number| number.filter(|number| *number > 0);
        for images in IMAGES {
            set(&mut registry.max_downloads, at_most(self.number(&["plugins", images, "max_concurrent_downloads"])));
            set(&mut registry.timeout, self.seconds(&["plugins", images, "image_pull_progress_timeout"]));
            let directories = self.text(&["plugins", images, "registry", "config_path"]);
            // Several directories may be named, of which the first that is there counts.
            let directories = directories.map(|text| text.split(':').map(PathBuf::from).collect::<Vec<_>>());
            let chosen = directories.and_then(|all| all.iter().find(|dir| dir.is_dir()).or(all.first()).cloned());
            set(&mut registry.config_path, chosen.filter(|dir| dir.is_absolute()));
        }
        set(&mut registry.max_downloads, at_most(self.number(&["plugins", transfer, "max_concurrent_downloads"])));
        for plugin in IMAGES.into_iter().chain([transfer]) {
            slice = slice.max(self.number(&["plugins", plugin, "concurrent_layer_fetch_buffer"]).unwrap_or(0));
        }
        // The bytes of a slice, of which there are as many at once as layers; 0 is what a file says that lists everything.
        match slice {
            0 => {}
            1..512 => registry.max_layer_connections = 1,
            bytes => {
                let connections = registry.max_downloads;
                (registry.max_layer_connections, registry.large_layer) = (connections, u64::div_ceil(bytes, 1 << 20));
            }
        }
        set(&mut registry.max_uploads, at_most(self.number(&["plugins", transfer, "max_concurrent_uploaded_layers"])));
    }
}

fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

fn to_paths(texts: Vec<String>) -> Vec<PathBuf> {
    texts.into_iter().map(PathBuf::from).filter(|path| path.is_absolute()).collect()
}

fn borrowed(path: &[String]) -> Vec<&str> {
    path.iter().map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Config {
        let table: Table = text.parse().expect("toml");
        assert!(is_theirs(&table));
        let mut config = read(table, Path::new("/nowhere/config.toml")).expect("read");
        config.put_over(&crate::config::Overrides::default());
        config.check().expect("valid");
        config
    }

    #[test]
    fn what_means_the_same_is_taken_over_and_the_rest_is_named() {
        let config = read_text(
            r#"
            version = 2
            root = "/var/lib/other"
            state = "/run/other"
            oom_score = -999
            [grpc]
              address = "/run/other/containerd.sock"
              gid = 42
            [debug]
              level = "debug"
            [timeouts]
              "io.containerd.timeout.shim.load" = "7s"
              "io.containerd.timeout.shim.cleanup" = "5s"
            [stream_processors."io.containerd.ocicrypt.decoder.v1.tar"]
              accepts = ["application/vnd.oci.image.layer.v1.tar+encrypted"]
              returns = "application/vnd.oci.image.layer.v1.tar"
              path = "ctd-decoder"
            [plugins."io.containerd.runtime.v2.task"]
              sched_core = true
            [plugins."io.containerd.internal.v1.restart"]
              interval = "1m30s"
            [plugins."io.containerd.grpc.v1.cri"]
              sandbox_image = "registry.k8s.io/pause:3.6"
              disable_tcp_service = true
              enable_selinux = false
            [plugins."io.containerd.grpc.v1.cri".containerd]
              default_runtime_name = "crun"
              snapshotter = "native"
            [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.crun]
              runtime_type = "io.containerd.runc.v2"
              [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.crun.options]
                BinaryName = "crun"
                SystemdCgroup = true
            [plugins."io.containerd.grpc.v1.cri".registry]
              config_path = "/etc/containerd/certs.d"
            [proxy_plugins.stargz]
              type = "snapshot"
              address = "/run/stargz.sock"
            "#,
        );
        assert_eq!(config.stream_processors["io.containerd.ocicrypt.decoder.v1.tar"].path, Path::new("ctd-decoder"));
        assert_eq!((config.root, config.grpc.gid, config.oom_score), ("/var/lib/other".into(), 42, -999));
        assert_eq!((config.log.level.as_str(), config.runtime.restart_interval), ("debug", 90));
        assert_eq!((config.timeouts.shim_load, config.timeouts.shim_cleanup), (7, 35));
        assert_eq!(config.runtime.shim_env, ["SCHED_CORE=1"]);
        let handler = &config.cri.runtimes["crun"];
        assert_eq!((handler.runtime.as_str(), handler.binary.as_str()), ("io.containerd.runc.v2", "crun"));
        assert_eq!(config.cri.default_runtime, "crun");
        assert_eq!(config.cri.cgroup_driver, CgroupDriver::Systemd);
        assert_eq!(config.registry.config_path, Path::new("/etc/containerd/certs.d"));
        assert!(config.proxy_plugins.contains_key("stargz"));
        assert_eq!(config.runtime.snapshotter, "native");
        let [note] = config.notes.as_slice() else { panic!("{:?}", config.notes) };
        assert!(note.contains("disable_tcp_service") && !note.contains("sandbox_image"), "{note}");
        assert_eq!(config.cri.pinned_images, ["registry.k8s.io/pause:3.6"]);
        assert!(!note.contains("enable_selinux") && !note.contains("restart"), "{note}");
    }

    #[test]
    fn lines_of_logs_keep_a_limit() {
        let read = |size: &str| {
            read_text(&format!("[plugins.\"io.containerd.cri.v1.runtime\"]\nmax_container_log_line_size = {size}\n"))
        };
        assert_eq!(read("4096").cri.max_log_line, 4096);
        assert_eq!(read("1").cri.max_log_line, MIN_LINE);
        for none in ["0", "-1"] {
            let config = read(none);
            assert_eq!(config.cri.max_log_line, Config::default().cri.max_log_line, "{none}");
            assert!(config.notes[0].starts_with("max_container_log_line_size: "), "{:?}", config.notes);
        }
    }

    #[test]
    fn later_versions_have_their_settings_elsewhere() {
        let config = read_text(
            r#"
            version = 3
            [plugins."io.containerd.cri.v1.images"]
              snapshotter = "devmapper"
              max_concurrent_downloads = 3
              concurrent_layer_fetch_buffer = 8388608
              image_pull_progress_timeout = "2m"
              pinned_images = { sandbox = "registry.k8s.io/pause:3.10" }
            [plugins."io.containerd.cri.v1.runtime".cni]
              bin_dirs = ["/opt/cni/bin", "/usr/libexec/cni"]
            [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.multus]
              cni_conf_dir = "/etc/cni/multus"
              cni_max_conf_num = 2
            [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.usual]
              cni_conf_dir = ""
              cni_max_conf_num = 0
            [plugins."io.containerd.cri.v1.runtime"]
              drain_exec_sync_io_timeout = "20s"
            [plugins."io.containerd.monitor.container.v1.restart"]
              interval = "7s"
            [plugins."io.containerd.server.v1.grpc"]
              address = "/run/x.sock"
            [plugins."io.containerd.image-verifier.v1.bindir"]
              bin_dir = "/opt/verifiers"
              per_verifier_timeout = "20s"
            "#,
        );
        assert_eq!((config.registry.max_downloads, config.registry.timeout), (3, 120));
        assert_eq!((config.registry.max_layer_connections, config.registry.large_layer), (3, 8));
        assert_eq!(config.cri.cni.bin_dirs.len(), 2);
        assert_eq!(config.cri.pinned_images, ["registry.k8s.io/pause:3.10"]);
        let networks = |name: &str| {
            let handler = &config.cri.runtimes[name];
            (handler.cni_conf_dir.to_str().unwrap_or_default(), handler.cni_max_networks)
        };
        assert_eq!(networks("multus"), ("/etc/cni/multus", 2));
        assert_eq!(networks("usual"), ("", 0));
        assert_eq!(config.grpc.address, Path::new("/run/x.sock"));
        assert_eq!((config.cri.exec_drain, config.runtime.restart_interval), (20, 7));
        assert_eq!(config.image_verifier.per_verifier_timeout, 20);
        assert_eq!(config.runtime.snapshotter, "overlayfs");
        assert_eq!(config.notes, ["snapshotter devmapper: is not there"]);
    }

    #[test]
    fn imports_are_merged() {
        let dir = tempfile::tempdir().expect("directory");
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("write");
        write("b.toml", "version = 2\nimports = [\"config.toml\"]\n[grpc]\ngid = 7\n");
        write("c.toml", "version = 2\nroot = \"/c\"\n");
        write("other.conf", "root = \"/other\"\n");
        let table: Table =
            "version = 2\nimports = [\"*.toml\"]\nroot = \"/a\"\n[grpc]\nuid = 3\n".parse().expect("toml");
        let config = read(table, &dir.path().join("config.toml")).expect("read");
        assert_eq!((config.root.as_path(), config.grpc.uid, config.grpc.gid), (Path::new("/c"), 3, 7));
    }
}
