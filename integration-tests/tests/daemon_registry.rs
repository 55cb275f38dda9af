//! Registries that are not simply there: with a certificate, with accounts, mirrored. All is read from one storage, which
//! a plain registry beside them fills.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use integration_tests::image::Packing;
use integration_tests::tar::Tar;
use integration_tests::{Daemon, Env, Image, Ran, Registry, Result, Test, output, tests, wait};

pub(crate) const TESTS: &[Test] = tests![
    a_configured_authority_is_trusted [Root, Overlay, Openssl],
    an_unknown_authority_is_refused_unless_told [Root, Overlay, Openssl],
    of_our_certificates_a_registry_gets_the_one_it_asks_for [Root, Overlay, Openssl],
    an_account_comes_from_dockers_configuration [Root, Overlay, Openssl],
    a_mirror_stands_in_for_a_registry_that_is_down [Root, Overlay],
    a_proxy_is_used_but_not_to_this_machine [Root, Overlay],
    a_slow_registry_is_waited_for_and_a_silent_one_is_not [Root, Overlay],
    pulls_that_wait_keep_nobody_from_anything_else [Root, Overlay],
];

/// Bcrypt of `open sesame` for the user `ali`, as `htpasswd -B` writes it.
const ACCOUNT: &str = "ali:$2y$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n";

/// Two registries over one storage: one to push to, and one with `extra` configuration to pull from.
fn registries(env: &Env, extra: &str) -> Result<(Registry, Registry)> {
    let plain = Registry::start(env)?;
    Image::busybox()?.push(&plain, "test/busybox", "latest")?;
    let special = Registry::start_with(env, "registry", extra)?;
    Ok((plain, special))
}

fn openssl(env: &Env, args: &str) -> Result<()> {
    env.run("openssl", &args.split(' ').collect::<Vec<_>>())?.ok()?;
    Ok(())
}

/// An authority and a certificate of its for 127.0.0.1; gives the directory of `ca.pem`, `server.pem`, `server.key`.
fn certificates(env: &Env) -> Result<PathBuf> {
    let dir = env.dir("tls")?;
    authority(env, &dir, "ca")?;
    fs::write(dir.join("extensions"), "subjectAltName=IP:127.0.0.1\n")?;
    signed(env, &dir, "server", "ca", &format!(" -extfile {}/extensions", dir.display()))?;
    Ok(dir)
}

const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";

/// `NAME.pem` and `NAME.key` of an authority.
pub(crate) fn authority(env: &Env, dir: &Path, name: &str) -> Result<()> {
    let at = dir.display();
    openssl(env, &format!("req -x509 {KEY} -keyout {at}/{name}.key -out {at}/{name}.pem -subj /CN={name} -days 2"))
}

/// `NAME.pem` and `NAME.key` of somebody whom an authority has signed.
pub(crate) fn signed(env: &Env, dir: &Path, name: &str, by: &str, options: &str) -> Result<()> {
    let at = dir.display();
    openssl(env, &format!("req {KEY} -keyout {at}/{name}.key -out {at}/{name}.csr -subj /CN={name}"))?;
    let of = format!("-CA {at}/{by}.pem -CAkey {at}/{by}.key -CAcreateserial");
    openssl(env, &format!("x509 -req -in {at}/{name}.csr {of} -out {at}/{name}.pem -days 2{options}"))
}

fn tls(dir: &Path) -> String {
    let at = dir.display();
    format!("  tls:\n    certificate: {at}/server.pem\n    key: {at}/server.key")
}

/// A daemon whose registries are configured below `certs.d`.
fn daemon(env: &Env) -> Result<Daemon<'_>> {
    env.daemon_with(&["--config", &config(env)?])
}

/// A configuration that has hosts in a directory of the test's own.
fn config(env: &Env) -> Result<String> {
    let config = env.path("config.toml");
    let text = format!("[registry]\nconfig_path = \"{}\"\n[log]\nlevel = \"debug\"\n", env.path("certs.d").display());
    fs::write(&config, text)?;
    Ok(config.display().to_string())
}

fn hosts_toml(env: &Env, host: &str, text: &str) -> Result<()> {
    let dir = env.dir("certs.d")?.join(host);
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("hosts.toml"), text)?;
    Ok(())
}

/// How often a registry was asked again, as the daemon's log has it.
fn tried_again(daemon: &Daemon<'_>) -> usize {
    daemon.log().matches("registry request is tried again").count()
}

/// The address of a registry that has no time: whoever asks is to ask again.
fn busy() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut asked = [0; 4096];
            while let Ok(1..) = client.read(&mut asked) {
                let answer = b"HTTP/1.1 503 x\r\nretry-after: 0\r\ncontent-length: 0\r\n\r\n";
                if client.write_all(answer).is_err() {
                    break;
                }
            }
        }
    });
    Ok(address)
}

fn prints_hi(daemon: &Daemon<'_>, options: &[&str], image: &str) -> Result<()> {
    let ran = daemon.gantry(&[&["run", "--rm"], options, &[image, "echo", "hi"]].concat())?.ok()?;
    assert_eq!(ran.text(), "hi", "{ran}");
    Ok(())
}

/// The one line a pull failed with.
fn refusal(ran: Ran) -> Result<String> {
    let shown = ran.to_string();
    let said = ran.fails()?;
    assert_eq!(said.lines().filter(|line| line.starts_with("gantry: ")).count(), 1, "not one line: {shown}");
    assert!(said.lines().count() <= 2, "more than a line and a hint: {shown}");
    Ok(said)
}

fn a_configured_authority_is_trusted(env: &Env) -> Result<()> {
    let dir = certificates(env)?;
    let (_plain, secure) = registries(env, &tls(&dir))?;
    let daemon = daemon(env)?;
    let host = secure.host();
    // Beside hosts.toml, as containerd's users put it.
    hosts_toml(env, &host, &format!("server = \"https://{host}\"\nca = \"ca.pem\"\n"))?;
    fs::copy(dir.join("ca.pem"), env.path("certs.d").join(&host).join("ca.pem"))?;
    prints_hi(&daemon, &[], &format!("{host}/test/busybox:latest"))?;
    // An authority that did not sign it, and a file that is not there.
    fs::rename(dir.join("ca.pem"), dir.join("first.pem"))?;
    certificates(env)?;
    let other = format!("server = \"https://{host}\"\nca = \"{}\"\n", dir.join("ca.pem").display());
    hosts_toml(env, &host, &other)?;
    let said = refusal(daemon.gantry(&["pull", &format!("{host}/test/busybox:latest")])?)?;
    assert!(said.contains("not trusted") && said.contains(&host), "{said}");
    // What is mended is believed, without a restart.
    fs::copy(dir.join("first.pem"), dir.join("ca.pem"))?;
    daemon.gantry(&["pull", "-q", &format!("{host}/test/busybox:latest")])?.ok()?;
    hosts_toml(env, &host, &format!("server = \"https://{host}\"\nca = \"missing.pem\"\n"))?;
    let said = refusal(daemon.gantry(&["pull", &format!("{host}/test/busybox:latest")])?)?;
    assert!(said.contains("missing.pem"), "{said}");
    Ok(())
}

fn of_our_certificates_a_registry_gets_the_one_it_asks_for(env: &Env) -> Result<()> {
    let dir = certificates(env)?;
    for (authority_of, client) in [("first", "ann"), ("second", "bob")] {
        authority(env, &dir, authority_of)?;
        // Without extensions openssl makes certificates of version 1.
        signed(env, &dir, client, authority_of, "")?;
    }
    let at = dir.display();
    let (_plain, secure) = registries(env, &format!("{}\n    clientcas:\n      - {at}/second.pem", tls(&dir)))?;
    let daemon = daemon(env)?;
    let host = secure.host();
    let image = format!("{host}/test/busybox:latest");
    let configure = |trust: &str, pairs: &str| {
        hosts_toml(env, &host, &format!("server = \"https://{host}\"\n{trust}\nclient = [{pairs}]\n"))
    };
    let trust = format!("ca = \"{at}/ca.pem\"");
    let pair = |name: &str| format!("[\"{at}/{name}.pem\", \"{at}/{name}.key\"]");
    configure(&trust, &pair("ann"))?;
    let said = refusal(daemon.gantry(&["pull", &image])?)?;
    assert!(said.contains(&host), "{said}");
    configure(&trust, &format!("{}, {}", pair("ann"), pair("bob")))?;
    prints_hi(&daemon, &[], &image)?;
    // In one file, and with the registry's own certificate left unchecked.
    fs::write(dir.join("both.pem"), [fs::read(dir.join("bob.pem"))?, fs::read(dir.join("bob.key"))?].concat())?;
    configure("skip_verify = true", &format!("{}, \"{at}/both.pem\"", pair("ann")))?;
    daemon.gantry(&["pull", "-q", &image])?.ok()?;
    configure("", &pair("bob"))?;
    let said = refusal(daemon.gantry(&["pull", &image])?)?;
    assert!(said.contains("not trusted"), "{said}");
    configure(&trust, &format!("[\"{at}/server.pem\", \"{at}/ann.key\"]"))?;
    let said = refusal(daemon.gantry(&["pull", &image])?)?;
    assert!(said.contains("ann.key: is another certificate's"), "{said}");
    Ok(())
}

fn an_unknown_authority_is_refused_unless_told(env: &Env) -> Result<()> {
    let dir = certificates(env)?;
    let (_plain, secure) = registries(env, &tls(&dir))?;
    let daemon = daemon(env)?;
    // A registry of this machine is trusted where nobody says more of it; one that is named is not.
    hosts_toml(env, &secure.host(), &format!("server = \"https://{}\"\n", secure.host()))?;
    let image = format!("{}/test/busybox:latest", secure.host());
    let said = refusal(daemon.gantry(&["pull", &image])?)?;
    assert_eq!(tried_again(&daemon), 0, "what does not change was tried again: {}", daemon.log());
    for part in [&image, &secure.host(), "certificate is not trusted", "hosts.toml", "--insecure"] {
        assert!(said.contains(part), "does not say {part:?}: {said}");
    }
    assert_eq!(daemon.gantry(&["images", "-q"])?.ok()?.text(), "");
    prints_hi(&daemon, &["--insecure"], &image)?;
    daemon.gantry(&["rmi", &image])?.ok()?;
    daemon.gantry(&["pull", "-q", "--insecure", &image])?.ok()?;
    // Once told is not told for ever.
    refusal(daemon.gantry(&["pull", &image])?)?;
    hosts_toml(env, &secure.host(), &format!("[host.\"https://{}\"]\nskip_verify = true\n", secure.host()))?;
    daemon.gantry(&["pull", "-q", &image])?.ok()?;
    // What may change is tried again, and that is seen.
    daemon.gantry(&["pull", "--plain-http", &format!("{}/a/b:1", busy()?)])?.fails()?;
    assert!(tried_again(&daemon) > 0, "nothing was tried again: {}", daemon.log());
    Ok(())
}

/// `gantry pull` with a configuration of docker's that holds `auth` for `host`.
fn pull_as(env: &Env, daemon: &Daemon<'_>, host: &str, account: Option<&str>) -> Result<Ran> {
    let dir = env.dir("docker")?;
    let auths = account.map_or_else(String::new, |account| format!("\"{host}\": {account}"));
    fs::write(dir.join("config.json"), format!("{{\"auths\": {{{auths}}}}}"))?;
    let mut command = daemon.gantry_command(&["pull", "-q", &format!("{host}/test/busybox:latest")])?;
    command.env("DOCKER_CONFIG", dir);
    output::run(command)
}

fn an_account_comes_from_dockers_configuration(env: &Env) -> Result<()> {
    let accounts = env.path("accounts");
    fs::write(&accounts, ACCOUNT)?;
    let dir = certificates(env)?;
    let auth = format!("auth:\n  htpasswd:\n    realm: test\n    path: {}", accounts.display());
    let (_plain, guarded) = registries(env, &auth)?;
    let secure = Registry::start_with(env, "registry", &format!("{}\n{auth}", tls(&dir)))?;
    let daemon = daemon(env)?;
    let trusted = format!("server = \"https://{}\"\nca = \"{}\"\n", secure.host(), dir.join("ca.pem").display());
    hosts_toml(env, &secure.host(), &trusted)?;
    for host in [guarded.host(), secure.host()] {
        // `ali:wrong` and `ali:open sesame` in base64, as `docker login` leaves them.
        for account in [None, Some("{\"auth\": \"YWxpOndyb25n\"}")] {
            let said = refusal(pull_as(env, &daemon, &host, account)?)?;
            assert_eq!(tried_again(&daemon), 0, "what does not change was tried again: {}", daemon.log());
            for part in [host.as_str(), "test/busybox:latest", "password", "gantry login"] {
                assert!(said.contains(part), "does not say {part:?}: {said}");
            }
            assert_eq!(daemon.gantry(&["images", "-q"])?.ok()?.text(), "");
        }
        pull_as(env, &daemon, &host, Some("{\"auth\": \"YWxpOm9wZW4gc2VzYW1l\"}"))?.ok()?;
        daemon.gantry(&["rmi", &format!("{host}/test/busybox:latest")])?.ok()?;
        pull_as(env, &daemon, &host, Some("{\"username\": \"ali\", \"password\": \"open sesame\"}"))?.ok()?;
        daemon.gantry(&["rmi", &format!("{host}/test/busybox:latest")])?.ok()?;
    }
    Ok(())
}

fn a_mirror_stands_in_for_a_registry_that_is_down(env: &Env) -> Result<()> {
    let mirror = Registry::start(env)?;
    Image::busybox()?.push(&mirror, "test/busybox", "latest")?;
    let daemon = daemon(env)?;
    // Bound and released: nobody listens.
    let down = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let text = format!("server = \"http://{down}\"\n[host.\"http://{}\"]\n", mirror.host());
    hosts_toml(env, &down.to_string(), &text)?;
    prints_hi(&daemon, &[], &format!("{down}/test/busybox:latest"))?;
    drop(mirror);
    let said = refusal(daemon.gantry(&["pull", &format!("{down}/test/busybox:latest")])?)?;
    assert!(said.contains(&down.to_string()) && said.contains("cannot connect"), "{said}");
    Ok(())
}

fn a_proxy_is_used_but_not_to_this_machine(env: &Env) -> Result<()> {
    let registry = Registry::start(env)?;
    let local = Image::busybox()?.push(&registry, "test/busybox", "latest")?;
    hosts_toml(env, "far.test", "server = \"http://far.test\"\n")?;
    let config = config(env)?;
    let begin = |proxy: &str| -> Result<Daemon<'_>> {
        let proxy = format!("http://{proxy}");
        let variables = [("HTTP_PROXY", proxy.as_str()), ("HTTPS_PROXY", &proxy)];
        let mut daemon = env.daemon_begun(&["--config", &config], &variables)?;
        daemon.wait_ready()?;
        Ok(daemon)
    };
    // A registry does as its own proxy: it takes no notice of the host.
    let daemon = begin(&registry.host())?;
    daemon.gantry(&["pull", "-q", "far.test/test/busybox:latest"])?.ok()?;
    daemon.stop()?;
    let down = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let daemon = begin(&down)?;
    daemon.gantry(&["pull", "-q", &local])?.ok()?;
    let said = refusal(daemon.gantry(&["pull", "far.test/test/busybox:latest"])?)?;
    assert!(said.contains("cannot connect"), "{said}");
    Ok(())
}

/// Passes on what is said to a registry, and what it says piece by piece, with pauses, until so many bytes have come.
pub(crate) fn slowed(registry: &Registry, piece: usize, pause: Duration, until: usize) -> Result<String> {
    let (listener, to) = (TcpListener::bind("127.0.0.1:0")?, registry.host());
    let (address, come) = (listener.local_addr()?.to_string(), Arc::new(AtomicUsize::new(0)));
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = TcpStream::connect(&to) else { return };
            let (Ok(mut asks), Ok(mut asked)) = (client.try_clone(), server.try_clone()) else { return };
            std::thread::spawn(move || io::copy(&mut asks, &mut asked));
            let come = come.clone();
            std::thread::spawn(move || {
                let (mut client, mut server, mut bytes) = (client, server, vec![0; piece]);
                while let Ok(length @ 1..) = server.read(&mut bytes) {
                    // The connection stays open.
                    if come.fetch_add(length, Ordering::Relaxed) > until {
                        std::thread::park();
                    }
                    if client.write_all(&bytes[..length]).is_err() {
                        return;
                    }
                    std::thread::sleep(pause);
                }
            });
        }
    });
    Ok(address)
}

fn a_slow_registry_is_waited_for_and_a_silent_one_is_not(env: &Env) -> Result<()> {
    let registry = Registry::start(env)?;
    Image::busybox()?.push(&registry, "test/one", "1")?;
    Image::busybox()?.setting("User", "1000").push(&registry, "test/two", "1")?;
    let daemon = env.daemon_configured("[registry]\ntimeout = 2\n")?;
    // Two images with one layer: one pull waits for the other, longer than for a registry.
    let slow = slowed(&registry, 64 << 10, Duration::from_millis(250), usize::MAX)?;
    let pulls = ["one", "two"].map(|name| daemon.gantry_command(&["pull", "-q", &format!("{slow}/test/{name}:1")]));
    let begun = Instant::now();
    for pull in pulls.into_iter().map(|pull| Ok(pull?.spawn()?)).collect::<Result<Vec<_>>>()? {
        let ended = pull.wait_with_output()?;
        assert!(ended.status.success(), "a slow pull: {}", daemon.log());
    }
    assert!(begun.elapsed() > Duration::from_secs(2), "it was not slow");
    let silent = slowed(&registry, 16 << 10, Duration::ZERO, 100 << 10)?;
    let image = format!("{silent}/test/silent:1");
    Image::busybox()?.layer(Tar::new().file("more", "x".repeat(9)), Packing::Plain)?.push(
        &registry,
        "test/silent",
        "1",
    )?;
    for name in ["one", "two"] {
        daemon.gantry(&["rmi", &format!("{slow}/test/{name}:1")])?.ok()?;
    }
    daemon.gantry(&["system", "gc"])?.ok()?;
    // For ever would be longer than a client's call may take.
    let said = refusal(daemon.gantry(&["pull", &image])?)?;
    assert!(said.contains("sent nothing for 2 s") && said.contains(&silent), "{said}");
    Ok(())
}

fn pulls_that_wait_keep_nobody_from_anything_else(env: &Env) -> Result<()> {
    let registry = Registry::start(env)?;
    let local = Image::busybox()?.push(&registry, "test/local", "1")?;
    let daemon = env.daemon()?;
    daemon.gantry(&["pull", "-q", &local])?.ok()?;
    // What is small comes at once, layers take minutes.
    let silent = slowed(&registry, 4 << 10, Duration::from_secs(5), usize::MAX)?;
    let mut pulls = Vec::new();
    for number in 0..12_u8 {
        let mut image = Image::empty();
        for layer in 0..6_u8 {
            let noise =
                (0..100_000_u32).map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()[0] ^ number ^ layer << 4);
            image = image.layer(Tar::new().file("noise", noise.collect::<Vec<u8>>()), Packing::Plain)?;
        }
        image.push(&registry, "test/silent", &number.to_string())?;
        let name = format!("{silent}/test/silent:{number}");
        pulls.push(daemon.gantry_command(&["pull", "-q", &name])?.spawn()?);
    }
    wait::until_within(wait::seconds(30), "as many layers as may come in", || {
        let active = daemon.ctr(&["content", "active"]).ok()?.stdout.lines().count();
        (active > 30).then_some(())
    })?;
    for args in [&["create", "--name", "web", &local, "true"][..], &["start", "-a", "web"], &["rm", "web"], &["images"]]
    {
        let ran = daemon.gantry(args)?.ok()?;
        assert!(ran.took < wait::seconds(20), "it waited for others: {ran}");
    }
    for mut pull in pulls {
        pull.kill()?;
        pull.wait()?;
    }
    Ok(())
}
