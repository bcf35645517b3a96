//! What an HTML page or an XML document says.

/// Elements of XML errors that hold a sentence.
const XML_SENTENCES: [&str; 5] = ["message", "faultstring", "reason", "description", "detail"];

/// Titles of pages that say nothing: the sentence is in the page.
const EMPTY_TITLES: [&str; 3] = ["error", "exception", "server error"];

/// References to characters by name. The pages of servers use no others.
const CHARACTERS: [(&str, &str); 8] = [
    ("amp", "&"),
    ("lt", "<"),
    ("gt", ">"),
    ("quot", "\""),
    ("apos", "'"),
    ("nbsp", " "),
    ("ndash", "–"),
    ("mdash", "—"),
];

/// Returns the sentence of an XML error, or the title or first text of an HTML page.
pub(super) fn describe_markup(page: &str) -> String {
    let lower = page.to_ascii_lowercase();
    if !lower.contains("<html") {
        let sentence = XML_SENTENCES.iter().find_map(|name| element(page, &lower, name));
        if let Some(sentence) = sentence {
            return sentence;
        }
    }
    let title = element(page, &lower, "title");
    let is_empty = |title: &String| EMPTY_TITLES.contains(&title.to_ascii_lowercase().as_str());
    let text = match title {
        Some(title) if is_empty(&title) => match element(page, &lower, "body") {
            Some(text) => format!("{title}: {text}"),
            None => title,
        },
        Some(title) => title,
        None => ["h1", "body"]
            .iter()
            .find_map(|name| element(page, &lower, name))
            .unwrap_or_else(|| first_line(page)),
    };
    if text.is_empty() { "HTML page".to_owned() } else { format!("HTML page {text:?}") }
}

/// Returns the first line of the text in an element. `lower` is the page in lower case.
fn element(page: &str, lower: &str, name: &str) -> Option<String> {
    let start = lower.match_indices(&format!("<{name}")).map(|(at, _)| at).find(|at| {
        let after = lower.as_bytes().get(at + 1 + name.len());
        after.is_some_and(|byte| !byte.is_ascii_alphanumeric())
    })?;
    let begin = start + page[start..].find('>')? + 1;
    let end = lower[begin..].find(&format!("</{name}")).map_or(page.len(), |at| begin + at);
    Some(first_line(&page[begin..end])).filter(|text| !text.is_empty())
}

/// Returns the first line of a page that has text, without tags.
fn first_line(html: &str) -> String {
    let text = without_tags(html);
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    decode_characters(lines.next().unwrap_or_default()).trim().to_owned()
}

/// Returns the text of a page. `<br>` ends a line.
fn without_tags(html: &str) -> String {
    let mut text = String::with_capacity(html.len());
    let mut rest = html;
    while let Some(at) = rest.find('<') {
        text.push_str(&rest[..at]);
        let tag = &rest[at..];
        if tag.get(..3).is_some_and(|start| start.eq_ignore_ascii_case("<br")) {
            text.push('\n');
        }
        rest = tag.find('>').map_or("", |end| &tag[end + 1..]);
    }
    text.push_str(rest);
    text
}

/// Replaces references such as `&amp;` and `&#39;` by their characters.
fn decode_characters(text: &str) -> String {
    let mut decoded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        decoded.push_str(&rest[..at]);
        rest = &rest[at..];
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '#';
        let reference = rest[1..].split(|c| !is_name(c)).next().unwrap_or_default();
        let is_whole = rest[1 + reference.len()..].starts_with(';');
        if let Some(character) = character_of(reference).filter(|_| is_whole) {
            decoded.push_str(&character);
            rest = &rest[reference.len() + 2..];
        } else {
            decoded.push('&');
            rest = &rest[1..];
        }
    }
    decoded.push_str(rest);
    decoded
}

fn character_of(reference: &str) -> Option<String> {
    if let Some((_, text)) = CHARACTERS.iter().find(|(name, _)| *name == reference) {
        return Some((*text).to_owned());
    }
    let number = reference.strip_prefix('#')?;
    let code = match number.strip_prefix(['x', 'X']) {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => number.parse(),
    };
    char::from_u32(code.ok()?).map(String::from)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pages_are_described_by_their_sentence() {
        for (page, expected) in [
            (
                "<html>\n<head><title>\n502 Bad Gateway</title></head><body>x</body>",
                "HTML page \"502 Bad Gateway\"",
            ),
            ("<p>Down <b>now</b></p>", "HTML page \"Down now\""),
            (
                "<html><title>Error</title><body>\n<pre>TypeError: no &#39;id&#39;<br> &nbsp;at x</pre>",
                "HTML page \"Error: TypeError: no 'id'\"",
            ),
            (
                "<html><h1>pool &amp; queue are&nbsp;empty</h1>",
                "HTML page \"pool & queue are empty\"",
            ),
            (
                "<br />\n<b>Fatal error</b>:  too many connections",
                "HTML page \"Fatal error:  too many connections\"",
            ),
            (
                "<?xml version=\"1.0\"?>\n<Error><Code>SlowDown</Code><Message>Please wait.</Message></Error>",
                "Please wait.",
            ),
            ("<html></html>", "HTML page"),
            ("<title>a & b &unknown; c&", "HTML page \"a & b &unknown; c&\""),
        ] {
            assert_eq!(describe_markup(page), expected, "{page}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_pages_never_panic(page in "(<[a-zä]{0,6}>?|</title>|<title>|&#?[a-z0-9;]{0,4}|ü| ){0,12}") {
            let _ = describe_markup(&page);
        }
    }
}
