//! Text tables with aligned columns.

use std::fmt::Write;

/// Formats rows of cells. Each column is as wide as its widest cell. The first `text_columns`
/// columns are aligned to the left, all others to the right.
pub(crate) fn format_table(rows: &[Vec<String>], text_columns: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|c| rows.iter().filter_map(|r| r.get(c)).map(|t| t.chars().count()).max().unwrap_or(0))
        .collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let pad = " ".repeat(width - cell.chars().count());
            let cell =
                if column < text_columns { format!("{cell}{pad}") } else { format!("{pad}{cell}") };
            // Writing to a `String` can't fail. The same holds in the other modules of `render`.
            let _ = write!(line, "  {cell}");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// Returns a row of fixed texts, such as a table header.
pub(super) fn text_row<const N: usize>(texts: [&str; N]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

/// Returns the text of a value that may be missing.
pub(super) fn text_or_dash(text: Option<&String>) -> String {
    text.cloned().unwrap_or_else(|| "-".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [text_row(["task", "n"]), text_row(["chat", "12345"]), text_row(["é", "1"])];
        let text = format_table(&rows, 1);
        assert_eq!(text, "  task      n\n  chat  12345\n  é         1\n");
    }
}
