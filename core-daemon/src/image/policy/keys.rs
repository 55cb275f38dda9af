//! Public keys, and what they sign.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer};

use crate::error::{Error, Kind, Result};

/// The ways of signing that keys of sigstore have: always over a SHA-256, but for Ed25519.
const ALGORITHMS: [&dyn SignatureVerificationAlgorithm; 4] = [
    webpki::ring::ECDSA_P256_SHA256,
    webpki::ring::ECDSA_P384_SHA256,
    webpki::ring::ED25519,
    webpki::ring::RSA_PKCS1_2048_8192_SHA256,
];

/// Tags of DER (X.690) that a key has.
const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;

/// A public key.
#[derive(Debug)]
pub(super) struct Key {
    algorithm: &'static dyn SignatureVerificationAlgorithm,
    bits: Vec<u8>,
}

impl Key {
    /// A key as PEM has it: the first in the text.
    ///
    /// # Errors
    /// `FailedPrecondition` where there is none, or one of another kind.
    pub(super) fn parse(pem: &[u8]) -> Result<Self> {
        let wrong = |text: &str| Error::new(Kind::FailedPrecondition, text);
        let whole = SubjectPublicKeyInfoDer::from_pem_slice(pem);
        let whole = whole.map_err(|error| wrong(&format!("not a public key in PEM: {error:?}")))?;
        let (kind, bits) = parts(&whole).ok_or_else(|| wrong("not a public key in PEM: malformed"))?;
        let algorithm = ALGORITHMS.into_iter().find(|known| known.public_key_alg_id().as_ref() == kind);
        let algorithm = algorithm.ok_or_else(|| wrong("must be a key of ECDSA (P-256, P-384), Ed25519 or RSA"))?;
        Ok(Self { algorithm, bits: bits.to_vec() })
    }

    /// The same, the text in base64, which may have line breaks.
    ///
    /// # Errors
    /// As [`Key::parse`].
    pub(super) fn parse_base64(text: &str) -> Result<Self> {
        let text: String = text.chars().filter(|sign| !matches!(sign, '\r' | '\n')).collect();
        let pem =
            STANDARD.decode(text).map_err(|error| Error::new(Kind::FailedPrecondition, format!("base64: {error}")))?;
        Self::parse(&pem)
    }

    /// The key itself.
    pub(super) fn bits(&self) -> &[u8] {
        &self.bits
    }

    /// Whether this key has signed `message`.
    pub(super) fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        self.algorithm.verify_signature(&self.bits, message, signature).is_ok()
    }
}

/// The kind of a key, and its bits (RFC 5280, section 4.1).
fn parts(key: &[u8]) -> Option<(&[u8], &[u8])> {
    let (whole, []) = element(SEQUENCE, key)? else { return None };
    let (kind, rest) = element(SEQUENCE, whole)?;
    match element(BIT_STRING, rest)? {
        // No bit of the last byte is left over.
        ([0, bits @ ..], []) => Some((kind, bits)),
        _ => None,
    }
}

/// The content of the first element, which must have `tag`, and what follows.
fn element(tag: u8, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = bytes.split_first()?;
    let (&short, mut rest) = rest.split_first()?;
    let mut length = usize::from(short);
    if short >= 0x80 {
        let (long, after) =
            rest.split_at_checked(usize::from(short & 0x7f)).filter(|(long, _)| matches!(long.len(), 1..=3))?;
        (length, rest) = (long.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), after);
    }
    (found == tag).then(|| rest.split_at_checked(length))?
}
