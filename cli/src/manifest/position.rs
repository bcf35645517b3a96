//! Paths of fields and their positions in the file.

use super::yaml::{Content, Node, Position};

/// One part of a path from the root of an object to a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Key(String),
    Index(usize),
    /// The item of a list with this name.
    Name(String),
}

/// Returns the line and column of a field. If the field is missing, returns the position of the
/// innermost field on the path that exists.
pub(super) fn find_position(document: &Node, steps: &[Step]) -> Position {
    let mut node = document;
    let mut position = node.position;
    for step in steps {
        let next = match (step, &node.content) {
            (Step::Key(key), Content::Mapping(entries)) => {
                entries.iter().find(|(name, ..)| name == key).map(|(_, key_position, value)| {
                    position = *key_position;
                    value
                })
            }
            (Step::Index(index), Content::Sequence(items)) => {
                items.get(*index).inspect(|item| position = item.position)
            }
            (Step::Name(name), Content::Sequence(items)) => {
                let is_named = |item: &&Node| super::yaml::to_json(item)["name"] == *name;
                items.iter().find(is_named).inspect(|item| position = item.position)
            }
            _ => None,
        };
        match next {
            Some(next) => node = next,
            None => break,
        }
    }
    position
}

/// Parses a path such as `spec.scenario.tasks[0].http.path` or `spec.scenario.tasks[health].weight`.
pub(super) fn parse_path(path: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        // An item in brackets may have dots in its name.
        if let Some((item, after)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            let step = item.parse().map_or_else(|_| Step::Name(item.to_owned()), Step::Index);
            steps.push(step);
            rest = after;
            continue;
        }
        let end = rest.get(1..).and_then(|after| after.find(['.', '[']));
        let (part, after) = rest.split_at(end.map_or(rest.len(), |end| end + 1));
        let key = part.trim_start_matches('.');
        if !key.is_empty() {
            steps.push(Step::Key(key.to_owned()));
        }
        rest = after;
    }
    steps
}

/// Formats a path in the form that [`parse_path`] takes.
pub(super) fn format_path(steps: &[Step]) -> String {
    let mut text = String::new();
    for step in steps {
        match step {
            Step::Key(key) if text.is_empty() => text.push_str(key),
            Step::Key(key) => text.push_str(&format!(".{key}")),
            Step::Index(index) => text.push_str(&format!("[{index}]")),
            Step::Name(name) => text.push_str(&format!("[{name}]")),
        }
    }
    text
}
