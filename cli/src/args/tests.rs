use super::*;

fn parsed(words: &[&str]) -> Result<Gantry, Stop> {
    parse(&["gantry"].iter().chain(words).map(OsString::from).collect::<Vec<_>>())
}

#[test]
fn the_definition_is_sound() {
    Gantry::command().debug_assert();
}

#[test]
fn dockers_spellings_parse() {
    for line in [
        "run alpine",
        "run -it --rm --name web alpine sh -c true",
        "run -d -e A=1 -e B -w /x -u 1:2 --entrypoint sh -m 64m --memory-swap -1 --cpus 0.5 --pids-limit -1 a",
        "run -v /a:/b:ro --mount type=bind,src=/a,dst=/c --network host --read-only --privileged a -l",
        "run --cap-add ALL --cap-drop=NET_RAW -h box --label a=b --pull always --platform linux/arm64 a",
        "run --stop-signal INT --runtime io.containerd.runc.v2 --cidfile /x --plain-http --sig-proxy=false a",
        "run --cpuset-cpus 0-1 -c 512 --memory-reservation 32m --device /dev/fuse:rw --ulimit nofile=1:2 a",
        "run --sysctl net.core.somaxconn=1 --security-opt no-new-privileges --shm-size 1g --group-add 7 a",
        "run --pid host --ipc=host --uts host --cgroupns host --userns host --oom-score-adj -5 a",
        "run --tmpfs /x:size=1m --stop-timeout 3 --add-host a:1.2.3.4 --label-file /x --annotation a=b a",
        "run --log-driver json-file --log-opt mode=non-blocking --log-opt max-size=1m a",
        "--address /x --namespace n ps -aq",
        "ps -a --no-trunc --format json --filter name=x -n 2",
        "exec -it web sh -c ls",
        "exec -d -e A=1 -w / -u 0 --privileged web true",
        "logs -f --tail 5 --since 1m --until 2026-01-01 -t web",
        "stop -t 3 -s INT a b",
        "stop --time 3 a",
        "container ls -a",
        "run --init --dns 1.1.1.1 --dns-opt ndots:1 --dns-search . --volumes-from a:ro --cgroup-parent /x a",
        "run --cpu-period 50000 --cpu-quota=-1 --blkio-weight 10 --memory-swappiness 0 --device-cgroup-rule c a",
        "update --cpu-quota 20000 -c 2 web",
        "events --since 10m --until 0 --filter label=a",
        "stats -a --no-stream",
        "ps -as",
        "top web -o pid,comm",
        "image ls -q --digests",
        "image rm -f a b",
        "inspect -f {{.ID}} --type image a",
        "start -ai web",
        "kill -s 9 web",
        "system info",
        "completion bash",
        "stats --no-stream web",
        "container prune -f --filter until=1h",
        "system prune -af --filter label=a=b",
        "tag a b:c",
        "image tag a b",
        "pause a b",
        "container unpause a",
        "top web",
        "events -f type=container --format json",
        "man /tmp",
        "images localhost:5000/a",
        "pull -q --platform linux/arm/v7 a",
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let outcome = parsed(&words);
        assert!(outcome.is_ok(), "{line}: {}", outcome.err().map(|stop| stop.error.to_string()).unwrap_or_default());
    }
}

#[test]
fn a_verb_alone_is_what_it_is_among_all() {
    for verb in ["run", "create", "start", "exec", "ps", "rm"] {
        let line = ["gantry", "-H", "/x", "--namespace=n", verb].map(OsString::from);
        let (alone, among) = (only(&line).expect(verb), Gantry::command());
        let names = |gantry: &clap::Command| {
            let verb = gantry.find_subcommand(verb).expect(verb);
            verb.get_arguments().chain(gantry.get_arguments()).map(|one| one.get_id().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(&alone), names(&among), "{verb}");
        alone.debug_assert();
    }
    for line in [&["gantry", "image"][..], &["gantry", "--address"], &["gantry", "--unknown", "run"], &["gantry"]] {
        assert!(only(&line.iter().map(OsString::from).collect::<Vec<_>>()).is_none(), "{line:?}");
    }
}

#[test]
fn options_after_the_image_are_the_commands() {
    for (line, args) in [
        ("run alpine ls -l --rm", r#"args: ["ls", "-l", "--rm"]"#),
        ("run -it --name web -e A=1 alpine -l", r#"args: ["-l"]"#),
        ("run -itwx alpine --rm", r#"args: ["--rm"]"#),
        ("run -iw x --sig-proxy --net host alpine -i", r#"args: ["-i"]"#),
        ("run --name=web alpine -- -i", r#"args: ["--", "-i"]"#),
        ("--namespace x container create -m 64m alpine -m", r#"args: ["-m"]"#),
        ("-H /x exec -u 0 web -u -- 1", r#"args: ["-u", "--", "1"]"#),
        ("exec web sh -c true", r#"args: ["sh", "-c", "true"]"#),
        ("run -- alpine -x", r#"args: ["-x"]"#),
    ] {
        let command =
            parsed(&line.split(' ').collect::<Vec<_>>()).unwrap_or_else(|stop| panic!("{line}: {stop:?}")).command;
        let shown = format!("{command:?}");
        assert!(shown.contains(args), "{line}: {shown}");
    }
}

#[test]
fn dockers_rarer_forms_parse() {
    for (line, shown) in [
        // The last one counts.
        ("run --name a --rm --rm -i -i --name=b alpine", r#"name: Some("b"), interactive: true"#),
        ("run --rm --rm=false alpine", "rm: false"),
        ("run --rm=false --rm=T alpine --rm=0", "rm: true"),
        ("run -d=false alpine", "detach: false"),
        ("run -it=false alpine -x", "interactive: true, tty: false"),
        ("run --read-only=1 alpine", "read_only: true"),
        ("run --name -x -e --rm alpine -i", r#"name: Some("-x")"#),
        ("run -w -x -h -y alpine", r#"hostname: Some("-y")"#),
        ("container ps -a=false --filter name=-x", "all: false"),
        ("rm -f=true --force=false web", "force: false"),
        ("run --restart no --rm alpine", "rm: true"),
    ] {
        let parsed = parsed(&line.split(' ').collect::<Vec<_>>()).unwrap_or_else(|stop| panic!("{line}: {stop:?}"));
        let found = format!("{:?}", parsed.command);
        assert!(found.contains(shown), "{line}: {found}");
    }
    for (line, said) in [("run --rm=maybe alpine", "neither true nor false"), ("run --cpus -1 a", "--cpus")] {
        let stop = parsed(&line.split(' ').collect::<Vec<_>>()).expect_err(line);
        assert!(stop.error.to_string().contains(said) && stop.code() == Code(125), "{line}: {}", stop.error);
    }
    for line in ["run --rm= alpine", "run --read-onl=true alpine", "exec -Z=true web true"] {
        assert!(parsed(&line.split(' ').collect::<Vec<_>>()).is_err(), "{line}");
    }
}

#[test]
fn mistakes_have_hints() {
    for (line, hint) in [
        ("run -n web alpine", "--name"),
        ("container create -p 80:80 alpine", "-p"),
        ("exec web", "exec -it NAME sh"),
        ("run", "needs an image"),
        ("build .", "build"),
        ("-H /x --namespace y run -p 80:80 alpine", "-p"),
        ("--host=/x swarm init", "swarm"),
    ] {
        let stop = parsed(&line.split(' ').collect::<Vec<_>>()).expect_err(line);
        let found = stop.hint.unwrap_or_default();
        assert!(found.contains(hint), "{line}: {found:?} {}", stop.error);
    }
    for (line, code) in [
        ("run --nope alpine", 125),
        ("run -m x alpine", 125),
        ("run", 1),
        ("nope", 1),
        ("container nope", 1),
        ("version surplus", 1),
        ("--help", 0),
    ] {
        let stop = parsed(&line.split(' ').collect::<Vec<_>>()).expect_err(line);
        assert_eq!(stop.code(), Code(code), "{line}");
    }
    let unknown = parsed(&["run", "--nope", "alpine"]).expect_err("no such option").error.to_string();
    assert!(!unknown.contains("as a value"), "{unknown}");
    assert_eq!(parsed(&[]).expect_err("nothing").code(), Code::SUCCESS);
    for line in ["run -m x alpine", "run --cpus=-1 alpine", "run --platform x alpine", "ps --filter x", "nope"] {
        assert!(parsed(&line.split(' ').collect::<Vec<_>>()).is_err(), "{line}");
    }
}
