//! Examples and properties of the last-integer reward.

use proptest::prelude::*;

use super::*;

fn last(text: &str) -> Option<String> {
    extract_last_integer(text)
}

#[test]
fn examples() {
    let cases: &[(&str, Option<&str>)] = &[
        // Plain, signs, dashes.
        ("19", Some("19")),
        ("The answer is 19.", Some("19")),
        ("19, since 12 + 7", Some("7")),
        ("12-7", Some("7")),
        ("= -5", Some("-5")),
        ("x=-5", Some("-5")),
        ("-12", Some("-12")),
        ("\u{2212}12", Some("-12")),
        ("\u{2013}12", Some("-12")),
        ("\u{2014}12", Some("-12")),
        ("\u{2011}12", Some("-12")),
        ("\u{FE63}12", Some("-12")),
        ("\u{FF0D}12", Some("-12")),
        ("the answer\u{2014}12", Some("12")),
        ("12 - 7", Some("7")),
        ("- 7", Some("7")),
        ("12 \u{2212} 19 = \u{2212}7", Some("-7")),
        ("+7", Some("7")),
        ("-0", Some("0")),
        ("007", Some("7")),
        ("-007", Some("-7")),
        ("000", Some("0")),
        // Thousands.
        ("1,234,567", Some("1234567")),
        ("-1,234", Some("-1234")),
        ("1\u{00A0}234\u{00A0}567", Some("1234567")),
        ("1\u{2009}234", Some("1234")),
        ("1\u{202F}234", Some("1234")),
        ("1_000", Some("1000")),
        ("1'000", Some("1000")),
        ("1 234", Some("234")),
        ("12,34", Some("34")),
        ("1,2345", Some("2345")),
        ("1,234,56", Some("56")),
        ("1,234_567", Some("567")),
        ("1234,567", Some("567")),
        ("3, 4", Some("4")),
        ("1,234,", Some("1234")),
        // Decimals and exponents.
        ("12.0", Some("12")),
        ("12.00.", Some("12")),
        ("1,234.00", Some("1234")),
        ("-12.0", Some("-12")),
        ("12.50", None),
        ("1,234.50", None),
        ("5 apples cost 12.50", None),
        ("0.5", None),
        (" .5", None),
        ("-.5", None),
        (".0", Some("0")),
        ("1.234.567", None),
        ("1e3", None),
        ("2.5E-3", None),
        ("1e+10", None),
        ("12em", Some("12")),
        ("42.", Some("42")),
        ("is...5", Some("5")),
        ("12.5, so 13", Some("13")),
        // Marks around numbers.
        ("3/4", Some("4")),
        ("5%", Some("5")),
        ("$5", Some("5")),
        ("-$5", Some("-5")),
        ("$-5", Some("-5")),
        ("12-$5", Some("5")),
        ("#### 1,234", Some("1234")),
        ("\\boxed{42}", Some("42")),
        ("\\boxed{-42}.", Some("-42")),
        ("**42**", Some("42")),
        ("x2", Some("2")),
        ("10-12", Some("12")),
        // Other digits, invisible characters, nothing.
        ("\u{FF11}\u{FF12}", Some("12")),
        ("\u{0661}\u{0662}", Some("12")),
        ("1\u{200B}2", Some("12")),
        ("\u{200F}-5\u{200E}", Some("-5")),
        ("5-\u{200B}7", Some("7")),
        ("", None),
        ("no number", None),
        ("-", None),
        (".", None),
        ("½", None),
    ];
    for (text, expected) in cases {
        assert_eq!(last(text).as_deref(), *expected, "{text:?}");
    }
    assert_eq!(extract_last_number("1e3"), LastNumber::NotAnInteger);
    assert_eq!(extract_last_number("none"), LastNumber::None);
}

#[test]
fn size_does_not_matter() {
    let huge = "9".repeat(1_000_000);
    assert_eq!(last(&huge).as_deref(), Some(huge.as_str()));
    let grouped = format!("1{}", ",234".repeat(200_000));
    assert_eq!(last(&grouped).map(|n| n.len()), Some(600_001));
    // Shapes that would be slow if text were read twice.
    for text in [".".repeat(1_000_000), "1,23".repeat(250_000), "1e".repeat(500_000), "-$".repeat(500_000)] {
        let _ = last(&text);
    }
}

fn columns_of(line: &str) -> Columns {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, line).unwrap();
    crate::data::load_rows(&path, &crate::data::RowsConfig::default()).unwrap().rows.remove(0).columns
}

fn score(columns: &Columns, completion: &str) -> Option<f64> {
    let reward = LastInteger { correct_reward: 2.0, wrong_reward: -1.0, ..LastInteger::default() };
    reward.check_row(columns).unwrap();
    reward
        .score(&RewardInput { prompt: "", messages: None, completion, completion_ids: &[], columns, line: 1 })
        .unwrap()
}

#[test]
fn answers_are_strings_or_numbers_of_any_size() {
    let digits = "98765432109876543210987654321098765432109";
    for answer in [
        digits.to_string(),
        format!("\"{digits}\""),
        format!("\"so #### {digits}\""),
        format!("{digits}.0"),
        format!("\"+00{digits}\""),
    ] {
        let columns = columns_of(&format!(r#"{{"prompt": "p", "answer": {answer}}}"#));
        assert_eq!(score(&columns, &format!("It is {digits}.")), Some(2.0), "{answer}");
        assert_eq!(score(&columns, &format!("It is {digits}0.")), Some(-1.0), "{answer}");
        assert_eq!(score(&columns, ""), Some(-1.0), "{answer}");
    }
    assert_eq!(score(&columns_of(r#"{"prompt": "p", "answer": "-1,234"}"#), "\u{2212}1234"), Some(2.0));
}

#[test]
fn answers_without_an_integer_are_told() {
    let reward = LastInteger::default();
    let reason = |line: &str| reward.check_row(&columns_of(line)).unwrap_err();
    assert_eq!(
        reason(r#"{"prompt": "p", "solution": "1", "x": 2}"#),
        "it has no column `answer` (it has: solution, x)"
    );
    assert_eq!(reason(r#"{"prompt": "p", "answer": "twelve"}"#), "`answer` does not end in an integer: `twelve`");
    assert_eq!(reason(r#"{"prompt": "p", "answer": 1.5}"#), "`answer` does not end in an integer: `1.5`");
    assert_eq!(reason(r#"{"prompt": "p", "answer": null}"#), "its column `answer` is empty");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    /// Any integer, written with any sign and any grouping, in any wording, is read back.
    #[test]
    fn formatted_integers_are_read_back(
        digits in "[1-9][0-9]{0,29}",
        negative: bool,
        dash in proptest::sample::select(vec!['-', '\u{2212}', '\u{2013}', '\u{FF0D}', '\u{FE63}']),
        separator in proptest::sample::select(vec!["", ",", "_", "'", "\u{a0}", "\u{2009}", "\u{202f}"]),
        before in proptest::sample::select(vec!["", "so ", "12 - 7 = ", "1.5, 3e5: ", "\\boxed{", "**", "#### "]),
        after in proptest::sample::select(vec!["", ".", " apples", "}", "**", "%", ".0", "\n"]),
    ) {
        let grouped: String = digits
            .chars()
            .enumerate()
            .map(|(i, c)| if i > 0 && (digits.len() - i) % 3 == 0 { format!("{separator}{c}") } else { c.to_string() })
            .collect();
        let sign = if negative { dash.to_string() } else { String::new() };
        let expected = if negative { format!("-{digits}") } else { digits.clone() };
        let text = format!("{before}{sign}{grouped}{after}");
        prop_assert_eq!(last(&text), Some(expected), "{}", text);
    }

    /// No text panics, and text after the last digit changes nothing unless it continues the number.
    #[test]
    fn any_text_is_taken(text in "\\PC*", number in 0u32..1000) {
        let _ = last(&text);
        prop_assert_eq!(last(&format!("{text} {number}!")), Some(number.to_string()));
    }

    #[test]
    fn odd_characters_are_taken(text in "[-0-9.,eE_'$ \u{a0}\u{200b}\u{2212}+%]{0,40}") {
        let _ = last(&text);
    }
}
