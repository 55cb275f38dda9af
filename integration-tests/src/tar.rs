//! Writes tar archives entry by entry, including ones that no honest program would write.

/// What kind of entry, with what belongs to it.
#[derive(Debug, Clone)]
pub enum Kind {
    /// A regular file and its content.
    File(Vec<u8>),
    /// A directory.
    Directory,
    /// A symbolic link and its target.
    Symlink(String),
    /// A hard link to an earlier entry.
    Hardlink(String),
    /// A character device, major and minor.
    Character(u32, u32),
    /// A named pipe.
    Fifo,
}

/// An archive under construction. Names are written as given: `../outside` and `/absolute` too.
#[derive(Debug, Default)]
pub struct Tar {
    bytes: Vec<u8>,
}

/// Mode, owner and pax attributes of an entry.
#[derive(Debug, Clone, Default)]
pub struct Meta {
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: u64,
    /// Extended attributes and other pax records (`SCHILY.xattr.user.x`), written before the entry.
    pub pax: Vec<(String, Vec<u8>)>,
}

impl Tar {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// A regular file with mode 0644.
    pub fn file(self, name: &str, content: impl Into<Vec<u8>>) -> Self {
        self.entry(name, Kind::File(content.into()), &Meta { mode: 0o644, ..Meta::default() })
    }

    /// A program: a regular file with mode 0755.
    pub fn program(self, name: &str, content: impl Into<Vec<u8>>) -> Self {
        self.entry(name, Kind::File(content.into()), &Meta { mode: 0o755, ..Meta::default() })
    }

    /// A directory with mode 0755.
    pub fn dir(self, name: &str) -> Self {
        self.entry(&format!("{name}/"), Kind::Directory, &Meta { mode: 0o755, ..Meta::default() })
    }

    /// A symbolic link.
    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(name, Kind::Symlink(target.to_owned()), &Meta { mode: 0o777, ..Meta::default() })
    }

    /// Any entry.
    pub fn entry(mut self, name: &str, kind: Kind, meta: &Meta) -> Self {
        let mut records: Vec<u8> = meta.pax.iter().flat_map(|(key, value)| pax_record(key, value)).collect();
        if name.len() > 100 {
            records.extend(pax_record("path", name.as_bytes()));
        }
        if !records.is_empty() {
            self.header("pax", b'x', "", &Meta { mode: 0o644, ..Meta::default() }, records.len(), (0, 0));
            self.content(&records);
        }
        match kind {
            Kind::File(content) => {
                self.header(name, b'0', "", meta, content.len(), (0, 0));
                self.content(&content);
            }
            Kind::Directory => self.header(name, b'5', "", meta, 0, (0, 0)),
            Kind::Symlink(target) => self.header(name, b'2', &target, meta, 0, (0, 0)),
            Kind::Hardlink(target) => self.header(name, b'1', &target, meta, 0, (0, 0)),
            Kind::Character(major, minor) => self.header(name, b'3', "", meta, 0, (major, minor)),
            Kind::Fifo => self.header(name, b'6', "", meta, 0, (0, 0)),
        }
        self
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.extend([0; 1024]);
        self.bytes
    }

    fn header(&mut self, name: &str, kind: u8, link: &str, meta: &Meta, size: usize, device: (u32, u32)) {
        let mut block = [0u8; 512];
        put(&mut block, 0, 100, name.as_bytes());
        put(&mut block, 100, 8, format!("{:07o}", meta.mode).as_bytes());
        put(&mut block, 108, 8, format!("{:07o}", meta.uid).as_bytes());
        put(&mut block, 116, 8, format!("{:07o}", meta.gid).as_bytes());
        put(&mut block, 124, 12, format!("{size:011o}").as_bytes());
        put(&mut block, 136, 12, format!("{:011o}", meta.mtime).as_bytes());
        put(&mut block, 148, 8, b"        ");
        block[156] = kind;
        put(&mut block, 157, 100, link.as_bytes());
        put(&mut block, 257, 8, b"ustar\x0000");
        put(&mut block, 329, 8, format!("{:07o}", device.0).as_bytes());
        put(&mut block, 337, 8, format!("{:07o}", device.1).as_bytes());
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        put(&mut block, 148, 8, format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend(block);
    }

    fn content(&mut self, content: &[u8]) {
        self.bytes.extend(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
    }
}

fn put(block: &mut [u8; 512], at: usize, room: usize, text: &[u8]) {
    let length = text.len().min(room);
    block[at..at + length].copy_from_slice(&text[..length]);
}

/// `LENGTH KEY=VALUE\n`, where the length counts its own digits.
fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_system_tar_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let long = format!("{}/name", "d".repeat(120));
        let bytes = Tar::new().dir("bin").program("bin/a", "hello").symlink("bin/b", "a").file(&long, "x").finish();
        let archive = dir.path().join("a.tar");
        std::fs::write(&archive, bytes).unwrap();
        let listed = Command::new("tar").arg("tvf").arg(&archive).output().unwrap();
        let text = String::from_utf8_lossy(&listed.stdout);
        assert!(listed.status.success(), "{listed:?}");
        for part in ["-rwxr-xr-x 0/0               5", "bin/b -> a", &long] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn pax_length_counts_itself() {
        assert_eq!(pax_record("a", b"b"), b"6 a=b\n");
        for length in [88, 91, 92, 93, 990] {
            let record = pax_record("path", &vec![b'x'; length]);
            assert!(record.starts_with(format!("{} path=", record.len()).as_bytes()), "{length}");
        }
    }
}
