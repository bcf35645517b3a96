//! Checks that decide whether a response is a success.

use serde::{Deserialize, Serialize};

/// One condition on a response. A request fails when its response does not meet the condition.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "crd", schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "(has(self.bodyContains) ? 1 : 0) + (has(self.header) ? 1 : 0) + (has(self.jsonPath) ? 1 : 0) == 1",
        "message": "a check has exactly one of bodyContains, header and jsonPath",
    },
    {
        "rule": "!(has(self.equals) && has(self.contains)) && (!has(self.bodyContains) || !(has(self.equals) || has(self.contains)))",
        "message": "equals and contains compare the value of a header or jsonPath: give at most one of the two, and none with bodyContains",
    },
])))]
pub struct Check {
    /// Text that the body must contain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(length(min = 1, max = 1024)))]
    pub body_contains: Option<String>,
    /// Name of a header that the response must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(length(min = 1, max = 128)))]
    pub header: Option<String>,
    /// A `JSONPath` (RFC 9535), such as `$.data[0].id`, that must find a value in the body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(length(min = 1, max = 512), extend("x-kubernetes-validations" = [{
        "rule": "self.startsWith('$')",
        "messageExpression": "'\"' + self + '\" is not a JSONPath: start it with $, as in $.data[0].id'",
    }])))]
    pub json_path: Option<String>,
    /// The expected value of the header, or of one value that the path finds. A JSON text is
    /// compared without its quotes, any other value in its JSON form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(length(max = 1024)))]
    pub equals: Option<String>,
    /// Text that the header, or one value that the path finds, must contain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(length(min = 1, max = 1024)))]
    pub contains: Option<String>,
}

/// Writes the check in words: `header content-type contains json`.
impl std::fmt::Display for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.body_contains, &self.header, &self.json_path) {
            (Some(text), ..) => write!(f, "bodyContains {text:?}")?,
            (_, Some(name), _) => write!(f, "header {name}")?,
            (.., Some(path)) => write!(f, "jsonPath {path}")?,
            _ => f.write_str("check")?,
        }
        match (&self.equals, &self.contains) {
            (Some(text), _) => write!(f, " equals {text:?}"),
            (_, Some(text)) => write!(f, " contains {text:?}"),
            _ => Ok(()),
        }
    }
}
