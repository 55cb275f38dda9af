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
const EXIT: u8 = 0x95;

const TYPE_BLOCK: i32 = 1;
const TYPE_CHAR: i32 = 2;

const fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: source << 4 | destination, offset, immediate }
}

const fn answer(allow: bool) -> [Instruction; 2] {
    [instruction(MOVE_K, R0, 0, 0, allow as i32), instruction(EXIT, 0, 0, 0, 0)]
}

/// The program that follows `rules`.
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
    for rule in rules.iter().rev() {
        program.extend(one(rule));
        // Nothing before a rule about everything can matter; and the verifier refuses code that is never reached.
        if rule.kind == Kind::All && rule.major.is_none() && rule.minor.is_none() && rule.access == Access::ALL {
            program.extend(answer(rule.allow));
            return program;
        }
    }
    program.extend(answer(false));
    program
}

/// The instructions of one rule; each of its conditions jumps behind the last of them when it does not hold.
fn one(rule: &Rule) -> Vec<Instruction> {
    let mut conditions = Vec::with_capacity(3);
    match rule.kind {
        Kind::All => {}
        Kind::Block => conditions.push((KIND, TYPE_BLOCK)),
        Kind::Char => conditions.push((KIND, TYPE_CHAR)),
    }
    // Device numbers are compared as 32-bit patterns.
    conditions.extend(rule.major.map(|n| (MAJOR, n.cast_signed())));
    conditions.extend(rule.minor.map(|n| (MINOR, n.cast_signed())));

    let bits = i32::from(rule.access.0);
    let mut effect = Vec::with_capacity(6);
    if rule.kind == Kind::All && conditions.is_empty() && rule.access == Access::ALL {
        // `program` ends here with the answer.
    } else if rule.allow {
        effect.push(instruction(AND_K, UNDECIDED, 0, 0, !bits));
        effect.push(instruction(JUMP_SET_K, UNDECIDED, 0, 2, i32::from(Access::ALL.0)));
        effect.extend(answer(true));
    } else {
        effect.push(instruction(MOVE_X, SCRATCH, UNDECIDED, 0, 0));
        effect.push(instruction(AND_K, SCRATCH, 0, 0, bits));
        effect.push(instruction(JUMP_EQUAL_K, SCRATCH, 0, 2, 0));
        effect.extend(answer(false));
    }
    let mut code = Vec::with_capacity(conditions.len() + effect.len());
    let all = conditions.len() + effect.len();
    for (at, (register, value)) in conditions.into_iter().enumerate() {
        // At most nine instructions: the distance always fits.
        let behind = i16::try_from(all - at - 1).unwrap_or(i16::MAX);
        code.push(instruction(JUMP_UNEQUAL_K, register, 0, behind, value));
    }
    code.extend(effect);
    code
}

#[cfg(test)]
mod tests;
