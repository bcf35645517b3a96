//! The usage of a chat response: the numbers of its tokens, as the target reports them.

use super::json_scanner::{self, JsonScanner, ScanError, read_members};

/// A larger number of tokens of one response is a mistake of the target. Sums of smaller ones don't
/// overflow.
const MAX_TOKENS: u64 = 1_000_000_000;

/// Numbers of tokens, as the target reports them. `None` for numbers it does not report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) prompt: Option<u64>,
    /// All generated tokens. Most servers include those of reasoning: see [`Self::generated`].
    pub(crate) completion: Option<u64>,
    pub(crate) reasoning: Option<u64>,
    /// Tokens of a prediction in the request that the model did not use. They are part of
    /// `completion`, and never sent.
    pub(crate) rejected: Option<u64>,
    /// All tokens of prompt and response.
    pub(crate) total: Option<u64>,
}

impl Usage {
    /// Takes over the numbers of a later report.
    pub(crate) fn update(&mut self, later: Self) {
        self.prompt = later.prompt.or(self.prompt);
        self.completion = later.completion.or(self.completion);
        self.reasoning = later.reasoning.or(self.reasoning);
        self.rejected = later.rejected.or(self.rejected);
        self.total = later.total.or(self.total);
    }

    /// Returns the number of tokens of the response, those of reasoning included.
    ///
    /// Some servers, such as xAI's, count the tokens of reasoning apart from `completion`. Their
    /// total says so.
    pub(crate) fn generated(&self) -> Option<u64> {
        let completion = self.completion?;
        let reasoning = self.reasoning.unwrap_or(0);
        let apart = completion.saturating_add(reasoning);
        let is_apart = reasoning > completion
            || self.total == Some(apart.saturating_add(self.prompt.unwrap_or(0)));
        let generated = if is_apart { apart } else { completion };
        Some(generated.saturating_sub(self.rejected.unwrap_or(0)))
    }
}

fn parse_count(value: &[u8]) -> Option<u64> {
    json_scanner::parse_count(value).filter(|count| *count <= MAX_TOKENS)
}

/// Reads a usage and takes over its numbers.
pub(super) fn read_usage(
    scanner: &mut JsonScanner<'_>,
    usage: &mut Usage,
) -> Result<(), ScanError> {
    let mut found = Usage::default();
    read_members(scanner, |name, scanner| match name {
        b"prompt_tokens" | b"input_tokens" => {
            found.prompt = parse_count(scanner.value()?);
            Ok(())
        }
        b"completion_tokens" | b"output_tokens" => {
            found.completion = parse_count(scanner.value()?);
            Ok(())
        }
        b"reasoning_tokens" => {
            found.reasoning = parse_count(scanner.value()?).or(found.reasoning);
            Ok(())
        }
        b"total_tokens" => {
            found.total = parse_count(scanner.value()?);
            Ok(())
        }
        b"completion_tokens_details" | b"output_tokens_details" => {
            read_members(scanner, |name, scanner| {
                let count = parse_count(scanner.value()?);
                match name {
                    b"reasoning_tokens" => found.reasoning = count.or(found.reasoning),
                    b"rejected_prediction_tokens" => found.rejected = count.or(found.rejected),
                    _ => {}
                }
                Ok(())
            })
        }
        _ => scanner.value().map(drop),
    })?;
    usage.update(found);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{super::chat_event::ChatEvent, *};

    fn usage_of(text: &str) -> Usage {
        ChatEvent::parse(text.as_bytes()).unwrap().usage
    }

    #[test]
    fn usage_is_found_in_every_place() {
        let expected =
            Usage { prompt: Some(5), completion: Some(7), reasoning: Some(2), ..Usage::default() };
        for text in [
            r#"{"usage":{"prompt_tokens":5,"completion_tokens":7,"completion_tokens_details":{"reasoning_tokens":2}}}"#,
            r#"{"usage":{"prompt_tokens":5.0,"completion_tokens":7.0,"reasoning_tokens":2.0}}"#,
            r#"{"x_groq":{"id":"r","usage":{"prompt_tokens":5,"completion_tokens":7,"reasoning_tokens":2}}}"#,
            r#"{"choices":[{"usage":{"input_tokens":5,"output_tokens":7,"output_tokens_details":{"reasoning_tokens":2}}}]}"#,
        ] {
            assert_eq!(usage_of(text), expected, "{text}");
        }
        let huge = r#"{"usage":{"completion_tokens":18446744073709551615}}"#;
        assert_eq!(usage_of(huge), Usage::default());
        for text in
            [r#"{"usage":null}"#, r#"{"usage":{"completion_tokens":-1}}"#, r#"{"usage":"x"}"#]
        {
            assert_eq!(usage_of(text), Usage::default(), "{text}");
        }
    }

    #[test]
    fn tokens_of_reasoning_may_be_counted_apart() {
        for (text, generated) in [
            (r#""completion_tokens":100,"total_tokens":105,"reasoning_tokens":90"#, 100),
            (r#""completion_tokens":10,"total_tokens":105,"reasoning_tokens":90"#, 100),
            (r#""completion_tokens":100,"total_tokens":195,"reasoning_tokens":90"#, 190),
            (r#""completion_tokens":10,"reasoning_tokens":90"#, 100),
            (r#""completion_tokens":10,"total_tokens":15,"reasoning_tokens":0"#, 10),
            (
                r#""completion_tokens":100,"completion_tokens_details":{"rejected_prediction_tokens":90}"#,
                10,
            ),
        ] {
            let usage = usage_of(&format!(r#"{{"usage":{{"prompt_tokens":5,{text}}}}}"#));
            assert_eq!(usage.generated(), Some(generated), "{text}");
        }
    }
}
