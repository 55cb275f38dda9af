//! Content digests: `algorithm:hex`, and the hashing that makes and checks them.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256, Sha512};

/// A hash function that content may be named by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256, which every registry uses.
    Sha256,
    /// SHA-512, which the OCI image specification registers too.
    Sha512,
}

impl Algorithm {
    /// The name before the colon.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// How many hex digits follow the colon.
    pub const fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }

    fn of_name(name: &str) -> Option<Self> {
        [Self::Sha256, Self::Sha512].into_iter().find(|algorithm| algorithm.as_str() == name)
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A well-formed digest of an algorithm we can check.
///
/// The text is safe as a path component pair: an algorithm name and lower-case hex, nothing else.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    text: Box<str>,
}

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDigest {
    /// No colon.
    #[error("digest {0:?} is not algorithm:hex")]
    Shape(String),
    /// An algorithm we cannot check content against.
    #[error("digest {0:?} has an unsupported algorithm; sha256 and sha512 are supported")]
    Algorithm(String),
    /// Wrong number of digits, or something that is not a lower-case hex digit.
    #[error("digest {text:?} must have {expected} lower-case hex digits after the colon")]
    Hex {
        /// The whole text.
        text: String,
        /// Digits of its algorithm.
        expected: usize,
    },
}

impl Digest {
    /// Parses `algorithm:hex`.
    ///
    /// # Errors
    /// Says which part is malformed or unsupported.
    pub fn parse(text: &str) -> Result<Self, InvalidDigest> {
        let shown = || text.chars().take(160).collect::<String>();
        let (name, hex) = text.split_once(':').ok_or_else(|| InvalidDigest::Shape(shown()))?;
        let algorithm = Algorithm::of_name(name).ok_or_else(|| InvalidDigest::Algorithm(shown()))?;
        let is_hex = hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if hex.len() != algorithm.hex_len() || !is_hex {
            return Err(InvalidDigest::Hex { text: shown(), expected: algorithm.hex_len() });
        }
        Ok(Self { algorithm, text: text.into() })
    }

    /// The SHA-256 digest of `bytes`.
    pub fn of(bytes: impl AsRef<[u8]>) -> Self {
        Self::with(Algorithm::Sha256, bytes)
    }

    /// The digest of `bytes` by `algorithm`.
    pub fn with(algorithm: Algorithm, bytes: impl AsRef<[u8]>) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes.as_ref());
        hasher.finish()
    }

    /// Whether `bytes` are the content this digest names.
    pub fn verify(&self, bytes: impl AsRef<[u8]>) -> Result<(), Mismatch> {
        let mut hasher = self.hasher();
        hasher.update(bytes.as_ref());
        hasher.verify(self)
    }

    /// A hasher of this digest's algorithm.
    pub fn hasher(&self) -> Hasher {
        Hasher::new(self.algorithm)
    }

    /// The hash function.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The digits after the colon.
    pub fn hex(&self) -> &str {
        &self.text[self.algorithm.as_str().len() + 1..]
    }

    /// The first twelve digits, as people see it.
    pub fn short(&self) -> &str {
        &self.hex()[..12]
    }

    /// `algorithm:hex`.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Content that is not what its digest says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("content has digest {actual}, not {expected}")]
pub struct Mismatch {
    /// What it was said to be.
    pub expected: Digest,
    /// What it is.
    pub actual: Digest,
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl AsRef<str> for Digest {
    fn as_ref(&self) -> &str {
        &self.text
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// Hashes content as it streams past.
#[derive(Debug, Clone)]
pub struct Hasher(State);

#[derive(Debug, Clone)]
enum State {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    /// A hasher that has seen nothing yet.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
            Algorithm::Sha512 => State::Sha512(Sha512::new()),
        })
    }

    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(state) => state.update(bytes),
            State::Sha512(state) => state.update(bytes),
        }
    }

    /// The digest of everything added.
    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(state) => digest_of(Algorithm::Sha256, &state.finalize()),
            State::Sha512(state) => digest_of(Algorithm::Sha512, &state.finalize()),
        }
    }

    /// Whether everything added is what `expected` names.
    ///
    /// # Errors
    /// Shows both digests where they differ.
    pub fn verify(self, expected: &Digest) -> Result<(), Mismatch> {
        let actual = self.finish();
        if actual == *expected { Ok(()) } else { Err(Mismatch { expected: expected.clone(), actual }) }
    }
}

fn digest_of(algorithm: Algorithm, hash: &[u8]) -> Digest {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(algorithm.as_str().len() + 1 + hash.len() * 2);
    text.push_str(algorithm.as_str());
    text.push(':');
    for byte in hash {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    Digest { algorithm, text: text.into() }
}

/// Reads through to the content while hashing it; check with [`HashingReader::verify`] after the end.
#[derive(Debug)]
pub struct HashingReader<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> HashingReader<R> {
    /// Hashes what is read from `inner`.
    pub fn new(inner: R, algorithm: Algorithm) -> Self {
        Self { inner, hasher: Hasher::new(algorithm) }
    }

    /// Digest of the bytes read.
    pub fn finish(self) -> Digest {
        self.hasher.finish()
    }

    /// Whether the bytes read are what `expected` names.
    ///
    /// # Errors
    /// As [`Hasher::verify`].
    pub fn verify(self, expected: &Digest) -> Result<(), Mismatch> {
        self.hasher.verify(expected)
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn parses_and_shows() {
        let digest = Digest::parse(EMPTY).unwrap();
        assert_eq!(digest.to_string(), EMPTY);
        assert_eq!(digest.short(), "e3b0c44298fc");
        assert_eq!(digest, Digest::of(b""));
        let long = Digest::with(Algorithm::Sha512, b"abc");
        assert!(long.as_str().starts_with("sha512:ddaf35a193617aba"));
        assert_eq!(Digest::parse(long.as_str()), Ok(long));
    }

    #[test]
    fn refuses_what_could_escape_or_not_be_checked() {
        let upper = EMPTY.replace('e', "E");
        let short = &EMPTY[..EMPTY.len() - 1];
        for bad in ["", "sha256", "sha256:", "md5:00", "sha256:../../etc/passwd", upper.as_str(), short] {
            assert!(Digest::parse(bad).is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<Digest>("\"sha1:00\"").is_err());
    }

    #[test]
    fn streams_and_verifies() {
        let mut reader = HashingReader::new(&b"abc"[..], Algorithm::Sha256);
        io::copy(&mut reader, &mut io::sink()).unwrap();
        assert_eq!(reader.verify(&Digest::of(b"abc")), Ok(()));
        let error = Digest::of(b"abc").verify(b"abd").unwrap_err();
        assert_eq!(error.expected, Digest::of(b"abc"));
        assert_eq!(error.actual, Digest::of(b"abd"));
    }
}
