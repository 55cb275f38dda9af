//! The program is run here by a small interpreter and loaded into the kernel, whose verifier must accept it.

use super::*;

/// Runs `program` as the kernel would for one access.
fn run(program: &[Instruction], kind: i32, access: Access, major: u32, minor: u32) -> bool {
    let context = [u64::from(u32::from(access.0) << 16 | kind.unsigned_abs()), major.into(), minor.into()];
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

fn samples() -> Vec<Vec<Rule>> {
    let deny_all = rule(false, Kind::All, None, None, 7);
    let allow_all = rule(true, Kind::All, None, None, 7);
    let null = rule(true, Kind::Char, Some(1), Some(3), 7);
    let disks = rule(true, Kind::Block, Some(8), None, 6);
    let no_write = rule(false, Kind::Block, Some(8), Some(1), 4);
    let nodes = rule(true, Kind::Char, None, None, 1);
    let huge = rule(true, Kind::Char, Some(u32::MAX), Some(0x8000_0000), 2);
    vec![
        vec![],
        vec![deny_all],
        vec![allow_all],
        vec![deny_all, null, nodes],
        vec![null, deny_all],
        vec![allow_all, no_write],
        vec![deny_all, disks, no_write, nodes, huge],
        vec![rule(false, Kind::All, Some(5), None, 2), allow_all, rule(false, Kind::All, Some(5), None, 2)],
    ]
}

#[test]
fn decides_as_the_rules_say() {
    let numbers = [0, 1, 3, 5, 8, 0x8000_0000, u32::MAX];
    for rules in samples() {
        let program = program(&rules);
        for (kind, number) in [(Kind::Block, TYPE_BLOCK), (Kind::Char, TYPE_CHAR)] {
            for access in 1..=7 {
                for major in numbers {
                    for minor in numbers {
                        let found = run(&program, number, Access(access), major, minor);
                        let wanted = expected(&rules, kind, Access(access), major, minor);
                        assert_eq!(found, wanted, "{rules:?}: {kind:?} {access} {major}:{minor}");
                    }
                }
            }
        }
    }
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
