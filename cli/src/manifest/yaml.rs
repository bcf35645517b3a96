//! Reads YAML documents, and keeps the place of each node in the file.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;
use serde_saphyr::Spanned;

use super::problem::Problem;

/// Line and column, counted from 1.
pub(super) type Position = (usize, usize);

/// A node of a document.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) position: Position,
    pub(super) content: Content,
}

/// The content of a node.
#[derive(Clone, Debug)]
pub(super) enum Content {
    Scalar(Value),
    Sequence(Vec<Node>),
    /// Each entry has the position of its key.
    Mapping(Vec<(String, Position, Node)>),
}

/// Reads the documents of a file.
pub(super) fn parse_documents(text: &str) -> Result<Vec<Node>, Problem> {
    let documents = serde_saphyr::from_multiple::<Spanned<Content>>(text).map_err(|error| {
        let position = error.location().map(|place| to_position(place.line(), place.column()));
        Problem { position, message: error.without_snippet().to_string() }
    })?;
    Ok(documents.into_iter().map(Node::from).collect())
}

/// Converts a document to JSON.
pub(super) fn to_json(node: &Node) -> Value {
    match &node.content {
        Content::Scalar(value) => value.clone(),
        Content::Sequence(items) => items.iter().map(to_json).collect(),
        Content::Mapping(entries) => {
            entries.iter().map(|(key, _, value)| (key.clone(), to_json(value))).collect()
        }
    }
}

fn to_position(line: u64, column: u64) -> Position {
    let number = |value| usize::try_from(value).unwrap_or(usize::MAX);
    (number(line), number(column))
}

impl From<Spanned<Content>> for Node {
    fn from(spanned: Spanned<Content>) -> Self {
        let place = spanned.referenced;
        Self { position: to_position(place.line(), place.column()), content: spanned.value }
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Content, E> {
        Ok(Content::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Content, D::Error> {
        Content::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Content, E> {
        Ok(Content::Scalar(value.into()))
    }

    fn visit_str<E>(self, text: &str) -> Result<Content, E> {
        Ok(Content::Scalar(text.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Content, A::Error> {
        let mut nodes = Vec::new();
        while let Some(item) = items.next_element::<Spanned<Content>>()? {
            nodes.push(item.into());
        }
        Ok(Content::Sequence(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Content, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Spanned<Content>>()? {
            let key = Node::from(key);
            let name = match to_json(&key) {
                Value::String(text) => text,
                other => other.to_string(),
            };
            entries.push((name, key.position, map.next_value::<Spanned<Content>>()?.into()));
        }
        Ok(Content::Mapping(entries))
    }
}
