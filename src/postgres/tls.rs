//! What the `ssl*` parameters of a link mean for rustls, and the channel binding that SCRAM takes from a session.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256, Sha384, Sha512};

use super::link::{Roots, SslMode, TlsSettings};

/// A certificate, a key or the list of authorities could not be used. Found before anything is sent.
#[derive(Debug, thiserror::Error)]
pub enum CertificateFileError {
    /// A PEM file.
    #[error("{path} can't be read as a PEM file that holds a {content}")]
    File {
        /// Its path.
        path: PathBuf,
        /// What was looked for.
        content: &'static str,
        /// Why it was not found.
        source: rustls::pki_types::pem::Error,
    },
    /// The machine has no list of authorities.
    #[error(
        "this machine has no certificate authorities; install its ca-certificates, or name a file: sslrootcert=…"
    )]
    NoSystemRoots,
    /// Read, but not accepted.
    #[error("the certificates that the link names do not fit together")]
    Unusable {
        /// What rustls said.
        source: rustls::Error,
    },
}

/// How far a server's certificate is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    Nothing,
    Chain,
    ChainAndName,
}

/// Builds the client side of TLS for a link. Reads files: call it where blocking for a moment is fine.
///
/// # Errors
/// [`CertificateFileError`], which names the file.
pub(super) fn client_config(settings: &TlsSettings) -> Result<ClientConfig, CertificateFileError> {
    let unusable = |source| CertificateFileError::Unusable { source };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let check = match (settings.mode, &settings.roots) {
        (SslMode::VerifyFull, _) => Check::ChainAndName,
        (_, Roots::File(_) | Roots::System) => Check::Chain,
        (_, Roots::Unnamed) => Check::Nothing,
    };
    let roots = authorities(&settings.roots)?;
    let verifier = Verifier::new(Arc::clone(&provider), check, roots)?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match &settings.identity {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let chain = certificates(cert)?;
            let content = "private key without a password";
            let key = PrivateKeyDer::from_pem_file(key).map_err(|source| CertificateFileError::File {
                path: key.clone(),
                content,
                source,
            })?;
            builder.with_client_auth_cert(chain, key).map_err(unusable)?
        }
    };
    // Required by `sslnegotiation=direct`, ignored by servers that do not know it (PostgreSQL documentation,
    // section 54.2.9).
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(config)
}

fn authorities(roots: &Roots) -> Result<Vec<CertificateDer<'static>>, CertificateFileError> {
    match roots {
        Roots::Unnamed => Ok(Vec::new()),
        Roots::File(path) => certificates(path),
        Roots::System => match rustls_native_certs::load_native_certs().certs {
            certs if certs.is_empty() => Err(CertificateFileError::NoSystemRoots),
            certs => Ok(certs),
        },
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateFileError> {
    let error = |source| CertificateFileError::File { path: path.to_owned(), content: "certificate", source };
    let certs = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match certs.map_err(error)? {
        certs if certs.is_empty() => Err(error(rustls::pki_types::pem::Error::NoItemsFound)),
        certs => Ok(certs),
    }
}

/// Checks certificates as libpq does, where rustls alone is stricter: without names (`verify-ca`), not at all
/// (`require`), and with a self-signed server certificate that is its own authority, the kind that PostgreSQL's
/// documentation tells people to make (section 19.9.5).
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    check: Check,
    authorities: Vec<CertificateDer<'static>>,
    /// Present when anything is checked.
    chain: Option<Arc<WebPkiServerVerifier>>,
}

impl Verifier {
    fn new(
        provider: Arc<CryptoProvider>,
        check: Check,
        authorities: Vec<CertificateDer<'static>>,
    ) -> Result<Self, CertificateFileError> {
        let chain = if check == Check::Nothing {
            None
        } else {
            let mut store = RootCertStore::empty();
            store.add_parsable_certificates(authorities.iter().cloned());
            let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(&provider));
            let source =
                |error: rustls::client::VerifierBuilderError| rustls::Error::General(error.to_string());
            Some(builder.build().map_err(|error| CertificateFileError::Unusable { source: source(error) })?)
        };
        Ok(Self { provider, check, authorities, chain })
    }

    /// The certificate is one of the named authorities itself, byte for byte, and names the server if it must.
    fn is_pinned(
        &self,
        certificate: &CertificateDer<'_>,
        name: &ServerName<'_>,
    ) -> Result<bool, rustls::Error> {
        if !self.authorities.iter().any(|authority| authority.as_ref() == certificate.as_ref()) {
            return Ok(false);
        }
        if self.check == Check::ChainAndName {
            let parsed = ParsedCertificate::try_from(certificate)?;
            rustls::client::verify_server_name(&parsed, name)?;
        }
        Ok(true)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        let error = match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
        {
            Ok(verified) => return Ok(verified),
            Err(error) => error,
        };
        let rustls::Error::InvalidCertificate(reason) = &error else { return Err(error) };
        // The name is checked after the chain, so the chain is good.
        let wrong_name = matches!(
            reason,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
        );
        // webpki will not have an authority as a server (`CaUsedAsEndEntity`), which it looks at after the dates: a
        // pinned certificate that is too old has failed with another reason.
        let is_authority = matches!(reason, CertificateError::Other(_));
        if (wrong_name && self.check == Check::Chain)
            || (is_authority && self.is_pinned(end_entity, server_name)?)
        {
            return Ok(ServerCertVerified::assertion());
        }
        Err(error)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// `tls-server-end-point` of a certificate (RFC 5929, section 4.1): its hash under the hash function of its own
/// signature, MD5 and SHA-1 replaced by SHA-256. `None` when the signature has no such function (Ed25519).
pub(super) fn server_end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    // Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm SEQUENCE { OBJECT IDENTIFIER, … }, … }
    let (certificate_body, _) = element(certificate)?;
    let (_, after_tbs) = element(certificate_body)?;
    let (algorithm, _) = element(after_tbs)?;
    let (oid, _) = element(algorithm)?;
    match oid {
        // 1.2.840.113549.1.1: md5, sha1, sha256, sha384, sha512 WithRSAEncryption.
        [0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 4 | 5 | 11] => {
            Some(Sha256::digest(certificate).to_vec())
        }
        [0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 12] => Some(Sha384::digest(certificate).to_vec()),
        [0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 13] => Some(Sha512::digest(certificate).to_vec()),
        // 1.2.840.10045.4: ecdsa-with-SHA1, then 3: SHA256, SHA384, SHA512.
        [0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x01] | [0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x03, 2] => {
            Some(Sha256::digest(certificate).to_vec())
        }
        [0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x03, 3] => Some(Sha384::digest(certificate).to_vec()),
        [0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x03, 4] => Some(Sha512::digest(certificate).to_vec()),
        _ => None,
    }
}

/// The content of the DER element at the start of `bytes`, and what follows the element.
fn element(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (_tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (length_bytes, rest) = rest.split_at_checked(usize::from(first & 0x7F))?;
        if length_bytes.len() > 4 {
            return None;
        }
        (length_bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(oid: &[u8], tbs_len: u8) -> Vec<u8> {
        let tbs = [vec![0x30, 0x81, tbs_len], vec![0; usize::from(tbs_len)]].concat();
        let oid_len = u8::try_from(oid.len()).unwrap();
        let algorithm = [&[0x30, oid_len + 2, 0x06, oid_len], oid].concat();
        let body = [tbs, algorithm].concat();
        let len = u16::try_from(body.len()).unwrap().to_be_bytes();
        [vec![0x30, 0x82, len[0], len[1]], body].concat()
    }

    #[test]
    fn the_end_point_hash_follows_the_signature_of_the_certificate() {
        let rsa = |last| certificate(&[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, last], 200);
        assert_eq!(server_end_point(&rsa(11)), Some(Sha256::digest(rsa(11)).to_vec()));
        assert_eq!(server_end_point(&rsa(5)), Some(Sha256::digest(rsa(5)).to_vec()));
        assert_eq!(server_end_point(&rsa(12)), Some(Sha384::digest(rsa(12)).to_vec()));
        assert_eq!(server_end_point(&rsa(13)), Some(Sha512::digest(rsa(13)).to_vec()));
        let ed25519 = certificate(&[0x2B, 0x65, 0x70], 200);
        assert_eq!(server_end_point(&ed25519), None);
    }

    #[test]
    fn a_missing_certificate_file_is_named() {
        let roots = Roots::File(PathBuf::from("/no/such/root.crt"));
        let settings = TlsSettings { mode: SslMode::VerifyFull, roots, identity: None, direct: false };
        let error = client_config(&settings).unwrap_err();
        assert!(error.to_string().contains("/no/such/root.crt"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn no_certificate_bytes_can_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..80)) {
            drop(server_end_point(&bytes));
        }
    }
}
