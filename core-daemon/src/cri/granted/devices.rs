//! Devices by annotation: `HOST[:CONTAINER][:ACCESS]`, several with commas between.

use std::path::{Component, Path, PathBuf};

use gantry_proto::runtime::v1;

/// Most devices that a pod may ask for.
const MOST: usize = 128;
/// Everything that can be done with a device.
const ALL: &str = "rwm";

pub(super) fn parse(value: &str, allowed: &[PathBuf]) -> Result<Vec<v1::Device>, String> {
    let wished: Vec<&str> = value.split(',').filter(|one| !one.is_empty()).collect();
    match wished.len() > MOST {
        true => Err(format!("names more than {MOST} devices")),
        false => wished.into_iter().map(|one| device(one, allowed)).collect(),
    }
}

fn device(text: &str, allowed: &[PathBuf]) -> Result<v1::Device, String> {
    let mut parts = text.split(':');
    let host = parts.next().unwrap_or_default();
    let (inside, access) = match (parts.next(), parts.next(), parts.next()) {
        (None, ..) => (host, ALL),
        (Some(access), None, _) if is_access(access) => (host, access),
        (Some(inside), None, _) => (inside, ALL),
        (Some(inside), Some(access), None) => (inside, access),
        _ => return Err(format!("{text:?} is not HOST[:CONTAINER][:ACCESS]")),
    };
    if !is_access(access) {
        return Err(format!("{text:?}: {access:?} is not made of r, w and m"));
    }
    // As it is written: what a link leads to is for the administrator to say, too.
    if !allowed.iter().any(|path| path.as_os_str() == host) {
        return Err(format!("{host} is not among cri.allowed_devices"));
    }
    let inside = if inside.is_empty() { host } else { inside };
    let below = Path::new(inside).strip_prefix("/dev").ok().filter(|below| below.components().next().is_some());
    if inside.contains('\0')
        || !below.is_some_and(|below| below.components().all(|part| matches!(part, Component::Normal(_))))
    {
        return Err(format!("{text:?}: {inside:?} is not a path below /dev"));
    }
    Ok(v1::Device { host_path: host.to_owned(), container_path: inside.to_owned(), permissions: access.to_owned() })
}

fn is_access(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| ALL.as_bytes().contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms() {
        let allowed = ["/dev/fuse".into(), "/dev/net/tun".into()];
        let read = |text: &str| {
            let one = |device: v1::Device| (device.host_path, device.container_path, device.permissions);
            parse(text, &allowed).map(|found| found.into_iter().map(one).collect::<Vec<_>>())
        };
        let device = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
        assert_eq!(read("/dev/fuse"), Ok(vec![device("/dev/fuse", "/dev/fuse", "rwm")]));
        assert_eq!(read("/dev/fuse:r"), Ok(vec![device("/dev/fuse", "/dev/fuse", "r")]));
        assert_eq!(read("/dev/fuse:/dev/a"), Ok(vec![device("/dev/fuse", "/dev/a", "rwm")]));
        assert_eq!(read("/dev/fuse::rw"), Ok(vec![device("/dev/fuse", "/dev/fuse", "rw")]));
        let both = vec![device("/dev/fuse", "/dev/a/b", "rw"), device("/dev/net/tun", "/dev/net/tun", "rwm")];
        assert_eq!(read("/dev/fuse:/dev/a/b:rw,,/dev/net/tun,"), Ok(both));
        assert_eq!(read(""), Ok(Vec::new()));
        for wrong in [
            "/dev/sda",
            "/dev/../dev/fuse",
            "/dev/fuse/",
            "/dev/fuse:/etc/x",
            "/dev/fuse:/dev",
            "/dev/fuse:/dev/",
            "/dev/fuse:/dev/../etc/x",
            "/dev/fuse:x",
            "/dev/fuse:/dev/a:rx",
            "/dev/fuse:/dev/a:",
            "/dev/fuse:/dev/a:r:w",
            "/dev/fuse:/devx/a",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert!(read(&"/dev/fuse,".repeat(MOST + 1)).expect_err("many").contains("more than"));
    }
}
