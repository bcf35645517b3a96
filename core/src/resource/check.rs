//! What an answer must hold for its request to count as a success.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One thing that an answer must hold; a request whose answer does not has failed.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "(has(self.bodyContains) ? 1 : 0) + (has(self.header) ? 1 : 0) + (has(self.jsonPath) ? 1 : 0) == 1",
        "message": "a check has exactly one of bodyContains, header and jsonPath",
    },
    {
        "rule": "!(has(self.equals) && has(self.contains)) && (!has(self.bodyContains) || !(has(self.equals) || has(self.contains)))",
        "message": "equals and contains say what a header or jsonPath must be: give one of them, and neither with bodyContains",
    },
]))]
pub struct Check {
    /// Text that the body must contain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub body_contains: Option<String>,
    /// A header that the answer must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub header: Option<String>,
    /// A JSON path (RFC 9535), such as `$.data[0].id`, that must find something in the body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512), extend("x-kubernetes-validations" = [{
        "rule": "self.startsWith('$')",
        "messageExpression": "'\"' + self + '\" is not a JSONPath: start it with $, as in $.data[0].id'",
    }]))]
    pub json_path: Option<String>,
    /// What the header, or one of the values that the path finds, must be: a text as it is,
    /// anything else as JSON writes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub equals: Option<String>,
    /// What the header, or one of the values that the path finds, must contain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub contains: Option<String>,
}

/// How people name it: `header content-type contains json`.
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
