//! Values of an enumeration that a newer version may have extended.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An enumeration with names for its values.
pub trait Named: Copy + 'static {
    /// Every value.
    const ALL: &'static [Self];

    /// The name of a value.
    fn name(self) -> &'static str;
}

/// A value that this version knows, or the text of a value that it doesn't know.
///
/// Enumerations in a status are open strings: a program shows a value that it doesn't know and
/// leaves the object as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extensible<T> {
    /// A known value.
    Known(T),
    /// The text of an unknown value.
    Unknown(String),
}

impl<T: Named> Extensible<T> {
    /// The value, if this version knows it.
    pub const fn known(&self) -> Option<T> {
        match self {
            Self::Known(value) => Some(*value),
            Self::Unknown(_) => None,
        }
    }

    /// The text in the status.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Known(value) => value.name(),
            Self::Unknown(text) => text,
        }
    }
}

impl<T> From<T> for Extensible<T> {
    fn from(value: T) -> Self {
        Self::Known(value)
    }
}

impl<T: PartialEq> PartialEq<T> for Extensible<T> {
    fn eq(&self, other: &T) -> bool {
        matches!(self, Self::Known(value) if value == other)
    }
}

impl<T: Named> fmt::Display for Extensible<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl<T: Named> Serialize for Extensible<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de, T: Named> Deserialize<'de> for Extensible<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let known = T::ALL.iter().copied().find(|value| value.name() == text);
        Ok(known.map_or(Self::Unknown(text), Self::Known))
    }
}

#[cfg(feature = "crd")]
impl<T> schemars::JsonSchema for Extensible<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ExtensibleString".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "maxLength": 64})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Verdict;

    #[test]
    fn unknown_values_are_kept_as_they_are() {
        let json = r#"["Pass","Splendid"]"#;
        let values: Vec<Extensible<Verdict>> = serde_json::from_str(json).unwrap();
        assert_eq!(values[0], Verdict::Pass);
        assert_eq!((values[1].known(), values[1].as_str()), (None, "Splendid"));
        assert_eq!(serde_json::to_string(&values).unwrap(), json);
    }
}
