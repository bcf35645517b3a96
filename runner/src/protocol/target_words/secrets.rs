//! Hides credentials in what a target says.

use std::{borrow::Cow, sync::LazyLock};

use regex::Regex;

/// Words before a value that must not be shown, such as `token: abc` or `Bearer abc`.
const SECRET_WORDS: [&str; 12] = [
    "authorization",
    "bearer",
    "basic",
    "token",
    "password",
    "passwd",
    "secret",
    "apikey",
    "api_key",
    "api-key",
    "session",
    "cookie",
];

/// Starts of values that are credentials of well-known services.
const SECRET_STARTS: [&str; 9] = ["sk-", "sk_", "pk_", "eyJ", "AKIA", "ghp_", "gho_", "xox", "hf_"];

/// Minimum length of a mix of letters and digits that is taken for a credential.
const MIN_SECRET: usize = 32;

/// Replaces credentials in a text by `***`.
pub(crate) fn hide_secrets(text: &str) -> Cow<'_, str> {
    match hide_passwords(text) {
        Cow::Borrowed(text) => hide_credentials(text),
        Cow::Owned(text) => Cow::Owned(hide_credentials(&text).into_owned()),
    }
}

/// Replaces the passwords in URLs such as `postgres://app:secret@db/app` by `***`.
fn hide_passwords(text: &str) -> Cow<'_, str> {
    // A constant that can't be parsed would fail every test of this module.
    static PASSWORD: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"(://[^\s/:@]*:)[^\s/@]+@").ok());
    PASSWORD.as_ref().map_or(Cow::Borrowed(text), |password| password.replace_all(text, "$1***@"))
}

/// Replaces credentials by `***`: values after a word such as `token`, values with a well-known
/// start, and long mixes of letters and digits.
fn hide_credentials(text: &str) -> Cow<'_, str> {
    let is_value = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '+' | '/' | '~');
    let (mut shown, mut rest, mut after_secret_word) = (String::new(), text, false);
    while let Some(first) = rest.chars().next() {
        let is_word = is_value(first);
        let end = rest.find(|c| is_value(c) != is_word).unwrap_or(rest.len());
        let (piece, later) = rest.split_at(end);
        rest = later;
        if !is_word {
            // `token: x`, `token=x` and `Bearer x` name a value; `token is invalid` does not.
            let joins = piece.trim().chars().all(|c| matches!(c, ':' | '=' | '"' | '\'' | '\\'));
            after_secret_word &= joins;
            shown.push_str(piece);
            continue;
        }
        let is_secret = looks_like_credential(piece)
            || after_secret_word && piece.len() >= 4 && piece.chars().any(|c| c.is_ascii_digit());
        shown.push_str(if is_secret { "***" } else { piece });
        let lower = piece.to_ascii_lowercase();
        after_secret_word = SECRET_WORDS.iter().any(|word| lower.ends_with(word));
    }
    if shown == text { Cow::Borrowed(text) } else { Cow::Owned(shown) }
}

fn looks_like_credential(word: &str) -> bool {
    let has_start = SECRET_STARTS.iter().any(|start| word.starts_with(start));
    let is_mix = word.chars().any(|c| c.is_ascii_digit())
        && word.chars().any(|c| c.is_ascii_alphabetic())
        && !word.contains("//");
    // A path or a host name is long too, but has separators.
    let longest = word.split(['.', '/', '-']).map(str::len).max().unwrap_or(0);
    has_start && word.len() >= 12 || is_mix && longest >= MIN_SECRET
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn credentials_are_hidden() {
        for (text, shown) in [
            ("Incorrect API key provided: sk-proj-abc123def456", "Incorrect API key provided: ***"),
            ("invalid token: a1b2c3d4", "invalid token: ***"),
            ("bad header Authorization: Bearer abc12345", "bad header Authorization: Bearer ***"),
            ("got password=hunter22 for bob", "got password=*** for bob"),
            ("jwt eyJhbGciOiJIUzI1NiJ9.e30.abc expired", "jwt *** expired"),
            (r#"HTML page "token=\"abc12345\"""#, r#"HTML page "token=\"***\"""#),
            ("id 0123456789abcdef0123456789abcdef", "id ***"),
        ] {
            assert_eq!(hide_credentials(text), shown);
        }
        for text in [
            "This model's maximum context length is 8192 tokens",
            "Unsupported parameter: 'max_tokens' is not supported with this model.",
            "token limit exceeded: 4096",
            "no route to http://chat.default.svc.cluster.local:8080/v1/chat/completions",
            "model meta-llama/Meta-Llama-3.1-8B-Instruct-very-long-name-of-a-model not found",
            "request 550e8400-e29b-41d4-a716-446655440000 failed",
        ] {
            assert_eq!(hide_credentials(text), text);
        }
    }

    #[test]
    fn passwords_in_urls_are_hidden() {
        for (text, shown) in [
            ("no route to postgres://app:hunter2@db:5432/app", "postgres://app:***@db:5432/app"),
            ("redis://:hunter2@cache failed", "redis://:***@cache failed"),
            ("see http://db:80/a@b and http://db:80", "http://db:80/a@b and http://db:80"),
        ] {
            assert!(hide_secrets(text).contains(shown), "{}", hide_secrets(text));
        }
    }

    proptest! {
        #[test]
        fn arbitrary_texts_never_panic(text in "[<>a-zäöü\"{}:= .,]{0,60}") {
            let _ = hide_secrets(&text);
        }
    }
}
