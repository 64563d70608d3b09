//! The text of a completion while it grows, token by token.
//!
//! A character may be spread over several tokens (byte-level vocabularies cut UTF-8 anywhere), so text is released only
//! once its characters are complete. What the text of a finished completion is, is decided by `Tokenizer::decode` of
//! all its ids; the stream only shows it early.

use super::error::TextError;
use super::tokenizer::Tokenizer;

/// What an unfinished or invalid character decodes to.
const REPLACEMENT: char = '\u{FFFD}';

/// With more tokens pending than this, at most the last one of several U+FFFD is an unfinished character: the others
/// are in the text, or are bytes that never become one.
const MAX_UNFINISHED_TOKENS: usize = 8;

/// With more tokens pending than this, all is released: the window must not grow without end.
const MAX_PENDING_TOKENS: usize = 64;

/// Incremental decoder of one completion.
///
/// Only a short window at the end is decoded again for each token, so that the cost is linear in the length.
#[derive(Debug, Clone)]
pub struct TextStream {
    tokenizer: Tokenizer,
    ids: Vec<u32>,
    /// Start of the window in `ids`. The window begins with tokens whose text is out already: decoders treat the first
    /// token of a text in a special way (a leading space is dropped), which is what makes the context necessary.
    start: usize,
    /// Tokens before this index have their text out.
    read: usize,
    /// The part of the window's text that is out.
    released: String,
}

impl TextStream {
    #[must_use]
    pub fn new(tokenizer: Tokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), start: 0, read: 0, released: String::new() }
    }

    /// Takes the next token and returns the text that it completes, if any. Special tokens have no text.
    pub fn push(&mut self, id: u32) -> Result<Option<String>, TextError> {
        self.ids.push(id);
        let window = self.tokenizer.decode(&self.ids[self.start..])?;
        let num_pending = self.ids.len() - self.read;
        let given_up = num_pending > MAX_PENDING_TOKENS;
        let stable = match num_pending {
            _ if given_up => window.as_str(),
            MAX_UNFINISHED_TOKENS.. => window.strip_suffix(REPLACEMENT).unwrap_or(&window),
            _ => window.trim_end_matches(REPLACEMENT),
        };
        // Decoders with byte fallback may turn finished text back into replacement characters until the next character
        // is complete; nothing is released in between.
        let fresh = match stable.strip_prefix(self.released.as_str()) {
            Some(fresh) => fresh.to_string(),
            None if given_up => stable.get(self.released.len()..).unwrap_or_default().to_string(),
            None => String::new(),
        };
        self.released.push_str(&fresh);
        if given_up || (stable.len() == window.len() && self.released == window) {
            self.advance()?;
        }
        Ok((!fresh.is_empty()).then_some(fresh))
    }

    /// Moves the window so that it starts at the tokens released last.
    fn advance(&mut self) -> Result<(), TextError> {
        let context = self.tokenizer.decode(&self.ids[self.read..])?;
        // A window without text (special tokens only) would make the next token the first of its text.
        if !context.is_empty() {
            self.start = self.read;
            self.released = context;
        }
        self.read = self.ids.len();
        Ok(())
    }

    /// Text that is still held back at the end of the completion: an unfinished character decodes to U+FFFD.
    pub fn finish(&mut self) -> Result<Option<String>, TextError> {
        let window = self.tokenizer.decode(&self.ids[self.start..])?;
        let rest = window.strip_prefix(self.released.as_str()).unwrap_or_default().to_string();
        self.released.push_str(&rest);
        self.read = self.ids.len();
        Ok((!rest.is_empty()).then_some(rest))
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_tokenizer::{byte_level, sentencepiece_like};
    use super::*;
    use proptest::prelude::*;

    fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> (Vec<Option<String>>, String) {
        let mut stream = TextStream::new(tokenizer.clone());
        let mut pieces: Vec<_> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        pieces.push(stream.finish().unwrap());
        let text = pieces.iter().flatten().map(String::as_str).collect();
        (pieces, text)
    }

    #[test]
    fn a_character_appears_when_its_last_byte_does() {
        let tokenizer = byte_level();
        let ids = tokenizer.encode("a€🦀!", false).unwrap();
        assert_eq!(ids.len(), 1 + 3 + 4 + 1, "one token a byte");
        let (pieces, text) = streamed(&tokenizer, &ids);
        let shown: Vec<&str> = pieces.iter().map(|piece| piece.as_deref().unwrap_or("")).collect();
        assert_eq!(shown, ["a", "", "", "€", "", "", "", "🦀", "!", ""]);
        assert_eq!(text, "a€🦀!");
    }

    #[test]
    fn an_unfinished_character_is_shown_at_the_end_only() {
        let tokenizer = byte_level();
        let ids = tokenizer.encode("x€", false).unwrap();
        let (pieces, text) = streamed(&tokenizer, &ids[..3]);
        assert_eq!(pieces, [Some("x".into()), None, None, Some("\u{FFFD}".into())]);
        assert_eq!(text, tokenizer.decode(&ids[..3]).unwrap());
    }

    /// Text may have U+FFFD itself, and a model may write bytes that are no text at all.
    #[test]
    fn replacement_characters_in_the_text_do_not_break_their_neighbours() {
        let tokenizer = byte_level();
        for count in [1, 2, 5, 15] {
            let text = format!("a{}🦀b", "\u{FFFD}".repeat(count));
            let ids = tokenizer.encode(&text, false).unwrap();
            assert_eq!(streamed(&tokenizer, &ids).1, text);
        }
        let noise = [vec![0x80; 500], vec![u32::from(b'a')]].concat();
        let mut stream = TextStream::new(tokenizer.clone());
        let shown: String = noise.iter().filter_map(|&id| stream.push(id).unwrap()).collect();
        assert_eq!(shown, tokenizer.decode(&noise).unwrap());
    }

    #[test]
    fn spaces_survive_beside_special_tokens_and_byte_fallback() {
        let tokenizer = sentencepiece_like();
        let ids: Vec<u32> = ["▁a", "<s>", "▁b", "<0xE2>", "<0x82>", "<0xAC>", "<0xE2>", "<0x82>", "<0xAC>", "▁a", "▁b"]
            .iter()
            .map(|token| tokenizer.id(token).unwrap())
            .collect();
        let (_, text) = streamed(&tokenizer, &ids);
        assert_eq!(text, "a b€€ a b");
        assert_eq!(text, tokenizer.decode(&ids).unwrap());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// For any text, however its bytes fall into tokens, the pieces add up to the decoded whole.
        #[test]
        fn pieces_add_up(text in "\\PC{0,40}") {
            let tokenizer = byte_level();
            let ids = tokenizer.encode(&text, false).unwrap();
            let (_, streamed_text) = streamed(&tokenizer, &ids);
            prop_assert_eq!(streamed_text, tokenizer.decode(&ids).unwrap());
        }

        /// Any ids at all, invalid byte sequences included, neither panic nor stall.
        #[test]
        fn any_ids_are_taken(ids in proptest::collection::vec(0u32..300, 0..60)) {
            let tokenizer = byte_level();
            let (pieces, text) = streamed(&tokenizer, &ids);
            let decoded = tokenizer.decode(&ids).unwrap();
            prop_assert!(text.chars().count().abs_diff(decoded.chars().count()) <= pieces.len());
        }
    }
}
