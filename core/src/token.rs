//! The token a runner takes orders with: HMAC-SHA256 of the test's UID under the
//! operator's key. The plan carries only the token's SHA-256.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

/// The token of a run, in hex.
pub fn token(key: &[u8], run: &str) -> String {
    // HMAC takes a key of any length; the error type exists for other MACs.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return String::new() };
    mac.update(run.as_bytes());
    hex(&mac.finalize().into_bytes())
}

/// What the plan carries of a token, in hex.
pub fn fingerprint(token: &str) -> String {
    hex(&Sha256::digest(token.as_bytes()))
}

/// True when a token is the one with this fingerprint.
///
/// Fingerprints are compared, so the time it takes tells nothing about the token.
pub fn matches(token: &str, token_sha256: &str) -> bool {
    !token_sha256.is_empty() && fingerprint(token) == token_sha256
}

fn hex(bytes: &[u8]) -> String {
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
    fn hmac_is_the_standard_one() {
        // RFC 4231, test case 2.
        assert_eq!(
            token(b"Jefe", "what do ya want for nothing?"),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn only_the_runs_own_token_matches() {
        let own = fingerprint(&token(b"key", "run-1"));
        assert!(matches(&token(b"key", "run-1"), &own));
        assert!(!matches(&token(b"key", "run-2"), &own));
        assert!(!matches(&token(b"other", "run-1"), &own));
        assert!(!matches("", &own));
        assert!(!matches("", ""));
    }
}
