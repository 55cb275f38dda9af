//! Changes of inputs, from a generator that begins where it is told to.

/// A xorshift generator: the same numbers from the same seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `limit`, 0 where there is none.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % (limit.max(1) as u64)).unwrap_or(0)
    }
}

/// What often means something: separators, limits, ways up and out.
const WORDS: &[&[u8]] = &[
    b"\0",
    b"/",
    b"..",
    b"../",
    b"//",
    b"/proc/self/root",
    b".wh.",
    b".wh..wh..opq",
    b"\xff\xff\xff\xff",
    b"\x80\0\0\0",
    b"77777777777",
    b"00000000000",
    b"-1",
    b"9223372036854775807",
    b"18446744073709551616",
    b"=",
    b"\"",
    b",",
    b":",
    b"@",
    b"sha256:",
    b"{",
    b"}",
    b"[",
    b"]",
    b"null",
    b"\\u0000",
    b"Bearer",
    b"Basic",
    b"realm",
    b"\n",
    b"\x1f\x8b\x08",
    b"\x28\xb5\x2f\xfd",
    b"GNU.sparse.map",
    b"SCHILY.xattr.",
    b"ustar",
];

/// One input of the corpus with a few changes, sometimes begun with one and ended with another.
pub(crate) fn change(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut input = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(6) {
        let other = random.below(corpus.len());
        one(random, &mut input, &corpus[other]);
    }
    input.truncate(1 << 20);
    input
}

fn one(random: &mut Random, input: &mut Vec<u8>, other: &[u8]) {
    let at = random.below(input.len() + 1);
    let end = at + random.below((input.len() - at).min(1024) + 1);
    match random.below(9) {
        0 if at < input.len() => input[at] ^= 1 << random.below(8),
        1 if at < input.len() => input[at] = u8::try_from(random.below(256)).unwrap_or(0),
        2 => drop(input.drain(at..end)),
        3 => input.truncate(at),
        4 => {
            let word = WORDS[random.below(WORDS.len())];
            drop(input.splice(at..at, word.iter().copied()));
        }
        5 => {
            let word = WORDS[random.below(WORDS.len())];
            let end = (at + word.len()).min(input.len());
            drop(input.splice(at..end, word.iter().copied()));
        }
        6 => {
            let again: Vec<u8> = input[at..end].to_vec();
            drop(input.splice(at..at, again));
        }
        7 => {
            // Whole blocks change places, so that archives stay archives.
            let (blocks, from, to) =
                (input.len() / 512, random.below(input.len() / 512), random.below(other.len() / 512));
            if blocks > 0 && other.len() >= 512 {
                let block: Vec<u8> = other[to * 512..][..512].to_vec();
                input[from * 512..][..512].copy_from_slice(&block);
            }
        }
        _ => {
            let from = random.below(other.len() + 1);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
    }
}
