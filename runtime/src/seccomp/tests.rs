//! Filters are run by an interpreter and judged against the rules read plainly, then by the kernel itself.

use oci_spec::runtime::LinuxSeccomp;

use super::arch::{Arch, Call, X32_BIT};
use super::compile::*;
use super::*;

const X86_64: u32 = 0xc000_003e;
const X86: u32 = 0x4000_0003;

fn profile(json: &str) -> LinuxSeccomp {
    serde_json::from_str(json).unwrap()
}

/// Runs a program as the kernel does, on little-endian data.
pub(super) fn run(program: &[Instruction], arch: u32, nr: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(nr.to_le_bytes());
    data.extend(arch.to_le_bytes());
    data.extend([0; 8]);
    args.iter().for_each(|arg| data.extend(arg.to_le_bytes()));
    let (mut at, mut a) = (0_usize, 0_u32);
    loop {
        let i = program[at];
        at += 1;
        let mut branch = |yes: bool| at += usize::from(if yes { i.when_true } else { i.when_false });
        match i.code {
            0x20 => {
                let from = i.operand as usize;
                a = u32::from_le_bytes(data[from..from + 4].try_into().unwrap());
            }
            0x54 => a &= i.operand,
            0x05 => at += i.operand as usize,
            0x15 => branch(a == i.operand),
            0x25 => branch(a > i.operand),
            0x35 => branch(a >= i.operand),
            0x45 => branch(a & i.operand != 0),
            0x06 => return i.operand,
            other => panic!("unknown instruction {other:#x}"),
        }
    }
}

fn nr(name: &str, arch: Arch) -> u32 {
    Call::find(name).unwrap().number(arch).unwrap()
}

fn call(filter: &Filter, name: &str, args: &[u64]) -> u32 {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    run(&filter.program, X86_64, nr(name, Arch::X8664), all)
}

#[cfg(target_arch = "x86_64")]
mod on_x86_64 {
    use super::*;

    #[test]
    fn every_operator_at_every_border() {
        let values: [u64; 9] =
            [0, 1, 5, 0xffff_ffff, 0x1_0000_0000, 0x5_0000_0005, 0x5_0000_0006, 0x6_0000_0000, u64::MAX];
        for (op, holds) in [
            ("SCMP_CMP_EQ", (|a, v| a == v) as fn(u64, u64) -> bool),
            ("SCMP_CMP_NE", |a, v| a != v),
            ("SCMP_CMP_LT", |a, v| a < v),
            ("SCMP_CMP_LE", |a, v| a <= v),
            ("SCMP_CMP_GT", |a, v| a > v),
            ("SCMP_CMP_GE", |a, v| a >= v),
        ] {
            for value in values {
                let json = format!(
                    r#"{{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86"],"syscalls":[{{"names":["dup"],
                    "action":"SCMP_ACT_ERRNO","args":[{{"index":3,"value":{value},"op":"{op}"}},
                    {{"index":0,"value":7,"op":"SCMP_CMP_EQ"}}]}}]}}"#
                );
                let filter = compile(&profile(&json)).unwrap();
                for argument in values {
                    for first in [7, 8] {
                        let found = run(&filter.program, X86_64, 32, [first, 0, 0, argument, 0, 0]);
                        let wanted = if holds(argument, value) && first == 7 { RET_ERRNO | 1 } else { RET_ALLOW };
                        assert_eq!(found, wanted, "{argument:#x} {op} {value:#x}");
                        // A 32-bit program has arguments of 32 bits.
                        let low = |n: u64| n & 0xffff_ffff;
                        let found = run(&filter.program, X86, 41, [first, 0, 0, low(argument), 0, 0]);
                        let holds = holds(low(argument), low(value)) && first == 7;
                        assert_eq!(
                            found,
                            if holds { RET_ERRNO | 1 } else { RET_ALLOW },
                            "32: {argument:#x} {op} {value:#x}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn masks() {
        let filter = compile(&profile(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"syscalls":[{"names":["clone"],"action":"SCMP_ACT_ALLOW",
            "args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]}]}"#,
        ))
        .unwrap();
        assert_eq!(call(&filter, "clone", &[0x11]), RET_ALLOW);
        assert_eq!(call(&filter, "clone", &[0x1000_0011]), RET_ENOSYS);
        assert_eq!(call(&filter, "clone", &[0xf_0000_0011]), RET_ALLOW);
    }

    #[test]
    fn one_argument_twice_means_either() {
        let filter = compile(&profile(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["personality"],"action":"SCMP_ACT_ALLOW",
            "args":[{"index":0,"value":0,"op":"SCMP_CMP_EQ"},{"index":0,"value":8,"op":"SCMP_CMP_EQ"}]}]}"#,
        ))
        .unwrap();
        assert_eq!(call(&filter, "personality", &[0]), RET_ALLOW);
        assert_eq!(call(&filter, "personality", &[8]), RET_ALLOW);
        assert_eq!(call(&filter, "personality", &[9]), RET_ERRNO | 1);
    }

    #[test]
    fn the_first_of_several_rules_about_one_argument_decides() {
        type Holds = fn(u64) -> bool;
        let tests: [(&str, Holds); 8] = [
            (r#""value":7,"op":"SCMP_CMP_EQ""#, |a| a == 7),
            (r#""value":9,"op":"SCMP_CMP_GT""#, |a| a > 9),
            (r#""value":4294967301,"op":"SCMP_CMP_GE""#, |a| a >= 0x1_0000_0005),
            (r#""value":4,"op":"SCMP_CMP_LE""#, |a| a <= 4),
            (r#""value":5,"op":"SCMP_CMP_NE""#, |a| a != 5),
            (r#""value":8,"valueTwo":8,"op":"SCMP_CMP_MASKED_EQ""#, |a| a & 8 == 8),
            (r#""value":6,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ""#, |a| a & 6 == 0),
            (r#""value":12884901891,"valueTwo":1,"op":"SCMP_CMP_MASKED_EQ""#, |a| a & 0x3_0000_0003 == 1),
        ];
        let values = [0, 1, 4, 5, 7, 8, 9, 10, 0xffff_ffff, 0x1_0000_0000, 0x1_0000_0001, 0x1_0000_0005, 0x8_0000_0008];
        let rule = |at: usize, answer: usize, test: usize| {
            let args = format!(r#"[{{"index":{at},{}}}]"#, tests[test].0);
            format!(r#"{{"names":["dup"],"action":"SCMP_ACT_ERRNO","errnoRet":{},"args":{args}}}"#, answer + 1)
        };
        for chosen in (0..512).map(|all: usize| [all % 8, all / 8 % 8, all / 64]) {
            let rules: Vec<_> = chosen.iter().enumerate().map(|(at, test)| rule(1, at, *test)).collect();
            // The second of them may be about another argument.
            let mixed = [rules[0].clone(), rule(2, 1, chosen[1]), rules[2].clone()];
            for (list, second) in [(rules.join(","), 1), (mixed.join(","), 2)] {
                let filter =
                    compile(&profile(&format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{list}]}}"#))).unwrap();
                for (value, other) in values.into_iter().flat_map(|one| [(one, 5), (one, 8), (one, one)]) {
                    let args = [0, value, other];
                    let wanted = [1, second, 1].into_iter().zip(chosen).position(|(at, test)| tests[test].1(args[at]));
                    let wanted = wanted.map_or(RET_ALLOW, |at| RET_ERRNO | u32::try_from(at + 1).unwrap());
                    assert_eq!(call(&filter, "dup", &args), wanted, "{list}: {args:x?}");
                }
            }
        }
    }

    #[test]
    fn special_rules_come_before_general_ones() {
        let filter = compile(&profile(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
            {"names":["kill","tkill"],"action":"SCMP_ACT_ALLOW"},
            {"names":["kill"],"action":"SCMP_ACT_ERRNO","errnoRet":3,"args":[{"index":1,"value":9,"op":"SCMP_CMP_EQ"}]},
            {"names":["kill"],"action":"SCMP_ACT_KILL_PROCESS","args":[{"index":1,"value":9,"op":"SCMP_CMP_GE"}]}]}"#,
        ))
        .unwrap();
        assert_eq!(call(&filter, "kill", &[1, 1]), RET_ALLOW);
        assert_eq!(call(&filter, "kill", &[1, 9]), RET_ERRNO | 3);
        assert_eq!(call(&filter, "kill", &[1, 10]), RET_KILL_PROCESS);
        assert_eq!(call(&filter, "tkill", &[1, 9]), RET_ALLOW);
    }

    #[test]
    fn calls_newer_than_the_profile_do_not_exist() {
        let text = |default: &str| {
            format!(
                r#"{{"defaultAction":"{default}","syscalls":[{{"names":["read","faccessat2"],"action":"SCMP_ACT_ALLOW"}}]}}"#
            )
        };
        let filter = compile(&profile(&text("SCMP_ACT_ERRNO"))).unwrap();
        assert_eq!(call(&filter, "read", &[]), RET_ALLOW);
        assert_eq!(call(&filter, "write", &[]), RET_ERRNO | 1);
        assert_eq!(call(&filter, "faccessat2", &[]), RET_ALLOW);
        assert_eq!(call(&filter, "mseal", &[]), RET_ENOSYS);
        assert_eq!(run(&filter.program, X86_64, 1000, [0; 6]), RET_ENOSYS);
        let logging = compile(&profile(&text("SCMP_ACT_LOG"))).unwrap();
        assert_eq!(run(&logging.program, X86_64, 1000, [0; 6]), RET_LOG);
    }

    #[test]
    fn architectures_are_kept_apart() {
        let with = |archs: &str| {
            compile(&profile(&format!(
                r#"{{"defaultAction":"SCMP_ACT_ERRNO","architectures":[{archs}],
                "syscalls":[{{"names":["execve","connect"],"action":"SCMP_ACT_ALLOW"}}]}}"#
            )))
            .unwrap()
            .program
        };
        let own = with("");
        assert_eq!(run(&own, X86_64, 59, [0; 6]), RET_ALLOW);
        assert_eq!(run(&own, X86, 11, [0; 6]), RET_KILL_THREAD);
        assert_eq!(run(&own, X86_64, 520 | X32_BIT, [0; 6]), RET_KILL_THREAD);
        let all = with(r#""SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_X32","SCMP_ARCH_MIPS""#);
        assert_eq!(run(&all, X86_64, 59, [0; 6]), RET_ALLOW);
        assert_eq!(run(&all, X86, 11, [0; 6]), RET_ALLOW);
        assert_eq!(run(&all, X86, 59, [0; 6]), RET_ERRNO | 1);
        assert_eq!(run(&all, X86_64, 520 | X32_BIT, [0; 6]), RET_ALLOW);
        assert_eq!(run(&all, X86_64, 59 | X32_BIT, [0; 6]), RET_ERRNO | 1);
        assert_eq!(run(&all, 0x1234, 59, [0; 6]), RET_KILL_THREAD);
        // connect through socketcall, and another call through it.
        assert_eq!(run(&all, X86, 102, [3, 0, 0, 0, 0, 0]), RET_ALLOW);
        assert_eq!(run(&all, X86, 102, [1, 0, 0, 0, 0, 0]), RET_ERRNO | 1);
        // A tracer's mark for "skip this call" is not an x32 call.
        assert_eq!(run(&own, X86_64, u32::MAX, [0; 6]), RET_ENOSYS);
    }

    /// seccompiler makes filters of one architecture, one answer and linear search: where a profile can be said in
    /// both, both programs must answer alike.
    #[test]
    fn agrees_with_seccompiler() {
        use seccompiler::{
            SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
        };
        let calls = ["read", "write", "openat", "mmap", "clone", "prctl", "statx", "futex_waitv"];
        let mut rules = std::collections::BTreeMap::new();
        let mut listed = Vec::new();
        for (at, name) in calls.iter().enumerate() {
            let (op, word) =
                [(SeccompCmpOp::Eq, "EQ"), (SeccompCmpOp::Gt, "GT"), (SeccompCmpOp::Le, "LE")][at % 3].clone();
            let value = 1 << (at * 9);
            let condition = SeccompCondition::new(1, SeccompCmpArgLen::Qword, op, value).unwrap();
            let rule = if at % 2 == 0 { vec![] } else { vec![SeccompRule::new(vec![condition]).unwrap()] };
            rules.insert(i64::from(nr(name, Arch::X8664)), rule);
            let args = if at % 2 == 0 {
                String::new()
            } else {
                format!(r#","args":[{{"index":1,"value":{value},"op":"SCMP_CMP_{word}"}}]"#)
            };
            listed.push(format!(r#"{{"names":["{name}"],"action":"SCMP_ACT_ERRNO","errnoRet":9{args}}}"#));
        }
        let theirs = SeccompFilter::new(
            rules,
            SeccompAction::Allow,
            SeccompAction::Errno(9),
            std::env::consts::ARCH.try_into().unwrap(),
        );
        let theirs: seccompiler::BpfProgram = theirs.unwrap().try_into().unwrap();
        let theirs: Vec<Instruction> = theirs
            .iter()
            .map(|i| Instruction { code: i.code, when_true: i.jt, when_false: i.jf, operand: i.k })
            .collect();
        let text = format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{}]}}"#, listed.join(","));
        let ours = compile(&profile(&text)).unwrap().program;
        for nr in 0..500 {
            for shift in 0..64 {
                for off in [0_u64, 1, u64::MAX] {
                    let args = [0, (1_u64 << shift).wrapping_add(off), 0, 0, 0, 0];
                    assert_eq!(run(&ours, X86_64, nr, args), run(&theirs, X86_64, nr, args), "{nr} {args:x?}");
                }
            }
        }
    }

    #[test]
    fn the_default_profile_is_searched_not_walked() {
        let profile = rung_spec::defaults::seccomp::default(&Default::default());
        let filter = compile(&profile).unwrap();
        assert!(filter.program.len() < 450, "{} instructions", filter.program.len());
    }

    #[test]
    fn every_number_is_answered_as_its_name() {
        let profile = rung_spec::defaults::seccomp::default(&Default::default());
        let program = compile(&profile).unwrap().program;
        let all = profile.syscalls().clone().unwrap();
        let (calls, others): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|call| call.args().as_ref().is_none_or(Vec::is_empty));
        let conditional: Vec<String> = others.iter().flat_map(|call| call.names()).cloned().collect();
        let value = |call: &oci_spec::runtime::LinuxSyscall| match call.action() {
            oci_spec::runtime::LinuxSeccompAction::ScmpActAllow => RET_ALLOW,
            _ => RET_ERRNO | call.errno_ret().unwrap_or(1),
        };
        let default = RET_ERRNO | profile.default_errno_ret().unwrap_or(1);
        for (arch, audit, bit) in [(Arch::X8664, X86_64, 0), (Arch::X86, X86, 0), (Arch::X32, X86_64, X32_BIT)] {
            let number = |name: &String| Call::find(name)?.number(arch);
            let last = calls.iter().flat_map(|call| call.names()).chain(&conditional).filter_map(number).max();
            let unclear: Vec<u32> = conditional.iter().filter_map(number).collect();
            for nr in (0..1200).map(|nr| nr | bit).filter(|nr| !unclear.contains(nr)) {
                let named =
                    |call: &&oci_spec::runtime::LinuxSyscall| call.names().iter().any(|name| number(name) == Some(nr));
                let beyond = if Some(nr) > last { RET_ENOSYS } else { default };
                let wanted = calls.iter().find(named).map_or(beyond, value);
                assert_eq!(run(&program, audit, nr, [0; 6]), wanted, "{arch:?} {nr:#x}");
            }
        }
    }

    /// A filter without TSYNC is the thread's own, so a test can be its own victim.
    #[test]
    fn the_kernel_follows_it() {
        let filter = compile(&profile(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86"],"syscalls":[
            {"names":["uname"],"action":"SCMP_ACT_ERRNO","errnoRet":95},
            {"names":["getpriority"],"action":"SCMP_ACT_ERRNO","errnoRet":71,
             "args":[{"index":0,"value":1,"op":"SCMP_CMP_GE"},{"index":1,"value":1,"op":"SCMP_CMP_EQ"}]}]}"#,
        ))
        .unwrap();
        std::thread::spawn(move || {
            rung_sys::process::set_no_new_privileges().unwrap();
            assert!(filter.install().unwrap().is_none());
            assert_eq!(nix::sys::utsname::uname().unwrap_err(), nix::errno::Errno::EOPNOTSUPP);
        })
        .join()
        .unwrap();
    }
}

#[test]
fn values_that_are_refused() {
    for (json, path) in [
        (r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#, "linux.seccomp.defaultAction"),
        (r#"{"defaultAction":"SCMP_ACT_ALLOW","defaultErrnoRet":1}"#, "linux.seccomp.defaultErrnoRet"),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_KILL","errnoRet":1}]}"#,
            "linux.seccomp.syscalls[0].errnoRet",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/s","syscalls":[{"names":["write"],"action":"SCMP_ACT_NOTIFY"}]}"#,
            "linux.seccomp.syscalls[0]",
        ),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_NOTIFY"}]}"#,
            "linux.seccomp.listenerPath",
        ),
        (r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerMetadata":"x"}"#, "linux.seccomp.listenerMetadata"),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_KILL",
            "args":[{"index":6,"value":1,"op":"SCMP_CMP_EQ"}]}]}"#,
            "linux.seccomp.syscalls[0].args[0].index",
        ),
    ] {
        assert_eq!(compile(&profile(json)).unwrap_err().path, path);
    }
}

#[test]
fn flags_are_those_of_the_profile() {
    let flags = |json: &str| {
        let filter = compile(&profile(json)).unwrap();
        (filter.flags, filter.optional_flags)
    };
    let kill = r#""syscalls":[{"names":["reboot"],"action":"SCMP_ACT_KILL"}]"#;
    assert_eq!(flags(&format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW",{kill}}}"#)), (0, seccomp::FLAG_SPEC_ALLOW));
    assert_eq!(flags(&format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","flags":[],{kill}}}"#)), (0, 0));
    let log = r#""flags":["SECCOMP_FILTER_FLAG_LOG","SECCOMP_FILTER_FLAG_TSYNC"]"#;
    let wanted = seccomp::FLAG_LOG | seccomp::FLAG_TSYNC;
    assert_eq!(flags(&format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW",{log},{kill}}}"#)), (wanted, 0));
}

#[test]
fn a_profile_that_allows_everything_is_no_filter() {
    assert!(compile(&profile(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#)).unwrap().is_empty());
}
