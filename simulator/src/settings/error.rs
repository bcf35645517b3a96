//! The error of settings that are refused.

/// The reason why settings are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// The text is not YAML.
    #[error("settings are not YAML: {0}")]
    Syntax(String),
    /// A field has the wrong type, or does not exist.
    #[error("settings field {field}: {problem}")]
    Shape {
        /// The field's path, such as `chat.errors.rate`.
        field: String,
        /// The problem with the field.
        problem: String,
    },
    /// A field's value is out of range.
    #[error("settings field {field} is {value}: {expected}")]
    Value {
        /// The field's path.
        field: String,
        /// The given value.
        value: String,
        /// The valid values.
        expected: String,
    },
}
