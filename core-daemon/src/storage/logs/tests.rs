use super::*;

fn owner(id: &str) -> Owner {
    (Namespace::parse("n").expect("namespace"), ContainerId::parse(id).expect("id"))
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// A log whose rotated files, oldest first, have sizes and times.
fn log(parts: &[(u64, u64)], current: u64) -> Log {
    let numbered = (1..).zip(parts.iter().rev());
    let parts = numbered.map(|(number, (size, time))| Part { number, size: *size, written: at(*time) }).collect();
    let mut log = Log { parts, current, passing: 0 };
    log.settle();
    log
}

#[test]
fn the_oldest_go_first_and_current_files_last() {
    let logs = [(owner("a"), log(&[(10, 1), (10, 5)], 30)), (owner("b"), log(&[(10, 3)], 40))];
    let cuts = |target| plan(&logs, target);
    assert!(cuts(100).is_empty());
    let until = |time| Cut { until: at(time), current: false };
    assert_eq!(cuts(99), BTreeMap::from([(owner("a"), until(1))]));
    assert_eq!(cuts(85), BTreeMap::from([(owner("a"), until(1)), (owner("b"), until(3))]));
    assert_eq!(cuts(70), BTreeMap::from([(owner("a"), until(5)), (owner("b"), until(3))]));
    let all = cuts(69);
    assert!(!all[&owner("a")].current && all[&owner("b")].current, "the largest goes: {all:?}");
    assert!(cuts(0).values().all(|cut| cut.current));
}

#[test]
fn a_clock_that_went_back_leaves_no_gap() {
    let log = log(&[(10, 9), (10, 2)], 0);
    let cuts = plan(&[(owner("a"), log.clone())], 15);
    assert_eq!(log.takes(cuts[&owner("a")]), (2, 20), "the newer one seems older, and does not go alone");
}

struct Files {
    root: tempfile::TempDir,
    logs: Logs,
}

impl Files {
    fn new(limit: u64) -> Self {
        let root = tempfile::tempdir().expect("directory");
        let logs = Logs::new(root.path().to_owned(), limit);
        Self { root, logs }
    }

    fn write(&self, id: &str, ending: &str, size: usize, time: u64) {
        let directory = self.logs.directory(&owner(id));
        fs::create_dir_all(&directory).expect("directory");
        let path = directory.join(format!("{NAME}{ending}"));
        fs::write(&path, vec![b'x'; size]).expect("write");
        File::options().write(true).open(path).expect("open").set_modified(at(time)).expect("time");
    }

    fn names(&self, id: &str) -> Vec<String> {
        let mut names = names(&self.logs.directory(&owner(id))).expect("names");
        names.sort();
        names
    }

    fn cut(&self, target: u64) {
        for (owner, cut) in plan(&self.logs.all().expect("all"), target) {
            self.logs.drop_of(&owner, cut).expect("drop");
            self.logs.finish(&owner, true).expect("finish");
        }
    }
}

#[test]
fn what_is_dropped_is_written_down_and_counted() {
    let files = Files::new(1000);
    files.write("a", ".2.gz", 100, 10);
    files.write("a", ".1", 200, 20);
    files.write("a", "", 300, 30);
    files.write("a", ".compressing", 50, 30);
    files.write("b", ".1.gz", 100, 15);
    // These are no logs, nor is what lies beside the namespaces.
    files.write("b", "x", 1000, 1);
    fs::write(files.root.path().join("file"), "x").expect("write");
    let size = |files: &Files| files.logs.all().expect("all").iter().map(|(_, log)| log.size()).sum::<u64>();
    assert_eq!(size(&files), 750);
    files.cut(600);
    assert_eq!(files.names("a"), ["log.json", "log.json.1", "log.json.compressing", "log.json.dropped"]);
    assert_eq!(files.names("b"), ["log.json.dropped", "log.jsonx"]);
    assert_eq!(files.logs.dropped(&owner("a")), Some(Dropped { until: at(10), bytes: 100, files: 1 }));
    files.cut(100);
    assert_eq!(files.names("a"), ["log.json.compressing", "log.json.dropped"]);
    let dropped = files.logs.dropped(&owner("a")).expect("noted");
    assert_eq!((dropped.bytes, dropped.files), (600, 3));
    files.logs.reckoned(size(&files), 2);
    let mut text = String::new();
    files.logs.write_metrics(&mut text);
    for line in
        ["bytes 50", "limit_bytes 1000", "dropped_bytes_total 700", "dropped_files_total 4", "drop_failures_total 2"]
    {
        assert!(text.lines().any(|found| found == format!("gantryd_logs_{line}")), "{line} is not in\n{text}");
    }
}

#[test]
fn an_attempt_that_did_not_end_is_counted_once() {
    let files = Files::new(1000);
    files.write("a", ".1", 100, 10);
    files.write("a", "", 100, 20);
    let cut = Cut { until: at(10), current: false };
    files.logs.note(&owner("a"), cut, 1, 100).expect("note");
    files.logs.drop_of(&owner("a"), cut).expect("drop");
    assert_eq!(files.logs.dropped(&owner("a")), Some(Dropped { until: at(10), bytes: 100, files: 1 }));
}

#[test]
fn a_current_file_comes_back_where_its_shim_goes_on_writing_to_it() {
    let files = Files::new(1000);
    files.write("a", "", 100, 20);
    let cut = Cut { until: at(30), current: true };
    files.logs.drop_of(&owner("a"), cut).expect("drop");
    assert!(files.logs.is_cut_short(&owner("a")) && !files.names("a").contains(&NAME.to_owned()));
    files.logs.finish(&owner("a"), false).expect("put back");
    assert!(!files.logs.is_cut_short(&owner("a")) && files.names("a").contains(&NAME.to_owned()));
    files.logs.drop_of(&owner("a"), cut).expect("drop");
    files.write("a", "", 1, 40);
    files.logs.finish(&owner("a"), false).expect("another is there");
    assert_eq!(files.names("a"), ["log.json", "log.json.dropped"]);
}

#[test]
fn nothing_is_moved_while_somebody_else_moves() {
    let files = Files::new(1000);
    files.write("a", ".1", 100, 10);
    let held = File::open(files.logs.directory(&owner("a"))).expect("open");
    held.lock().expect("lock");
    let cut = Cut { until: at(10), current: false };
    files.logs.drop_of(&owner("a"), cut).expect_err("locked");
    drop(held);
    files.logs.drop_of(&owner("a"), cut).expect("drop");
}
