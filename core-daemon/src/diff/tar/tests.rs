use super::writer::Writer;
use super::*;

fn entry(path: &str, kind: Kind) -> Entry {
    Entry {
        path: path.into(),
        link: Vec::new(),
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        size: 0,
        mtime: (0, 0),
        device: (0, 0),
        xattrs: Vec::new(),
        pieces: None,
    }
}

#[test]
fn what_is_written_is_read_again() {
    let long = format!("{}/{}", "d".repeat(120), "ü".repeat(60));
    let entries = [
        Entry { mode: 0o4755, uid: 3_000_000, gid: 7, size: 5, mtime: (1 << 33, 0), ..entry(&long, Kind::File) },
        Entry { link: long.clone().into_bytes(), ..entry("s", Kind::Symlink) },
        Entry { device: (8, 1), ..entry("b", Kind::Block) },
        Entry {
            mtime: (-5, 0),
            xattrs: vec![(b"security.capability".to_vec(), vec![0, b'\n', 255])],
            ..entry("d/", Kind::Directory)
        },
    ];
    let mut writer = Writer::new(Vec::new());
    for entry in &entries {
        writer.entry(entry, &mut &b"hello"[..]).expect("write");
    }
    let bytes = writer.finish().expect("finish");
    let mut reader = Reader::new(&bytes[..], 1 << 20);
    for expected in &entries {
        let read = reader.next_entry().expect("read").expect("entry");
        assert_eq!(format!("{read:?}"), format!("{expected:?}"));
    }
    assert!(reader.next_entry().expect("end").is_none());
    assert_eq!(reader.finish().expect("finish"), bytes.len() as u64);
}

#[test]
fn a_stream_that_ends_early_or_is_too_long_is_an_error() {
    let mut writer = Writer::new(Vec::new());
    writer.entry(&Entry { size: 2000, ..entry("f", Kind::File) }, &mut std::io::repeat(1)).expect("write");
    let bytes = writer.finish().expect("finish");
    let read = |bytes: &[u8], limit| -> Result<u64> {
        let mut reader = Reader::new(bytes, limit);
        while reader.next_entry()?.is_some() {}
        reader.finish()
    };
    assert!(read(&bytes, 1 << 20).is_ok());
    for end in [1, 511, 600, 2500] {
        assert!(read(&bytes[..end], 1 << 20).is_err(), "{end}");
    }
    assert!(read(&bytes, 1000).is_err());
    let mut broken = bytes.clone();
    broken[0] ^= 1;
    assert!(read(&broken, 1 << 20).is_err());
}

#[test]
fn pax_sizes_and_sparse_maps_must_fit() {
    assert!(sparse::check(&[(0, 5), (10, 5)], 20, 10).is_ok());
    for (pieces, size, stored) in [
        (vec![(10, 5), (0, 5)], 20, 10),
        (vec![(0, 5), (3, 5)], 20, 10),
        (vec![(0, 30)], 20, 30),
        (vec![(0, 5)], 20, 6),
        (vec![(u64::MAX, 2)], 20, 2),
    ] {
        assert!(sparse::check(&pieces, size, stored).is_err(), "{pieces:?}");
    }
    for records in ["", "x", "5 a=b", "0 a=b\n", "999 a=b\n", "4 =\n\n", "6 size\n", "10 size=-1\n", "8 uid=+1\n"] {
        let parsed = pax::parse(records.as_bytes());
        assert!(records.is_empty() || parsed.is_err(), "{records:?}");
    }
    assert_eq!(pax::parse(b"13 mtime=1.5\n").expect("mtime").mtime, Some((1, 500_000_000)));
    let taken_back = pax::parse(b"10 size=7\n8 size=\n7 uid=\n7 gid=\n9 mtime=\n").expect("empty values");
    assert_eq!((taken_back.size, taken_back.uid, taken_back.gid, taken_back.mtime), (None, None, None, None));
}

/// A header of a name, kind and size field, and what follows it in whole blocks.
fn raw(name: &str, kind: u8, size: &[u8; 12], data: &[u8]) -> Vec<u8> {
    let mut block = vec![0u8; BLOCK];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[124..136].copy_from_slice(size);
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block.extend(data);
    block.resize(block.len().next_multiple_of(BLOCK), 0);
    block
}

fn sized(name: &str, kind: u8, data: &[u8]) -> Vec<u8> {
    raw(name, kind, format!("{:011o}\0", data.len()).as_bytes().try_into().expect("field"), data)
}

/// Paths and kinds.
fn listed(parts: &[Vec<u8>]) -> Result<Vec<(String, Kind)>> {
    let bytes = [parts.concat(), vec![0; 2 * BLOCK]].concat();
    let mut reader = Reader::new(&bytes[..], 1 << 20);
    let mut all = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        all.push((String::from_utf8_lossy(&entry.path).into_owned(), entry.kind));
    }
    Ok(all)
}

#[test]
fn what_is_ambiguous_is_refused_or_read_as_by_go() {
    let file = |name: &str| (name.to_owned(), Kind::File);
    let hidden = sized("hidden", b'0', b"");
    // What is called like a directory has no data: whether any is skipped differs.
    assert!(listed(&[sized("d/", b'0', &hidden)]).is_err());
    for kind in [b'0', 0] {
        assert_eq!(listed(&[sized("d/", kind, b"")]).expect("old"), [("d/".to_owned(), Kind::Directory)]);
    }
    // NULs before a number are filling, and a gap within it is an error.
    let shifted = raw("f", b'0', b"\0\x000000001000", &hidden);
    assert_eq!(listed(&[shifted]).expect("shifted"), [file("f")]);
    assert!(listed(&[raw("f", b'0', b"00001 000000", b"")]).is_err());
    // The old long name counts more than that of pax.
    let (pax, long) = (sized("x", b'x', b"12 path=pax\n"), sized("L", b'L', b"long\0"));
    for order in [[pax.clone(), long.clone()], [long.clone(), pax.clone()]] {
        assert_eq!(listed(&[order.concat(), sized("f", b'0', b"")]).expect("long"), [file("long")]);
    }
    // A header for all is an entry, which takes what stands before it.
    let global = sized("g", b'g', b"12 path=all\n");
    assert_eq!(listed(&[pax, long, global, sized("f", b'0', b"")]).expect("global"), [file("f")]);
    // A length that leads back to where the data begins.
    for size in [u64::MAX.to_string(), (1_u64 << 63).to_string()] {
        let record = format!("{} size={size}\n", size.len() + 9);
        assert!(listed(&[sized("x", b'x', record.as_bytes()), sized("s", b'Z', b""), hidden.clone()]).is_err());
    }
    // One block of zeros ends nothing.
    assert!(listed(&[sized("a", b'0', b""), vec![0; BLOCK], hidden]).is_err());
}
