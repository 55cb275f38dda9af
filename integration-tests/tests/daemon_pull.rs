//! What a pull makes of an image: the file tree its layers stand for, for the right platform, or nothing at all.

use std::fs;

use integration_tests::image::{self, Packing};
use integration_tests::tar::{Kind, Meta, Tar};
use integration_tests::{Chance, Daemon, Env, Image, Ran, Registry, Result, Stack, Test, tests, wait};

use crate::daemon_full::{fill, free, small_disk};

pub(crate) const TESTS: &[Test] = tests![
    layers_of_every_packing_make_one_tree [Root, Overlay],
    special_files_arrive_as_they_are [Root, Overlay],
    extended_attributes_arrive [Root, Overlay],
    images_of_two_platforms_come_and_go [Root, Overlay],
    the_platform_of_this_machine_is_chosen [Root, Overlay],
    a_broken_pull_leaves_nothing_and_is_made_good [Root, Overlay],
    a_full_disk_leaves_nothing_and_is_gone_on_from [Root, Overlay],
];

fn layers_of_every_packing_make_one_tree(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let image = Image::busybox()?
        .layer(
            Tar::new().file("etc/gone", "1").file("etc/kept", "1").dir("app").file("app/old", "1").file("swap", "1"),
            Packing::Zstd,
        )?
        // No entry for `deep` or `deep/er`, and the opaque mark comes after what it must not hide.
        .layer(
            Tar::new()
                .file("etc/.wh.gone", "")
                .file("deep/er/file", "2")
                .dir("app")
                .file("app/new", "2")
                .file("app/.wh..wh..opq", "")
                .entry("etc/link", Kind::Hardlink("etc/kept".into()), &Meta::default())
                .dir("swap")
                .file("swap/inside", "2"),
            Packing::Plain,
        )?
        .layer(Tar::new().file("app/.wh.new", "").file("app/last", "3").file("deep/.wh.er", ""), Packing::Gzip)?;
    let name = image.push(&stack.registry, "test/tree", "v1")?;
    let script = "ls etc/gone app/old app/new deep/er 2>/dev/null; ls app; ls -A deep | wc -l; cat etc/kept etc/link \
                  swap/inside; echo; stat -c %h etc/link; find / -xdev -name '.wh.*'";
    let ran = stack.gantry(&["run", "--rm", &name, "sh", "-c", script])?.ok()?;
    assert_eq!(ran.stdout, "last\n0\n112\n2\n", "{ran}");
    Ok(())
}

/// A sparse file as GNU tar writes it in pax archives: the map of its parts, then the parts.
fn sparse(name: &str, size: u64, at: u64, data: &[u8]) -> (String, Kind, Meta) {
    let mut content = format!("1\n{at}\n{}\n", data.len()).into_bytes();
    content.resize(512, 0);
    content.extend(data);
    let records = [
        ("GNU.sparse.major", "1".to_owned()),
        ("GNU.sparse.minor", "0".to_owned()),
        ("GNU.sparse.name", name.to_owned()),
        ("GNU.sparse.realsize", size.to_string()),
    ];
    let pax = records.into_iter().map(|(key, value)| (key.to_owned(), value.into_bytes())).collect();
    (format!("GNUSparseFile.0/{name}"), Kind::File(content), Meta { mode: 0o600, pax, ..Meta::default() })
}

fn special_files_arrive_as_they_are(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let owned = Meta { mode: 0o4751, uid: 1000, gid: 7, mtime: 1_000_000_000, ..Meta::default() };
    let (hole, kind, meta) = sparse("srv/hole", 64 << 20, 32 << 20, b"in the middle");
    let tar = Tar::new()
        .dir("srv")
        .entry("srv/owned", Kind::File(b"owned".to_vec()), &owned)
        .entry("srv/other", Kind::Hardlink("srv/owned".into()), &owned)
        .entry("srv/zero", Kind::Character(1, 5), &Meta { mode: 0o666, ..Meta::default() })
        .entry("srv/pipe", Kind::Fifo, &Meta { mode: 0o640, ..Meta::default() })
        .symlink("srv/way", "/nowhere/at all")
        .entry(&hole, kind, &meta)
        .file(&format!("srv/{}/file", "n".repeat(180)), "long");
    let name = Image::busybox()?.layer(tar, Packing::Zstd)?.push(&stack.registry, "test/special", "v1")?;
    let script = "cd /srv; stat -c '%a %u:%g %Y %h %s' owned other; stat -c '%F %t:%T %a' zero; stat -c '%F %a' pipe; \
                  readlink way; stat -c '%s %a' hole; test $(stat -c %b hole) -lt 64 && echo sparse; \
                  dd if=hole bs=1 skip=33554432 count=13 2>/dev/null; echo; cat n*/file; \
                  test $(stat -c %i owned) = $(stat -c %i other) && echo same";
    let ran = stack.gantry(&["run", "--rm", &name, "sh", "-c", script])?.ok()?;
    let wanted = "4751 1000:7 1000000000 2 5\n4751 1000:7 1000000000 2 5\ncharacter special file 1:5 666\nfifo 640\n\
                  /nowhere/at all\n67108864 600\nsparse\nin the middle\nlongsame\n";
    assert_eq!(ran.stdout, wanted, "{ran}");
    Ok(())
}

fn extended_attributes_arrive(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    // Revision 2 of the kernel's format with its effective bit: `cap_chown+ep`.
    let capability = [0x01, 0, 0, 0x02, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].to_vec();
    let with = |key: &str, value: &[u8]| Meta {
        mode: 0o755,
        pax: vec![(format!("SCHILY.xattr.{key}"), value.to_vec())],
        ..Meta::default()
    };
    let program = fs::read(integration_tests::bundle::busybox()?)?;
    let tar = Tar::new().entry("bin/able", Kind::File(program), &with("security.capability", &capability)).entry(
        "marked",
        Kind::File(Vec::new()),
        &with("user.note", b"a\x01b = c"),
    );
    let name = Image::busybox()?.layer(tar, Packing::Gzip)?.push(&stack.registry, "test/attributes", "v1")?;
    let pull = stack.gantry(&["run", "-d", "--name", "holder", &name, "sleep", "100"])?;
    pull.ok()?;
    let pid = stack.gantry(&["inspect", "-f", "{{.State.Pid}}", "holder"])?.ok()?;
    let root = format!("/proc/{}/root", pid.text());
    // GNU tar, on every Debian, shows attributes in the archives it writes.
    let archive = env.path("attributes.tar");
    let written = archive.display().to_string();
    let tar = ["--xattrs", "--xattrs-include=*", "--format=pax", "-C", &root, "-cf", &written, "bin/able", "marked"];
    env.run("tar", &tar)?.ok()?;
    let bytes = fs::read(&archive)?;
    let has = |wanted: &[u8]| bytes.windows(wanted.len()).any(|part| part == wanted);
    assert!(has(b"SCHILY.xattr.user.note=a\x01b = c\n"));
    assert!(has(&[b"SCHILY.xattr.security.capability=".as_slice(), &capability[..]].concat()));
    Ok(())
}

fn the_platform_of_this_machine_is_chosen(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let own = Image::busybox()?.layer(Tar::new().file("which", "own"), Packing::Gzip)?;
    let other = Image::empty().layer(Tar::new().file("which", "other"), Packing::Gzip)?.on_platform("linux", "s390x");
    let foreign = Image::empty().layer(Tar::new().file("which", "no"), Packing::Gzip)?.on_platform("windows", "amd64");
    let name = image::push_index(&[foreign, other.clone(), own], &stack.registry, "test/many", "v1")?;
    let ran = stack.gantry(&["run", "--rm", &name, "cat", "/which"])?.ok()?;
    assert_eq!(ran.stdout, "own");
    let there = stack.daemon.ctr(&["content", "ls", "-q"])?.ok()?;
    let layer = &other.layers()[0].digest;
    assert!(!there.stdout.contains(layer.as_str()), "a layer of another platform was fetched: {}", there.stdout);
    stack.gantry(&["pull", "-q", "--platform", "linux/s390x", &name])?.ok()?;
    let there = stack.daemon.ctr(&["content", "ls", "-q"])?.ok()?;
    assert!(there.stdout.contains(layer.as_str()), "the platform asked for is not here: {}", there.stdout);
    Ok(())
}

fn images_of_two_platforms_come_and_go(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let own = Image::busybox()?.layer(Tar::new().file("which", "own"), Packing::Gzip)?;
    let other =
        Image::busybox()?.layer(Tar::new().file("which", "other"), Packing::Zstd)?.on_platform("linux", "s390x");
    let name = image::push_index(&[other, own], &stack.registry, "test/many", "v1")?;
    let archive = env.path("archive.tar").to_string_lossy().into_owned();
    let kinds = format!("{}, {}", image::media::INDEX, image::media::MANIFEST);
    let (mut chance, mut is_here, mut done) = (Chance::anew(), false, Vec::new());
    let seed = chance.seed;
    for round in 0..wait::amount(40, 1000) {
        let pushed = format!("{}/test/pushed:{round}", stack.registry.host());
        let act: &[&[&str]] = match chance.below(8) {
            0 => &[&["pull", "-q", &name]],
            1 | 2 => &[&["pull", "-q", "--platform", "linux/s390x", &name]],
            3 if is_here => &[&["rmi", &name]],
            4 if is_here => &[&["image", "prune", "-a", "-f"]],
            5 if is_here => &[&["tag", &name, &pushed], &["push", "-q", &pushed], &["rmi", &pushed]],
            6 if is_here => &[&["save", "-o", &archive, &name]],
            _ => &[&["images"], &["ps", "-a"], &["system", "gc"]],
        };
        done.push(act[0].join(" "));
        is_here = act[0][0] == "pull" || is_here && !matches!(act[0][0], "rmi" | "image");
        for args in act {
            let ran = stack.gantry(args)?;
            assert_eq!(ran.code(), 0, "seed {seed}, after {done:?}: {ran}");
        }
        if act[0][0] == "tag" {
            let path = format!("/v2/test/pushed/manifests/{round}");
            stack.registry.request("GET", &path, &[("accept", &kinds)], b"")?.expect(200)?;
        }
    }
    Ok(())
}

/// What a failed pull must say, and that it left nothing but parts to go on from.
fn refused(daemon: &Daemon<'_>, pulled: Ran, named: &[&str]) -> Result<()> {
    let shown = pulled.to_string();
    let said = pulled.fails()?;
    for part in named {
        assert!(said.contains(part), "does not say {part:?}: {shown}");
    }
    assert_eq!(said.lines().filter(|line| line.starts_with("gantry: ")).count(), 1, "not one line: {shown}");
    assert!(said.lines().count() <= 2, "more than a line and a hint: {shown}");
    nothing_is_left(daemon)
}

fn nothing_is_left(daemon: &Daemon<'_>) -> Result<()> {
    let listed = |args: &[&str]| -> Result<Vec<String>> {
        let listed = daemon.ctr(args)?.ok()?;
        let rows = listed.stdout.lines().filter(|line| !line.starts_with("KEY"));
        Ok(rows.filter(|line| !line.trim().is_empty()).map(str::to_owned).collect())
    };
    let all: [&[&str]; 4] =
        [&["images", "ls", "-q"], &["content", "ls", "-q"], &["snapshots", "ls"], &["leases", "ls", "-q"]];
    for args in all {
        // The lease ends on a thread of its own, a moment after the answer.
        let empty = wait::until("empty", || listed(args).ok().filter(Vec::is_empty));
        assert!(empty.is_ok(), "left in {args:?}: {:?}", listed(args)?);
    }
    Ok(())
}

fn a_broken_pull_leaves_nothing_and_is_made_good(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let image = Image::busybox()?.layer(Tar::new().file("noise", noise(3 << 20)), Packing::Zstd)?;
    let name = image.push(&stack.registry, "test/broken", "v1")?;
    let layer = &image.layers()[1];
    let path = stack.registry.blob_path(&layer.digest)?;
    let mut wrong = layer.bytes.clone();
    let middle = wrong.len() / 2;
    wrong[middle] ^= 1;
    fs::write(&path, wrong)?;
    refused(&stack.daemon, stack.gantry(&["pull", &name])?, &[&name, &layer.digest])?;
    fs::write(&path, &layer.bytes[..layer.bytes.len() / 3])?;
    refused(&stack.daemon, stack.gantry(&["pull", &name])?, &[&name, &layer.digest])?;
    fs::remove_file(&path)?;
    refused(&stack.daemon, stack.gantry(&["pull", &name])?, &[&name, &layer.digest, "not found"])?;
    fs::write(&path, &layer.bytes)?;
    let ran = stack.gantry(&["run", "--rm", &name, "busybox", "sha256sum", "/noise"])?.ok()?;
    let wanted = image::digest(&noise(3 << 20));
    assert!(wanted.ends_with(ran.text().split(' ').next().unwrap_or("-")), "{ran}");
    Ok(())
}

/// Bytes that no compression makes fewer.
fn noise(length: usize) -> Vec<u8> {
    Chance::new(1).bytes(length)
}

fn a_full_disk_leaves_nothing_and_is_gone_on_from(env: &Env) -> Result<()> {
    let registry = Registry::start(env)?;
    let image = Image::busybox()?.layer(Tar::new().file("noise", noise(8 << 20)), Packing::Gzip)?;
    let name = image.push(&registry, "test/large", "v1")?;
    let root = small_disk(env)?;
    let daemon = env.daemon()?;
    for left in [0, 64 << 10, 512 << 10, 3 << 20] {
        fill(&root, left)?;
        let pulled = daemon.gantry(&["pull", &name])?;
        free(&root)?;
        refused(&daemon, pulled, &[&name, "no space left", "gantry rmi"])?;
    }
    let ran = daemon.gantry(&["run", "--rm", &name, "busybox", "sha256sum", "/noise"])?.ok()?;
    let wanted = image::digest(&noise(8 << 20));
    assert!(wanted.ends_with(ran.text().split(' ').next().unwrap_or("-")), "{ran}");
    Ok(())
}
