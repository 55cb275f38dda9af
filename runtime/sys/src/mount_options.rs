//! Mount option words, as in fstab and in an OCI configuration, turned into what the kernel takes.

use crate::mount::{Propagation, attribute};

/// What a list of option words asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// Attributes to set on the mount.
    pub set: u64,
    /// Attributes to clear on the mount.
    pub clear: u64,
    /// Whether a word named an attribute of the mount, be it only to clear one that was not set.
    pub names_attributes: bool,
    /// Attributes to set on the mount and everything below it.
    pub set_recursive: u64,
    /// Attributes to clear on the mount and everything below it.
    pub clear_recursive: u64,
    /// `bind` or `rbind`.
    pub bind: bool,
    /// `rbind`.
    pub recursive_bind: bool,
    /// `remount`.
    pub remount: bool,
    /// Propagation changes in order, each for the mount alone or (`true`) for all below it too.
    pub propagation: Vec<(Propagation, bool)>,
    /// Flags of the file system, such as `sync`, by the name fsconfig(2) knows.
    pub superblock: Vec<&'static str>,
    /// `tmpcopyup`: fill a tmpfs with what it covers.
    pub copy_up: bool,
    /// `idmap` (`false`) or `ridmap` (`true`).
    pub idmap: Option<bool>,
    /// What follows `idmap=` or `ridmap=`: ranges of ids.
    pub idmap_ranges: Option<String>,
    /// `copy-symlink`: a link at the source is made again at the destination.
    pub copy_symlink: bool,
    /// `src-nofollow`: a link at the source is mounted itself.
    pub source_nofollow: bool,
    /// `dest-nofollow`: a link at the destination is covered, not followed.
    pub destination_nofollow: bool,
    /// Words for the file system itself.
    pub data: Vec<String>,
}

/// An effect of one word.
#[derive(Clone, Copy)]
enum Word {
    Nothing,
    Set(u64),
    Clear(u64),
    Atime(u64),
    NoAtime(u64),
    SetRecursive(u64),
    ClearRecursive(u64),
    AtimeRecursive(u64),
    Propagate(Propagation, bool),
    Bind(bool),
    Remount,
    Superblock(&'static str),
    NoSuperblock(&'static str),
    CopyUp,
    Idmap(bool),
    CopySymlink,
    SourceNofollow,
    DestinationNofollow,
}

use attribute::{NOATIME, NODEV, NODIRATIME, NOEXEC, NOSUID, NOSYMFOLLOW, RDONLY, RELATIME, STRICTATIME};

const WORDS: &[(&str, Word)] = &[
    ("async", Word::NoSuperblock("sync")),
    ("atime", Word::NoAtime(NOATIME)),
    ("bind", Word::Bind(false)),
    ("copy-symlink", Word::CopySymlink),
    ("defaults", Word::Nothing),
    ("dest-nofollow", Word::DestinationNofollow),
    ("dev", Word::Clear(NODEV)),
    ("diratime", Word::Clear(NODIRATIME)),
    ("dirsync", Word::Superblock("dirsync")),
    ("exec", Word::Clear(NOEXEC)),
    ("idmap", Word::Idmap(false)),
    ("iversion", Word::Superblock("iversion")),
    ("lazytime", Word::Superblock("lazytime")),
    ("loud", Word::NoSuperblock("silent")),
    ("mand", Word::Superblock("mand")),
    ("noatime", Word::Atime(NOATIME)),
    ("nodev", Word::Set(NODEV)),
    ("nodiratime", Word::Set(NODIRATIME)),
    ("noexec", Word::Set(NOEXEC)),
    ("noiversion", Word::NoSuperblock("iversion")),
    ("nolazytime", Word::NoSuperblock("lazytime")),
    ("nomand", Word::NoSuperblock("mand")),
    ("norelatime", Word::NoAtime(RELATIME)),
    ("nostrictatime", Word::NoAtime(STRICTATIME)),
    ("nosuid", Word::Set(NOSUID)),
    ("nosymfollow", Word::Set(NOSYMFOLLOW)),
    ("private", Word::Propagate(Propagation::Private, false)),
    ("ratime", Word::AtimeRecursive(0)),
    ("rbind", Word::Bind(true)),
    ("rdev", Word::ClearRecursive(NODEV)),
    ("rdiratime", Word::ClearRecursive(NODIRATIME)),
    ("relatime", Word::Atime(RELATIME)),
    ("remount", Word::Remount),
    ("rexec", Word::ClearRecursive(NOEXEC)),
    ("ridmap", Word::Idmap(true)),
    ("rnoatime", Word::AtimeRecursive(NOATIME)),
    ("rnodev", Word::SetRecursive(NODEV)),
    ("rnodiratime", Word::SetRecursive(NODIRATIME)),
    ("rnoexec", Word::SetRecursive(NOEXEC)),
    ("rnorelatime", Word::AtimeRecursive(0)),
    ("rnostrictatime", Word::AtimeRecursive(0)),
    ("rnosuid", Word::SetRecursive(NOSUID)),
    ("rnosymfollow", Word::SetRecursive(NOSYMFOLLOW)),
    ("ro", Word::Set(RDONLY)),
    ("rprivate", Word::Propagate(Propagation::Private, true)),
    ("rrelatime", Word::AtimeRecursive(0)),
    ("rro", Word::SetRecursive(RDONLY)),
    ("rrw", Word::ClearRecursive(RDONLY)),
    ("rshared", Word::Propagate(Propagation::Shared, true)),
    ("rslave", Word::Propagate(Propagation::Slave, true)),
    ("rstrictatime", Word::AtimeRecursive(STRICTATIME)),
    ("rsuid", Word::ClearRecursive(NOSUID)),
    ("rsymfollow", Word::ClearRecursive(NOSYMFOLLOW)),
    ("runbindable", Word::Propagate(Propagation::Unbindable, true)),
    ("rw", Word::Clear(RDONLY)),
    ("shared", Word::Propagate(Propagation::Shared, false)),
    ("silent", Word::Superblock("silent")),
    ("slave", Word::Propagate(Propagation::Slave, false)),
    ("src-nofollow", Word::SourceNofollow),
    ("strictatime", Word::Atime(STRICTATIME)),
    ("suid", Word::Clear(NOSUID)),
    ("symfollow", Word::Clear(NOSYMFOLLOW)),
    ("sync", Word::Superblock("sync")),
    ("tmpcopyup", Word::CopyUp),
    ("unbindable", Word::Propagate(Propagation::Unbindable, false)),
];

impl MountOptions {
    /// Attributes of a mount and the flags of its file system as mount(2) takes them, and what it takes as words.
    pub fn to_flags(&self, attributes: u64) -> (u64, Vec<&'static str>) {
        const PAIRS: &[(u64, u64)] = &[
            (RDONLY, libc::MS_RDONLY),
            (NOSUID, libc::MS_NOSUID),
            (NODEV, libc::MS_NODEV),
            (NOEXEC, libc::MS_NOEXEC),
            (NOATIME, libc::MS_NOATIME),
            (STRICTATIME, libc::MS_STRICTATIME),
            (NODIRATIME, libc::MS_NODIRATIME),
            (NOSYMFOLLOW, 256),
        ];
        let given = PAIRS.iter().filter(|(attribute, _)| attributes & attribute != 0);
        let mut flags = given.fold(0, |flags, (_, flag)| flags | flag);
        let mut words = Vec::new();
        for word in &self.superblock {
            match *word {
                "sync" => flags |= libc::MS_SYNCHRONOUS,
                "dirsync" => flags |= libc::MS_DIRSYNC,
                "mand" => flags |= libc::MS_MANDLOCK,
                "lazytime" => flags |= libc::MS_LAZYTIME,
                "silent" => flags |= libc::MS_SILENT,
                "iversion" => flags |= libc::MS_I_VERSION,
                other => words.push(other),
            }
        }
        (flags, words)
    }
}

/// Every word with a meaning of its own, in alphabetical order.
pub fn known_words() -> impl Iterator<Item = &'static str> {
    WORDS.iter().map(|(word, _)| *word)
}

impl MountOptions {
    /// Reads words in order; a later word wins over an earlier one, and unknown words go to the file system.
    pub fn parse<S: AsRef<str>>(words: impl IntoIterator<Item = S>) -> Self {
        let mut options = Self::default();
        for word in words {
            let word = word.as_ref();
            match WORDS.binary_search_by_key(&word, |(known, _)| known) {
                Ok(index) => options.take(WORDS[index].1),
                Err(_) if word.is_empty() => {}
                Err(_) => match word.split_once('=') {
                    Some((name @ ("idmap" | "ridmap"), ranges)) => {
                        options.idmap = Some(name == "ridmap");
                        options.idmap_ranges = Some(ranges.to_owned());
                    }
                    _ => options.data.push(word.to_owned()),
                },
            }
        }
        options
    }

    /// Whether any attribute of the mount itself is to be changed.
    pub fn changes_attributes(&self) -> bool {
        (self.set | self.clear) != 0
    }

    /// Whether a kind of access times is asked for; words such as `atime` only take one back.
    pub fn asks_atime(&self) -> bool {
        self.clear & attribute::ATIME != 0 || self.set & NODIRATIME != 0
    }

    /// Whether any attribute is to be changed recursively.
    pub fn changes_recursively(&self) -> bool {
        (self.set_recursive | self.clear_recursive) != 0
    }

    fn take(&mut self, word: Word) {
        self.names_attributes |= matches!(word, Word::Set(_) | Word::Clear(_) | Word::Atime(_) | Word::NoAtime(_));
        match word {
            Word::Nothing => {}
            Word::Set(flag) => (self.set, self.clear) = (self.set | flag, self.clear & !flag),
            Word::Clear(flag) => (self.set, self.clear) = (self.set & !flag, self.clear | flag),
            Word::Atime(kind) => {
                self.set = (self.set & !attribute::ATIME) | kind;
                self.clear |= attribute::ATIME;
            }
            Word::NoAtime(kind) if self.clear & attribute::ATIME != 0 && self.set & attribute::ATIME == kind => {
                self.set &= !attribute::ATIME;
                self.clear &= !attribute::ATIME;
            }
            Word::NoAtime(_) => {}
            Word::SetRecursive(flag) => {
                self.set_recursive |= flag;
                self.clear_recursive &= !flag;
            }
            Word::ClearRecursive(flag) => {
                self.set_recursive &= !flag;
                self.clear_recursive |= flag;
            }
            Word::AtimeRecursive(kind) => {
                self.set_recursive = (self.set_recursive & !attribute::ATIME) | kind;
                self.clear_recursive |= attribute::ATIME;
            }
            Word::Propagate(kind, recursive) => self.propagation.push((kind, recursive)),
            // `bind` takes no `rbind` back: for mount(2) they are flags that add up, and CRI-O gives both.
            Word::Bind(recursive) => {
                self.bind = true;
                self.recursive_bind |= recursive;
            }
            Word::Remount => self.remount = true,
            Word::Superblock(name) => {
                if !self.superblock.contains(&name) {
                    self.superblock.push(name);
                }
            }
            Word::NoSuperblock(name) => self.superblock.retain(|known| *known != name),
            Word::CopyUp => self.copy_up = true,
            Word::Idmap(recursive) => self.idmap = Some(recursive),
            Word::CopySymlink => self.copy_symlink = true,
            Word::SourceNofollow => self.source_nofollow = true,
            Word::DestinationNofollow => self.destination_nofollow = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_sorted_for_the_search() {
        assert!(WORDS.is_sorted_by_key(|(word, _)| *word));
    }

    #[test]
    fn later_words_win() {
        let options = MountOptions::parse(["ro", "nosuid", "rw", "noatime", "strictatime"]);
        assert_eq!(options.set, NOSUID | STRICTATIME);
        assert_eq!(options.clear, RDONLY | attribute::ATIME);
        assert!(MountOptions::parse(["sync", "async"]).superblock.is_empty());
    }

    #[test]
    fn kinds_of_access_times_are_asked_for_and_taken_back() {
        let options = MountOptions::parse(["relatime"]);
        assert!(options.asks_atime() && options.set == 0 && options.clear == attribute::ATIME);
        for words in [&["atime"][..], &["noatime", "atime"], &["relatime", "norelatime"], &["nostrictatime"]] {
            let options = MountOptions::parse(words);
            assert!(!options.asks_atime() && options.names_attributes, "{words:?}");
        }
        assert_eq!(MountOptions::parse(["noatime", "nostrictatime"]).set, NOATIME);
    }

    #[test]
    fn unknown_words_reach_the_file_system() {
        let options = MountOptions::parse(["mode=755", "size=65536k", "bind"]);
        assert_eq!(options.data, ["mode=755", "size=65536k"]);
        assert!(options.bind && !options.recursive_bind);
    }

    #[test]
    fn bind_takes_no_rbind_back() {
        for words in [["rbind", "bind"], ["bind", "rbind"]] {
            assert!(MountOptions::parse(words).recursive_bind, "{words:?}");
        }
    }
}
