//! Classes of disk and cache use, which annotations name. What one of disk use means is in a file (`cri.blockio_config`), in
//! the form that other runtimes read; one of cache use is a group of the kernel's resource control that somebody has set up.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    LinuxBlockIo, LinuxIntelRdt, LinuxThrottleDevice, LinuxThrottleDeviceBuilder, LinuxWeightDevice,
    LinuxWeightDeviceBuilder, Spec,
};
use serde::Deserialize;

use super::annotations::{PREFIX, fits};
use super::{Making, invalid};
use crate::cri::quantity::quantity;
use crate::error::{Doing as _, Error, Result};

/// Where the kernel shows groups of cache use.
const RESCTRL: &str = "/sys/fs/resctrl";
/// What the group of everybody is called by those who name groups.
const EVERYBODY: &str = "system/default";
/// Entries there that are no groups.
const NO_GROUPS: &[&str] = &["info", "mon_data", "mon_groups"];
/// Largest file of classes.
const MAX_FILE: u64 = 1 << 20;
/// Weights that the kernel takes.
const WEIGHTS: std::ops::RangeInclusive<u64> = 10..=1000;

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
struct Classes {
    classes: BTreeMap<String, Vec<Share>>,
}

/// A share of some devices; without any, of all that the class does not name.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
struct Share {
    devices: Option<Vec<String>>,
    weight: Option<Quantity>,
    throttle_read_bps: Option<Quantity>,
    throttle_write_bps: Option<Quantity>,
    #[serde(rename = "ThrottleReadIOPS")]
    throttle_read_iops: Option<Quantity>,
    #[serde(rename = "ThrottleWriteIOPS")]
    throttle_write_iops: Option<Quantity>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Quantity {
    Number(u64),
    Text(String),
}

impl Quantity {
    fn value(&self) -> Result<u64> {
        match self {
            Self::Number(number) => Ok(*number),
            Self::Text(text) => quantity(text).ok_or_else(|| Error::invalid(format!("{text:?} is not a quantity"))),
        }
    }
}

/// Gives the container what its classes mean. One that is to have a class must not run without.
pub(super) fn apply(making: &Making<'_>, spec: &mut Spec) -> Result<()> {
    let Some(linux) = spec.linux_mut() else { return Ok(()) };
    if let Some(class) = wanted(making, "blockio") {
        let io = block_io(&making.settings.blockio_config, class).map_err(|error| unfit("blockio", class, &error))?;
        if let Some(limits) = linux.resources_mut() {
            limits.set_block_io(Some(io));
        }
    }
    if let Some(class) = wanted(making, "rdt") {
        let group = cache_group(class).map_err(|error| unfit("rdt", class, &error))?;
        let mut rdt = LinuxIntelRdt::default();
        rdt.set_clos_id(Some(group));
        linux.set_intel_rdt(Some(rdt));
    }
    Ok(())
}

fn unfit(kind: &str, class: &str, error: &Error) -> Error {
    invalid("annotations", format!("{kind} class {class:?}: {error}"))
}

/// The class that the container's annotation names, or the pod's for it, or the pod's for all.
fn wanted<'a>(making: &'a Making<'_>, kind: &str) -> Option<&'a str> {
    let name = making.config.metadata.as_ref().map(|metadata| metadata.name.as_str()).unwrap_or_default();
    let own = making.config.annotations.get(&format!("{PREFIX}{kind}-class"));
    let given = |key: &str| making.pod.annotations.get(&format!("{kind}.resources.beta.kubernetes.io/{key}"));
    let class = own.or_else(|| given(&format!("container.{name}"))).or_else(|| given("pod"));
    class.map(String::as_str).filter(|class| !class.is_empty())
}

/// The group of a class of cache use on this machine.
///
/// # Errors
/// `NotFound` where there is none.
pub(in crate::cri) fn cache_group(class: &str) -> Result<String> {
    group(Path::new(RESCTRL), class)
}

/// The group of a class of cache use.
fn group(root: &Path, class: &str) -> Result<String> {
    if class == EVERYBODY {
        return Ok("/".to_owned());
    }
    let plain = !class.contains('/') && !class.starts_with('.') && !NO_GROUPS.contains(&class);
    match plain && root.join(class).join("schemata").is_file() {
        true => Ok(class.to_owned()),
        false => Err(Error::not_found(format!("no such group in {}", root.display()))),
    }
}

/// What a class of disk use means on this machine, by the file.
///
/// # Errors
/// `NotFound` without such a class, `InvalidArgument` where the file cannot be read.
pub(in crate::cri) fn block_io(file: &Path, class: &str) -> Result<LinuxBlockIo> {
    use std::io::Read as _;
    if file.as_os_str().is_empty() {
        return Err(Error::not_found("no classes are configured (cri.blockio_config)"));
    }
    let doing = || file.display().to_string();
    let mut text = String::new();
    std::fs::File::open(file).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text)).doing(doing)?;
    // JSON is YAML too.
    let known: Classes =
        serde_saphyr::from_str(&text).map_err(|error| Error::invalid(error.to_string())).doing(doing)?;
    let shares = known.classes.get(class).ok_or_else(|| Error::not_found("no such class")).doing(doing)?;
    shares.iter().try_fold(LinuxBlockIo::default(), Share::add).doing(doing)
}

impl Share {
    fn add(mut io: LinuxBlockIo, share: &Self) -> Result<LinuxBlockIo> {
        let weight = share.weight.as_ref().map(Quantity::value).transpose()?;
        let weight = weight.map(|weight| match u16::try_from(weight) {
            Ok(small) if WEIGHTS.contains(&weight) => Ok(small),
            _ => Err(Error::invalid(format!("Weight: {weight} is not between 10 and 1000"))),
        });
        let weight = weight.transpose()?;
        let Some(patterns) = &share.devices else {
            let limits = [
                &share.throttle_read_bps,
                &share.throttle_write_bps,
                &share.throttle_read_iops,
                &share.throttle_write_iops,
            ];
            if limits.iter().any(|limit| limit.is_some()) {
                return Err(Error::invalid("limits without Devices"));
            }
            io.set_weight(weight.or(io.weight()));
            return Ok(io);
        };
        for device in patterns.iter().map(|pattern| devices(pattern)).collect::<Result<Vec<_>>>()?.concat() {
            if let Some(weight) = weight {
                let mut all = io.weight_device().clone().unwrap_or_default();
                all.retain(|old| (old.major(), old.minor()) != device);
                all.push(weight_of(device, weight)?);
                io.set_weight_device(Some(all));
            }
            let limit = |old: &Option<Vec<LinuxThrottleDevice>>, rate| limited(old.clone(), device, rate);
            let read_bps = limit(io.throttle_read_bps_device(), &share.throttle_read_bps)?;
            let write_bps = limit(io.throttle_write_bps_device(), &share.throttle_write_bps)?;
            let read_iops = limit(io.throttle_read_iops_device(), &share.throttle_read_iops)?;
            let write_iops = limit(io.throttle_write_iops_device(), &share.throttle_write_iops)?;
            io.set_throttle_read_bps_device(read_bps)
                .set_throttle_write_bps_device(write_bps)
                .set_throttle_read_iops_device(read_iops)
                .set_throttle_write_iops_device(write_iops);
        }
        Ok(io)
    }
}

fn weight_of((major, minor): (i64, i64), weight: u16) -> Result<LinuxWeightDevice> {
    let built = LinuxWeightDeviceBuilder::default().major(major).minor(minor).weight(weight).build();
    built.map_err(|error| Error::internal(error.to_string()))
}

/// The limits with one more; a later one of a device counts.
fn limited(
    limits: Option<Vec<LinuxThrottleDevice>>,
    device: (i64, i64),
    rate: &Option<Quantity>,
) -> Result<Option<Vec<LinuxThrottleDevice>>> {
    let Some(rate) = rate else { return Ok(limits) };
    let mut limits = limits.unwrap_or_default();
    limits.retain(|old| (old.major(), old.minor()) != device);
    let built = LinuxThrottleDeviceBuilder::default().major(device.0).minor(device.1).rate(rate.value()?).build();
    limits.push(built.map_err(|error| Error::internal(error.to_string()))?);
    Ok(Some(limits))
}

/// The disks that a pattern names; a machine need not have any. Parts of disks have no share of their own.
fn devices(pattern: &str) -> Result<Vec<(i64, i64)>> {
    let path = Path::new(pattern);
    let (Some(dir), Some(last)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Err(Error::invalid(format!("Devices: {pattern:?} is not the path of a device")));
    };
    if !path.is_absolute() || dir.to_string_lossy().contains(['*', '?', '[']) || last.contains('[') {
        return Err(Error::invalid(format!("Devices: {pattern:?}: wildcards are * and ?, in the last part of a path")));
    }
    let mut paths: Vec<PathBuf> = match last.contains(['*', '?']) {
        false => vec![path.to_owned()],
        true => {
            let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
            let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
            names.filter(|name| fits(last.as_bytes(), name.as_bytes())).map(|name| dir.join(name)).collect()
        }
    };
    paths.sort();
    let numbers = paths.iter().filter_map(|path| {
        let metadata = std::fs::metadata(path).ok().filter(|metadata| metadata.file_type().is_block_device())?;
        let (major, minor) = (nix::sys::stat::major(metadata.rdev()), nix::sys::stat::minor(metadata.rdev()));
        let part = Path::new(&format!("/sys/dev/block/{major}:{minor}/partition")).exists();
        (!part).then_some((i64::try_from(major).ok()?, i64::try_from(minor).ok()?))
    });
    Ok(numbers.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(text: &str, name: &str) -> Result<LinuxBlockIo> {
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), text).expect("write");
        block_io(file.path(), name)
    }

    #[test]
    fn a_class_of_disk_use_means_what_the_file_says() {
        let text = "Classes:\n  low:\n  - Weight: 20\n  - Devices: [/dev/none, /dev/null]\n    ThrottleReadBps: 10M\n    \
                    ThrottleWriteIOPS: \"100\"\n  high:\n  - Weight: \"500\"\n";
        assert_eq!(class(text, "low").expect("low").weight(), Some(20));
        assert_eq!(class(text, "high").expect("high").weight(), Some(500));
        assert_eq!(class(r#"{"Classes": {"one": [{"Weight": "10"}]}}"#, "one").expect("JSON").weight(), Some(10));
        for (text, name) in [
            (text, "none"),
            ("Classes: {a: [{Weight: 5}]}", "a"),
            ("Classes: {a: [{ThrottleReadBps: 1}]}", "a"),
            ("Classes: {a: [{Devices: [sda], Weight: 50}]}", "a"),
            ("Classes: {a: [{Devices: [\"/dev/*/x\"], Weight: 50}]}", "a"),
            ("Classes: {a: [{Other: 5}]}", "a"),
        ] {
            assert!(class(text, name).is_err(), "{text} {name}");
        }
        assert!(block_io(Path::new(""), "a").expect_err("nothing configured").to_string().contains("blockio_config"));
    }

    #[test]
    fn a_later_limit_of_a_device_counts() {
        let rate = |number| Some(Quantity::Number(number));
        let once = limited(None, (8, 0), &rate(1)).expect("one");
        let twice = limited(once, (8, 16), &rate(2)).and_then(|all| limited(all, (8, 0), &rate(3))).expect("both");
        let rates: Vec<_> = twice.iter().flatten().map(|one| (one.minor(), one.rate())).collect();
        assert_eq!(rates, [(16, 2), (0, 3)]);
    }

    #[test]
    fn a_class_of_cache_use_is_a_group_that_there_is() {
        let root = tempfile::tempdir().expect("directory");
        for name in ["gold", "info", "mon_groups"] {
            std::fs::create_dir(root.path().join(name)).expect("make");
            std::fs::write(root.path().join(name).join("schemata"), "").expect("write");
        }
        assert_eq!(group(root.path(), "gold").expect("gold"), "gold");
        assert_eq!(group(root.path(), EVERYBODY).expect("everybody"), "/");
        for class in ["silver", "info", "mon_groups", "..", "../gold", "gold/../gold", "/"] {
            assert!(group(root.path(), class).is_err(), "{class}");
        }
    }
}
