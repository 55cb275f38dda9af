//! What the files say of names.

use super::*;

fn conf(text: &str) -> Conf {
    let mut conf = Conf::default();
    conf.add(Path::new("/r.conf"), Ok(text.to_owned())).expect(text);
    conf
}

fn pulled(conf: &Conf, text: &str) -> Result<Vec<String>, String> {
    let plain = Reference::parse(text).expect("name");
    let names = conf.to_pull(text, plain, Path::new("/r.conf")).map_err(|error| error.to_string())?;
    Ok(names.iter().map(ToString::to_string).collect())
}

fn places(conf: &Conf, name: &str) -> Vec<String> {
    let route = conf.route(&Reference::parse(name).expect("name")).expect("route");
    let shown =
        |place: &Place| format!("{}/{}{}", place.host, place.path, if place.insecure { " insecure" } else { "" });
    route.iter().flat_map(|route| route.places.iter().map(shown)).collect()
}

#[test]
fn a_short_name_is_an_alias_or_is_looked_for() {
    let mut one = conf("unqualified-search-registries = [\"r.io/team\"]\n[aliases]\n\"tools\" = \"q.io/a/tools\"\n");
    assert_eq!(pulled(&one, "tools:2").expect("alias"), ["q.io/a/tools:2"]);
    assert_eq!(pulled(&one, "library/tools").expect("another"), ["r.io/team/library/tools:latest"]);
    let digest = format!("tools@sha256:{}", "a".repeat(64));
    assert_eq!(pulled(&one, &digest).expect("digest"), [format!("q.io/a/{digest}")]);
    let here = one.here("x:1", Reference::parse("x:1").expect("name"));
    let here: Vec<String> = here.iter().map(ToString::to_string).collect();
    assert_eq!(here, ["r.io/team/x:1", "docker.io/library/x:1"]);
    // A later file may take an alias away, and name other registries.
    let later = "unqualified-search-registries = [\"docker.io\", \"r.io\"]\n[aliases]\ntools = \"\"\n";
    one.add(Path::new("/r.conf.d/1.conf"), Ok(later.to_owned())).expect("later");
    let error = pulled(&one, "tools").expect_err("nobody can be asked");
    for part in ["\"tools\"", "docker.io, r.io", "alias", "/r.conf", "permissive"] {
        assert!(error.contains(part), "{error}");
    }
    for mode in ["permissive", "disabled"] {
        one.add(Path::new("/2.conf"), Ok(format!("short-name-mode = \"{mode}\""))).expect(mode);
        assert_eq!(pulled(&one, "tools").expect("any"), ["docker.io/library/tools:latest", "r.io/tools:latest"]);
    }
    assert!(pulled(&conf(""), "tools").expect_err("no registry").contains("unqualified-search-registries"));
}

#[test]
fn the_longest_prefix_says_where_a_name_leads() {
    let conf = conf(
        r#"
        [[registry]]
        location = "docker.io"
        [[registry.mirror]]
        location = "m.io/cache"
        insecure = true
        [[registry.mirror]]
        location = "n.io"
        pull-from-mirror = "digest-only"
        [[registry.mirror]]
        location = "t.io"
        pull-from-mirror = "tag-only"

        [[registry]]
        prefix = "docker.io/library/odd"
        location = "odd.io:5000/x"

        [[registry]]
        prefix = "*.corp.io"
        location = "proxy.io/corp"
        mirror-by-digest-only = true
        [[registry.mirror]]
        location = "m.io"

        [[registry]]
        prefix = "a.corp.io"
        insecure = true
        "#,
    );
    let digest = format!("sha256:{}", "b".repeat(64));
    assert_eq!(
        places(&conf, "alpine"),
        ["m.io/cache/library/alpine insecure", "t.io/library/alpine", "docker.io/library/alpine"]
    );
    let by_digest = places(&conf, &format!("alpine@{digest}"));
    assert_eq!(by_digest, ["m.io/cache/library/alpine insecure", "n.io/library/alpine", "docker.io/library/alpine"]);
    assert_eq!(places(&conf, "odd:1"), ["odd.io:5000/x"]);
    assert_eq!(places(&conf, "odder:1").len(), 3);
    assert_eq!(places(&conf, "b.corp.io/p/q:1"), ["proxy.io/corp/p/q"]);
    assert_eq!(places(&conf, &format!("b.corp.io/p@{digest}")), ["m.io/p", "proxy.io/corp/p"]);
    assert_eq!(places(&conf, "a.corp.io/p"), ["a.corp.io/p insecure"]);
    // A port makes another registry.
    for other in ["corp.io/p", "a.corp.io:5000/p", "xcorp.io/p", "docker.io.evil/x"] {
        assert!(places(&conf, other).is_empty(), "{other}");
    }
    assert!(conf.is_insecure("a.corp.io") && !conf.is_insecure("docker.io") && !conf.is_insecure("none.io"));
}

#[test]
fn one_tag_may_be_blocked() {
    let mut conf = conf("[[registry]]\nprefix = \"r.io/x:1\"\nblocked = true\n");
    let route = |conf: &Conf, name| conf.route(&Reference::parse(name).expect("name"));
    let error = route(&conf, "r.io/x:1").expect_err("blocked");
    assert_eq!((error.kind(), error.to_string().as_str()), (Kind::PermissionDenied, "r.io/x:1: is blocked"));
    assert!(route(&conf, "r.io/x:10").expect("another").is_none());
    conf.add(Path::new("/2"), Ok("[[registry]]\nprefix = \"r.io/x:1\"\n".into())).expect("later");
    assert!(route(&conf, "r.io/x:1").expect("not any more").is_some());
}

#[test]
fn what_is_wrong_is_named_by_its_key() {
    for (text, key) in [
        ("unqualified-search-registries = \"r.io\"", "unqualified-search-registries: must be a list"),
        (
            "unqualified-search-registries = [\"r.io\", \"plain\"]",
            "unqualified-search-registries[1]: must begin with a host",
        ),
        (
            "unqualified-search-registries = [\"https://r.io\"]",
            "unqualified-search-registries[0]: must be without a scheme",
        ),
        ("short-name-mode = \"ask\"", "short-name-mode: must be"),
        ("aliases = 1", "aliases: must be a table"),
        ("[aliases]\nx = 1", "aliases.\"x\": must be a text"),
        ("[aliases]\nx = \"y\"", "aliases.\"x\": \"y\": must be a repository with its registry"),
        ("[aliases]\nx = \"r.io/y:1\"", "without a tag"),
        ("[aliases]\n\"r.io/x\" = \"r.io/y\"", "aliases.\"r.io/x\": must be the name"),
        ("registry = 1", "registry: must be tables"),
        ("[registry]", "registry: must be tables"),
        ("[[registry]]\nlocation = \"r.io\"\n[[registry]]\n", "registry[1].location: is needed"),
        ("[[registry]]\nlocation = \"http://r.io\"", "registry[0].location: must be without a scheme"),
        ("[[registry]]\nlocation = \"r.io/x:1\"", "registry[0].location: must be without a tag"),
        ("[[registry]]\nlocation = \"r.io/../x\"", "registry[0].location: is no repository"),
        ("[[registry]]\nlocation = \"plain\"", "registry[0].location: must begin with a host"),
        ("[[registry]]\nprefix = \"*.r.io/x\"", "registry[0].prefix: \"*.r.io/x\": after"),
        ("[[registry]]\nprefix = \"r.*.io\"", "registry[0].prefix: must be without a star"),
        ("[[registry]]\nprefix = \"r.io\"\ninsecure = \"yes\"", "registry[0].insecure: must be true or false"),
        ("[[registry]]\nprefix = \"r.io\"\npull-from-mirror = \"all\"", "registry[0].pull-from-mirror: is a setting"),
        ("[[registry]]\nprefix = \"r.io\"\n[[registry.mirror]]\n", "registry[0].mirror[0].location: must not be empty"),
        (
            "[[registry]]\nprefix = \"r.io\"\n[[registry.mirror]]\nlocation = \"m.io\"\npull-from-mirror = \"x\"",
            "registry[0].mirror[0].pull-from-mirror: must be all",
        ),
        (
            "[[registry]]\nprefix = \"r.io\"\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = \"m.io\"\n\
             pull-from-mirror = \"all\"",
            "registry[0].mirror[0].pull-from-mirror: says what",
        ),
        ("[[registry]]\nprefix = \"r.io\"\n[[registry]]\nlocation = \"r.io\"", "registry: \"r.io\" is there twice"),
        ("[registries.search]\nregistries = [\"r.io\"]", "registries: is of version 1"),
        ("[[registry]\n", "line 1"),
    ] {
        let error = Conf::default().add(Path::new("/r.conf"), Ok(text.to_owned())).expect_err(text);
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        let error = error.to_string();
        assert!(error.starts_with("/r.conf: ") && error.contains(key), "{text}: {error}");
    }
    // What only podman knows is no reason to pull nothing.
    conf("credential-helpers = [\"x\"]\nnew = 1\n[[registry]]\nlocation = \"r.io\"\nnew = 1\n");
}

#[test]
fn the_directory_stands_over_the_file() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("registries.conf");
    let missing = RegistriesConf::new(Some(path.clone())).to_pull("x").expect_err("nothing is there");
    assert!(missing.to_string().contains("registries.conf: read"), "{missing}");
    let others = dir.path().join("registries.conf.d");
    std::fs::create_dir(&others).expect("directory");
    for (name, registry) in [("2.conf", "two.io"), ("1.conf", "one.io"), ("3.toml", "three.io")] {
        let text = format!("unqualified-search-registries = [\"{registry}\"]");
        std::fs::write(others.join(name), text).expect("file");
    }
    let conf = RegistriesConf::new(Some(path.clone()));
    assert_eq!(conf.to_pull("x").expect("of the directory")[0].to_string(), "two.io/x:latest");
    std::fs::write(&path, "unqualified-search-registries = [\"main.io\"]").expect("file");
    assert_eq!(conf.to_pull("x").expect("of the directory")[0].host, "two.io");
    assert_eq!(conf.to_pull("r.io/x").expect("full")[0].host, "r.io");
    std::fs::write(&path, "#".repeat((1 << 20) + 1)).expect("file");
    assert!(conf.to_pull("x").expect_err("large").to_string().contains("larger than"));
    assert!(RegistriesConf::default().here("x").expect("docker's")[0].host == "docker.io");
}
