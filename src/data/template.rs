//! A prompt made of the columns of a row: `"Question: {question}\nAnswer:"`.

/// A text with the names of columns in braces; `{{` and `}}` stand for the braces themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptTemplate {
    /// Literal texts and column names, in their order.
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Column(String),
}

impl PromptTemplate {
    /// Reads a template.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence: a brace without its other half, an empty name, no column at all.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (mut pieces, mut literal) = (Vec::new(), String::new());
        let mut rest = text.chars().peekable();
        while let Some(c) = rest.next() {
            match c {
                '{' | '}' if rest.peek() == Some(&c) => {
                    rest.next();
                    literal.push(c);
                }
                '{' => {
                    let mut is_closed = false;
                    let inside = rest.by_ref().take_while(|c| {
                        is_closed = *c == '}';
                        !is_closed
                    });
                    let name: String = inside.collect();
                    if name.is_empty() || name.contains('{') || !is_closed {
                        return Err(format!("has no column name between the braces at `{{{name}`"));
                    }
                    if !literal.is_empty() {
                        pieces.push(Piece::Text(std::mem::take(&mut literal)));
                    }
                    pieces.push(Piece::Column(name));
                }
                '}' => return Err("has a `}` without a `{`; write `}}` for the character itself".to_owned()),
                c => literal.push(c),
            }
        }
        if !literal.is_empty() {
            pieces.push(Piece::Text(literal));
        }
        if !pieces.iter().any(|piece| matches!(piece, Piece::Column(_))) {
            return Err("names no column: all prompts would be the same".to_owned());
        }
        Ok(Self { pieces })
    }

    /// The text with every column's value in its place.
    ///
    /// # Errors
    /// The first error of `value`.
    pub(super) fn fill<E>(&self, mut value: impl FnMut(&str) -> Result<String, E>) -> Result<String, E> {
        let mut text = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(literal) => text.push_str(literal),
                Piece::Column(name) => text.push_str(&value(name)?),
            }
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(template: &str) -> Result<String, String> {
        PromptTemplate::parse(template)?.fill(|name| Ok::<_, String>(format!("<{name}>")))
    }

    #[test]
    fn columns_take_the_place_of_their_names() {
        for (template, expected) in [
            ("Question: {question}\nAnswer:", "Question: <question>\nAnswer:"),
            ("{a}{b}{a}", "<a><b><a>"),
            ("{{{a}}} {{b}}", "{<a>} {b}"),
            ("{a b.c}", "<a b.c>"),
        ] {
            assert_eq!(filled(template).unwrap(), expected);
        }
    }

    #[test]
    fn half_a_brace_and_no_column_are_refused() {
        for template in ["", "text", "{{a}}", "{", "{}", "x {a", "{a} {a", "a}", "{a{b}", "{a} }"] {
            assert!(filled(template).is_err(), "{template}");
        }
    }
}
