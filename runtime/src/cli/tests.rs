use super::*;

fn read(line: &str) -> Result<Cli, clap::Error> {
    Cli::read(&line.split(' ').map(OsString::from).collect::<Vec<_>>())
}

#[test]
fn both_descriptions_read_alike() {
    for line in [
        "rung --root /r run -d --bundle /b web",
        "rung exec -t -e A=1 --cwd / web sh -c x --tty",
        "rung kill web -9",
        "rung --root run state web",
        "rung delete --force web",
        "rung --root /r --version",
        "rung -v list",
    ] {
        let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let whole = Cli::try_parse_from(&arguments).expect(line);
        assert_eq!(format!("{:?}", read(line).expect(line)), format!("{whole:?}"), "{line}");
    }
    assert!(read("rung run").is_err());
    assert!(read("rung run --help").is_err());
}

#[test]
fn miscounted_arguments_are_told_as_runc_does() {
    for (line, told) in [
        ("rung state", "\"state\" requires exactly 1 argument(s)"),
        ("rung --debug --debug state a b", "\"state\" requires exactly 1 argument(s)"),
        ("rung kill", "\"kill\" requires a minimum of 1 argument(s)"),
        ("rung kill a 9 b", "\"kill\" requires a maximum of 2 argument(s)"),
        ("rung exec", "\"exec\" requires a minimum of 1 argument(s)"),
        ("rung list x", "\"list\" requires exactly 0 argument(s)"),
    ] {
        let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let said = miscounted(&read(line).expect_err(line), &arguments).expect(line);
        assert!(said.ends_with(told), "{line}: {said}");
    }
    assert!(read("rung --debug --debug --root /a --root /b list").is_ok());
    assert_eq!(miscounted(&read("rung list --x").expect_err("flag"), &["rung".into(), "list".into()]), None);
}
