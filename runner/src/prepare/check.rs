//! Judges an answer by its task's checks. Pure.

use loadtest_core::resource::Check;
use memchr::memmem;
use serde_json::Value;
use serde_json_path::JsonPath;

use crate::failure::{ErrorKind, Failure};

/// Longest part of an answer that a message shows.
const SHOWN: usize = 100;

/// Words in names of headers and paths whose values nobody is to read in a status.
const SECRET: [&str; 8] =
    ["auth", "cookie", "token", "secret", "password", "session", "credential", "key"];

/// A header's name, in lower case, and its value.
pub(crate) type Field = (String, Vec<u8>);

/// What is judged.
#[derive(Clone, Debug)]
enum Of {
    Body(String),
    Header(String),
    Json(JsonPath),
}

/// A check, ready to be made.
#[derive(Clone, Debug)]
pub(crate) struct PreparedCheck {
    of: Of,
    check: Check,
}

impl PreparedCheck {
    /// Prepares a check; `None` when it is none: a path that can't be read, or nothing to judge.
    pub(crate) fn new(check: &Check) -> Option<Self> {
        let of = match (&check.body_contains, &check.header, &check.json_path) {
            (Some(text), None, None) => Of::Body(text.clone()),
            (None, Some(name), None) => Of::Header(name.to_ascii_lowercase()),
            (None, None, Some(path)) => Of::Json(JsonPath::parse(path).ok()?),
            _ => return None,
        };
        Some(Self { of, check: check.clone() })
    }

    /// True when it looks into the body.
    pub(crate) const fn reads_body(&self) -> bool {
        !matches!(self.of, Of::Header(_))
    }

    fn accepts(&self, found: &str) -> bool {
        match (&self.check.equals, &self.check.contains) {
            (Some(wanted), _) => found == wanted,
            (_, Some(wanted)) => found.contains(wanted.as_str()),
            _ => true,
        }
    }

    /// What is wrong with an answer: the kind of failure, and what was found.
    fn judge(&self, fields: &[Field], body: &[u8], json: &mut Json) -> Result<(), Failure> {
        let fails =
            |kind, found: &str| Err(Failure::new(kind, format!("check {}: {found}", self.check)));
        match &self.of {
            Of::Body(text) => {
                if memmem::find(body, text.as_bytes()).is_some() {
                    return Ok(());
                }
                fails(ErrorKind::CheckBody, &format!("it is not in the {} bytes", body.len()))
            }
            Of::Header(name) => {
                let values = || fields.iter().filter(|(field, _)| field == name);
                if values().any(|(_, value)| self.accepts(&String::from_utf8_lossy(value))) {
                    return Ok(());
                }
                let found = values().next().map_or_else(
                    || "the answer has no such header".to_owned(),
                    |(_, value)| shown(name, &String::from_utf8_lossy(value)),
                );
                fails(ErrorKind::CheckHeader, &found)
            }
            Of::Json(path) => {
                let Some(value) = json.read(body) else {
                    let found = format!("the {} bytes of body are no JSON", body.len());
                    return fails(ErrorKind::CheckJson, &found);
                };
                let nodes = path.query(value);
                let text =
                    |node: &Value| node.as_str().map_or_else(|| node.to_string(), str::to_owned);
                if nodes.iter().any(|node| self.accepts(&text(node))) {
                    return Ok(());
                }
                let path = self.check.json_path.as_deref().unwrap_or_default();
                let found = nodes
                    .iter()
                    .next()
                    .map_or_else(|| "it finds nothing".to_owned(), |node| shown(path, &text(node)));
                fails(ErrorKind::CheckJson, &found)
            }
        }
    }
}

/// Makes all checks; the first that does not hold is the failure.
pub(crate) fn judge(
    checks: &[PreparedCheck],
    fields: &[Field],
    body: &[u8],
) -> Result<(), Failure> {
    let mut json = Json::default();
    checks.iter().try_for_each(|check| check.judge(fields, body, &mut json))
}

/// A body's JSON, read once for all checks; null until then.
#[derive(Default)]
struct Json {
    value: Value,
    known: bool,
}

impl Json {
    /// `None` for a body that is no JSON, which only its own checks say.
    fn read(&mut self, body: &[u8]) -> Option<&Value> {
        if !self.known {
            self.value = serde_json::from_slice(body).ok()?;
            self.known = true;
        }
        Some(&self.value)
    }
}

/// What was found, cut short; of what sounds like a credential its length alone.
fn shown(name: &str, found: &str) -> String {
    let name = name.to_ascii_lowercase();
    if SECRET.iter().any(|word| name.contains(word)) {
        return format!("it has {} bytes", found.len());
    }
    format!("it is {:?}", loadtest_core::report::truncated(found, SHOWN))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(yaml: &str) -> PreparedCheck {
        PreparedCheck::new(&serde_yaml::from_str(yaml).unwrap()).unwrap()
    }

    fn message(yaml: &str, fields: &[Field], body: &str) -> Option<(ErrorKind, String)> {
        let failure = judge(&[prepared(yaml)], fields, body.as_bytes()).err()?;
        Some((failure.kind, failure.message))
    }

    #[test]
    fn bodies_are_searched() {
        assert_eq!(message("{bodyContains: ok}", &[], "all ok"), None);
        let (kind, text) = message("{bodyContains: ok}", &[], "no").unwrap();
        assert_eq!(
            (kind, text.as_str()),
            (ErrorKind::CheckBody, "check bodyContains \"ok\": it is not in the 2 bytes",)
        );
    }

    #[test]
    fn headers_are_compared_by_name_in_any_case() {
        let fields = [("content-type".to_owned(), b"application/json".to_vec())];
        assert_eq!(message("{header: Content-Type}", &fields, ""), None);
        assert_eq!(message("{header: content-type, contains: json}", &fields, ""), None);
        let (kind, text) = message("{header: content-type, equals: json}", &fields, "").unwrap();
        assert_eq!(kind, ErrorKind::CheckHeader);
        assert!(text.ends_with("it is \"application/json\""), "{text}");
        assert!(message("{header: etag}", &fields, "").unwrap().1.ends_with("no such header"));
    }

    #[test]
    fn json_paths_find_values_of_any_kind() {
        let body = r#"{"status": "ok", "count": 3, "data": [{"id": "a"}, {"id": "b"}]}"#;
        for good in [
            "{jsonPath: $.status}",
            "{jsonPath: $.status, equals: ok}",
            "{jsonPath: $.count, equals: '3'}",
            "{jsonPath: '$.data[*].id', equals: b}",
            "{jsonPath: '$.data[0]', contains: '\"id\"'}",
        ] {
            assert_eq!(message(good, &[], body), None, "{good}");
        }
        let wrong = |yaml: &str, body: &str| message(yaml, &[], body).unwrap().1;
        assert!(wrong("{jsonPath: $.missing}", body).ends_with("it finds nothing"));
        assert!(wrong("{jsonPath: $.count, equals: '4'}", body).ends_with("it is \"3\""));
        assert!(wrong("{jsonPath: $.status}", "<html>").contains("are no JSON"));
    }

    #[test]
    fn credentials_are_never_shown() {
        let fields = [("set-cookie".to_owned(), b"id=s3cr3t".to_vec())];
        let (_, told) = message("{header: Set-Cookie, equals: x}", &fields, "").unwrap();
        assert!(told.ends_with("it has 9 bytes"), "{told}");
        let body = r#"{"access_token": "s3cr3t"}"#;
        let (_, told) = message("{jsonPath: $.access_token, equals: x}", &[], body).unwrap();
        assert!(!told.contains("s3cr3t"), "{told}");
    }

    #[test]
    fn a_path_that_is_none_is_no_check() {
        assert!(PreparedCheck::new(&serde_yaml::from_str("{jsonPath: '$.['}").unwrap()).is_none());
        assert!(PreparedCheck::new(&serde_yaml::from_str("{}").unwrap()).is_none());
    }
}
