//! Device rules as an eBPF program.
//!
//! The kernel calls the program with `{ access << 16 | type, major, minor }` and asks whether to allow. The rules are
//! walked from the last to the first with the set of accesses that are still undecided: a denying rule that meets one
//! of them denies, an allowing rule takes its own out, and when none is left all are allowed. What no rule speaks
//! about is denied.

use std::fmt;

use super::Instruction;

/// What is done with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access(u8);

impl Access {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Making a node for it.
    pub const MKNOD: Self = Self(1);
    /// Reading from it.
    pub const READ: Self = Self(2);
    /// Writing to it.
    pub const WRITE: Self = Self(4);
    /// Everything.
    pub const ALL: Self = Self(7);

    /// Both sets.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// This set without the other.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether the two have something in common.
    #[must_use]
    pub const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// Which kind of device a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Both.
    All,
    /// Block devices.
    Block,
    /// Character devices.
    Char,
}

impl Kind {
    /// The kernel's number for it; `None` for both.
    const fn number(self) -> Option<u32> {
        match self {
            Self::All => None,
            Self::Block => Some(1),
            Self::Char => Some(2),
        }
    }
}

/// One rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Whether it allows or denies.
    pub allow: bool,
    /// The kind of device.
    pub kind: Kind,
    /// The major number; `None` for every one.
    pub major: Option<u32>,
    /// The minor number; `None` for every one.
    pub minor: Option<u32>,
    /// What it allows or denies.
    pub access: Access,
}

impl Rule {
    /// Whether this rule is about every device that `other` is about.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        (self.kind == Kind::All || self.kind == other.kind)
            && (self.major.is_none() || self.major == other.major)
            && (self.minor.is_none() || self.minor == other.minor)
    }

    /// Whether nothing is left to decide about a device that this rule is about.
    fn settles(&self) -> bool {
        self.access == Access::ALL
    }

    fn is_about_everything(&self) -> bool {
        self.settles() && self.kind == Kind::All && self.major.is_none() && self.minor.is_none()
    }
}

/// As the files of v1 want it: `c 1:3 rwm`.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            Kind::All => return f.write_str("a"),
            Kind::Block => "b ",
            Kind::Char => "c ",
        })?;
        let number = |f: &mut fmt::Formatter<'_>, n: Option<u32>| match n {
            Some(n) => write!(f, "{n}"),
            None => f.write_str("*"),
        };
        number(f, self.major)?;
        f.write_str(":")?;
        number(f, self.minor)?;
        f.write_str(" ")?;
        for (access, letter) in [(Access::READ, "r"), (Access::WRITE, "w"), (Access::MKNOD, "m")] {
            if self.access.meets(access) {
                f.write_str(letter)?;
            }
        }
        Ok(())
    }
}

// Registers: the context, and what the program takes out of it. R0 is the answer.
const R0: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const UNDECIDED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

// Operations: class, operation and whether the operand is an immediate (K) or a register (X).
const LOAD_WORD: u8 = 0x61; // LDX | MEM | W
const MOVE_K: u8 = 0xb7; // ALU64 | MOV | K
const MOVE_X: u8 = 0xbf; // ALU64 | MOV | X
const AND_K: u8 = 0x57; // ALU64 | AND | K
const SHIFT_RIGHT_K: u8 = 0x77; // ALU64 | RSH | K
const JUMP_UNEQUAL_K: u8 = 0x56; // JMP32 | JNE | K: device numbers above 2^31 must not be sign-extended
const JUMP_EQUAL_K: u8 = 0x16; // JMP32 | JEQ | K
const JUMP_SET_K: u8 = 0x45; // JMP | JSET | K
const JUMP: u8 = 0x05; // JMP | JA
const EXIT: u8 = 0x95;

const fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: source << 4 | destination, offset, immediate }
}

const fn answer(allow: bool) -> [Instruction; 2] {
    [instruction(MOVE_K, R0, 0, 0, allow as i32), instruction(EXIT, 0, 0, 0, 0)]
}

/// Rules that are walked together at most, so that no jump is too far.
const TOGETHER: usize = 4096;
/// The distance of a jump to the answer, until that is known.
const TO_ANSWER: i16 = i16::MIN;

/// The program that follows `rules`.
///
/// It is kept short: the kernel's verifier follows every branch, and does so at each start of a container.
#[must_use]
pub fn program(rules: &[Rule]) -> Vec<Instruction> {
    let mut program = vec![
        instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(MOVE_X, UNDECIDED, KIND, 0, 0),
        instruction(AND_K, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT_K, UNDECIDED, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    let alike = |one: &Rule, other: &Rule| one.settles() && other.settles() && one.allow == other.allow;
    for rules in rules.chunk_by(alike).rev().flat_map(|rules| rules.rchunks(TOGETHER)) {
        match rules {
            // Nothing before a rule about everything can matter; and the verifier refuses code that is never reached.
            [.., rule] if rules.iter().any(Rule::is_about_everything) => {
                program.extend(answer(rule.allow));
                return program;
            }
            [rule] if !rule.settles() => program.extend(one(rule)),
            rules => program.extend(together(rules)),
        }
    }
    program.extend(answer(false));
    program
}

/// The instructions of rules that all settle what they are about, and alike, so that their order does not matter: each
/// kind and each major number is compared once.
fn together(rules: &[Rule]) -> Vec<Instruction> {
    let mut rules: Vec<&Rule> = rules.iter().collect();
    // What is about every number comes first.
    rules.sort_by_key(|rule| (rule.kind.number(), rule.major, rule.minor));
    let mut code = Vec::with_capacity(2 * rules.len() + 8);
    for of_kind in rules.chunk_by(|one, other| one.kind == other.kind) {
        let begin = code.len();
        for of_major in of_kind.chunk_by(|one, other| one.major == other.major) {
            match (of_major[0].major, of_major[0].minor) {
                (None, None) => {
                    code.push(instruction(JUMP, 0, 0, TO_ANSWER, 0));
                    break;
                }
                (Some(major), None) => code.push(jump(JUMP_EQUAL_K, MAJOR, major, TO_ANSWER)),
                (major, Some(_)) => {
                    code.extend(major.map(|major| jump(JUMP_UNEQUAL_K, MAJOR, major, distance(of_major.len()))));
                    let minors = of_major.iter().filter_map(|rule| rule.minor);
                    code.extend(minors.map(|minor| jump(JUMP_EQUAL_K, MINOR, minor, TO_ANSWER)));
                }
            }
        }
        if let Some(number) = of_kind[0].kind.number() {
            let behind = distance(code.len() - begin);
            code.insert(begin, jump(JUMP_UNEQUAL_K, KIND, number, behind));
        }
    }
    code.push(instruction(JUMP, 0, 0, 2, 0));
    let length = code.len();
    for (at, instruction) in code.iter_mut().enumerate().filter(|(_, it)| it.offset == TO_ANSWER) {
        instruction.offset = distance(length - at - 1);
    }
    code.extend(answer(rules[0].allow));
    code
}

/// A jump for the case that a register has, or has not, this number. Numbers are compared as 32-bit patterns.
const fn jump(code: u8, register: u8, number: u32, offset: i16) -> Instruction {
    instruction(code, register, 0, offset, number.cast_signed())
}

/// Instructions to jump over: never more than [`TOGETHER`] rules have.
fn distance(instructions: usize) -> i16 {
    i16::try_from(instructions).unwrap_or(i16::MAX)
}

/// The instructions of a rule about some accesses; each of its conditions jumps behind the last of them when it does not
/// hold.
fn one(rule: &Rule) -> Vec<Instruction> {
    let mut conditions = Vec::with_capacity(3);
    conditions.extend(rule.kind.number().map(|n| (KIND, n)));
    conditions.extend(rule.major.map(|n| (MAJOR, n)));
    conditions.extend(rule.minor.map(|n| (MINOR, n)));

    let bits = i32::from(rule.access.0);
    let mut effect = Vec::with_capacity(6);
    if rule.allow {
        effect.push(instruction(AND_K, UNDECIDED, 0, 0, !bits));
        effect.push(instruction(JUMP_SET_K, UNDECIDED, 0, 2, i32::from(Access::ALL.0)));
    } else {
        effect.push(instruction(MOVE_X, SCRATCH, UNDECIDED, 0, 0));
        effect.push(instruction(AND_K, SCRATCH, 0, 0, bits));
        effect.push(instruction(JUMP_EQUAL_K, SCRATCH, 0, 2, 0));
    }
    effect.extend(answer(rule.allow));
    let mut code = Vec::with_capacity(conditions.len() + effect.len());
    let all = conditions.len() + effect.len();
    for (at, (register, number)) in conditions.into_iter().enumerate() {
        code.push(jump(JUMP_UNEQUAL_K, register, number, distance(all - at - 1)));
    }
    code.extend(effect);
    code
}

#[cfg(test)]
mod tests;
