//! The token that orders to a runner carry: HMAC-SHA256 of the run's UID under the operator's
//! key. The plan holds only the SHA-256 of the token.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

/// The token of a run, in hex.
pub fn token_of_run(key: &[u8], run_uid: &str) -> String {
    // HMAC takes a key of any length; the error type exists for other MACs.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return String::new() };
    mac.update(run_uid.as_bytes());
    to_hex(&mac.finalize().into_bytes())
}

/// The SHA-256 of a token, in hex: the plan's `tokenSha256`.
pub fn fingerprint_of(token: &str) -> String {
    to_hex(&Sha256::digest(token.as_bytes()))
}

/// True when a token has this fingerprint.
///
/// Only fingerprints are compared, so the time of the comparison reveals nothing of the token.
pub fn matches_fingerprint(token: &str, token_sha256: &str) -> bool {
    !token_sha256.is_empty() && fingerprint_of(token) == token_sha256
}

fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_is_the_hmac_of_rfc_4231() {
        // RFC 4231, test case 2.
        assert_eq!(
            token_of_run(b"Jefe", "what do ya want for nothing?"),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn only_the_token_of_the_run_matches() {
        let own = fingerprint_of(&token_of_run(b"key", "run-1"));
        assert!(matches_fingerprint(&token_of_run(b"key", "run-1"), &own));
        assert!(!matches_fingerprint(&token_of_run(b"key", "run-2"), &own));
        assert!(!matches_fingerprint(&token_of_run(b"other", "run-1"), &own));
        assert!(!matches_fingerprint("", &own));
        assert!(!matches_fingerprint("", ""));
    }
}
