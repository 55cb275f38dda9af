//! The forms in which layers come: dialects of tar, holes, compression, and what is meant to break.

use std::io::BufReader;
use std::os::unix::fs::MetadataExt;

use super::*;

#[test]
fn sparse_files_of_every_form() {
    // "AA" at 1 MiB, "BB" at the end of 3 MiB, and a hole at each side.
    let (size, at) = ((3 << 20) + 2, [1 << 20, 3 << 20]);
    let name = |name: &str| name.to_owned().into_bytes();
    let numbers = |list: &[usize]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let old = |block: &mut [u8; 512]| {
        for (place, number) in [at[0], 2, at[1], 2].iter().enumerate() {
            block[386 + place * 12..][..12].copy_from_slice(format!("{number:011o}\0").as_bytes());
        }
        block[483..495].copy_from_slice(format!("{size:011o}\0").as_bytes());
        block[257..265].copy_from_slice(b"ustar  \0");
    };
    let size_text = size.to_string();
    let mut map = format!("2\n{}\n2\n{}\n2\n", at[0], at[1]).into_bytes();
    map.resize(512, 0);
    map.extend(b"AABB");
    let tar = Tar::default()
        .block(b'S', &name("gnu"), b"AABB", PLAIN, old)
        .pax(
            b'x',
            &[
                ("GNU.sparse.size", size_text.as_bytes()),
                ("GNU.sparse.numblocks", b"2"),
                ("GNU.sparse.offset", at[0].to_string().as_bytes()),
                ("GNU.sparse.numbytes", b"2"),
                ("GNU.sparse.offset", at[1].to_string().as_bytes()),
                ("GNU.sparse.numbytes", b"2"),
            ],
        )
        .file("pax00", "AABB")
        .pax(
            b'x',
            &[
                ("GNU.sparse.size", size_text.as_bytes()),
                ("GNU.sparse.name", b"pax01"),
                ("GNU.sparse.map", numbers(&[at[0], 2, at[1], 2]).as_bytes()),
            ],
        )
        .file("GNUSparseFile.0/pax01", "AABB")
        .pax(
            b'x',
            &[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", b"pax10"),
                ("GNU.sparse.realsize", size_text.as_bytes()),
            ],
        )
        .with(b'0', "GNUSparseFile.0/pax10", &map, PLAIN)
        .file("after", "x");
    each(&[tar], |dir, way| {
        assert_eq!(names(dir), "after gnu pax00 pax01 pax10", "{way:?}");
        for name in ["gnu", "pax00", "pax01", "pax10"] {
            let bytes = std::fs::read(dir.join(name)).expect(name);
            assert_eq!(bytes.len(), size, "{name}");
            assert_eq!((&bytes[at[0]..at[0] + 2], &bytes[at[1]..]), (&b"AA"[..], &b"BB"[..]), "{name}");
            assert_eq!(bytes.iter().filter(|byte| **byte != 0).count(), 4, "{name}");
        }
    });
}

#[test]
fn dialects_of_names_sizes_and_times() {
    let (long, target) = ("n".repeat(180), "t".repeat(180));
    let base256 = |block: &mut [u8; 512]| {
        block[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5]);
        block[108..116].copy_from_slice(&[0x80, 0, 0, 0, 0, 0x2d, 0xc6, 0xc0]);
    };
    let before = |block: &mut [u8; 512]| block[136..148].fill(0xff);
    let tar = Tar::default()
        .pax(b'g', &[("path", b"not-this"), ("uid", b"99")])
        .pax(b'x', &[("path", long.as_bytes()), ("mtime", b"1.25")])
        .file("short", "pax")
        .with(b'L', "././@LongLink", format!("gnu-{long}\0").as_bytes(), PLAIN)
        .with(b'K', "././@LongLink", format!("{target}\0").as_bytes(), PLAIN)
        .symlink("short", "short")
        .block(b'0', b"big", b"12345", PLAIN, base256)
        .block(b'0', b"old", b"", PLAIN, before)
        .pax(b'x', &[("mtime", b"99999999999999")])
        .file("far", "")
        .pax(b'x', &[("size", b"3"), ("uid", b"70000")])
        .file("sized", "abc")
        .with(b'0', "directory/", b"", PLAIN)
        .with(b'7', "contiguous", b"x", PLAIN)
        .with(b'V', "volume", b"", PLAIN);
    each(&[tar], |dir, way| {
        let file = stat(&dir.join(&long));
        assert_eq!((file.mtime(), file.mtime_nsec(), file.uid()), (1, 250_000_000, 0), "{way:?}");
        assert_eq!(std::fs::read_link(dir.join(format!("gnu-{long}"))).expect("link"), Path::new(&target));
        assert_eq!((text(dir.join("big")).as_str(), stat(&dir.join("big")).uid()), ("12345", 3_000_000));
        assert_eq!(stat(&dir.join("old")).mtime(), -1);
        assert_eq!(stat(&dir.join("far")).mtime(), (1 << 34) - (1 << 31) - 1);
        assert_eq!((text(dir.join("sized")).as_str(), stat(&dir.join("sized")).uid()), ("abc", 70_000));
        assert!(dir.join("directory").is_dir() && !dir.join("volume").exists());
        assert_eq!(text(dir.join("contiguous")), "x");
    });
}

#[test]
fn all_of_the_stream_is_read_whatever_comes_after_the_end() {
    let mut tar = Tar::default().file("f", "x").end();
    tar.extend(vec![0; 10_000]);
    tar.extend(b"junk after the end, which the digest covers too");
    let bare = Tar::default().file("f", "x").0;
    for way in WAYS {
        for stream in [&tar, &bare] {
            let (_shown, dir) = unpack(way, std::slice::from_ref(stream)).expect("unpack");
            assert_eq!(text(dir.join("f")), "x");
        }
    }
}

#[test]
fn several_members_and_frames_are_one_stream() {
    use std::io::Write;
    let tar = Tar::default().file("f", &"text".repeat(50_000)).end();
    let (one, other) = tar.split_at(70_001);
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("gzip");
        encoder.finish().expect("gzip")
    };
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).expect("zstd");
    let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 5, 0, 0, 0][..], b"index"].concat();
    let stored = [
        tar.clone(),
        [gzip(one), gzip(b""), gzip(other)].concat(),
        [skipped.clone(), zstd(one), skipped.clone(), zstd(b""), zstd(other), skipped].concat(),
    ];
    for stored in &stored {
        for piece in [1 << 20, 1000] {
            let (mut plain, _) = decompress(BufReader::with_capacity(piece, &stored[..])).expect("open");
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut plain, &mut bytes).expect("read");
            assert!(bytes == tar);
        }
        if *stored != tar {
            let (mut plain, _) = decompress(&stored[..stored.len() / 2]).expect("open");
            std::io::Read::read_to_end(&mut plain, &mut Vec::new()).expect_err("it is cut off");
        }
    }
}

#[test]
fn archives_are_read_whatever_they_are_packed_with() {
    const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fuzz/corpus/packed");
    let read = |name: &str, share: usize| {
        let packed = std::fs::read(Path::new(CORPUS).join(name)).expect("corpus");
        let mut bytes = Vec::new();
        let mut plain = decompress_archive(&packed[..packed.len() / share]).expect("open");
        std::io::Read::read_to_end(&mut plain, &mut bytes).map(|_| bytes)
    };
    let plain = read("plain.tar", 1).expect("plain");
    for name in ["two-streams.tar.xz", "filters.tar.xz", "two-streams.tar.bz2"] {
        assert!(read(name, 1).expect(name) == plain, "{name}");
        read(name, 2).expect_err("it is cut off");
    }
    let error = read("greedy.tar.xz", 1).expect_err("wants 256 MiB");
    assert_eq!(error.kind(), std::io::ErrorKind::OutOfMemory, "{error}");
    let layer = std::fs::read(Path::new(CORPUS).join("filters.tar.xz")).expect("corpus");
    let error = decompress(&layer[..]).err().expect("no layer is packed so");
    assert_eq!(error.kind(), Code::InvalidArgument);
}

#[test]
fn bombs_end_at_the_limit() {
    let zeros = || {
        Tar::default().block(b'0', b"bomb", b"", PLAIN, |block| {
            block[124..136].copy_from_slice(format!("{:011o}\0", 1u64 << 32).as_bytes());
        })
    };
    let stream = || BufReader::new(std::io::Read::chain(std::io::Cursor::new(zeros().0), std::io::repeat(0)));
    let dir = tempfile::tempdir().expect("directory");
    let error = apply(Root::open(dir.path()).expect("root"), stream(), Mode::Lowest, 1 << 20).expect_err("bomb");
    assert_eq!(error.kind(), Code::ResourceExhausted);
    let image = dir.path().join("image");
    assert_eq!(convert(&image, stream(), Mode::Lowest, 1 << 20).expect_err("bomb").kind(), Code::ResourceExhausted);
    // A header that promises more than comes, one of too many bytes, and an endless archive of nothing.
    refused(&[zeros()]);
    refused(&[Tar::default().with(b'x', "pax", &vec![b'1'; 2 << 20], PLAIN)]);
    let endless = BufReader::new(std::io::repeat(0));
    let error = apply(Root::open(dir.path()).expect("root"), endless, Mode::Lowest, 1 << 20).expect_err("endless");
    assert_eq!(error.kind(), Code::ResourceExhausted);
    // A frame of zstd that wants more than 128 MiB to be kept, and one that wants just that.
    for (window, is_read) in [(18 << 3, false), (17 << 3, true)] {
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0, window, (1 << 3) | 1, 0, 0, b'x'];
        let (mut plain, _) = decompress(&frame[..]).expect("open");
        assert_eq!(std::io::Read::read_to_end(&mut plain, &mut Vec::new()).is_ok(), is_read, "{window}");
    }
    // A hole costs nothing, but no file system has a file of this size.
    let huge = Tar::default()
        .pax(b'x', &[("GNU.sparse.size", u64::MAX.to_string().as_bytes()), ("GNU.sparse.map", b"0,1")])
        .file("huge", "x");
    refused(&[huge]);
}
