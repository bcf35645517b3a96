//! Verification of the target's certificate, for the cases that rustls refuses and users need.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, Error, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};

/// Accepts any certificate, also one that the library can't read. Used only with
/// `insecureSkipVerify`.
///
/// The signature of the handshake is not verified either: without trust in the certificate it proves
/// nothing.
#[derive(Debug)]
pub(super) struct AcceptAnyCertificate;

impl ServerCertVerifier for AcceptAnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    /// All schemes, so that the target may use any key.
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![
            SignatureScheme::ECDSA_NISTP256_SHA256,
            SignatureScheme::ECDSA_NISTP384_SHA384,
            SignatureScheme::ECDSA_NISTP521_SHA512,
            SignatureScheme::ED25519,
            SignatureScheme::ED448,
            SignatureScheme::RSA_PSS_SHA256,
            SignatureScheme::RSA_PSS_SHA384,
            SignatureScheme::RSA_PSS_SHA512,
            SignatureScheme::RSA_PKCS1_SHA256,
            SignatureScheme::RSA_PKCS1_SHA384,
            SignatureScheme::RSA_PKCS1_SHA512,
            SignatureScheme::ECDSA_SHA1_Legacy,
            SignatureScheme::RSA_PKCS1_SHA1,
        ]
    }
}

/// Verifies by a bundle of trusted certificates. A certificate in the bundle may also be the
/// target's own: `openssl req -x509` makes self-signed certificates that are marked as authorities,
/// and rustls refuses these as a server's certificate.
#[derive(Debug)]
pub(super) struct BundleVerifier {
    pub(super) inner: Arc<WebPkiServerVerifier>,
    pub(super) bundle: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for BundleVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.inner.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        let Err(error) = verified else { return verified };
        if !self.bundle.iter().any(|trusted| trusted == end_entity) {
            return Err(error);
        }
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        let (from, until) = validity(end_entity).ok_or(error)?;
        if now.as_secs() < from {
            return Err(CertificateError::NotValidYet.into());
        }
        if now.as_secs() > until {
            return Err(CertificateError::Expired.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Returns the first and the last second at which a certificate is valid, since 1970 (RFC 5280,
/// 4.1). `None` when the certificate is malformed.
fn validity(certificate: &[u8]) -> Option<(u64, u64)> {
    const SEQUENCE: u8 = 0x30;
    const VERSION: u8 = 0xa0;
    let (_, body, _) = read_element(certificate, SEQUENCE)?;
    let (_, mut fields, _) = read_element(body, SEQUENCE)?;
    if fields.first() == Some(&VERSION) {
        fields = read_element(fields, VERSION)?.2;
    }
    // The serial number, the algorithm and the issuer.
    for _ in 0..3 {
        fields = read_element(fields, *fields.first()?)?.2;
    }
    let (_, times, _) = read_element(fields, SEQUENCE)?;
    let (kind, from, rest) = read_element(times, *times.first()?)?;
    let (until_kind, until, _) = read_element(rest, *rest.first()?)?;
    Some((parse_time(kind, from)?, parse_time(until_kind, until)?))
}

/// Reads a DER element with a tag. Returns its tag, its content and what follows it.
fn read_element(bytes: &[u8], tag: u8) -> Option<(u8, &[u8], &[u8])> {
    let (first, rest) = bytes.split_first()?;
    let (length, rest) = rest.split_first()?;
    let (length, rest) = if *length < 0x80 {
        (usize::from(*length), rest)
    } else {
        let (digits, rest) = rest.split_at_checked(usize::from(length & 0x7f))?;
        let value = digits.iter().try_fold(0_usize, |value, digit| {
            Some(value.checked_mul(256)? + usize::from(*digit))
        })?;
        (value, rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    (*first == tag).then_some((tag, content, rest))
}

/// Parses `YYMMDDHHMMSSZ` (tag 0x17) or `YYYYMMDDHHMMSSZ` (tag 0x18).
fn parse_time(tag: u8, text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let (year, rest) = match tag {
        0x17 => {
            let year: i64 = text.get(..2)?.parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, text.get(2..)?)
        }
        0x18 => (text.get(..4)?.parse().ok()?, text.get(4..)?),
        _ => return None,
    };
    let number = |at: usize| rest.get(at..at + 2)?.parse::<i64>().ok();
    let (month, day) = (number(0)?, number(2)?);
    let seconds = number(4)? * 3600 + number(6)? * 60 + number(8)?;
    // Days since 1970 in the proleptic Gregorian calendar. The year begins in March, so that the
    // leap day is the last one.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year.div_euclid(4) - year.div_euclid(100)
        + year.div_euclid(400)
        + (month * 153 + 2) / 5
        + day
        - 1
        - 719_468;
    // A certificate that is valid since before 1970 is valid since then.
    u64::try_from((days * 86_400 + seconds).max(0)).ok()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    #[test]
    fn the_validity_of_a_certificate_is_read() {
        let mut params = CertificateParams::new(vec!["cell0".to_owned()]).unwrap();
        params.not_before = date_time_ymd(2024, 2, 29);
        params.not_after = date_time_ymd(2051, 3, 1);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        assert_eq!(validity(certificate.der()), Some((1_709_164_800, 2_561_241_600)));
        assert_eq!(validity(&certificate.der()[..60]), None);
        assert_eq!(validity(b""), None);
    }

    #[test]
    fn a_self_signed_authority_may_be_the_certificate_of_a_target() {
        let make = |until: i32| {
            let mut params = CertificateParams::new(vec!["cell0".to_owned()]).unwrap();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params.not_after = date_time_ymd(until, 1, 1);
            params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
        };
        let (trusted, expired, other) = (make(2090), make(2001), make(2090));
        let bundle = vec![trusted.clone(), expired.clone()];
        let mut roots = rustls::RootCertStore::empty();
        bundle.iter().for_each(|certificate| roots.add(certificate.clone()).unwrap());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = BundleVerifier { inner: builder.build().unwrap(), bundle };
        let verify = |certificate: &CertificateDer<'_>, name: &'static str| {
            let name = ServerName::try_from(name).unwrap();
            verifier.verify_server_cert(certificate, &[], &name, &[], UnixTime::now())
        };
        assert!(verify(&trusted, "cell0").is_ok());
        assert!(verify(&trusted, "cell1").is_err());
        assert!(verify(&expired, "cell0").is_err());
        assert!(verify(&other, "cell0").is_err());
    }
}
