//! Paths to fields, and where a field stands in the file.

use saphyr::{MarkedYamlOwned, YamlDataOwned};

use super::key_text;

/// One step from an object's root to a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

/// Where a field stands in the file; the nearest thing around it when it is missing.
pub(super) fn position(node: &MarkedYamlOwned, steps: &[Step]) -> (usize, usize) {
    let mut here = node;
    let mut at = here.span.start;
    for step in steps {
        let next = match (step, &here.data) {
            (Step::Key(key), YamlDataOwned::Mapping(map)) => {
                map.iter().find(|(name, _)| key_text(name) == *key).map(|(name, value)| {
                    at = name.span.start;
                    value
                })
            }
            (Step::Index(index), YamlDataOwned::Sequence(items)) => {
                items.get(*index).inspect(|item| at = item.span.start)
            }
            _ => None,
        };
        match next {
            Some(next) => here = next,
            None => break,
        }
    }
    (at.line(), at.col() + 1)
}

/// Reads a path such as `spec.scenario.tasks[0].http.path`.
pub(super) fn parse(path: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    for part in path.split('.').filter(|part| !part.is_empty()) {
        let (name, indices) = part.split_once('[').map_or((part, ""), |(n, i)| (n, i));
        if !name.is_empty() {
            steps.push(Step::Key(name.to_owned()));
        }
        let numbers = indices.split('[').filter_map(|i| i.trim_end_matches(']').parse().ok());
        steps.extend(numbers.map(Step::Index));
    }
    steps
}

pub(super) fn dotted(steps: &[Step]) -> String {
    let mut text = String::new();
    for step in steps {
        match step {
            Step::Key(key) if text.is_empty() => text.push_str(key),
            Step::Key(key) => text.push_str(&format!(".{key}")),
            Step::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}
