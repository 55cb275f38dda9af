//! The program is run here by a small interpreter and loaded into the kernel, whose verifier must accept it.

use super::*;

/// Runs `program` as the kernel would for one access.
fn run(program: &[Instruction], kind: u32, access: Access, major: u32, minor: u32) -> bool {
    let context = [u64::from(u32::from(access.0) << 16 | kind), major.into(), minor.into()];
    let mut registers = [0_u64; 11];
    let mut at = 0_usize;
    loop {
        let i = program[at];
        at += 1;
        let (to, from) = (usize::from(i.registers & 15), usize::from(i.registers >> 4));
        let k = i64::from(i.immediate).cast_unsigned();
        let mut jump = || at = at.wrapping_add_signed(isize::from(i.offset));
        match i.code {
            LOAD_WORD => registers[to] = context[usize::try_from(i.offset / 4).unwrap()],
            MOVE_K => registers[to] = k,
            MOVE_X => registers[to] = registers[from],
            AND_K => registers[to] &= k,
            SHIFT_RIGHT_K => registers[to] >>= k,
            JUMP_UNEQUAL_K if registers[to] & 0xffff_ffff != k & 0xffff_ffff => jump(),
            JUMP_UNEQUAL_K => {}
            JUMP_SET_K if registers[to] & k != 0 => jump(),
            JUMP_SET_K => {}
            JUMP_EQUAL_K if registers[to] & 0xffff_ffff == k & 0xffff_ffff => jump(),
            JUMP_EQUAL_K => {}
            JUMP => jump(),
            EXIT => return registers[0] == 1,
            other => panic!("unknown instruction {other:#x}"),
        }
    }
}

/// What the rules say, straight: each access for itself, the last rule that speaks about it decides.
fn expected(rules: &[Rule], kind: Kind, access: Access, major: u32, minor: u32) -> bool {
    [Access::MKNOD, Access::READ, Access::WRITE].into_iter().filter(|bit| access.meets(*bit)).all(|bit| {
        let concerns = |rule: &&Rule| {
            rule.access.meets(bit)
                && (rule.kind == Kind::All || rule.kind == kind)
                && rule.major.is_none_or(|n| n == major)
                && rule.minor.is_none_or(|n| n == minor)
        };
        rules.iter().rev().find(concerns).is_some_and(|rule| rule.allow)
    })
}

fn rule(allow: bool, kind: Kind, major: Option<u32>, minor: Option<u32>, access: u8) -> Rule {
    Rule { allow, kind, major, minor, access: Access(access) }
}

/// Every sequence of up to three of these rules, and what a container has.
fn samples() -> Vec<Vec<Rule>> {
    let some = [
        rule(false, Kind::All, None, None, 7),
        rule(true, Kind::All, None, None, 7),
        rule(true, Kind::Char, None, None, 7),
        rule(true, Kind::Char, None, None, 1),
        rule(true, Kind::Char, Some(1), Some(3), 7),
        rule(true, Kind::Char, Some(1), Some(5), 7),
        rule(true, Kind::Char, None, Some(3), 7),
        rule(false, Kind::Char, Some(1), Some(3), 7),
        rule(true, Kind::Char, Some(u32::MAX), Some(0x8000_0000), 2),
        rule(false, Kind::All, Some(5), None, 2),
        rule(true, Kind::Block, Some(1), None, 7),
        rule(true, Kind::Block, Some(1), Some(3), 6),
        rule(false, Kind::Block, Some(1), Some(3), 4),
    ];
    let mut samples = vec![vec![], default_rules()];
    for first in some {
        samples.push(vec![first]);
        for second in some {
            samples.push(vec![first, second]);
            samples.extend(some.map(|third| vec![first, second, third]));
        }
    }
    samples
}

/// What a container has that asks for nothing.
fn default_rules() -> Vec<Rule> {
    let all = |major, minor| rule(true, Kind::Char, Some(major), minor, 7);
    let mut rules = vec![
        rule(false, Kind::All, None, None, 7),
        rule(true, Kind::Char, None, None, 1),
        rule(true, Kind::Block, None, None, 1),
    ];
    rules.extend([(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (10, 200)].map(|(a, b)| all(a, Some(b))));
    rules.push(all(136, None));
    rules
}

#[test]
fn decides_as_the_rules_say() {
    let numbers = [0, 1, 3, 5, 136, 0x8000_0000, u32::MAX];
    for rules in samples() {
        let program = program(&rules);
        for kind in [Kind::Block, Kind::Char] {
            for access in 1..=7 {
                for (major, minor) in numbers.iter().flat_map(|major| numbers.map(|minor| (*major, minor))) {
                    let found = run(&program, kind.number().unwrap(), Access(access), major, minor);
                    let wanted = expected(&rules, kind, Access(access), major, minor);
                    assert_eq!(found, wanted, "{rules:?}: {kind:?} {access} {major}:{minor}");
                }
            }
        }
    }
}

#[test]
fn more_rules_than_a_jump_can_pass() {
    let rules: Vec<Rule> = (0..20_000).map(|minor| rule(true, Kind::Char, Some(1), Some(minor), 7)).collect();
    let program = program(&rules);
    for (minor, allowed) in [(0, true), (4095, true), (4096, true), (19_999, true), (20_000, false)] {
        assert_eq!(run(&program, 2, Access::READ, 1, minor), allowed, "{minor}");
        assert!(!run(&program, 2, Access::READ, 2, minor), "{minor}");
    }
}

#[test]
fn what_a_container_has_is_a_short_program() {
    assert!(program(&default_rules()).len() <= 40, "{:#?}", program(&default_rules()));
}

#[test]
fn the_verifier_accepts_it() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    for rules in samples() {
        let program = program(&rules);
        if let Err(e) = super::super::load_device_program(&program) {
            // A host without BPF, or a sandbox that forbids it, says nothing about the program.
            assert!(e.is(&[libc::EPERM, libc::ENOSYS]), "{rules:?}: {e}");
        }
    }
}
