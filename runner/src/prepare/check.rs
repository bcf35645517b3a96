//! Checks of responses: body, headers and JSON. Pure.

use loadtest_core::resource::Check;
use memchr::memmem;
use serde_json::Value;
use serde_json_path::JsonPath;

use crate::{
    failure::{ErrorKind, Failure},
    protocol::{
        chat::lenient_json::parse_value,
        target_words::{decode_text, shorten, with_words},
    },
};

/// Maximum length of a value in a message.
const MAX_SHOWN_VALUE: usize = 100;

/// Names of headers and paths that contain one of these words: their values are hidden, because
/// users can read messages in the status.
const SECRET_NAME_PARTS: [&str; 8] =
    ["auth", "cookie", "token", "secret", "password", "session", "credential", "key"];

/// The name of a header in lower case, and its value.
pub(crate) type HeaderField = (String, Vec<u8>);

/// The part of a response that a check reads.
#[derive(Clone, Debug)]
enum CheckSubject {
    Body(String),
    Header(String),
    Json(JsonPath),
}

/// A check with a parsed path.
#[derive(Clone, Debug)]
pub(crate) struct PreparedCheck {
    subject: CheckSubject,
    check: Check,
}

impl PreparedCheck {
    /// Prepares a check. `None` when its path can't be parsed, or when it does not name exactly one
    /// part of the response.
    pub(crate) fn new(check: &Check) -> Option<Self> {
        let subject = match (&check.body_contains, &check.header, &check.json_path) {
            (Some(text), None, None) => CheckSubject::Body(text.clone()),
            (None, Some(name), None) => CheckSubject::Header(name.to_ascii_lowercase()),
            (None, None, Some(path)) => CheckSubject::Json(JsonPath::parse(path).ok()?),
            _ => return None,
        };
        Some(Self { subject, check: check.clone() })
    }

    /// Returns true when the check reads the body.
    pub(crate) const fn reads_body(&self) -> bool {
        !matches!(self.subject, CheckSubject::Header(_))
    }

    fn matches_value(&self, found: &str) -> bool {
        match (&self.check.equals, &self.check.contains) {
            (Some(expected), _) => found == expected,
            (_, Some(expected)) => found.contains(expected.as_str()),
            _ => true,
        }
    }

    /// Applies the check to a response. The failure holds the value that was found.
    fn evaluate(
        &self,
        headers: &[HeaderField],
        body: &[u8],
        json: &mut LazyJson,
    ) -> Result<(), Failure> {
        let fail =
            |kind, found: &str| Err(Failure::new(kind, format!("check {}: {found}", self.check)));
        match &self.subject {
            CheckSubject::Body(text) => {
                let is_found = memmem::find(body, text.as_bytes()).is_some()
                    // A body of another charset.
                    || std::str::from_utf8(body).is_err()
                        && decode_text(body).is_some_and(|body| body.contains(text.as_str()));
                if is_found {
                    return Ok(());
                }
                let found = format!("not found in the {} bytes of the body", body.len());
                fail(ErrorKind::CheckBody, &with_words(found, body))
            }
            CheckSubject::Header(name) => {
                let values = || headers.iter().filter(|(key, _)| key == name);
                if values().any(|(_, value)| self.matches_value(&String::from_utf8_lossy(value))) {
                    return Ok(());
                }
                let found = values().next().map_or_else(
                    || "the response has no such header".to_owned(),
                    |(_, value)| describe_value(name, &String::from_utf8_lossy(value)),
                );
                fail(ErrorKind::CheckHeader, &found)
            }
            CheckSubject::Json(path) => {
                let Some(value) = json.parse(body) else {
                    let found = format!("the {} bytes of the body are not JSON", body.len());
                    return fail(ErrorKind::CheckJson, &with_words(found, body));
                };
                let nodes = path.query(value);
                let text =
                    |node: &Value| node.as_str().map_or_else(|| node.to_string(), str::to_owned);
                if nodes.iter().any(|node| self.matches_value(&text(node))) {
                    return Ok(());
                }
                let path = self.check.json_path.as_deref().unwrap_or_default();
                let found = nodes.iter().next().map_or_else(
                    || with_words("the path matches nothing".to_owned(), body),
                    |node| describe_value(path, &text(node)),
                );
                fail(ErrorKind::CheckJson, &found)
            }
        }
    }
}

/// Applies all checks. The first that fails is the failure.
pub(crate) fn evaluate_checks(
    checks: &[PreparedCheck],
    headers: &[HeaderField],
    body: &[u8],
) -> Result<(), Failure> {
    let mut json = LazyJson::default();
    checks.iter().try_for_each(|check| check.evaluate(headers, body, &mut json))
}

/// The JSON of a body, parsed once for all checks. Null before.
#[derive(Default)]
struct LazyJson {
    value: Value,
    is_parsed: bool,
}

impl LazyJson {
    /// Returns the JSON, or `None` if the body is not JSON.
    fn parse(&mut self, body: &[u8]) -> Option<&Value> {
        if !self.is_parsed {
            self.value = parse_value(body)?;
            self.is_parsed = true;
        }
        Some(&self.value)
    }
}

/// Describes a value: truncated, or only its length if the name looks like a credential.
fn describe_value(name: &str, found: &str) -> String {
    let name = name.to_ascii_lowercase();
    if SECRET_NAME_PARTS.iter().any(|word| name.contains(word)) {
        return format!("the value has {} bytes", found.len());
    }
    format!("the value is {:?}", loadtest_core::text::truncate(&shorten(found), MAX_SHOWN_VALUE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepare_check(yaml: &str) -> PreparedCheck {
        PreparedCheck::new(&serde_saphyr::from_str(yaml).unwrap()).unwrap()
    }

    fn failure_of(yaml: &str, headers: &[HeaderField], body: &str) -> Option<(ErrorKind, String)> {
        let failure = evaluate_checks(&[prepare_check(yaml)], headers, body.as_bytes()).err()?;
        Some((failure.kind, failure.message))
    }

    #[test]
    fn a_body_without_the_text_fails() {
        assert_eq!(failure_of("{bodyContains: ok}", &[], "all ok"), None);
        let (kind, text) = failure_of("{bodyContains: ok}", &[], "no").unwrap();
        assert_eq!(
            (kind, text.as_str()),
            (
                ErrorKind::CheckBody,
                "check bodyContains \"ok\": not found in the 2 bytes of the body: no"
            )
        );
    }

    #[test]
    fn bodies_of_other_charsets_are_decoded() {
        let check = [prepare_check("{bodyContains: Größe}")];
        let utf16: Vec<u8> = "\u{feff}Größe 42".encode_utf16().flat_map(u16::to_be_bytes).collect();
        for body in ["Größe 42".as_bytes(), b"Gr\xf6\xdfe 42", &utf16] {
            assert!(evaluate_checks(&check, &[], body).is_ok(), "{body:?}");
        }
        assert!(evaluate_checks(&check, &[], b"Gr\xf6sse 42").is_err());
    }

    #[test]
    fn names_of_headers_are_case_insensitive() {
        let headers = [("content-type".to_owned(), b"application/json".to_vec())];
        assert_eq!(failure_of("{header: Content-Type}", &headers, ""), None);
        assert_eq!(failure_of("{header: content-type, contains: json}", &headers, ""), None);
        let (kind, text) =
            failure_of("{header: content-type, equals: json}", &headers, "").unwrap();
        assert_eq!(kind, ErrorKind::CheckHeader);
        assert!(text.ends_with("the value is \"application/json\""), "{text}");
        assert!(failure_of("{header: etag}", &headers, "").unwrap().1.ends_with("no such header"));
    }

    #[test]
    fn json_paths_find_values_of_every_type() {
        let body = r#"{"status": "ok", "count": 3, "data": [{"id": "a"}, {"id": "b"}]}"#;
        for yaml in [
            "{jsonPath: $.status}",
            "{jsonPath: $.status, equals: ok}",
            "{jsonPath: $.count, equals: '3'}",
            "{jsonPath: '$.data[*].id', equals: b}",
            "{jsonPath: '$.data[0]', contains: '\"id\"'}",
        ] {
            assert_eq!(failure_of(yaml, &[], body), None, "{yaml}");
        }
        let message_of = |yaml: &str, body: &str| failure_of(yaml, &[], body).unwrap().1;
        let error = r#"{"data": null, "errors": [{"message": "rate limited"}]}"#;
        let message = message_of("{jsonPath: $.data.id}", error);
        assert!(message.ends_with("the path matches nothing: rate limited"), "{message}");
        assert!(
            message_of("{jsonPath: $.count, equals: '4'}", body).ends_with("the value is \"3\"")
        );
        assert!(message_of("{jsonPath: $.status}", "<html>").contains("are not JSON"));
    }

    #[test]
    fn credentials_are_hidden() {
        let headers = [("set-cookie".to_owned(), b"id=s3cr3t".to_vec())];
        let (_, text) = failure_of("{header: Set-Cookie, equals: x}", &headers, "").unwrap();
        assert!(text.ends_with("the value has 9 bytes"), "{text}");
        let body = r#"{"access_token": "s3cr3t"}"#;
        let (_, text) = failure_of("{jsonPath: $.access_token, equals: x}", &[], body).unwrap();
        assert!(!text.contains("s3cr3t"), "{text}");
    }

    #[test]
    fn an_invalid_check_is_refused() {
        assert!(
            PreparedCheck::new(&serde_saphyr::from_str("{jsonPath: '$.['}").unwrap()).is_none()
        );
        assert!(PreparedCheck::new(&serde_saphyr::from_str("{}").unwrap()).is_none());
    }
}
