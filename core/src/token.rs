//! The token that orders to a runner carry: HMAC-SHA256 of the run's UID under the operator's
//! key. The plan holds only the SHA-256 of the token.

use ring::{
    digest::{SHA256, digest},
    hmac,
};

/// The token of a run, in hex.
pub fn token_of_run(key: &[u8], run_uid: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    to_hex(hmac::sign(&key, run_uid.as_bytes()).as_ref())
}

/// The SHA-256 of a token, in hex: the plan's `tokenSha256`.
pub fn fingerprint_of(token: &str) -> String {
    to_hex(digest(&SHA256, token.as_bytes()).as_ref())
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
