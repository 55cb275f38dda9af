//! Platforms: what an image was built for, what a machine can run, and which of several images is best.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::image::null_is_default;

/// An operating system and a processor, in Go's names as the OCI image specification uses them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `GOARCH`, such as `amd64`.
    #[serde(default, deserialize_with = "null_is_default")]
    pub architecture: String,
    /// `GOOS`, such as `linux`.
    #[serde(default, deserialize_with = "null_is_default")]
    pub os: String,
    /// Version of the operating system; only Windows images have one.
    #[serde(rename = "os.version", default, skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// Features of the operating system that the image needs.
    #[serde(
        rename = "os.features",
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub os_features: Vec<String>,
    /// Variant of the processor, such as `v7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// A text that is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid platform {0:?}: expected os/arch or os/arch/variant, such as linux/amd64 or linux/arm/v7")]
pub struct InvalidPlatform(String);

impl Platform {
    /// A normalised platform.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
            ..Self::default()
        }
        .normalised()
    }

    /// Parses `os/arch[/variant]`, or one of `os` and `arch` alone with the other taken from this machine. Behind the system
    /// may be its version and its features, as containerd writes them: `windows(10.0.17763)/amd64`, `linux(+erofs)/amd64`.
    ///
    /// # Errors
    /// Where a part is empty, malformed, or there are too many.
    pub fn parse(text: &str) -> Result<Self, InvalidPlatform> {
        let bad = || InvalidPlatform(text.chars().take(100).collect());
        let part = |part: &str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        };
        let (system, rest) = text.split_once('/').map_or((text, None), |(system, rest)| (system, Some(rest)));
        let (system, more) = match system.split_once('(') {
            Some((system, more)) => (system, Some(more.strip_suffix(')').ok_or_else(bad)?)),
            None => (system, None),
        };
        let mut said = more.into_iter().flat_map(|more| more.split('+'));
        let (version, features): (_, Vec<&str>) = (said.next(), said.collect());
        let version = version.filter(|version| !version.is_empty() || features.is_empty());
        let parts: Vec<&str> = [system].into_iter().chain(rest.into_iter().flat_map(|rest| rest.split('/'))).collect();
        if !parts.iter().chain(&version).chain(&features).all(|text| part(text)) {
            return Err(bad());
        }
        let host = Self::host();
        let platform = match parts[..] {
            [one] if is_known_os(&one.to_ascii_lowercase()) => {
                Ok(Self::new(one, &host.architecture, host.variant.as_deref()))
            }
            [one] if more.is_none() && is_known_architecture(one) => Ok(Self::new(&host.os, one, None)),
            [os, architecture] => Ok(Self::new(os, architecture, None)),
            [os, architecture, variant] => Ok(Self::new(os, architecture, Some(variant))),
            _ => Err(bad()),
        };
        let os_features = features.into_iter().map(str::to_owned).collect();
        Ok(Self { os_version: version.map(str::to_owned), os_features, ..platform? }.normalised())
    }

    /// This machine.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            other => other,
        };
        Self::new(std::env::consts::OS, architecture, host_variant())
    }

    /// The same platform in the one spelling that comparisons use.
    #[must_use]
    pub fn normalised(mut self) -> Self {
        self.os = match self.os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            os => os.to_owned(),
        };
        let architecture = self.architecture.to_ascii_lowercase();
        let variant = self.variant.take().map(|text| text.to_ascii_lowercase()).filter(|text| !text.is_empty());
        let (architecture, variant) = match (architecture.as_str(), variant.as_deref()) {
            ("x86_64" | "x86-64" | "amd64", None | Some("v1")) => ("amd64", None),
            ("x86_64" | "x86-64" | "amd64", other) => ("amd64", other),
            ("i386" | "i486" | "i586" | "i686" | "x86", _) => ("386", None),
            ("aarch64" | "arm64", None | Some("8" | "v8" | "v8.0")) => ("arm64", None),
            ("aarch64" | "arm64", other) => ("arm64", other),
            ("armhf", _) | ("arm", None | Some("7")) => ("arm", Some("v7")),
            ("armel", _) | ("arm", Some("6")) => ("arm", Some("v6")),
            ("arm", Some("5")) => ("arm", Some("v5")),
            ("arm", Some("8")) => ("arm", Some("v8")),
            (other, variant) => (other, variant),
        };
        self.variant = variant.map(str::to_owned);
        self.architecture = architecture.to_owned();
        self.os_features.sort_unstable();
        self.os_features.dedup();
        self
    }

    /// How well a machine of this platform runs an image built for `offered`: 0 is best, `None` not at all. The processor
    /// counts first, and then how many of the machine's features the image makes use of.
    pub fn rank(&self, offered: &Self) -> Option<usize> {
        let wanted = self.clone().normalised();
        let offered = offered.clone().normalised();
        let features = offered.os_features.iter().all(|feature| wanted.os_features.contains(feature));
        let version = |platform: &Self| platform.os_version.as_deref().and_then(WindowsVersion::parse);
        let runs = match (version(&wanted), version(&offered)) {
            (Some(host), Some(image)) if wanted.os == "windows" => host.runs(&image),
            _ => true,
        };
        if wanted.os != offered.os || !features || !runs {
            return None;
        }
        let unused = wanted.os_features.len() - offered.os_features.len();
        let place = wanted.runs().iter().position(|(architecture, variant)| {
            *architecture == offered.architecture && variant.as_deref() == offered.variant.as_deref()
        });
        place.map(|place| place * (wanted.os_features.len() + 1) + unused)
    }

    /// Of several platforms, the place of the one this machine runs best; the first of equals.
    pub fn best<'a>(&self, offered: impl IntoIterator<Item = &'a Self>) -> Option<usize> {
        offered
            .into_iter()
            .enumerate()
            .filter_map(|(place, platform)| Some((self.rank(platform)?, place)))
            .min()
            .map(|(_, place)| place)
    }

    /// Every architecture and variant that runs here, best first.
    fn runs(&self) -> Vec<(String, Option<String>)> {
        let pair = |architecture: &str, variant: Option<String>| (architecture.to_owned(), variant);
        let level = |variant: &Option<String>, prefix: &str| -> Option<u32> {
            variant.as_deref()?.strip_prefix(prefix)?.parse().ok()
        };
        let own = vec![(self.architecture.clone(), self.variant.clone())];
        match (self.architecture.as_str(), level(&self.variant, "v")) {
            ("amd64", Some(top)) if (2..=9).contains(&top) => (2..=top)
                .rev()
                .map(|number| pair("amd64", Some(format!("v{number}"))))
                .chain([pair("amd64", None), pair("386", None)])
                .collect(),
            ("amd64", None) => own.into_iter().chain([pair("386", None)]).collect(),
            ("arm", Some(top)) if (5..=8).contains(&top) => {
                (5..=top).rev().map(|number| pair("arm", Some(format!("v{number}")))).collect()
            }
            ("arm64", _) => {
                let lesser = self.variant.as_deref().into_iter().flat_map(lesser_arm64);
                let fallback = self.variant.is_some().then_some(None);
                let all = lesser.map(Some).chain(fallback).map(|variant| pair("arm64", variant));
                let older = (5..=8).rev().map(|number| pair("arm", Some(format!("v{number}"))));
                own.into_iter().chain(all).chain(older).collect()
            }
            _ => own,
        }
    }
}

/// The variants of 64-bit ARM above the first whose programs a processor of `variant` runs beside its own, best first: each
/// v9 has all that the v8 five steps further has.
fn lesser_arm64(variant: &str) -> Vec<String> {
    let (major, minor) = variant.split_once('.').unwrap_or((variant, "0"));
    let Ok(minor) = minor.parse::<u32>() else { return Vec::new() };
    let steps = |major: u32, top: u32| {
        (0..=top.min(9)).rev().map(move |minor| match minor {
            0 => format!("v{major}"),
            minor => format!("v{major}.{minor}"),
        })
    };
    let all: Vec<String> = match major {
        "v8" => steps(8, minor).collect(),
        "v9" => steps(9, minor).chain(steps(8, minor.saturating_add(5))).collect(),
        _ => Vec::new(),
    };
    all.into_iter().filter(|one| one != variant && one != "v8").collect()
}

/// The part of a Windows version that says which images run on it: major, minor and build.
#[derive(Debug, PartialEq, Eq)]
struct WindowsVersion(u32, u32, u32);

impl WindowsVersion {
    /// The first build that also runs the images of earlier ones, down to itself.
    const STABLE: u32 = 20348;

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.').map(|part| part.parse().ok());
        Some(Self(parts.next()??, parts.next()??, parts.next()??))
    }

    fn runs(&self, image: &Self) -> bool {
        let oldest = self.2.min(Self::STABLE);
        (self.0, self.1) == (image.0, image.1) && (oldest..=self.2).contains(&image.2)
    }
}

/// The x86-64 level of this processor, which decides between images built for several levels.
#[cfg(target_arch = "x86_64")]
fn host_variant() -> Option<&'static str> {
    macro_rules! all {
        ($($feature:tt)*) => { true $(&& std::arch::is_x86_feature_detected!($feature))* };
    }
    if !all!("cmpxchg16b" "popcnt" "sse3" "sse4.1" "sse4.2" "ssse3") {
        return None;
    }
    if !all!("avx" "avx2" "bmi1" "bmi2" "f16c" "fma" "lzcnt" "movbe") {
        return Some("v2");
    }
    if !all!("avx512f" "avx512bw" "avx512cd" "avx512dq" "avx512vl") {
        return Some("v3");
    }
    Some("v4")
}

#[cfg(not(target_arch = "x86_64"))]
fn host_variant() -> Option<&'static str> {
    None
}

fn is_known_os(text: &str) -> bool {
    matches!(text, "linux" | "windows" | "darwin" | "macos" | "freebsd")
}

fn is_known_architecture(text: &str) -> bool {
    matches!(
        text.to_ascii_lowercase().as_str(),
        "386"
            | "i386"
            | "amd64"
            | "x86_64"
            | "x86-64"
            | "arm"
            | "armhf"
            | "armel"
            | "arm64"
            | "aarch64"
            | "loong64"
            | "mips64le"
            | "ppc64le"
            | "riscv64"
            | "s390x"
    )
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.os)?;
        let version = self.os_version.as_deref().unwrap_or_default();
        if !version.is_empty() || !self.os_features.is_empty() {
            let features: String = self.os_features.iter().map(|feature| format!("+{feature}")).collect();
            write!(f, "({version}{features})")?;
        }
        write!(f, "/{}", self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = InvalidPlatform;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        Platform::parse(text).unwrap()
    }

    #[test]
    fn parses_and_normalises() {
        for (text, shown) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64/v1", "linux/amd64"),
            ("Linux/AArch64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/arm/v8", "linux/arm/v8"),
            ("linux/i386", "linux/386"),
            ("windows/amd64", "windows/amd64"),
            ("Windows(10.0.17763.1)/x86_64", "windows(10.0.17763.1)/amd64"),
            ("linux(+erofs)/amd64", "linux(+erofs)/amd64"),
            ("windows(10.0.1+two+one+two)/amd64", "windows(10.0.1+one+two)/amd64"),
        ] {
            assert_eq!(platform(text).to_string(), shown, "{text}");
        }
        assert_eq!(platform("arm64").architecture, "arm64");
        assert_eq!(platform("linux").os, "linux");
        assert_eq!(platform("linux(+erofs)").os_features, ["erofs"]);
        for bad in [
            "",
            "/",
            "linux/",
            "a/b/c/d",
            "nonsense",
            "linux/am d64",
            "windows(/amd64",
            "windows()/a",
            "amd64(1)",
            "amd64(+erofs)",
            "linux(+)/a",
            "linux(1+)/a",
            "linux(++a)/a",
            "linux(+a/amd64",
        ] {
            assert!(Platform::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn prefers_the_nearest_variant() {
        let offered = ["linux/arm/v5", "linux/amd64", "linux/arm/v7", "linux/amd64/v2", "linux/arm/v6"].map(platform);
        let best = |wanted: &str| platform(wanted).best(&offered).map(|place| offered[place].to_string());
        assert_eq!(best("linux/arm/v7").as_deref(), Some("linux/arm/v7"));
        assert_eq!(best("linux/arm/v6").as_deref(), Some("linux/arm/v6"));
        assert_eq!(best("linux/amd64").as_deref(), Some("linux/amd64"));
        assert_eq!(best("linux/amd64/v3").as_deref(), Some("linux/amd64/v2"));
        assert_eq!(best("linux/arm64").as_deref(), Some("linux/arm/v7"));
        assert_eq!(best("linux/s390x"), None);
        assert_eq!(best("windows/amd64"), None);
    }

    #[test]
    fn a_processor_runs_what_was_built_for_those_before_it() {
        let offered = ["linux/arm/v8", "linux/arm64", "linux/arm64/v8.2", "linux/arm64/v9.1"].map(platform);
        let best = |wanted: &str| platform(wanted).best(&offered).map(|place| offered[place].to_string());
        assert_eq!(best("linux/arm64/v9.3").as_deref(), Some("linux/arm64/v9.1"));
        assert_eq!(best("linux/arm64/v9.0").as_deref(), Some("linux/arm64/v8.2"));
        assert_eq!(best("linux/arm64/v8.1").as_deref(), Some("linux/arm64"));
        assert_eq!(best("linux/arm64/v10").as_deref(), Some("linux/arm64"));
    }

    #[test]
    fn an_image_that_needs_a_feature_is_for_machines_that_have_it() {
        let texts = ["linux(+erofs)/amd64/v2", "linux(+erofs)/amd64", "linux(+erofs+other)/amd64", "linux/amd64"];
        let best = |wanted: &str, offered: &[&str]| {
            let offered: Vec<Platform> = offered.iter().copied().map(platform).collect();
            platform(wanted).best(&offered).map(|place| offered[place].to_string())
        };
        for (wanted, chosen) in [
            ("linux/amd64", "linux/amd64"),
            ("linux(+unknown)/amd64", "linux/amd64"),
            ("linux(+erofs)/amd64", "linux(+erofs)/amd64"),
            ("linux(+other+erofs)/amd64", "linux(+erofs+other)/amd64"),
            ("linux(+erofs)/amd64/v3", "linux(+erofs)/amd64/v2"),
        ] {
            assert_eq!(best(wanted, &texts).as_deref(), Some(chosen), "{wanted}");
        }
        // The processor counts first.
        let of_levels = ["linux(+erofs)/amd64", "linux/amd64/v2"];
        assert_eq!(best("linux(+erofs)/amd64/v2", &of_levels).as_deref(), Some("linux/amd64/v2"));
        assert_eq!(best("linux/amd64", &texts[..3]), None);
        // What is said twice counts once.
        let twice = Platform { os_features: vec!["erofs".into(); 3], ..platform("linux/amd64") };
        assert_eq!(platform("linux(+erofs)/amd64").rank(&twice), Some(0));
    }

    #[test]
    fn windows_runs_images_of_its_own_build_and_from_2022_on_of_earlier_ones() {
        let windows = |version: &str| Platform {
            os_version: Some(version.to_owned()).filter(|version| !version.is_empty()),
            ..Platform::new("windows", "amd64", None)
        };
        for (host, image, runs) in [
            ("10.0.17763", "10.0.17763.5000", true),
            ("10.0.17763.1", "", true),
            ("", "10.0.17763.1", true),
            ("10.0.17763.1", "10.0.18362.1", false),
            ("10.0.19041.1", "10.0.17763.1", false),
            ("10.0.20348.7", "10.0.17763.1", false),
            ("10.0.26100.1", "10.0.20348.7", true),
            ("10.0.20348.7", "10.0.26100.1", false),
            ("10.0.26100.1", "11.0.26100.1", false),
        ] {
            assert_eq!(windows(host).rank(&windows(image)).is_some(), runs, "{host} {image}");
        }
    }

    #[test]
    fn attestations_never_match() {
        let unknown = Platform { os: "unknown".into(), architecture: "unknown".into(), ..Platform::default() };
        assert_eq!(Platform::host().rank(&unknown), None);
        assert_eq!(Platform::host().rank(&Platform::host()), Some(0));
    }

    #[test]
    fn json_uses_dotted_names() {
        let json = r#"{"architecture":"amd64","os":"windows","os.version":"10.0","os.features":null}"#;
        let platform: Platform = serde_json::from_str(json).unwrap();
        assert_eq!(platform.os_version.as_deref(), Some("10.0"));
        assert!(serde_json::to_string(&platform).unwrap().contains("\"os.version\":\"10.0\""));
    }
}
