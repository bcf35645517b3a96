//! Texts for people: cutting them to a length, and plurals.

/// Cuts a text to at most `bytes`, between two characters, and marks the cut with an ellipsis.
pub fn truncate(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        return text.to_owned();
    }
    let end = (0..=bytes.saturating_sub(3)).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    format!("{}…", &text[..end])
}

/// Writes a number of things: `1 runner`, `2 runners`.
pub fn count_of(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

#[cfg(test)]
mod tests {
    use super::{count_of, truncate};

    #[test]
    fn one_thing_has_no_plural() {
        let texts = [0, 1, 2].map(|number| count_of(number, "runner"));
        assert_eq!(texts, ["0 runners", "1 runner", "2 runners"]);
    }

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(truncate("äöü", 6), "äöü");
        assert_eq!(truncate("äöüß", 7), "äö…");
    }
}
