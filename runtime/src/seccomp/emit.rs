//! BPF from ranges of call numbers: the architecture, then a binary search over the ranges, then the conditions of the
//! one call that was found. A profile of 350 calls is some 100 ranges: seven comparisons, whatever the call.
//!
//! A filter may only look at the number and the architecture on the way to an answer without conditions; then the
//! kernel (since 5.11) notices that the answer is always the same and does not run the filter for that call at all.

use rung_sys::seccomp::Instruction;

use super::arch::{Arch, X32_BIT};
use super::compile::{Condition, Test};

/// The answer to the calls of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Leaf {
    Answer(u32),
    Rules { rules: Vec<(Vec<Condition>, u32)>, otherwise: u32 },
}

/// The calls from `start` up to the next range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u32,
    pub(super) leaf: Leaf,
}

/// The filter of one architecture.
#[derive(Debug, Clone)]
pub(super) struct Section {
    pub(super) arch: Arch,
    pub(super) ranges: Vec<Range>,
}

// `struct seccomp_data`: number, architecture, instruction pointer, six arguments.
const AT_NUMBER: u32 = 0;
const AT_ARCH: u32 = 4;
const AT_ARGUMENTS: u32 = 16;

const LOAD: u16 = 0x20; // LD | W | ABS
const AND: u16 = 0x54; // ALU | AND | K
const JUMP: u16 = 0x05; // JMP | JA
const JUMP_EQUAL: u16 = 0x15; // JMP | JEQ | K
const JUMP_GREATER: u16 = 0x25; // JMP | JGT | K
const JUMP_GREATER_EQUAL: u16 = 0x35; // JMP | JGE | K
const RETURN: u16 = 0x06; // RET | K

const fn plain(code: u16, operand: u32) -> Instruction {
    Instruction { code, when_true: 0, when_false: 0, operand }
}

const fn branch(code: u16, operand: u32, when_true: u8, when_false: u8) -> Instruction {
    Instruction { code, when_true, when_false, operand }
}

/// The whole program. `foreign` answers calls of an architecture that no section is for.
pub(super) fn program(sections: &[Section], foreign: u32) -> Vec<Instruction> {
    let mut program = vec![plain(LOAD, AT_ARCH)];
    for section in sections.iter().filter(|section| section.arch != Arch::X32) {
        let body = body(section, sections, foreign);
        program.push(branch(JUMP_EQUAL, section.arch.audit(), 1, 0));
        program.push(plain(JUMP, length(&body)));
        program.extend(body);
    }
    // A profile for x32 alone: x86-64 is not the native architecture, and stays foreign.
    if let Some(x32) = alone(sections) {
        let mut body = vec![plain(LOAD, AT_NUMBER), branch(JUMP_GREATER_EQUAL, X32_BIT, 1, 0), plain(RETURN, foreign)];
        body.extend(search(&x32.ranges, x32.arch));
        program.push(branch(JUMP_EQUAL, x32.arch.audit(), 1, 0));
        program.push(plain(JUMP, length(&body)));
        program.extend(body);
    }
    program.push(plain(RETURN, foreign));
    program
}

fn alone(sections: &[Section]) -> Option<&Section> {
    let x86_64 = sections.iter().any(|section| section.arch == Arch::X8664);
    sections.iter().find(|section| section.arch == Arch::X32 && !x86_64)
}

/// The part for one architecture; it never runs on into what follows.
fn body(section: &Section, sections: &[Section], foreign: u32) -> Vec<Instruction> {
    let mut body = vec![plain(LOAD, AT_NUMBER)];
    if section.arch == Arch::X8664 {
        // x32 shows the same architecture and is told apart by a bit of the number. The number -1 has the bit too:
        // a tracer writes it to have a call skipped, so it is left to the search.
        let x32 = sections.iter().find(|other| other.arch == Arch::X32);
        let other = x32.map_or_else(|| vec![plain(RETURN, foreign)], |found| search(&found.ranges, found.arch));
        body.push(branch(JUMP_GREATER_EQUAL, X32_BIT, 0, 1));
        body.push(branch(JUMP_EQUAL, u32::MAX, 0, 1));
        body.push(plain(JUMP, length(&other)));
        body.extend(other);
    }
    body.extend(search(&section.ranges, section.arch));
    body
}

/// A binary search over `ranges`, of which there is at least one.
fn search(ranges: &[Range], arch: Arch) -> Vec<Instruction> {
    if let [only] = ranges {
        return answer(&only.leaf, arch);
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let (left, right) = (search(low, arch), search(high, arch));
    let mut code = Vec::with_capacity(left.len() + right.len() + 2);
    match u8::try_from(left.len()) {
        Ok(distance) => code.push(branch(JUMP_GREATER_EQUAL, high[0].start, distance, 0)),
        Err(_) => {
            code.push(branch(JUMP_GREATER_EQUAL, high[0].start, 0, 1));
            code.push(plain(JUMP, length(&left)));
        }
    }
    code.extend(left);
    code.extend(right);
    code
}

fn answer(leaf: &Leaf, arch: Arch) -> Vec<Instruction> {
    match leaf {
        Leaf::Answer(value) => vec![plain(RETURN, *value)],
        Leaf::Rules { rules, otherwise } => {
            let mut code = Vec::new();
            for (conditions, value) in rules {
                code.extend(rule(conditions, *value, arch));
            }
            code.push(plain(RETURN, *otherwise));
            code
        }
    }
}

/// Returns `value` when all conditions hold, and otherwise runs on behind its own end.
fn rule(conditions: &[Condition], value: u32, arch: Arch) -> Vec<Instruction> {
    let mut parts: Vec<Vec<Instruction>> = vec![vec![plain(RETURN, value)]];
    let mut behind = 1;
    for condition in conditions.iter().rev() {
        let part = check(condition, behind, arch);
        behind += part.len();
        parts.push(part);
    }
    parts.into_iter().rev().flatten().collect()
}

/// Runs on when the condition holds, else skips what follows it: `behind` instructions more.
fn check(condition: &Condition, behind: usize, arch: Arch) -> Vec<Instruction> {
    // Six conditions of at most seven instructions: far below the 255 of a conditional jump.
    let away = |extra: usize| u8::try_from(behind + extra).unwrap_or(u8::MAX);
    let base = AT_ARGUMENTS + 8 * condition.argument;
    let (low_at, high_at) = if arch.big_endian() { (base + 4, base) } else { (base, base + 4) };
    let (low, high) = (plain(LOAD, low_at), plain(LOAD, high_at));
    let wide = arch.wide();
    match condition.test {
        Test::Equal(value) => equal(low, high, halves(value), None, wide, &away),
        Test::Masked { mask, value } => equal(low, high, halves(value), Some(halves(mask)), wide, &away),
        Test::NotEqual(value) => {
            let (upper, lower) = halves(value);
            let mut code = Vec::with_capacity(4);
            if wide {
                // A different upper half is enough.
                code.extend([high, branch(JUMP_EQUAL, upper, 0, 2)]);
            }
            code.extend([low, branch(JUMP_EQUAL, lower, away(0), 0)]);
            code
        }
        Test::Greater(value) => ordered(low, high, JUMP_GREATER, value, wide, true, &away),
        Test::GreaterEqual(value) => ordered(low, high, JUMP_GREATER_EQUAL, value, wide, true, &away),
        Test::Less(value) => ordered(low, high, JUMP_GREATER_EQUAL, value, wide, false, &away),
        Test::LessEqual(value) => ordered(low, high, JUMP_GREATER, value, wide, false, &away),
    }
}

/// The upper and the lower half of a value.
fn halves(value: u64) -> (u32, u32) {
    // Both casts keep exactly their half.
    #[allow(clippy::cast_possible_truncation)]
    ((value >> 32) as u32, value as u32)
}

type Away<'a> = &'a dyn Fn(usize) -> u8;

fn equal(
    low: Instruction,
    high: Instruction,
    (upper, lower): (u32, u32),
    mask: Option<(u32, u32)>,
    wide: bool,
    away: Away<'_>,
) -> Vec<Instruction> {
    let mut second = vec![low];
    second.extend(mask.map(|(_, lower_mask)| plain(AND, lower_mask)));
    second.push(branch(JUMP_EQUAL, lower, 0, away(0)));
    if !wide {
        return second;
    }
    let mut code = vec![high];
    code.extend(mask.map(|(upper_mask, _)| plain(AND, upper_mask)));
    code.push(branch(JUMP_EQUAL, upper, 0, away(second.len())));
    code.extend(second);
    code
}

/// Tests `argument > value` or `argument >= value`, by `jump`, and holds when that is so, or is not (`wanted`).
fn ordered(
    low: Instruction,
    high: Instruction,
    jump: u16,
    value: u64,
    wide: bool,
    wanted: bool,
    away: Away<'_>,
) -> Vec<Instruction> {
    let (upper, lower) = halves(value);
    let last = if wanted { branch(jump, lower, 0, away(0)) } else { branch(jump, lower, away(0), 0) };
    if !wide {
        return vec![low, last];
    }
    // A greater upper half decides, a smaller one too; only equal ones leave it to the lower half.
    let greater = if wanted { branch(JUMP_GREATER, upper, 3, 0) } else { branch(JUMP_GREATER, upper, away(3), 0) };
    let smaller = if wanted { branch(JUMP_EQUAL, upper, 0, away(2)) } else { branch(JUMP_EQUAL, upper, 0, 2) };
    vec![high, greater, smaller, low, last]
}

fn length(code: &[Instruction]) -> u32 {
    // Far below 2^32: the caller refuses what is longer than 4096.
    u32::try_from(code.len()).unwrap_or(u32::MAX)
}
