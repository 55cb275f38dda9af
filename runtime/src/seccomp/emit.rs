//! BPF from ranges of call numbers: the architecture, then a binary search over the ranges, then the conditions of the
//! one call that was found. Most ranges are a single call between others that are all answered alike, which is compared
//! last instead of dividing them. A profile of 350 calls needs some ten comparisons, whatever the call.
//!
//! x32 calls have the numbers of x86-64 with a bit set, but for some: only what is answered differently is searched for.
//!
//! A filter may only look at the number and the architecture on the way to an answer without conditions; then the
//! kernel (since 5.11) notices that the answer is always the same and does not run the filter for that call at all.
//!
//! What the kernel takes to check and translate a filter grows with its length, so an answer is written once for all
//! who can reach it.

use rung_sys::seccomp::Instruction;

use super::arch::{Arch, X32_BIT};
use super::compile::{Condition, Test};

/// The answer to the calls of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Leaf<'a> {
    Answer(u32),
    Rules { rules: Vec<Rule<'a>>, otherwise: u32 },
}

/// Conditions that must all hold, and the answer then.
pub(super) type Rule<'a> = (&'a [Condition], u32);

/// The calls from `start` up to the next range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Range<'a> {
    pub(super) start: u32,
    pub(super) leaf: Leaf<'a>,
}

/// The filter of one architecture. There is at least one range.
#[derive(Debug, Clone)]
pub(super) struct Section<'a> {
    pub(super) arch: Arch,
    pub(super) ranges: Vec<Range<'a>>,
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
const JUMP_ANY_BIT: u16 = 0x45; // JMP | JSET | K
const RETURN: u16 = 0x06; // RET | K

/// The whole program. `foreign` answers calls of an architecture that no section is for.
pub(super) fn program(sections: &[Section<'_>], foreign: u32) -> Vec<Instruction> {
    let mut writer = Writer { code: Vec::with_capacity(1024), answers: Vec::new() };
    let mut next = Target::Answer(foreign);
    for section in sections.iter().rev().filter(|section| section.arch != Arch::X32) {
        let body = writer.body(section, sections, foreign);
        next = writer.branch(JUMP_EQUAL, section.arch.audit(), body, next);
    }
    writer.load(AT_ARCH, next);
    writer.code.reverse();
    writer.code
}

/// What is found for a number; nothing where the search goes on elsewhere.
type Place<'a> = Option<&'a Leaf<'a>>;

/// The numbers from `start` up to the next span.
#[derive(Debug)]
struct Span<'a> {
    start: u32,
    leaf: Place<'a>,
    /// Those that have another answer.
    single: Vec<(u32, Place<'a>)>,
}

/// Ranges with the single numbers between two that are alike taken out.
fn spans<'a>(ranges: impl Iterator<Item = (u32, Place<'a>)>) -> Vec<Span<'a>> {
    let mut spans: Vec<Span<'a>> = Vec::with_capacity(128);
    for (start, leaf) in ranges {
        match &mut spans[..] {
            [.., last] if last.leaf == leaf => continue,
            [.., before, last] if before.leaf == leaf && last.start + 1 == start && last.single.is_empty() => {
                before.single.push((last.start, last.leaf));
                spans.pop();
            }
            _ => spans.push(Span { start, leaf, single: Vec::new() }),
        }
    }
    spans
}

/// What a jump leads to.
#[derive(Debug, Clone, Copy)]
enum Target {
    /// Any instruction that gives this answer.
    Answer(u32),
    /// The instruction that was written as the n-th, counted from zero.
    At(usize),
}

/// Writes a program from its end to its beginning. Jumps lead forward only, so what one leads to is there already.
#[derive(Debug)]
struct Writer {
    code: Vec<Instruction>,
    /// The answers, and where each was last written.
    answers: Vec<(u32, usize)>,
}

impl Writer {
    /// The part for one architecture.
    fn body(&mut self, section: &Section<'_>, sections: &[Section<'_>], foreign: u32) -> Target {
        let ranges = section.ranges.iter().map(|range| (range.start, Some(&range.leaf)));
        let mut start = self.search(&spans(ranges), COMMON, section.arch, Target::Answer(foreign));
        if section.arch == Arch::X8664 {
            // x32 shows the same architecture and is told apart by a bit of the number. The number -1 has the bit too:
            // a tracer writes it to have a call skipped, so it is left to the search.
            let found = sections.iter().find(|other| other.arch == Arch::X32);
            let x32 = found.map_or(Target::Answer(foreign), |found| self.difference(&found.ranges, section, start));
            let marked = self.branch(JUMP_EQUAL, u32::MAX, start, x32);
            start = self.branch(JUMP_GREATER_EQUAL, X32_BIT, marked, start);
        }
        self.load(AT_NUMBER, start)
    }

    /// The part for x32: where the answer is that of x86-64, it goes on there, at `start`.
    fn difference(&mut self, ranges: &[Range<'_>], native: &Section<'_>, start: Target) -> Target {
        let own: Vec<_> = ranges.iter().map(|range| (range.start & !X32_BIT, &range.leaf)).collect();
        let theirs: Vec<_> = native.ranges.iter().map(|range| (range.start, &range.leaf)).collect();
        let mut borders: Vec<u32> = own.iter().chain(&theirs).map(|(start, _)| *start).collect();
        borders.sort_unstable();
        borders.dedup();
        let at =
            |list: &[(u32, &'_ Leaf<'_>)], number| list.partition_point(|(start, _)| *start <= number).checked_sub(1);
        let different = borders.iter().map(|&number| {
            let (own, theirs) = (at(&own, number).map(|at| own[at].1), at(&theirs, number).map(|at| theirs[at].1));
            (number, own.filter(|_| own != theirs))
        });
        let body = self.search(&spans(different), COMMON, native.arch, start);
        self.follow(plain(AND, !X32_BIT), body)
    }

    /// A binary search over `spans` up to `end`, of which there is at least one. Those without a leaf lead to `elsewhere`.
    fn search(&mut self, spans: &[Span<'_>], end: u32, arch: Arch, elsewhere: Target) -> Target {
        if let [only] = spans {
            return self.span(&only.single, only.leaf, arch, elsewhere);
        }
        let (low, high) = spans.split_at(middle(spans, end));
        let border = high[0].start;
        let right = self.search(high, end, arch, elsewhere);
        let left = self.search(low, border, arch, elsewhere);
        self.branch(JUMP_GREATER_EQUAL, border, right, left)
    }

    /// The single numbers of a span, one after the other while they are few, and then its own answer.
    fn span(&mut self, single: &[(u32, Place<'_>)], rest: Place<'_>, arch: Arch, elsewhere: Target) -> Target {
        const FEW: usize = 3;
        if single.len() > FEW {
            let (low, high) = single.split_at(single.len() / 2);
            let right = self.span(high, rest, arch, elsewhere);
            let left = self.span(low, rest, arch, elsewhere);
            return self.branch(JUMP_GREATER_EQUAL, high[0].0, right, left);
        }
        let rest = self.place(rest, arch, elsewhere);
        single.iter().rev().fold(rest, |next, (number, place)| {
            let found = self.place(*place, arch, elsewhere);
            self.branch(JUMP_EQUAL, *number, found, next)
        })
    }

    fn place(&mut self, place: Place<'_>, arch: Arch, elsewhere: Target) -> Target {
        place.map_or(elsewhere, |leaf| self.leaf(leaf, arch))
    }

    fn leaf(&mut self, leaf: &Leaf<'_>, arch: Arch) -> Target {
        match leaf {
            Leaf::Answer(value) => Target::Answer(*value),
            Leaf::Rules { rules, otherwise } => self.rules(rules, *otherwise, arch),
        }
    }

    /// The first rule that holds decides. Neighbours that are about the same word load it once for all of them.
    fn rules(&mut self, rules: &[Rule<'_>], otherwise: u32, arch: Arch) -> Target {
        let alike = |one: &Rule<'_>, other: &Rule<'_>| {
            let word = |rule| Narrow::of(rule, arch).map(|test| (test.argument, test.beyond.is_some()));
            word(one).is_some_and(|found| word(other) == Some(found))
        };
        let groups = rules.chunk_by(alike).rev();
        groups.fold(Target::Answer(otherwise), |next, group| match Narrow::of(&group[0], arch) {
            Some(first) => self.narrow(group, first, arch, next),
            None => group.iter().rev().fold(next, |next, (conditions, value)| {
                let all = conditions.iter().rev();
                all.fold(Target::Answer(*value), |holds, condition| self.condition(*condition, arch, holds, next))
            }),
        })
    }

    /// Rules that are all about the word that the first is about.
    fn narrow(&mut self, rules: &[Rule<'_>], first: Narrow, arch: Arch, next: Target) -> Target {
        let tests = || rules.iter().filter_map(|rule| Some((Narrow::of(rule, arch)?, Target::Answer(rule.1))));
        let start = tests().rev().fold(next, |next, (test, answer)| {
            let (yes, no) = if test.holds { (answer, next) } else { (next, answer) };
            self.branch(test.jump, test.operand, yes, no)
        });
        let argument = Argument::of(first.argument, arch);
        let start = self.load(argument.low, start);
        let (Some(high), Some(_)) = (argument.high, first.beyond) else { return start };
        let beyond = tests().find(|(test, _)| test.beyond == Some(true)).map_or(next, |(_, answer)| answer);
        let start = self.branch(JUMP_EQUAL, 0, start, beyond);
        self.load(high, start)
    }

    /// Goes on at `yes` when the condition holds, else at `no`.
    fn condition(&mut self, condition: Condition, arch: Arch, yes: Target, no: Target) -> Target {
        let argument = Argument::of(condition.argument, arch);
        match condition.test {
            Test::Equal(value) => self.equal(argument, value, u64::MAX, yes, no),
            Test::NotEqual(value) => self.equal(argument, value, u64::MAX, no, yes),
            Test::Masked { mask, value } => self.equal(argument, value, mask, yes, no),
            Test::Greater(value) => self.ordered(argument, JUMP_GREATER, value, yes, no),
            Test::GreaterEqual(value) => self.ordered(argument, JUMP_GREATER_EQUAL, value, yes, no),
            Test::Less(value) => self.ordered(argument, JUMP_GREATER_EQUAL, value, no, yes),
            Test::LessEqual(value) => self.ordered(argument, JUMP_GREATER, value, no, yes),
        }
    }

    fn equal(&mut self, argument: Argument, value: u64, mask: u64, yes: Target, no: Target) -> Target {
        let ((upper, lower), (upper_mask, lower_mask)) = (halves(value), halves(mask));
        let same = self.equal_half(argument.low, lower, lower_mask, yes, no);
        argument.high.map_or(same, |high| self.equal_half(high, upper, upper_mask, same, no))
    }

    fn equal_half(&mut self, at: u32, value: u32, mask: u32, yes: Target, no: Target) -> Target {
        if mask == 0 {
            return if value == 0 { yes } else { no };
        }
        let mut start = self.branch(JUMP_EQUAL, value, yes, no);
        if mask != u32::MAX {
            start = self.push(plain(AND, mask));
        }
        self.load(at, start)
    }

    /// Tests `argument > value` or `argument >= value`, by `jump`.
    fn ordered(&mut self, argument: Argument, jump: u16, value: u64, yes: Target, no: Target) -> Target {
        let (upper, lower) = halves(value);
        let last = self.branch(jump, lower, yes, no);
        let start = self.load(argument.low, last);
        let Some(high) = argument.high else { return start };
        // A greater upper half decides, a smaller one too; only equal ones leave it to the lower half.
        let not_greater = self.branch(JUMP_EQUAL, upper, start, no);
        let start = self.branch(JUMP_GREATER, upper, yes, not_greater);
        self.load(high, start)
    }

    /// Loads a word of the call's data and goes on at `next`.
    fn load(&mut self, at: u32, next: Target) -> Target {
        self.follow(plain(LOAD, at), next)
    }

    /// An instruction that is no branch, and after it `next`.
    fn follow(&mut self, instruction: Instruction, next: Target) -> Target {
        match next {
            Target::At(position) if position + 1 == self.code.len() => {}
            Target::At(position) => drop(self.jump(position)),
            Target::Answer(value) => drop(self.answer(value)),
        }
        self.push(instruction)
    }

    fn branch(&mut self, code: u16, operand: u32, yes: Target, no: Target) -> Target {
        let (yes, no) = (self.near(yes), self.near(no));
        let (when_true, when_false) = (short(self.distance(yes)), short(self.distance(no)));
        self.push(Instruction { code, when_true, when_false, operand })
    }

    /// Where `target` can be reached by the short jump of a branch that is written next, or after one instruction more.
    fn near(&mut self, target: Target) -> usize {
        let reached = |position: usize| self.distance(position) < usize::from(u8::MAX);
        match target {
            Target::At(position) if reached(position) => position,
            Target::At(position) => self.jump(position),
            Target::Answer(value) => match self.answers.iter().find(|(known, _)| *known == value) {
                Some((_, position)) if reached(*position) => *position,
                _ => self.answer(value),
            },
        }
    }

    fn jump(&mut self, position: usize) -> usize {
        // The caller refuses what is longer than 4096.
        let distance = u32::try_from(self.distance(position)).unwrap_or(u32::MAX);
        self.code.push(plain(JUMP, distance));
        self.code.len() - 1
    }

    fn answer(&mut self, value: u32) -> usize {
        let position = self.code.len();
        self.code.push(plain(RETURN, value));
        match self.answers.iter_mut().find(|(known, _)| *known == value) {
            Some((_, last)) => *last = position,
            None => self.answers.push((value, position)),
        }
        position
    }

    fn push(&mut self, instruction: Instruction) -> Target {
        self.code.push(instruction);
        Target::At(self.code.len() - 1)
    }

    /// How many instructions the next one has to skip.
    fn distance(&self, position: usize) -> usize {
        self.code.len() - 1 - position
    }
}

/// Where the halves of an argument are; only the lower one counts on 32-bit architectures.
#[derive(Debug, Clone, Copy)]
struct Argument {
    low: u32,
    high: Option<u32>,
}

impl Argument {
    fn of(number: u32, arch: Arch) -> Self {
        let base = AT_ARGUMENTS + 8 * number;
        let (low, high) = if arch.big_endian() { (base + 4, base) } else { (base, base + 4) };
        Self { low, high: arch.wide().then_some(high) }
    }
}

/// A test that one comparison of the lower half of an argument decides, at least where the upper half is zero.
#[derive(Debug, Clone, Copy)]
struct Narrow {
    argument: u32,
    jump: u16,
    operand: u32,
    /// The test holds where the jump's comparison does, or where it does not.
    holds: bool,
    /// Whether the test holds where the upper half is not zero; `None` where the upper half does not matter.
    beyond: Option<bool>,
}

impl Narrow {
    fn of((conditions, _): &Rule<'_>, arch: Arch) -> Option<Self> {
        let &[Condition { argument, test }] = *conditions else { return None };
        let wide = arch.wide();
        let (jump, value, holds, beyond) = match test {
            Test::Equal(value) => (JUMP_EQUAL, value, true, false),
            Test::NotEqual(value) => (JUMP_EQUAL, value, false, true),
            Test::Greater(value) => (JUMP_GREATER, value, true, true),
            Test::GreaterEqual(value) => (JUMP_GREATER_EQUAL, value, true, true),
            Test::Less(value) => (JUMP_GREATER_EQUAL, value, false, false),
            Test::LessEqual(value) => (JUMP_GREATER, value, false, false),
            Test::Masked { mask, value } => {
                let ((_, lower), (upper_mask, mask)) = (halves(value), halves(mask));
                let narrow = mask != 0 && (!wide || (upper_mask == 0 && value <= u64::from(u32::MAX)));
                let simple = lower == 0 || (lower == mask && mask.is_power_of_two());
                let test = Self { argument, jump: JUMP_ANY_BIT, operand: mask, holds: lower != 0, beyond: None };
                return Some(test).filter(|_| narrow && simple);
            }
        };
        let (upper, operand) = halves(value);
        Some(Self { argument, jump, operand, holds, beyond: wide.then_some(beyond) }).filter(|_| !wide || upper == 0)
    }
}

/// Numbers from here on are not asked for when the kernel prepares a filter, and seldom by programs.
const COMMON: u32 = 512;

/// Where a search through `spans` up to `end` divides them, so that as many numbers are on one side as on the other.
fn middle(spans: &[Span<'_>], end: u32) -> usize {
    let starts = |at: usize| spans[at].start.min(COMMON);
    let half = u32::midpoint(starts(0), end.min(COMMON));
    let above = (1..spans.len() - 1).find(|at| starts(*at) >= half).unwrap_or(spans.len() - 1);
    let nearer = above > 1 && half.abs_diff(starts(above - 1)) < half.abs_diff(starts(above));
    if nearer { above - 1 } else { above }
}

const fn plain(code: u16, operand: u32) -> Instruction {
    Instruction { code, when_true: 0, when_false: 0, operand }
}

/// The distance of a branch to what [`Writer::near`] has found or made near.
fn short(distance: usize) -> u8 {
    u8::try_from(distance).unwrap_or(u8::MAX)
}

/// The upper and the lower half of a value.
fn halves(value: u64) -> (u32, u32) {
    #[allow(clippy::cast_possible_truncation, reason = "each cast keeps exactly its half")]
    ((value >> 32) as u32, value as u32)
}
