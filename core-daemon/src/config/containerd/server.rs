//! Where the daemon listens, how it logs, and what else is about itself.

use super::{Config, Theirs, set};
use crate::config::{LogFormat, Remote};

impl Theirs {
    pub(super) fn sockets(&mut self, config: &mut Config) {
        let server = |name| ["plugins", name];
        let (grpc, ttrpc) = (server("io.containerd.server.v1.grpc"), server("io.containerd.server.v1.ttrpc"));
        for section in [&["grpc"][..], &grpc] {
            let key = |name| [section, &[name]].concat();
            set(&mut config.grpc.address, self.path(&key("address")));
            set(&mut config.grpc.uid, self.number(&key("uid")));
            set(&mut config.grpc.gid, self.number(&key("gid")));
            for size in ["max_recv_message_size", "max_send_message_size"] {
                let size: usize = self.number(&key(size)).unwrap_or(0);
                config.grpc.max_message = config.grpc.max_message.max(size);
            }
        }
        for section in [&["ttrpc"][..], &ttrpc] {
            set(&mut config.ttrpc.address, self.path(&[section, &["address"]].concat()));
        }
        self.remote(config);
        set(&mut config.oom_score, self.number(&["oom_score"]));
        set(&mut config.root, self.path(&["root"]));
        set(&mut config.state, self.path(&["state"]));
        set(&mut config.debug.address, self.path(&["debug", "address"]));
        set(&mut config.debug.uid, self.number(&["debug", "uid"]));
        set(&mut config.debug.gid, self.number(&["debug", "gid"]));
        let level = self.text(&["debug", "level"]);
        set(
            &mut config.log.level,
            level.map(|level| if level == "fatal" || level == "panic" { "error".into() } else { level }),
        );
        if self.text(&["debug", "format"]).is_some_and(|format| format == "json") {
            config.log.format = LogFormat::Json;
        }
        for section in [&["metrics"][..], &server("io.containerd.server.v1.metrics")] {
            set(&mut config.metrics.address, self.text(&[section, &["address"]].concat()));
        }
    }

    /// The address for other machines, where it is for those alone who have a certificate.
    fn remote(&mut self, config: &mut Config) {
        let places =
            [(&["grpc"][..], "tcp_", "tcp_tls_"), (&["plugins", "io.containerd.server.v1.grpc-tcp"], "", "tls_")];
        for (section, plain, tls) in places {
            let mut text = |prefix: &str, name: &str| {
                let name = format!("{prefix}{name}");
                self.text(&[section, &[name.as_str()]].concat()).unwrap_or_default()
            };
            let (address, name) = (text(plain, "address"), text(tls, "common_name"));
            let remote = Remote {
                certificate: text(tls, "cert").into(),
                key: text(tls, "key").into(),
                client_authority: text(tls, "ca").into(),
                address,
            };
            if remote.address.is_empty() {
                continue;
            }
            if [&remote.certificate, &remote.key, &remote.client_authority].iter().all(|path| path.is_absolute())
                && name.is_empty()
            {
                config.grpc.remote = remote;
            } else {
                let needs = "is for clients with a certificate, so it needs one, its key and an authority, and no name";
                config.notes.push(format!("{} {}: {needs}", section.join("."), remote.address));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn remote(text: &str) -> (Remote, Vec<String>) {
        let config = super::super::read(text.parse().expect("toml"), Path::new("/nowhere/c.toml")).expect("read");
        (config.grpc.remote, config.notes)
    }

    #[test]
    fn other_machines_come_with_a_certificate() {
        let (old, notes) = remote(
            "version = 2\n[grpc]\ntcp_address = \"127.0.0.1:1\"\ntcp_tls_cert = \"/c\"\ntcp_tls_key = \"/k\"\ntcp_tls_ca = \"/a\"\n",
        );
        assert_eq!((old.address.as_str(), old.client_authority.to_str(), notes.len()), ("127.0.0.1:1", Some("/a"), 0));
        let (new, _) = remote(
            "version = 4\n[plugins.\"io.containerd.server.v1.grpc-tcp\"]\naddress = \"[::1]:2\"\ntls_cert = \"/c\"\ntls_key = \"/k\"\ntls_ca = \"/a\"\n",
        );
        assert_eq!((new.address.as_str(), new.certificate.to_str()), ("[::1]:2", Some("/c")));
        let (none, notes) = remote("version = 2\n[grpc]\ntcp_address = \"127.0.0.1:1\"\n");
        assert!(none.address.is_empty() && notes[0].contains("certificate"), "{notes:?}");
    }
}
