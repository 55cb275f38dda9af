//! Our own certificates for registries that ask for one: of several that which the registry accepts.

use std::path::Path;
use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, InconsistentKeys, RootCertStore, SignatureScheme,
};
use rustls_platform_verifier::Verifier;

use super::transport::Tls;
use crate::error::{Doing, Error, Result};

/// What connections are made with where certificates of ours are configured: the HTTP client itself knows only one.
pub(super) fn config(tls: &Tls, provider: &Arc<CryptoProvider>) -> Result<ClientConfig> {
    let mut ours = Vec::new();
    for (certificate, key) in &tls.identities {
        let one = Offer::read(certificate, key, provider);
        ours.push(one.doing(|| format!("client certificate {}", certificate.display()))?);
    }
    let mut authorities = Vec::new();
    for path in &tls.authorities {
        authorities.extend(certificates(path).doing(|| format!("authority {}", path.display()))?);
    }
    let failed = |error: rustls::Error| Error::internal(format!("registry client: {error}"));
    let builder = ClientConfig::builder_with_provider(provider.clone());
    let builder = builder.with_safe_default_protocol_versions().map_err(failed)?;
    let builder = if tls.skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Unchecked(provider.clone())))
    } else {
        match Verifier::new_with_extra_roots(authorities, provider.clone()) {
            Ok(verifier) => builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)),
            Err(error) => {
                tracing::warn!(%error, "no authority is trusted, so HTTPS registries are refused; install ca-certificates");
                builder.with_root_certificates(RootCertStore::empty())
            }
        }
    };
    let mut config = builder.with_client_cert_resolver(Arc::new(Offers(ours)));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).doing(|| format!("read {}", path.display()))
}

/// The certificates in a file, of which there is at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    let all = all.map_err(|error| Error::invalid(error.to_string()))?;
    if all.is_empty() { Err(Error::invalid("there is no certificate in it")) } else { Ok(all) }
}

/// The certificates that we have, in the order of the configuration.
#[derive(Debug)]
struct Offers(Vec<Offer>);

#[derive(Debug)]
struct Offer {
    key: Arc<CertifiedKey>,
    /// Who issued it, and who issued what comes with it.
    issuers: Vec<Vec<u8>>,
}

impl Offer {
    fn read(certificate: &Path, key: &Path, provider: &CryptoProvider) -> Result<Self> {
        let chain = certificates(certificate)?;
        let invalid = |problem: &dyn std::fmt::Display| Error::invalid(format!("key {}: {problem}", key.display()));
        let secret = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|error| invalid(&error))?;
        let secret = provider.key_provider.load_private_key(secret).map_err(|error| invalid(&error))?;
        let issuers = chain.iter().filter_map(|one| issuer(one)).map(<[u8]>::to_vec).collect();
        let certified = CertifiedKey::new(chain, secret);
        // Other problems may be those of old certificates, which the registry may accept.
        match certified.keys_match() {
            Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
                Err(invalid(&"is another certificate's"))
            }
            _ => Ok(Self { key: Arc::new(certified), issuers }),
        }
    }
}

impl ResolvesClientCert for Offers {
    /// The first that the registry can check. Where it names no authorities, it may know any; where it names others than
    /// ours, a certificate would end what may go on without one.
    fn resolve(&self, accepted: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let is_known =
            |one: &Offer| accepted.is_empty() || one.issuers.iter().any(|name| accepted.contains(&&name[..]));
        let fits = |one: &&Offer| one.key.key.choose_scheme(schemes).is_some() && is_known(one);
        self.0.iter().find(fits).map(|one| one.key.clone())
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

/// The name of who issued a certificate, as the certificate has it: after a version, where it has one, a number and the
/// way it is signed.
fn issuer(certificate: &[u8]) -> Option<&[u8]> {
    const VERSION: u8 = 0xa0;
    let signed = Element::first(Element::first(certificate)?.inside)?;
    let mut at = Element::first(signed.inside)?;
    if at.whole.first() == Some(&VERSION) {
        at = Element::first(at.rest)?;
    }
    let algorithm = Element::first(at.rest)?;
    Some(Element::first(algorithm.rest)?.whole)
}

/// A part of a certificate: all of it, what is in it, and what follows it.
struct Element<'a> {
    whole: &'a [u8],
    inside: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Element<'a> {
    fn first(bytes: &'a [u8]) -> Option<Self> {
        let short = *bytes.get(1)?;
        let (start, length) = match short {
            ..=0x7f => (2, usize::from(short)),
            // The length of the length.
            0x81..=0x84 => {
                let end = 2 + usize::from(short & 0x7f);
                (end, bytes.get(2..end)?.iter().fold(0, |length, byte| (length << 8) | usize::from(*byte)))
            }
            _ => return None,
        };
        let end = start.checked_add(length)?;
        Some(Self { whole: bytes.get(..end)?, inside: bytes.get(start..end)?, rest: bytes.get(end..)? })
    }
}

/// Takes any certificate of a registry, where its configuration says so (`skip_verify`).
#[derive(Debug)]
struct Unchecked(Arc<CryptoProvider>);

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _others: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An element of `kind` around others.
    fn element(kind: u8, inside: &[&[u8]]) -> Vec<u8> {
        let inside = inside.concat();
        let length = u16::try_from(inside.len()).expect("length").to_be_bytes();
        [&[kind, 0x82], &length[..], &inside].concat()
    }

    #[test]
    fn the_issuer_comes_after_version_number_and_algorithm() {
        let name = element(0x30, &[&[0x31, 1, 7], &[0x13; 300][..]]);
        let (number, algorithm, rest) = ([2, 1, 9], element(0x30, &[]), [0x30, 0]);
        let certificate = |parts: &[&[u8]]| element(0x30, &[&element(0x30, parts), &[3, 0]]);
        let new = certificate(&[&[0xa0, 3, 2, 1, 2], &number, &algorithm, &name, &rest]);
        let old = certificate(&[&number, &algorithm, &name, &rest]);
        for certificate in [new, old] {
            assert_eq!(issuer(&certificate), Some(&name[..]));
            for end in 0..certificate.len() {
                assert!(issuer(&certificate[..end]).is_none());
            }
        }
        assert!(issuer(&[0x30, 0x85, 255, 255, 255, 255, 255, 0x30]).is_none());
        assert!(issuer(&[0x30, 0x80, 0x30, 0]).is_none());
    }
}
