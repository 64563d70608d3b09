//! When a completion ends: at an EOS token, at a stop string, or at the length limit.

use super::error::TextError;
use super::stream::TextStream;
use super::tokenizer::Tokenizer;

/// Why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// An EOS token or a stop string; the token that completed it belongs to the completion.
    Stop,
    /// The length limit: the completion is truncated.
    Length,
}

impl FinishReason {
    /// `stop` or `length`, as result files spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

impl std::fmt::Display for FinishReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The rules that end a completion.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopRules {
    /// Token ids that end a completion, sorted. See `eos_set`.
    pub eos_ids: Vec<u32>,
    /// Texts that end a completion as soon as its decoded text contains one. Empty strings are ignored.
    pub stop_strings: Vec<String>,
    /// Most tokens in a completion, the EOS token included.
    pub max_completion_length: usize,
}

impl StopRules {
    /// Whether a token is in the EOS set.
    #[must_use]
    pub fn is_eos(&self, id: u32) -> bool {
        self.eos_ids.contains(&id)
    }

    /// The state of one completion under these rules. Text is decoded only where there are stop strings.
    #[must_use]
    pub fn start(&self, tokenizer: &Tokenizer) -> StopState {
        let longest = self.stop_strings.iter().map(String::len).max().unwrap_or(0);
        StopState {
            num_tokens: 0,
            text: (longest > 0).then(|| StopText { stream: TextStream::new(tokenizer.clone()), tail: String::new() }),
            longest,
        }
    }
}

/// How far one completion has come under its [`StopRules`].
#[derive(Debug, Clone)]
pub struct StopState {
    num_tokens: usize,
    text: Option<StopText>,
    /// Bytes of the longest stop string.
    longest: usize,
}

#[derive(Debug, Clone)]
struct StopText {
    stream: TextStream,
    /// The end of the text so far: as many bytes as may begin a stop string.
    tail: String,
}

impl StopState {
    /// Takes the next token of the completion and says whether the completion ends with it.
    ///
    /// EOS and stop strings come before the limit: a completion that stops with its last permitted token is not
    /// truncated.
    pub fn push(&mut self, rules: &StopRules, id: u32) -> Result<Option<FinishReason>, TextError> {
        self.num_tokens += 1;
        if rules.is_eos(id) || self.completes_stop_string(rules, id)? {
            return Ok(Some(FinishReason::Stop));
        }
        Ok((self.num_tokens >= rules.max_completion_length).then_some(FinishReason::Length))
    }

    fn completes_stop_string(&mut self, rules: &StopRules, id: u32) -> Result<bool, TextError> {
        let Some(StopText { stream, tail }) = &mut self.text else { return Ok(false) };
        let Some(fresh) = stream.push(id)? else { return Ok(false) };
        tail.push_str(&fresh);
        if rules.stop_strings.iter().any(|stop| !stop.is_empty() && tail.contains(stop.as_str())) {
            return Ok(true);
        }
        let mut cut = tail.len().saturating_sub(self.longest - 1);
        while !tail.is_char_boundary(cut) {
            cut -= 1;
        }
        tail.drain(..cut);
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_tokenizer::byte_level;
    use super::*;

    /// Pushes the bytes of `text` and returns after how many tokens the completion ended, and why.
    fn run(text: &str, rules: &StopRules) -> Option<(usize, FinishReason)> {
        let tokenizer = byte_level();
        let mut state = rules.start(&tokenizer);
        for (i, id) in tokenizer.encode(text, false).unwrap().into_iter().enumerate() {
            if let Some(reason) = state.push(rules, id).unwrap() {
                return Some((i + 1, reason));
            }
        }
        None
    }

    #[test]
    fn ends_with_the_token_that_completes_a_stop_string() {
        let rules = StopRules {
            stop_strings: vec!["\n\n".into(), String::new(), "€d".into()],
            max_completion_length: 50,
            ..StopRules::default()
        };
        assert_eq!(run("ab\nc\n\nd", &rules), Some((6, FinishReason::Stop)));
        assert_eq!(run("a€€de", &rules), Some((1 + 3 + 3 + 1, FinishReason::Stop)));
        assert_eq!(run("ab\nc\nd€", &rules), None);
    }

    #[test]
    fn the_limit_counts_every_token_and_stopping_comes_first() {
        let eos = byte_level().eos_id().unwrap();
        let rules = StopRules { eos_ids: vec![eos], max_completion_length: 3, stop_strings: vec![] };
        assert_eq!(run("abcdef", &rules), Some((3, FinishReason::Length)));
        assert_eq!(run("ab</s>", &rules), Some((3, FinishReason::Stop)));
        assert_eq!(run("</s>", &rules), Some((1, FinishReason::Stop)));
        assert_eq!(run("ab", &rules), None);
    }
}
