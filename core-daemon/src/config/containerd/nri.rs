//! Plugins of the node resource interface.

use super::{Config, Theirs, set};

/// The name of the plugin that speaks to them.
const NRI: &str = "io.containerd.nri.v1.nri";

impl Theirs {
    pub(super) fn node_resources(&mut self, config: &mut Config) {
        let key = |name| ["plugins", NRI, name];
        let nri = &mut config.cri.nri;
        set(&mut nri.enable, self.flag(&key("disable")).map(|disable| !disable));
        set(&mut nri.external, self.flag(&key("disable_connections")).map(|disable| !disable));
        set(&mut nri.socket, self.path(&key("socket_path")));
        set(&mut nri.plugin_dir, self.path(&key("plugin_path")));
        set(&mut nri.config_dir, self.path(&key("plugin_config_path")));
        set(&mut nri.registration_timeout, self.seconds(&key("plugin_registration_timeout")));
        set(&mut nri.request_timeout, self.seconds(&key("plugin_request_timeout")));
        let key = |name| ["plugins", NRI, "default_validator", name];
        let validator = &mut nri.validator;
        for (place, name) in [
            (&mut validator.enable, "enable"),
            (&mut validator.reject_hooks, "reject_oci_hook_adjustment"),
            (&mut validator.reject_default_seccomp, "reject_runtime_default_seccomp_adjustment"),
            (&mut validator.reject_unconfined_seccomp, "reject_unconfined_seccomp_adjustment"),
            (&mut validator.reject_custom_seccomp, "reject_custom_seccomp_adjustment"),
            (&mut validator.reject_namespaces, "reject_namespace_adjustment"),
            (&mut validator.reject_sysctls, "reject_sysctl_adjustment"),
        ] {
            set(place, self.flag(&key(name)));
        }
        set(&mut validator.required_plugins, self.texts(&key("required_plugins")));
        let annotation = self.text(&key("tolerate_missing_plugins_annotation"));
        set(&mut validator.tolerate_missing_annotation, annotation);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    fn every_setting_is_taken_over() {
        let text = r#"
            version = 3
            [plugins."io.containerd.nri.v1.nri"]
              disable = false
              disable_connections = true
              socket_path = "/run/other.sock"
              plugin_path = "/plugins"
              plugin_config_path = "/conf"
              plugin_registration_timeout = "7s"
              plugin_request_timeout = "1m0s"
              [plugins."io.containerd.nri.v1.nri".default_validator]
                enable = true
                reject_sysctl_adjustment = true
                required_plugins = ["a", "10-b"]
                tolerate_missing_plugins_annotation = "tolerate"
            "#;
        let config = super::super::read(text.parse().expect("toml"), Path::new("/nowhere")).expect("read");
        let nri = &config.cri.nri;
        assert_eq!((nri.enable, nri.external, nri.socket.as_path()), (true, false, Path::new("/run/other.sock")));
        assert_eq!((nri.plugin_dir.as_path(), nri.config_dir.as_path()), (Path::new("/plugins"), Path::new("/conf")));
        assert_eq!((nri.registration_timeout, nri.request_timeout), (7, 60));
        let validator = &nri.validator;
        assert!(validator.enable && validator.reject_sysctls && !validator.reject_hooks);
        assert_eq!((validator.required_plugins.len(), validator.tolerate_missing_annotation.as_str()), (2, "tolerate"));
        assert!(config.notes.is_empty(), "{:?}", config.notes);
    }
}
