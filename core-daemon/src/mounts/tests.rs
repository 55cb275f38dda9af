use super::words::{Step, count, format, steps};
use super::*;
use gantry_proto::containerd::types::ActiveMount;

fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
    let options = options.iter().map(|option| (*option).to_owned()).collect();
    Mount { r#type: kind.into(), source: source.into(), options, ..Mount::default() }
}

#[test]
fn types() {
    assert_eq!(steps("format/mkdir/overlay"), (vec![Step::Format, Step::MakeDirectories], "overlay"));
    assert_eq!(steps("other/overlay"), (vec![], "other/overlay"));
}

#[test]
fn the_daemons_part() {
    let mounts = [
        mount("erofs", "/a", &[]),
        mount("erofs", "/b", &[]),
        mount("format/overlay", "overlay", &[]),
        mount("bind", "/c", &[]),
    ];
    assert_eq!(count(&mounts, false, &[]), Some(2));
    assert_eq!(count(&mounts, true, &[]), Some(4));
    assert_eq!(count(&mounts[..2], false, &["erofs".into()]), None, "a shim may make them itself");
    assert_eq!(count(&mounts, false, &["erofs".into()]), Some(2), "but not what others are made of");
    assert_eq!(count(&mounts[3..], false, &[]), None);
    assert_eq!(count(&mounts[2..], false, &["format/*".into()]), None);
}

#[test]
fn templates() {
    let before: Vec<ActiveMount> = (0..3)
        .map(|number| ActiveMount {
            mount: Some(mount("erofs", &format!("/image{number}"), &[])),
            mount_point: format!("/m/{number}"),
            ..ActiveMount::default()
        })
        .collect();
    let fill = |text: &str| format(mount("overlay", text, &[]), &before).map(|mount| mount.source);
    assert_eq!(fill("lowerdir={{ overlay 2 0 }},x={{source 1}}").expect("filled"), "lowerdir=/m/2:/m/1:/m/0,x=/image1");
    assert_eq!(fill("{{ overlay 0 1 }}:{{ mount 2 }}").expect("filled"), "/m/0:/m/1:/m/2");
    for bad in ["{{ mount 3 }}", "{{ mount }}", "{{ mount -1 }}", "{{ mount 0", "{{ overlay 0 9 }}", "{{ exec 1 }}"] {
        assert!(fill(bad).is_err(), "{bad}");
    }
}

#[test]
fn only_root_mounts_but_names_are_anyones() {
    let dir = tempfile::tempdir().expect("directory");
    let mounts = Mounts::open(dir.path(), dir.path()).expect("mounts");
    let context = Context::new(Namespace::parse("n").expect("namespace"));
    let wish = |name: &str, mounts: Vec<Mount>| Wish { name: name.into(), mounts, ..Wish::default() };
    let kind = |result: Result<ActivationInfo>| result.expect_err("refused").kind();
    use crate::error::Kind;
    assert_eq!(kind(mounts.activate(&context, wish("a", vec![mount("bind", "/", &[])]))), Kind::Unimplemented);
    assert_eq!(kind(mounts.activate(&context, wish("", vec![mount("loop", "/", &[])]))), Kind::InvalidArgument);
    // Made and undone, whatever the name.
    let made = dir.path().join("made/below");
    fs::create_dir(dir.path().join("made")).expect("directory");
    let option = format!("X-containerd.mkdir.path={}:0750", made.display());
    let one = mount("mkdir/bind", "/", &[&option, "ro"]);
    let info = mounts.activate(&context, wish("../../x", vec![one])).expect("activate");
    assert!(info.active.is_empty() && made.is_dir());
    assert_eq!((info.system[0].r#type.as_str(), info.system[0].options.as_slice()), ("bind", &["ro".to_owned()][..]));
    assert_eq!(mounts.list(&context.namespace).expect("list"), [info]);
    let outside = mount("mkdir/bind", "/", &["X-containerd.mkdir.path=/etc/x"]);
    assert_eq!(kind(mounts.activate(&context, wish("b", vec![outside]))), Kind::Unimplemented);
    assert_eq!(mounts.sweep(|_, _, _| false).expect("sweep"), 0);
    assert!(mounts.list(&context.namespace).expect("list").is_empty());
}

#[test]
fn an_image_is_made_whole_or_not_at_all() {
    let dir = tempfile::tempdir().expect("directory");
    let mounts = Mounts::open(&dir.path().join("state"), dir.path()).expect("mounts");
    let context = Context::new(Namespace::parse("n").expect("namespace"));
    let images = dir.path().join("images");
    fs::create_dir(&images).expect("directory");
    let image = images.join("a");
    let sized = |size: &str| {
        let size = format!("X-containerd.mkfs.size={size}");
        let one = mount("mkfs/ext4", &image.to_string_lossy(), &[&size, "X-containerd.mkfs.fs=ext4"]);
        mounts.activate(&context, Wish { name: "a".into(), mounts: vec![one], ..Wish::default() })
    };
    sized("1").expect_err("no file system is that small");
    assert_eq!(fs::read_dir(&images).expect("read").count(), 0);
    sized("1048576").expect("activate");
    assert_eq!(fs::read(&image).expect("image")[1080..1082], [0x53, 0xef], "the mark of ext4");
    assert_eq!(fs::read_dir(&images).expect("read").count(), 1);
}

#[test]
fn what_takes_long_keeps_nobody_else_waiting() {
    let dir = tempfile::tempdir().expect("directory");
    let mounts = Mounts::open(dir.path(), dir.path()).expect("mounts");
    let context = Context::new(Namespace::parse("n").expect("namespace"));
    let place = mounts.0.place(&context.namespace, "slow");
    fs::create_dir_all(&place).expect("a mount that is being made");
    let turn = mounts.0.turn(&place);
    let _making = turn.lock().expect("turn");
    let (sender, done) = std::sync::mpsc::channel();
    let others = mounts.clone();
    std::thread::spawn(move || {
        let option = format!("X-containerd.mkdir.path={}", dir.path().join("made").display());
        let one = mount("mkdir/bind", "/", &[&option]);
        let wish = Wish { name: "quick".into(), mounts: vec![one], ..Wish::default() };
        let made = others.activate(&context, wish).map(drop);
        let swept = others.sweep(|_, _, _| false);
        drop(sender.send((made, swept, others.holds(&context.namespace, "slow"))));
        drop(dir);
    });
    let (made, swept, held) = done.recv_timeout(std::time::Duration::from_secs(30)).expect("it waits for the slow one");
    made.expect("activate");
    assert_eq!(swept.expect("sweep"), 0);
    assert!(held, "what is being made is not swept");
}
