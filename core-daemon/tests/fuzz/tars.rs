//! Archives to begin with: every kind of entry a layer has, and what others have tried.

/// An entry of a ustar header and padded data.
pub(crate) fn entry(kind: u8, name: &str, link: &str, data: &[u8]) -> Vec<u8> {
    let mut block = [0_u8; 512];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    put(0, name.as_bytes());
    put(100, b"0000755\x000000000\x000000000\0");
    put(124, format!("{:011o}\0{:011o}\0", data.len(), 1_700_000_000).as_bytes());
    put(156, &[kind]);
    put(157, link.as_bytes());
    put(257, b"ustar\x0000");
    put(329, b"0000001\x000000003\0");
    sum(&mut block);
    let mut entry = block.to_vec();
    entry.extend_from_slice(data);
    entry.resize(entry.len().next_multiple_of(512), 0);
    entry
}

fn sum(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Makes the checksums of all headers right, so that what they say is looked at.
pub(crate) fn repair(tar: &mut [u8]) {
    tar.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar").for_each(sum);
}

/// Entries and the end of an archive.
pub(crate) fn tar(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut tar = entries.concat();
    tar.resize(tar.len() + 1024, 0);
    tar
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut text = String::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let length = (rest + 1..).find(|length| *length == rest + length.to_string().len()).unwrap_or(rest);
        text.push_str(&format!("{length} {key}={value}\n"));
    }
    entry(b'x', "pax", "", text.as_bytes())
}

/// Layers to begin with.
pub(crate) fn layers() -> Vec<Vec<u8>> {
    let file = |name: &str| entry(b'0', name, "", b"some bytes");
    let dir = |name: &str| entry(b'5', name, "", b"");
    vec![
        tar(&[
            dir("etc/"),
            file("etc/passwd"),
            entry(b'2', "etc/link", "passwd", b""),
            entry(b'1', "hard", "etc/passwd", b""),
        ]),
        tar(&[file("a/b/c"), file("a/.wh.b"), file("a/.wh..wh..opq"), file(".wh.gone"), file(".wh..wh.plnk/x")]),
        tar(&[
            entry(b'3', "dev", "", b""),
            entry(b'4', "block", "", b""),
            entry(b'6', "fifo", "", b""),
            entry(b'7', "old", "", b"x"),
        ]),
        tar(&[entry(b'2', "out", "../../..", b""), file("out/canary"), entry(b'1', "stolen", "../canary", b"")]),
        tar(&[entry(b'2', "a", "/", b""), dir("a"), file("a/canary"), file("/absolute"), file("../canary")]),
        tar(&[
            pax(&[("path", "a/long/name"), ("SCHILY.xattr.user.x", "y"), ("mtime", "-1.5"), ("size", "10")]),
            file("short"),
            pax(&[
                ("GNU.sparse.major", "1"),
                ("GNU.sparse.minor", "0"),
                ("GNU.sparse.name", "s"),
                ("GNU.sparse.realsize", "4096"),
            ]),
            entry(b'0', "sparse", "", &{
                let mut data = b"1\n1024\n4\n".to_vec();
                data.resize(512, 0);
                data.extend(b"data");
                data
            }),
        ]),
        tar(&[
            entry(b'L', "././@LongLink", "", &[b'n'; 300]),
            file("cut"),
            entry(b'K', "././@LongLink", "", &[b'l'; 300]),
            entry(b'2', "x", "cut", b""),
        ]),
    ]
}
