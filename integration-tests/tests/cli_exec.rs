//! `gantry exec`, `attach`, `start -ai`, `logs`: a running container from outside, on a terminal and off it.

use std::process::Stdio;

use integration_tests::{Env, Pty, Result, Stack, Test, output, tests, wait};

pub(crate) const TESTS: &[Test] = tests![
    exec_runs_beside_the_first_process [Root, Overlay],
    exec_has_its_own_exit_codes [Root, Overlay],
    input_ends_with_the_client_that_gave_it [Root, Overlay],
    a_terminal_is_a_window_into_the_container [Root, Overlay],
    exec_on_a_terminal [Root, Overlay],
    detach_keys_leave_and_attach_returns [Root, Overlay],
    start_attaches_before_the_first_byte [Root, Overlay],
    logs_are_whole_and_follow [Root, Overlay],
];

/// A stack with a container `web` that runs until it is removed.
fn with_web(env: &Env) -> Result<Stack<'_>> {
    let stack = Stack::start(env)?;
    stack.gantry(&["run", "-d", "--name", "web", "-e", "A=1", "-w", "/tmp", "IMAGE", "sleep", "1000"])?.ok()?;
    Ok(stack)
}

fn exec_runs_beside_the_first_process(env: &Env) -> Result<()> {
    let stack = with_web(env)?;
    let ran =
        stack.gantry(&["exec", "web", "sh", "-c", "echo out; echo err >&2; pwd; echo $A; cat /proc/1/comm"])?.ok()?;
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("out\n/tmp\n1\nsleep\n", "err\n"));
    let ran =
        stack.gantry(&["exec", "-e", "A=2", "-w", "/etc", "-u", "user", "web", "sh", "-c", "echo $A; pwd; id -u"])?;
    assert_eq!(ran.ok()?.text(), "2\n/etc\n1000");
    let counted = stack.command(&["exec", "-i", "web", "wc", "-c"])?;
    assert_eq!(output::run_with_input(counted, &"x".repeat(500_000))?.ok()?.text(), "500000");
    assert_eq!(stack.gantry(&["exec", "-d", "web", "sh", "-c", "echo done > /tmp/mark; sleep 1000"])?.ok()?.stdout, "");
    wait::until("the detached process has run", || {
        stack.gantry(&["exec", "web", "cat", "/tmp/mark"]).ok().filter(|ran| ran.stdout == "done\n")
    })?;
    Ok(())
}

fn exec_has_its_own_exit_codes(env: &Env) -> Result<()> {
    let stack = with_web(env)?;
    stack.gantry(&["exec", "web", "sh", "-c", "exit 9"])?.exits(9)?;
    stack.gantry(&["exec", "web", "sh", "-c", "kill -KILL $$"])?.exits(137)?;
    let missing = stack.gantry(&["exec", "web", "no-such-program"])?.exits(127)?;
    assert!(missing.stderr.contains("no-such-program"), "{}", missing.stderr);
    stack.gantry(&["exec", "web", "/etc/passwd"])?.exits(126)?;
    stack.gantry(&["exec", "-w", "/missing", "web", "true"])?.exits(126)?;
    stack.gantry(&["exec", "nobody", "true"])?.exits(1)?;
    stack.gantry(&["stop", "-t", "0", "web"])?.ok()?;
    let stopped = stack.gantry(&["exec", "web", "true"])?.exits(1)?;
    assert!(stopped.stderr.contains("web"), "{}", stopped.stderr);
    Ok(())
}

fn input_ends_with_the_client_that_gave_it(env: &Env) -> Result<()> {
    let stack = with_web(env)?;
    let start = |args: &[&str]| Ok::<_, anyhow::Error>(stack.command(args)?.stdin(Stdio::piped()).spawn()?);
    let there = |path: &str| stack.gantry(&["exec", "web", "test", "-e", path]).ok().filter(|ran| ran.status.success());
    let mut reading = start(&["exec", "-i", "web", "sh", "-c", "echo > /in; cat; echo > /out"])?;
    wait::until("it reads", || there("/in"))?;
    reading.kill()?;
    reading.wait()?;
    wait::until("its input ends", || there("/out"))?;
    let mut reading = start(&["run", "-i", "--name", "fed", "IMAGE", "sh", "-c", "echo up; cat; exit 7"])?;
    wait::until("it reads", || stack.gantry(&["logs", "fed"]).ok().filter(|logs| logs.stdout == "up\n"))?;
    reading.kill()?;
    reading.wait()?;
    assert_eq!(stack.gantry(&["wait", "fed"])?.ok()?.text(), "7");
    Ok(())
}

fn a_terminal_is_a_window_into_the_container(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    stack.gantry(&["pull", "IMAGE"])?.ok()?;
    let mut pty = Pty::start(&stack.command(&["run", "--rm", "-it", "IMAGE", "sh"])?)?;
    pty.expect("# ")?;
    assert!(!pty.is_cooked()?, "keys are handed on as typed");
    pty.types("tty; stty size; echo $TERM\n")?;
    pty.expect("/dev/pts/0")?;
    pty.expect("24 80")?;
    pty.expect("xterm")?;
    pty.resize(33, 101)?;
    pty.types("while [ \"$(stty size)\" != '33 101' ]; do sleep 0.05; done; echo re''sized\n")?;
    pty.expect("resized")?;
    // Ctrl-C is a key for the program inside, not a signal for the client.
    pty.types("sh -c 'echo re''ady; exec sleep 1000'\n")?;
    pty.expect("ready")?;
    pty.types("\u{3}")?;
    pty.types("echo st''ill here\n")?;
    pty.expect("still here")?;
    pty.types("exit 5\n")?;
    assert_eq!(pty.end()?.code(), Some(5));
    assert!(pty.is_cooked()?, "the terminal is as it was");
    Ok(())
}

fn exec_on_a_terminal(env: &Env) -> Result<()> {
    let stack = with_web(env)?;
    let mut pty = Pty::start(&stack.command(&["exec", "-it", "web", "sh"])?)?;
    pty.expect("# ")?;
    pty.types("stty size; tty\n")?;
    pty.expect("24 80")?;
    pty.expect("/dev/pts/")?;
    pty.types("\u{4}")?;
    assert_eq!(pty.end()?.code(), Some(0));
    assert!(pty.is_cooked()?);
    assert_eq!(stack.gantry(&["ps", "--format", "{{.Names}}"])?.ok()?.text(), "web");
    Ok(())
}

fn detach_keys_leave_and_attach_returns(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    stack.gantry(&["pull", "IMAGE"])?.ok()?;
    let mut pty = Pty::start(&stack.command(&["run", "-it", "--name", "shell", "IMAGE", "sh"])?)?;
    pty.expect("# ")?;
    pty.types("X=kept; echo mar''ked\n")?;
    pty.expect("marked")?;
    pty.types("\u{10}\u{11}")?;
    assert_eq!(pty.end()?.code(), Some(0));
    assert!(pty.is_cooked()?);
    assert_eq!(stack.gantry(&["ps", "--format", "{{.Names}}"])?.ok()?.text(), "shell");
    let mut back = Pty::start(&stack.command(&["attach", "shell"])?)?;
    back.types("echo $X-''still\n")?;
    back.expect("kept-still")?;
    back.types("exit 6\n")?;
    assert_eq!(back.end()?.code(), Some(6));
    let stopped = stack.gantry(&["attach", "shell"])?.exits(1)?;
    assert!(stopped.stderr.contains("not running"), "{}", stopped.stderr);
    Ok(())
}

fn start_attaches_before_the_first_byte(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    stack.gantry(&["create", "--name", "once", "IMAGE", "sh", "-c", "echo first; exit 4"])?.ok()?;
    let ran = stack.gantry(&["start", "-a", "once"])?.exits(4)?;
    assert_eq!(ran.stdout, "first\n");
    stack.gantry(&["create", "--name", "sum", "-i", "IMAGE", "wc", "-c"])?.ok()?;
    let counted = stack.command(&["start", "-ai", "sum"])?;
    assert_eq!(output::run_with_input(counted, "12345")?.ok()?.text(), "5");
    Ok(())
}

fn logs_are_whole_and_follow(env: &Env) -> Result<()> {
    let stack = Stack::start(env)?;
    let script = "for i in 1 2 3; do echo line $i; done; echo err >&2; printf unfinished";
    stack.gantry(&["run", "--name", "short", "IMAGE", "sh", "-c", script])?.ok()?;
    let logs = stack.gantry(&["logs", "short"])?.ok()?;
    assert_eq!((logs.stdout.as_str(), logs.stderr.as_str()), ("line 1\nline 2\nline 3\nunfinished", "err\n"));
    assert_eq!(stack.gantry(&["logs", "--tail", "1", "short"])?.ok()?.stdout, "unfinished");
    assert_eq!(stack.gantry(&["logs", "--since", "1h", "--until", "1h", "short"])?.ok()?.stdout, "");
    let stamped = stack.gantry(&["logs", "-t", "-n", "all", "short"])?.ok()?.stdout;
    assert_eq!(
        stamped.lines().filter(|line| line.starts_with("20") && line[..31].ends_with("Z ")).count(),
        4,
        "{stamped}"
    );
    let script = "for i in 1 2 3 4 5; do echo $i; sleep 0.1; done";
    stack.gantry(&["run", "-d", "--name", "slow", "IMAGE", "sh", "-c", script])?.ok()?;
    assert_eq!(stack.gantry(&["logs", "-f", "slow"])?.ok()?.stdout, "1\n2\n3\n4\n5\n");
    let mut quiet = stack.command(&["logs", "nobody"])?;
    quiet.stdout(Stdio::null());
    assert_eq!(output::run(quiet)?.code(), 1);
    Ok(())
}
