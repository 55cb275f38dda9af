//! Detach keys: the sequence that leaves a session without ending the process.

/// Finds a sequence of keys in typed input, wherever the input is cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetachKeys {
    sequence: Vec<u8>,
    /// How many keys of the sequence came last.
    seen: usize,
}

impl Default for DetachKeys {
    /// Ctrl-P, Ctrl-Q.
    fn default() -> Self {
        Self { sequence: vec![0x10, 0x11], seen: 0 }
    }
}

impl DetachKeys {
    /// Parses keys joined by commas: a character, or `ctrl-` with a letter or one of `@ [ \ ] ^ _`. Empty: no keys.
    ///
    /// # Errors
    /// Names the key that is not one.
    pub fn parse(text: &str) -> Result<Self, String> {
        let key = |key: &str| -> Result<u8, String> {
            let control = key.strip_prefix("ctrl-");
            match (control.unwrap_or(key).as_bytes(), control.is_some()) {
                (&[letter @ (b'a'..=b'z' | b'A'..=b'Z')], true) => Ok(letter.to_ascii_lowercase() - b'a' + 1),
                (&[sign @ b'@'], true) => Ok(sign - b'@'),
                (&[sign @ b'['..=b'_'], true) => Ok(sign - b'@'),
                (&[byte], false) if byte.is_ascii_graphic() => Ok(byte),
                _ => {
                    Err(format!("{key:?} is not a key; write a character or ctrl- and a letter, such as ctrl-p,ctrl-q"))
                }
            }
        };
        let keys = text.split(',').filter(|_| !text.is_empty());
        Ok(Self { sequence: keys.map(key).collect::<Result<_, _>>()?, seen: 0 })
    }

    /// Takes typed bytes and gives those to hand on; true where the sequence is complete. A beginning of the sequence
    /// is held back until the next key shows whether it goes on.
    pub fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len());
        for &byte in typed {
            while self.seen > 0 && self.sequence.get(self.seen) != Some(&byte) {
                // What was held back was not the beginning, but its tail may be one.
                let held = &self.sequence[..self.seen];
                let keep = (0..self.seen).rev().find(|keep| held.ends_with(&self.sequence[..*keep])).unwrap_or(0);
                passed.extend_from_slice(&held[..self.seen - keep]);
                self.seen = keep;
            }
            if self.sequence.get(self.seen) == Some(&byte) {
                self.seen += 1;
            } else {
                passed.push(byte);
            }
            if self.seen > 0 && self.seen == self.sequence.len() {
                return (passed, true);
            }
        }
        (passed, false)
    }

    /// What is still held back, for when input ends.
    pub fn rest(&mut self) -> Vec<u8> {
        self.sequence[..std::mem::take(&mut self.seen)].to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses() {
        assert_eq!(DetachKeys::parse("ctrl-p,ctrl-q"), Ok(DetachKeys::default()));
        assert_eq!(DetachKeys::parse("ctrl-[,a").unwrap().sequence, [27, b'a']);
        assert_eq!(DetachKeys::parse("ctrl-@").unwrap().sequence, [0]);
        assert!(DetachKeys::parse("").unwrap().sequence.is_empty());
        for bad in ["ctrl-", "ctrl-1", "ab", "a,,b", "é"] {
            assert!(DetachKeys::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn finds_the_sequence_across_cuts() {
        let mut keys = DetachKeys::default();
        assert_eq!(keys.filter(b"ls\n"), (b"ls\n".to_vec(), false));
        assert_eq!(keys.filter(b"a\x10"), (b"a".to_vec(), false));
        assert_eq!(keys.filter(b"b"), (b"\x10b".to_vec(), false));
        assert_eq!(keys.filter(b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(keys.filter(b"\x11rest"), (vec![], true));
        let mut keys = DetachKeys::default();
        keys.filter(b"\x10");
        assert_eq!(keys.rest(), b"\x10");
    }

    #[test]
    fn a_tail_may_begin_again() {
        let mut keys = DetachKeys::parse("a,a,b").unwrap();
        assert_eq!(keys.filter(b"aaab"), (b"a".to_vec(), true));
        let mut none = DetachKeys::parse("").unwrap();
        assert_eq!(none.filter(b"\x10\x11"), (b"\x10\x11".to_vec(), false));
    }
}
