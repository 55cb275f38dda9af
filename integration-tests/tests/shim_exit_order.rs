//! What the shim announces, and in which order, when processes end in every awkward moment.

use futures_util::future::join_all;
use gantry_proto::containerd::events::{TaskExecStarted, TaskExit, TaskOom, TaskStart};
use gantry_proto::status::{Code, Status};
use integration_tests::supervisor::{Stdio, Supervisor};
use integration_tests::{Bundle, Env, Result, Test, daemon, tests, wait};
use serde_json::json;

pub(crate) const TESTS: &[Test] = tests![
    a_process_that_ends_at_once_was_started_first[Root],
    execs_racing_the_end_all_end[Root, EveryHost],
    execs_racing_the_end_without_a_namespace_all_end[Root],
    many_short_execs_leave_no_zombie[Root],
    a_process_killed_for_memory_is_announced_before_its_exit[Root, EveryHost],
    everybody_who_waits_is_answered[Root],
    who_kills_what_another_killed_is_told[Root],
];

fn a_process_that_ends_at_once_was_started_first(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "quick", &["true"])?;
    daemon::runtime()?.block_on(async {
        for _ in 0..10 {
            let shim = Supervisor::start(env, &bundle).await?;
            shim.create(&Stdio::default()).await?;
            shim.start_process("").await?;
            assert_eq!(shim.wait("").await?, 0);
            shim.delete("").await?;
            shim.events.until("delete", 1).await?;
            assert_eq!(shim.events.topics(), ["create", "start", "exit", "delete"]);
            shim.shutdown().await?;
            shim.forget_events()?;
        }
        Ok(())
    })
}

fn execs_racing_the_end_all_end(env: &Env) -> Result<()> {
    race(env, true)
}

fn execs_racing_the_end_without_a_namespace_all_end(env: &Env) -> Result<()> {
    race(env, false)
}

/// Fifty execs, where the machine is not too slow for so many, are started while the first process is killed. Every Wait
/// returns, every exec that started ends before the first process does, and nobody is left.
fn race(env: &Env, private_pids: bool) -> Result<()> {
    let mut bundle = Bundle::new(env, "race", &["sleep", "1000"])?;
    if !private_pids {
        bundle.share("pid");
    }
    for _ in 0..wait::amount(wait::rounds(1), 1000) {
        race_once(env, &bundle)?;
    }
    Ok(())
}

fn race_once(env: &Env, bundle: &Bundle) -> Result<()> {
    let execs = if wait::patience() > 2 { 10 } else { 50 };
    let early = execs / 5;
    daemon::runtime()?.block_on(async {
        let shim = Supervisor::start(env, bundle).await?;
        shim.create(&Stdio::default()).await?;
        shim.start_process("").await?;
        let (mut started, mut ended) = (Vec::new(), Vec::new());
        for number in 0..execs {
            let id = format!("e{number}");
            shim.exec(&id, &["sleep", "1000"], &Stdio::default()).await?;
            let shim = &shim;
            started.push(async move {
                let outcome = shim.start_process(&id).await.map_err(|status| status.code);
                if let Err(code) = outcome {
                    assert!(matches!(code, Code::FailedPrecondition | Code::Unknown), "{code:?}");
                }
                if outcome.is_ok() { Some(shim.wait(&id).await.expect("wait")) } else { None }
            });
        }
        let kill = async {
            // Somewhere in the middle of the starts.
            while shim.events.of::<TaskExecStarted>().len() < early {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            shim.kill("", 9).await
        };
        let (killed, statuses) = tokio::join!(kill, join_all(started));
        killed?;
        ended.extend(statuses.into_iter().flatten());
        assert!(ended.len() >= early && ended.iter().all(|status| *status == 137), "{ended:?}");
        assert_eq!(shim.wait("").await?, 137);
        shim.delete("").await?;
        shim.events.until("delete", 1).await?;
        let exits = shim.events.of::<TaskExit>();
        let starts = shim.events.of::<TaskExecStarted>();
        assert_eq!(exits.len(), starts.len() + 1, "one exit for everything that was started");
        assert_eq!(
            exits.last().map(|exit| exit.id.as_str()),
            Some(shim.id.as_str()),
            "the first process's is the last"
        );
        for exit in &exits {
            assert!(!std::path::Path::new(&format!("/proc/{}", exit.pid)).exists(), "{exit:?} is still there");
        }
        shim.shutdown().await?;
        shim.forget_events()
    })
}

fn many_short_execs_leave_no_zombie(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "short", &["sleep", "60"])?;
    daemon::runtime()?.block_on(async {
        let shim = Supervisor::start(env, &bundle).await?;
        shim.create(&Stdio::default()).await?;
        shim.start_process("").await?;
        for number in 0..20 {
            let id = format!("e{number}");
            // A grandchild without a parent becomes the shim's, or the container's first process's.
            let args = ["sh", "-c", &format!("(sleep 0.01 &); exit {number}")];
            shim.exec(&id, &args, &Stdio::default()).await?;
            shim.start_process(&id).await?;
            assert_eq!(shim.wait(&id).await?, number);
            shim.delete(&id).await?;
        }
        let children = format!("/proc/{0}/task/{0}/children", shim.shim_pid().await?);
        let zombies = || {
            let pids = std::fs::read_to_string(&children).unwrap_or_default();
            let count = pids.split_whitespace().count();
            (count == 1).then_some(())
        };
        wait::until("the shim to have one child", zombies)?;
        shim.events.until("exit", 20).await?;
        let exits = shim.events.of::<TaskExit>();
        assert!(exits.len() == 20 && exits.iter().all(|exit| exit.id.starts_with('e')), "{exits:?}");
        shim.finish().await
    })
}

fn a_process_killed_for_memory_is_announced_before_its_exit(env: &Env) -> Result<()> {
    let mut bundle = Bundle::new(env, "oom", &["sh", "-c", "x=a; while true; do x=$x$x$x$x; done"])?;
    bundle.set("/linux/resources/memory", json!({ "limit": 16 << 20, "swap": 16 << 20 }));
    daemon::runtime()?.block_on(async {
        let shim = Supervisor::start(env, &bundle).await?;
        shim.create(&Stdio::default()).await?;
        shim.start_process("").await?;
        assert_eq!(shim.wait("").await?, 137);
        shim.events.until("exit", 1).await?;
        let ooms = shim.events.of::<TaskOom>();
        assert_eq!(ooms.first().map(|oom| oom.container_id.as_str()), Some(shim.id.as_str()));
        let topics = shim.events.topics();
        let place = |topic: &str| topics.iter().position(|seen| seen == topic);
        assert!(place("oom") < place("exit"), "{topics:?}");
        shim.finish().await
    })
}

fn everybody_who_waits_is_answered(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "crowd", &["sleep", "60"])?;
    daemon::runtime()?.block_on(async {
        let shim = Supervisor::start(env, &bundle).await?;
        shim.create(&Stdio::default()).await?;
        let waiting: Vec<_> = (0..100).map(|_| shim.wait("")).collect();
        let act = async {
            shim.start_process("").await?;
            shim.kill("", 9).await
        };
        let (acted, statuses) = tokio::join!(act, join_all(waiting));
        acted?;
        assert!(statuses.into_iter().all(|status| status == Ok(137)));
        // Whoever comes late is answered too, and the state is kept until Delete.
        assert_eq!(shim.wait("").await?, 137);
        assert_eq!(shim.events.of::<TaskStart>().len(), 1);
        shim.finish().await
    })
}

/// The runtime may find the container dead before the shim has collected its process.
fn who_kills_what_another_killed_is_told(env: &Env) -> Result<()> {
    let bundle = Bundle::new(env, "kills", &["sh", "-c", "while :; do sleep 0.01; done"])?;
    daemon::runtime()?.block_on(async {
        for _ in 0..wait::amount(8, 100) {
            let shim = Supervisor::start(env, &bundle).await?;
            shim.create(&Stdio::default()).await?;
            shim.start_process("").await?;
            let kills = join_all((0..8).map(|_| shim.kill_all(9))).await;
            let told =
                |kill: &Result<(), Status>| kill.as_ref().map_or_else(|said| said.code == Code::NotFound, |()| true);
            assert!(kills.iter().any(Result::is_ok) && kills.iter().all(told), "{kills:?}");
            assert_eq!(shim.wait("").await?, 137);
            shim.finish().await?;
            shim.forget_events()?;
        }
        Ok(())
    })
}
