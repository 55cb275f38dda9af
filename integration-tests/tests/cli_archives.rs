//! Images pushed, saved and loaded by `gantry`, and made of containers and of files, beside skopeo and docker's registry:
//! what goes out comes back the same.

use std::fs;
use std::process::Stdio;

use integration_tests::image::{self, Packing};
use integration_tests::tar::{Kind, Meta, Tar};
use integration_tests::{Env, Image, Pty, Ran, Registry, Result, Stack, Test, output, tests, wait};

pub(crate) const TESTS: &[Test] = tests![
    a_pushed_image_is_the_same_byte_for_byte [Root, Overlay],
    an_archive_is_read_by_others_and_theirs_by_us [Root, Overlay],
    archives_of_docker_are_loaded [Root, Overlay],
    hostile_archives_leave_nothing [Root, Overlay],
    a_container_becomes_an_image [Root, Overlay],
    files_become_an_image_and_come_out_again [Root, Overlay],
    accounts_are_kept_where_docker_keeps_them [Root],
    an_interrupted_login_leaves_the_terminal_as_it_was [Root],
];

fn a_pushed_image_is_the_same_byte_for_byte(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let own = Image::busybox()?.layer(Tar::new().file("which", "own"), Packing::Zstd)?;
    let other = Image::empty().layer(Tar::new().file("which", "other"), Packing::Gzip)?.on_platform("linux", "s390x");
    let name = image::push_index(&[own.clone(), other], &stack.registry, "test/many", "v1")?;
    stack.gantry(&["pull", "-q", &name])?.ok()?;
    // To another registry, where nothing is yet. Of the index only this machine's image is here.
    let second = Registry::start_with(env, "second", "")?;
    let there = format!("{}/copy/of:v1", second.host());
    stack.gantry(&["tag", &name, &there])?.ok()?;
    let pushed = stack.gantry(&["push", &there])?.ok()?;
    assert!(pushed.stdout.contains(": Pushed") && pushed.stdout.contains("only one image"), "{pushed}");
    let manifest = own.manifest()?;
    assert!(pushed.stdout.contains(&format!("Digest: {}", manifest.digest)), "{pushed}");
    let got =
        second.request("GET", "/v2/copy/of/manifests/v1", &[("accept", image::media::MANIFEST)], b"")?.expect(200)?;
    assert_eq!(got.body, manifest.bytes);
    for blob in own.layers() {
        assert_eq!(fs::read(second.blob_path(&blob.digest)?)?, blob.bytes);
    }
    // Again: everything is there. In the first registry: mounted from where it came, not sent.
    let again = stack.gantry(&["push", &there])?.ok()?;
    assert!(again.stdout.contains("Layer already exists") && !again.stdout.contains(": Pushed"), "{again}");
    let near = format!("{}/test/near:v1", stack.registry.host());
    stack.gantry(&["tag", &name, &near])?.ok()?;
    let mounted = stack.gantry(&["push", &near])?.ok()?;
    assert!(mounted.stdout.contains("Mounted from another repository"), "{mounted}");
    // In the second one too: the push knows where it has put them.
    let beside = format!("{}/copy/beside:v1", second.host());
    stack.gantry(&["tag", &name, &beside])?.ok()?;
    let mounted = stack.gantry(&["push", &beside])?.ok()?;
    assert!(mounted.stdout.contains("Mounted from") && !mounted.stdout.contains(": Pushed"), "{mounted}");
    // All tags of a repository, and no others.
    let all = format!("{}/copy/all", second.host());
    for tag in ["1", "2"] {
        stack.gantry(&["tag", &name, &format!("{all}:{tag}")])?.ok()?;
    }
    stack.gantry(&["tag", &name, &format!("{all}-else:3")])?.ok()?;
    assert_eq!(stack.gantry(&["push", "-qa", &all])?.ok()?.text(), format!("{all}:1\n{all}:2"));
    for (path, status) in [("all/manifests/1", 200), ("all/manifests/2", 200), ("all-else/manifests/3", 404)] {
        second
            .request("GET", &format!("/v2/copy/{path}"), &[("accept", image::media::MANIFEST)], b"")?
            .expect(status)?;
    }
    stack.gantry(&["push", "-a", &format!("{all}:1")])?.fails()?;
    let said = stack.gantry(&["push", "127.0.0.1:1/nobody/there:1"])?.fails()?;
    assert!(said.contains("no such image"), "{said}");
    Ok(())
}

fn skopeo(env: &Env, args: &[&str]) -> Result<Ran> {
    let policy = env.path("policy.json");
    fs::write(&policy, r#"{"default": [{"type": "insecureAcceptAnything"}]}"#)?;
    let policy = policy.display().to_string();
    env.run(
        "skopeo",
        &[&["--policy", &policy, "copy", "--src-tls-verify=false", "--dest-tls-verify=false"], args].concat(),
    )
}

fn an_archive_is_read_by_others_and_theirs_by_us(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    stack.gantry(&["pull", "-q", "IMAGE"])?.ok()?;
    let busybox = Image::busybox()?;
    let saved = env.path("saved.tar");
    let archive = saved.display().to_string();
    stack.gantry(&["save", "-o", &archive, "IMAGE"])?.ok()?;
    // skopeo reads it both ways: as an OCI layout, and as docker's.
    for transport in ["oci-archive", "docker-archive"] {
        let copy = format!("{}/from/{transport}:1", stack.registry.host());
        skopeo(env, &[&format!("{transport}:{archive}"), &format!("docker://{copy}")])?.ok()?;
    }
    let path = "/v2/from/oci-archive/manifests/1";
    let got = stack.registry.request("GET", path, &[("accept", image::media::MANIFEST)], b"")?.expect(200)?;
    assert_eq!(got.body, busybox.manifest()?.bytes, "an OCI archive is the image as it is");
    // The same bytes again, through a pipe.
    let piped = stack.gantry(&["save", "IMAGE"])?;
    assert!(piped.code() == 0, "{piped}");
    stack.gantry(&["rmi", "IMAGE"])?.ok()?;
    // What skopeo writes is loaded, and what we wrote.
    for transport in ["oci-archive", "docker-archive"] {
        let file = env.path(&format!("{transport}.tar")).display().to_string();
        let to = format!("{transport}:{file}:example.org/made/by-skopeo:{transport}");
        skopeo(env, &[&format!("docker://{}", stack.image), &to])?.ok()?;
        let loaded = stack.gantry(&["load", "-i", &file])?.ok()?;
        let name = format!("example.org/made/by-skopeo:{transport}");
        assert_eq!(loaded.text(), format!("Loaded image: {name}"));
        assert_eq!(stack.gantry(&["run", "--rm", &name, "echo", "hi"])?.ok()?.text(), "hi");
    }
    // Packed as people pack archives too.
    for (program, suffix) in [("gzip", "gz"), ("xz", "xz"), ("bzip2", "bz2")] {
        env.run(program, &["-1", "-k", &archive])?.ok()?;
        let loaded = stack.gantry(&["load", "-i", &format!("{archive}.{suffix}")])?.ok()?;
        assert_eq!(loaded.text(), format!("Loaded image: {}", stack.image));
        stack.gantry(&["rmi", "IMAGE"])?.ok()?;
    }
    let loaded = stack.gantry(&["load", "-i", &archive])?.ok()?;
    assert_eq!(loaded.text(), format!("Loaded image: {}", stack.image));
    assert_eq!(stack.gantry(&["run", "--rm", "IMAGE", "echo", "hi"])?.ok()?.text(), "hi");
    Ok(())
}

/// An archive as old dockers wrote it: a directory for each layer, one a link to another's.
fn docker_archive(image: &Image, layer: Vec<u8>, tags: &str) -> Result<Tar> {
    let config = image.config()?;
    let name = config.digest.replace("sha256:", "") + ".json";
    let manifest = format!(r#"[{{"Config":"{name}","RepoTags":{tags},"Layers":["aa/layer.tar","bb/layer.tar"]}}]"#);
    Ok(Tar::new()
        .dir("aa")
        .file("aa/VERSION", "1.0")
        .file("aa/layer.tar", layer)
        .dir("bb")
        .symlink("bb/layer.tar", "../aa/layer.tar")
        .file(&name, config.bytes)
        .file("manifest.json", manifest))
}

fn archives_of_docker_are_loaded(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let tar = || Tar::new().file("etc/note", "from docker");
    let plain = tar().finish();
    // Twice the same layer: the second is a link to the first.
    let image = Image::empty().layer(tar(), Packing::Plain)?.layer(tar(), Packing::Plain)?;
    for (number, tags) in [r#"["old/one:1","old/two:2"]"#, "null"].into_iter().enumerate() {
        for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
            let bytes = docker_archive(&image, plain.clone(), tags)?.finish();
            let bytes = match packing {
                Packing::Plain => bytes,
                Packing::Gzip => image::gzip(&bytes)?,
                Packing::Zstd => zstd::encode_all(bytes.as_slice(), 1)?,
            };
            let file = env.path("docker.tar");
            fs::write(&file, bytes)?;
            let loaded = stack.gantry(&["load", "-i", &file.display().to_string()])?.ok()?;
            match number {
                0 => assert_eq!(loaded.text(), "Loaded image: old/one:1\nLoaded image: old/two:2"),
                _ => assert_eq!(loaded.text(), format!("Loaded image ID: {}", image.config()?.digest)),
            }
        }
    }
    let listed = stack.gantry(&["images", "--format", "{{.Repository}}:{{.Tag}}"])?.ok()?;
    assert_eq!(listed.text().lines().filter(|line| *line == "<none>:<none>").count(), 1, "{listed}");
    // Only what has no name and no container is pruned.
    let pruned = stack.gantry(&["image", "prune", "-f"])?.ok()?;
    assert!(pruned.stdout.contains("Total reclaimed space"), "{pruned}");
    let listed = stack.gantry(&["images", "--format", "{{.Repository}}:{{.Tag}}"])?.ok()?;
    assert_eq!(listed.text(), "old/two:2\nold/one:1", "{listed}");
    stack.gantry(&["image", "prune", "-af"])?.ok()?;
    assert_eq!(stack.daemon.ctr(&["content", "ls", "-q"])?.ok()?.text(), "");
    Ok(())
}

fn hostile_archives_leave_nothing(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let image = Image::empty().layer(Tar::new().file("x", "y"), Packing::Plain)?;
    let manifest = image.manifest()?;
    let layout = || Tar::new().file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
    let index = |digest: &str, size: usize| {
        format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{}","digest":"{digest}","size":{size},
            "annotations":{{"io.containerd.image.name":"example.org/a/b:1"}}}}]}}"#,
            image::media::MANIFEST
        )
    };
    let blob = |digest: &str| format!("blobs/{}", digest.replace(':', "/"));
    let good = index(&manifest.digest, manifest.bytes.len());
    let docker =
        |config: &str, layers: &str| format!(r#"[{{"Config":"{config}","RepoTags":["a:1"],"Layers":{layers}}}]"#);
    let cases: Vec<(&str, Tar, &str)> = vec![
        ("nothing", Tar::new().file("readme", "hi"), "no archive of images"),
        ("no index", layout(), "no index.json"),
        ("no manifest", layout().file("index.json", good.clone()), "not found"),
        (
            "no layers",
            layout().file("index.json", good.clone()).file(&blob(&manifest.digest), manifest.bytes.clone()),
            "is not in the archive",
        ),
        (
            "wrong bytes",
            // Of a digest that nobody has: what is here already is not read again.
            layout().file(&blob(&image::digest(b"something else")), "x").file("index.json", good.clone()),
            "has digest",
        ),
        ("no digest", layout().file("blobs/sha256/../../../../etc/passwd", "x").file("blobs/sha256/zz", "x"), "sha256"),
        ("bad digest", layout().file("index.json", index("sha256:../x", 1)), "index"),
        ("other version", Tar::new().file("oci-layout", r#"{"imageLayoutVersion":"9"}"#), "version"),
        ("huge document", layout().file("index.json", vec![b' '; 9 << 20]), "more than"),
        ("outside", Tar::new().file("manifest.json", docker("../../etc/passwd", "[]")), "is not in the archive"),
        (
            "link outside",
            Tar::new().symlink("c", "/etc/passwd").file("manifest.json", docker("c", "[]")),
            "not in the archive",
        ),
        ("link to itself", Tar::new().symlink("c", "c").file("manifest.json", docker("c", "[]")), "not in the archive"),
        ("no json", layout().file("index.json", "{"), "EOF"),
    ];
    for (what, tar, says) in cases {
        let file = env.path("hostile.tar");
        fs::write(&file, tar.finish())?;
        let said = stack.gantry(&["load", "-i", &file.display().to_string()])?.fails()?;
        assert!(said.contains(says), "{what}: does not say {says:?}: {said}");
    }
    // Cut off in the middle, whatever it is packed with.
    let whole = layout().file(&blob(&manifest.digest), manifest.bytes.clone()).file("index.json", good).finish();
    for (bytes, says) in
        [(whole[..700].to_vec(), "truncated"), (b"\xfd7zXZ\0rest".to_vec(), "truncated"), (Vec::new(), "no archive")]
    {
        let file = env.path("hostile.tar");
        fs::write(&file, bytes)?;
        let said = stack.gantry(&["load", "-i", &file.display().to_string()])?.fails()?;
        assert!(said.contains(says), "does not say {says:?}: {said}");
    }
    assert_eq!(stack.gantry(&["images", "-q"])?.ok()?.text(), "");
    stack.daemon.ctr(&["leases", "create", "--id", "going"])?.ok()?;
    stack.daemon.ctr(&["leases", "delete", "--sync", "going"])?.ok()?;
    assert_eq!(stack.daemon.ctr(&["content", "ls", "-q"])?.ok()?.text(), "");
    Ok(())
}

fn a_container_becomes_an_image(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let script =
        "echo new > /etc/new; echo more >> /etc/passwd; rm /etc/group; mkdir /made; echo 1 > /made/one; sleep 100";
    stack.gantry(&["run", "-d", "--name", "source", "-e", "KEPT=yes", "IMAGE", "sh", "-c", script])?.ok()?;
    wait::until("the script is done", || {
        stack.gantry(&["exec", "source", "cat", "/made/one"]).ok().filter(|ran| ran.text() == "1")
    })?;
    let changes = stack.gantry(&["diff", "source"])?.ok()?;
    assert_eq!(changes.text(), "C /etc\nD /etc/group\nA /etc/new\nC /etc/passwd\nA /made\nA /made/one", "{changes}");
    let change =
        ["commit", "-m", "a note", "-a", "somebody", "-c", r#"CMD ["cat", "/made/one"]"#, "source", "made/of:it"];
    let id = stack.gantry(&change)?.ok()?;
    assert!(id.text().starts_with("sha256:"), "{id}");
    assert_eq!(stack.gantry(&["run", "--rm", "made/of:it"])?.ok()?.text(), "1");
    let script = "cat /etc/new; test -e /etc/group || echo gone; echo $KEPT; tail -n 1 /etc/passwd";
    assert_eq!(stack.gantry(&["run", "--rm", "made/of:it", "sh", "-c", script])?.ok()?.text(), "new\ngone\nyes\nmore");
    let history = stack.gantry(&["history", "--format", "{{.ID}} {{.Comment}}", "--no-trunc", "made/of:it"])?.ok()?;
    assert_eq!(history.text().lines().next(), Some(format!("{} a note", id.text()).as_str()), "{history}");
    // The whole goes out and comes in as any other image.
    let there = format!("{}/made/of:it", stack.registry.host());
    stack.gantry(&["tag", "made/of:it", &there])?.ok()?;
    stack.gantry(&["push", "-q", &there])?.ok()?;
    stack.gantry(&["rmi", "-f", &there, "made/of:it"])?.ok()?;
    assert_eq!(stack.gantry(&["run", "--rm", &there])?.ok()?.text(), "1");
    Ok(())
}

fn files_become_an_image_and_come_out_again(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let made = stack.gantry(&["create", "--name", "source", "IMAGE"])?;
    made.ok()?;
    let tar = env.path("files.tar").display().to_string();
    stack.gantry(&["export", "-o", &tar, "source"])?.ok()?;
    let listed = env.run("tar", &["-tf", &tar])?.ok()?;
    assert!(listed.stdout.lines().any(|line| line == "bin/busybox"), "{listed}");
    stack.gantry(&["import", "-c", "CMD [\"sh\", \"-c\", \"echo imported\"]", &tar, "from/files:1"])?.ok()?;
    assert_eq!(stack.gantry(&["run", "--rm", "from/files:1"])?.ok()?.text(), "imported");
    // Other programs know no levels of processors, and nothing says that the files need any.
    assert_eq!(stack.gantry(&["image", "inspect", "-f", "{{json .Variant}}", "from/files:1"])?.ok()?.text(), "null");
    let bad = env.path("bad.tar");
    fs::write(&bad, "no tar at all, but long enough to look like one".repeat(100))?;
    stack.gantry(&["import", &bad.display().to_string(), "wrong:1"])?.fails()?;
    assert!(!stack.gantry(&["images"])?.ok()?.stdout.contains("wrong"));
    // Into a container that runs and out of it, with a link that leads out of it.
    stack
        .gantry(&["run", "-d", "--name", "runs", "IMAGE", "sh", "-c", "ln -s /etc/hostname /tmp/out; sleep 100"])?
        .ok()?;
    let inside = Tar::new().entry("copied", Kind::File(b"in".to_vec()), &Meta { mode: 0o640, ..Meta::default() });
    let copied = env.path("in.tar");
    fs::write(&copied, inside.finish())?;
    let mut command = stack.command(&["cp", "-", "runs:/tmp"])?;
    command.stdin(Stdio::from(fs::File::open(&copied)?));
    assert!(command.status()?.success());
    assert_eq!(stack.gantry(&["exec", "runs", "stat", "-c", "%a %s", "/tmp/copied"])?.ok()?.text(), "640 2");
    let out = stack.gantry(&["cp", "runs:/tmp/copied", "-"])?.ok()?;
    assert!(out.stdout.starts_with("copied\0"), "{out}");
    let own = fs::read_to_string("/etc/hostname")?;
    let followed = stack.gantry(&["cp", "-L", "runs:/tmp/out", "-"])?;
    assert!(!followed.stdout.contains(own.trim()), "a link led out of the container: {followed}");
    stack.gantry(&["cp", "runs:/nothing", "-"])?.fails()?;
    copies_files_of_this_machine(env, &stack)
}

/// Where docker puts them, and nowhere else, whatever links the container has.
fn copies_files_of_this_machine(env: &Env, stack: &Stack<'_>) -> Result<()> {
    let (here, back) = (env.dir("here")?, env.dir("back")?);
    fs::write(here.join("a"), "one")?;
    let copy = |from: &str, to: &str| stack.gantry(&["cp", "-q", from, to]);
    let (tree, file, back) = (here.to_string_lossy(), here.join("a"), back.to_string_lossy());
    let file = file.to_string_lossy();
    copy(&file, "runs:/tmp/")?.ok()?;
    copy(&file, "runs:/tmp/b")?.ok()?;
    copy(&tree, "runs:/tmp/tree")?.ok()?;
    copy(&tree, "runs:/tmp")?.ok()?;
    copy(&format!("{tree}/."), "runs:/tmp/tree")?.ok()?;
    let found = stack.gantry(&["exec", "runs", "find", "/tmp", "-name", "[ab]", "-type", "f"])?.ok()?;
    let mut found: Vec<&str> = found.stdout.lines().collect();
    found.sort_unstable();
    assert_eq!(found, ["/tmp/a", "/tmp/b", "/tmp/here/a", "/tmp/tree/a"]);
    copy(&file, "runs:/none/a")?.fails()?;
    copy(&tree, "runs:/tmp/b")?.fails()?;
    copy("runs:/tmp/tree", &back)?.ok()?;
    copy("runs:/tmp/tree/.", &format!("{back}/content"))?.ok()?;
    copy("runs:/tmp/b", &format!("{back}/c"))?.ok()?;
    for copied in ["tree/a", "content/a", "c"] {
        assert_eq!(fs::read_to_string(format!("{back}/{copied}"))?, "one", "{copied}");
    }
    // A link in the container leads to the container's own files, and comes out as a link.
    let outside = env.dir("outside")?;
    let links = format!("mkdir -p {0} && ln -s {0} /tmp/way && ln -s {0}/x /tmp/tree/x", outside.display());
    stack.gantry(&["exec", "runs", "sh", "-c", &links])?.ok()?;
    copy(&file, "runs:/tmp/way/a")?.ok()?;
    assert_eq!(fs::read_dir(&outside)?.count(), 0, "a link led out of the container");
    copy("runs:/tmp/tree/.", &format!("{back}/content"))?.ok()?;
    assert_eq!(fs::read_link(format!("{back}/content/x"))?, outside.join("x"));
    copy(&file, &format!("runs:{}/a", outside.display()))?.ok()?;
    assert_eq!(fs::read_dir(&outside)?.count(), 0);
    Ok(())
}

/// Bcrypt of `open sesame` for the user `ali`.
const ACCOUNT: &str = "ali:$2y$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n";

fn accounts_are_kept_where_docker_keeps_them(env: &Env) -> Result<()> {
    let accounts = env.path("accounts");
    fs::write(&accounts, ACCOUNT)?;
    let auth = format!("auth:\n  htpasswd:\n    realm: test\n    path: {}", accounts.display());
    let guarded = Registry::start_with(env, "registry", &auth)?;
    let daemon = env.daemon()?;
    let config = env.dir("docker")?;
    fs::write(config.join("config.json"), r#"{"auths": {"other.example": {"auth": "eDp5"}}, "psFormat": "kept"}"#)?;
    let gantry = |args: &[&str], input: &str| -> Result<Ran> {
        let mut command = daemon.gantry_command(args)?;
        command.env("DOCKER_CONFIG", &config);
        output::run_with_input(command, input)
    };
    let host = guarded.host();
    let login = ["login", "-u", "ali", "--password-stdin", &host];
    let said = gantry(&login, "wrong\n")?.fails()?;
    assert!(said.contains(&host), "{said}");
    assert!(gantry(&login, "open sesame\n")?.ok()?.stdout.contains("Login Succeeded"));
    let kept: serde_json::Value = serde_json::from_slice(&fs::read(config.join("config.json"))?)?;
    assert_eq!(kept["auths"][&host]["auth"], "YWxpOm9wZW4gc2VzYW1l");
    assert_eq!((&kept["auths"]["other.example"]["auth"], &kept["psFormat"]), (&"eDp5".into(), &"kept".into()));
    gantry(&["logout", &host], "")?.ok()?;
    let kept: serde_json::Value = serde_json::from_slice(&fs::read(config.join("config.json"))?)?;
    assert!(kept["auths"].get(&host).is_none() && kept["auths"].get("other.example").is_some(), "{kept}");
    // A program that keeps accounts is told instead of the file.
    let program = config.join("docker-credential-test");
    let log = config.join("log");
    fs::write(&program, format!("#!/bin/sh\necho $1 >> {0}\ncat >> {0}\n", log.display()))?;
    env.run("chmod", &["755", &program.display().to_string()])?.ok()?;
    fs::write(config.join("config.json"), format!(r#"{{"credHelpers": {{"{host}": "test"}}}}"#))?;
    let mut command = daemon.gantry_command(&login)?;
    let path = format!("{}:{}", config.display(), std::env::var("PATH").unwrap_or_default());
    command.env("DOCKER_CONFIG", &config).env("PATH", &path);
    output::run_with_input(command, "open sesame\n")?.ok()?;
    let told = fs::read_to_string(&log)?;
    assert!(told.starts_with("store\n") && told.contains("\"Secret\":\"open sesame\""), "{told}");
    assert!(!fs::read_to_string(config.join("config.json"))?.contains("YWxp"));
    // It need not read what it is asked to answer it.
    let answer = r#"{"ServerURL": "", "Username": "ali", "Secret": "open sesame"}"#;
    fs::write(&program, format!("#!/bin/sh\necho '{answer}'\n"))?;
    for _ in 0..5 {
        let mut command = daemon.gantry_command(&["pull", &format!("{host}/nobody/there:1")])?;
        command.env("DOCKER_CONFIG", &config).env("PATH", &path);
        let said = output::run(command)?.fails()?;
        assert!(said.contains("not found in the registry"), "{said}");
    }
    Ok(())
}

/// Who is asked for a password, and goes, sees what is typed again.
fn an_interrupted_login_leaves_the_terminal_as_it_was(env: &Env) -> Result<()> {
    let daemon = env.daemon()?;
    let mut command = daemon.gantry_command(&["login", "-u", "ali", "127.0.0.1:1"])?;
    command.env("DOCKER_CONFIG", env.dir("docker")?);
    let mut terminal = Pty::start(&command)?;
    terminal.expect("Password: ")?;
    wait::until("nothing is shown", || (!terminal.is_cooked().ok()?).then_some(()))?;
    terminal.types("\u{3}")?;
    assert_eq!(terminal.end()?.code(), Some(130), "{}", terminal.shown());
    assert!(terminal.is_cooked()?, "what is typed stays hidden");
    Ok(())
}
