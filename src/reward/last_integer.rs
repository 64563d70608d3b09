//! The last integer of a completion against the integer of the answer.
//!
//! Integers are compared as canonical digit strings, so that their size does not matter. The text is read once, from
//! left to right, in time linear in its length. The rules:
//! - The last *number* decides. If it is no integer (`12.50`, `1e3`, `1.2.3`), nothing matches; `12.0` is 12.
//! - A dash (`-`, U+2212 and its kin) is a minus only directly before the number and only where no letter or digit
//!   stands directly before the dash: `12-7` ends in 7, `= -5` is -5. A currency sign may stand between: `-$5`.
//! - Groups of exactly three digits joined by one kind of separator (`,` `_` `'` U+00A0 U+2009 U+202F) are one number;
//!   a plain space never joins. `12,34` is two numbers.
//! - Full-width and Arabic-Indic digits count as digits; zero-width characters and direction marks as nothing.

use super::answer::{answer_integer, failed};
use super::error::RewardError;
use super::{Reward, RewardInput};
use crate::data::Columns;

/// The last number of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LastNumber {
    /// An integer in canonical form: no leading zeros, no `+`, a `-` if negative, `0` never negative.
    Integer(String),
    /// A number that is no integer, such as `12.50` or `1e3`.
    NotAnInteger,
    /// The text has no digit.
    None,
}

/// The last number of a text, by the rules of this module.
#[must_use]
pub fn extract_last_number(text: &str) -> LastNumber {
    let mut scanner = Scanner { rest: Glyphs::new(text), before: [None; 2], digits: String::new() };
    let mut last = None;
    while let Some(number) = scanner.next_number() {
        last = Some(number);
    }
    match last {
        None => LastNumber::None,
        Some(Number { is_integer: false, .. }) => LastNumber::NotAnInteger,
        Some(Number { is_negative, .. }) => {
            let digits = scanner.digits.trim_start_matches('0');
            LastNumber::Integer(match digits {
                "" => "0".to_string(),
                digits if is_negative => format!("-{digits}"),
                digits => digits.to_string(),
            })
        }
    }
}

/// The integer that a text ends in, in canonical form; None where its last number is no integer or there is none.
///
/// ```
/// use candlewick::reward::extract_last_integer;
/// assert_eq!(extract_last_integer("12 - 19 = −7.").as_deref(), Some("-7"));
/// assert_eq!(extract_last_integer("about 12.5"), None);
/// ```
#[must_use]
pub fn extract_last_integer(text: &str) -> Option<String> {
    match extract_last_number(text) {
        LastNumber::Integer(integer) => Some(integer),
        _ => None,
    }
}

/// The reward `last_integer`: `correct_reward` where the completion ends in the integer of the answer column,
/// `wrong_reward` everywhere else.
#[derive(Debug, Clone, PartialEq)]
pub struct LastInteger {
    /// Column with the answer, a JSON string or number, read by the same rules. Default `answer`.
    pub answer_column: String,
    /// Default 1.0.
    pub correct_reward: f64,
    /// Default 0.0.
    pub wrong_reward: f64,
}

impl Default for LastInteger {
    fn default() -> Self {
        Self { answer_column: "answer".to_string(), correct_reward: 1.0, wrong_reward: 0.0 }
    }
}

impl Reward for LastInteger {
    fn name(&self) -> &'static str {
        "last_integer"
    }

    fn score(&self, input: &RewardInput<'_>) -> Result<Option<f64>, RewardError> {
        let gold = answer_integer(input.columns, &self.answer_column).map_err(failed(self.name(), input))?;
        let is_correct = extract_last_integer(input.completion).is_some_and(|integer| integer == gold);
        Ok(Some(if is_correct { self.correct_reward } else { self.wrong_reward }))
    }

    fn check_row(&self, columns: &Columns) -> Result<(), String> {
        answer_integer(columns, &self.answer_column).map(drop)
    }
}

struct Number {
    is_negative: bool,
    is_integer: bool,
}

/// The visible characters of a text. Cloning it is how the scanner looks ahead.
#[derive(Clone)]
struct Glyphs<'a>(std::str::Chars<'a>);

impl<'a> Glyphs<'a> {
    fn new(text: &'a str) -> Self {
        Self(text.chars())
    }

    fn peek(&self) -> Option<char> {
        self.clone().next()
    }

    fn peek_digit(&self) -> Option<char> {
        self.peek().and_then(ascii_digit)
    }
}

impl Iterator for Glyphs<'_> {
    type Item = char;

    fn next(&mut self) -> Option<char> {
        self.0.find(|&c| !is_invisible(c))
    }
}

struct Scanner<'a> {
    rest: Glyphs<'a>,
    /// The two characters before `rest`, the nearer first, a currency sign after a dash not counted.
    before: [Option<char>; 2],
    /// Digits of the integer part of the number read last.
    digits: String,
}

impl Scanner<'_> {
    fn next_number(&mut self) -> Option<Number> {
        loop {
            let c = self.rest.next()?;
            if let Some(digit) = ascii_digit(c) {
                let is_negative = self.is_minus_before();
                return Some(self.read_number(digit, is_negative));
            }
            let starts_fraction = c == '.' && self.rest.peek_digit().is_some() && self.may_start_fraction();
            if starts_fraction {
                return Some(self.read_bare_fraction());
            }
            let is_currency_after_dash = is_currency(c) && self.before[0].is_some_and(is_dash);
            if !is_currency_after_dash {
                self.before = [Some(c), self.before[0]];
            }
        }
    }

    fn is_minus_before(&self) -> bool {
        self.before[0].is_some_and(is_dash) && !self.before[1].is_some_and(char::is_alphanumeric)
    }

    /// `.5` is a fraction at the start of a word; in `is...5` and `v.5` the point is punctuation.
    fn may_start_fraction(&self) -> bool {
        self.before[0].is_none_or(|c| {
            c.is_whitespace() || is_dash(c) || is_currency(c) || matches!(c, '+' | '(' | '[' | '{' | '=')
        })
    }

    /// Reads the rest of a number whose first digit has been read.
    fn read_number(&mut self, first: char, is_negative: bool) -> Number {
        self.digits.clear();
        self.digits.push(first);
        while let Some(digit) = self.rest.peek_digit() {
            self.digits.push(digit);
            self.rest.next();
        }
        if self.digits.len() <= 3 {
            self.read_groups();
        }
        let mut is_integer = self.read_fractions();
        is_integer &= !self.read_exponent();
        // What follows a number stands after a digit: a dash there is no minus.
        self.before = [Some('0'), None];
        Number { is_negative, is_integer }
    }

    /// Joins groups of exactly three digits behind one kind of separator.
    fn read_groups(&mut self) {
        let Some(separator) = self.rest.peek().filter(|&c| is_group_separator(c)) else { return };
        loop {
            let mut ahead = self.rest.clone();
            if ahead.next() != Some(separator) {
                return;
            }
            let mut group = ['0'; 3];
            for place in &mut group {
                let Some(digit) = ahead.next().and_then(ascii_digit) else { return };
                *place = digit;
            }
            if ahead.peek_digit().is_some() {
                return;
            }
            self.digits.extend(group);
            self.rest = ahead;
        }
    }

    /// Reads `.digits`, any number of times; true if the number is an integer all the same (`12`, `12.0`).
    fn read_fractions(&mut self) -> bool {
        let (mut count, mut is_zero) = (0, true);
        loop {
            let mut ahead = self.rest.clone();
            if ahead.next() != Some('.') || ahead.peek_digit().is_none() {
                return count == 0 || (count == 1 && is_zero);
            }
            count += 1;
            while let Some(digit) = ahead.peek_digit() {
                is_zero &= digit == '0';
                ahead.next();
            }
            self.rest = ahead;
        }
    }

    /// Reads `e3`, `E-5`, `e+10`; true if there was an exponent.
    fn read_exponent(&mut self) -> bool {
        let mut ahead = self.rest.clone();
        if !matches!(ahead.next(), Some('e' | 'E')) {
            return false;
        }
        if ahead.peek().is_some_and(|c| c == '+' || is_dash(c)) {
            ahead.next();
        }
        if ahead.peek_digit().is_none() {
            return false;
        }
        while ahead.peek_digit().is_some() {
            ahead.next();
        }
        self.rest = ahead;
        true
    }

    fn read_bare_fraction(&mut self) -> Number {
        let mut is_zero = true;
        while let Some(digit) = self.rest.peek_digit() {
            is_zero &= digit == '0';
            self.rest.next();
        }
        let more = !self.read_fractions();
        let exponent = self.read_exponent();
        self.digits.clear();
        self.before = [Some('0'), None];
        Number { is_negative: false, is_integer: is_zero && !more && !exponent }
    }
}

/// The ASCII form of a digit, which may be full-width, Arabic-Indic or mathematical.
fn ascii_digit(c: char) -> Option<char> {
    let value = match c {
        '0'..='9' => return Some(c),
        '\u{0660}'..='\u{0669}' => c as u32 - 0x0660,
        '\u{06F0}'..='\u{06F9}' => c as u32 - 0x06F0,
        '\u{FF10}'..='\u{FF19}' => c as u32 - 0xFF10,
        '\u{1D7CE}'..='\u{1D7FF}' => (c as u32 - 0x1D7CE) % 10,
        _ => return None,
    };
    char::from_digit(value, 10)
}

fn is_dash(c: char) -> bool {
    matches!(c, '-' | '\u{2010}'..='\u{2015}' | '\u{2212}' | '\u{FE58}' | '\u{FE63}' | '\u{FF0D}')
}

fn is_group_separator(c: char) -> bool {
    matches!(c, ',' | '_' | '\'' | '\u{00A0}' | '\u{2009}' | '\u{202F}')
}

fn is_currency(c: char) -> bool {
    matches!(c, '$' | '€' | '£' | '¥')
}

/// Zero-width characters and direction marks.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{00AD}' | '\u{200B}'..='\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2060}'..='\u{2069}' | '\u{FEFF}')
}

#[cfg(test)]
#[path = "last_integer_tests.rs"]
mod tests;
