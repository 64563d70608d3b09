//! Synthetic sums: prompts such as `12 + 7 =` with their answers, cut into disjoint splits.
//!
//! The split of a question is decided by its unordered pair of operands alone, so that 12 + 7, 7 + 12, 12 - 7 and 7 - 12
//! stand on the same side, whatever the seed, the number of rows or the templates are.

use std::collections::HashSet;
use std::path::Path;

use serde_json::json;

use super::error::DataError;
use crate::io::{create_dirs, parent_of, write_atomic};
use crate::rng::{Stream, below, philox};

/// Buckets that operand pairs are hashed into; the first ones are the eval split.
const NUM_BUCKETS: u32 = 100;
const EVAL_BUCKETS: u32 = 10;

/// The most rows that are made: far more than anybody trains on, and still held in memory.
const MAX_ROWS: usize = 100_000_000;

/// Up to this many possible questions, all are listed and shuffled; beyond, questions are drawn until enough differ.
const MAX_LISTED: u64 = 4_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operator {
    Add,
    Subtract,
}

impl Operator {
    /// The operators named by the characters of a text such as `+-`.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, DataError> {
        let bad = || DataError::BadSetting {
            what: "the operators",
            got: format!("`{text}`"),
            expected: "they are `+` and `-`",
        };
        let mut operators = Vec::new();
        for c in text.chars() {
            let operator = match c {
                '+' => Self::Add,
                '-' => Self::Subtract,
                _ => return Err(bad()),
            };
            if !operators.contains(&operator) {
                operators.push(operator);
            }
        }
        if operators.is_empty() { Err(bad()) } else { Ok(operators) }
    }

    #[must_use]
    pub fn symbol(self) -> char {
        match self {
            Self::Add => '+',
            Self::Subtract => '-',
        }
    }
}

/// The two disjoint parts of all questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Split {
    /// Nine tenths of the operand pairs.
    #[default]
    Train,
    /// One tenth of the operand pairs.
    Eval,
}

impl Split {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Eval => "eval",
        }
    }

    /// The split that the unordered pair {a, b} belongs to.
    #[must_use]
    pub fn of(a: u32, b: u32) -> Self {
        let hash = philox([a.min(b), a.max(b), 0, 0], [0x70_6169, 0x72]);
        if hash[0] % NUM_BUCKETS < EVAL_BUCKETS { Self::Eval } else { Self::Train }
    }
}

/// One sum or difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Question {
    pub a: u32,
    pub operator: Operator,
    pub b: u32,
}

impl Question {
    #[must_use]
    pub fn answer(&self) -> i64 {
        match self.operator {
            Operator::Add => i64::from(self.a) + i64::from(self.b),
            Operator::Subtract => i64::from(self.a) - i64::from(self.b),
        }
    }

    /// Fills in a template: `{a}`, `{op}`, `{b}` and `{answer}`. Operands get leading zeros up to `width` digits, the
    /// answer none.
    #[must_use]
    pub fn fill(&self, template: &str, width: usize) -> String {
        template
            .replace("{a}", &format!("{:0width$}", self.a))
            .replace("{op}", &self.operator.symbol().to_string())
            .replace("{b}", &format!("{:0width$}", self.b))
            .replace("{answer}", &self.answer().to_string())
    }
}

/// Which questions are made, and how they are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArithmeticConfig {
    /// Number of rows, 1 to 100000000.
    pub rows: usize,
    /// Largest operand; the smallest is 0. Default 99.
    pub max_operand: u32,
    /// Write operands with leading zeros, as many digits as the largest has; answers stay as they are. Default: no.
    pub zero_pad: bool,
    /// Default: + and -.
    pub operators: Vec<Operator>,
    /// Default: train.
    pub split: Split,
    /// Decides which questions are drawn, and their order. Default 0.
    pub seed: u64,
    /// Draw questions again once all have been drawn, instead of failing. Default: no.
    pub repeat: bool,
    /// Default `{a} {op} {b} =`: short, and with few symbols, for character-level tokenizers.
    pub prompt_template: String,
    /// Completions for supervised fine-tuning; each row gets one of them at random (one listed twice is twice as
    /// likely). Default: none, and rows have no completion.
    pub completion_templates: Vec<String>,
    /// Worse completions: with them a row is a pair, whose better completion comes of `completion_templates` and whose
    /// worse one of these, at random alike. Besides what other templates have, `{wrong}` is a wrong answer near the
    /// right one. Default: none, and rows are no pairs.
    pub rejected_templates: Vec<String>,
}

impl Default for ArithmeticConfig {
    fn default() -> Self {
        Self {
            rows: 1,
            max_operand: 99,
            zero_pad: false,
            operators: vec![Operator::Add, Operator::Subtract],
            split: Split::Train,
            seed: 0,
            repeat: false,
            prompt_template: "{a} {op} {b} =".to_string(),
            completion_templates: Vec::new(),
            rejected_templates: Vec::new(),
        }
    }
}

impl ArithmeticConfig {
    /// Digits that an operand has at least.
    fn width(&self) -> usize {
        if self.zero_pad { self.max_operand.to_string().len() } else { 1 }
    }
}

/// Questions of one split in random order, a function of the configuration alone; all different unless `repeat` is set.
///
/// # Errors
/// A setting out of range, or fewer different questions than rows.
pub fn arithmetic(config: &ArithmeticConfig) -> Result<Vec<Question>, DataError> {
    check(config)?;
    let operands = u64::from(config.max_operand) + 1;
    let possible = operands * operands * config.operators.len() as u64;
    if possible > MAX_LISTED {
        return draw(config, operands);
    }
    let mut pool = Vec::new();
    for a in 0..=config.max_operand {
        for b in (0..=config.max_operand).filter(|&b| Split::of(a, b) == config.split) {
            pool.extend(config.operators.iter().map(|&operator| Question { a, operator, b }));
        }
    }
    if pool.is_empty() || (pool.len() < config.rows && !config.repeat) {
        return Err(TooFew { config, available: pool.len() }.into());
    }
    let mut questions = Vec::with_capacity(config.rows);
    let mut pass = 0u64;
    while questions.len() < config.rows {
        for i in (1..pool.len()).rev() {
            let at = [0, pass, i as u64, 0];
            pool.swap(i, below(config.seed, Stream::Data, at, i as u64 + 1) as usize);
        }
        questions.extend(pool.iter().take(config.rows - questions.len()));
        pass += 1;
    }
    Ok(questions)
}

/// Draws questions from a pool that is too large to list, leaving out those drawn before.
fn draw(config: &ArithmeticConfig, operands: u64) -> Result<Vec<Question>, DataError> {
    // Eval has about a tenth of the questions. Asking for at most a fifth of those keeps the number of repeated draws
    // small.
    let available = (operands * operands / 50).min(1 << 40) as usize;
    if config.rows > available {
        return Err(TooFew { config, available }.into());
    }
    let mut seen = HashSet::with_capacity(config.rows);
    let mut questions = Vec::with_capacity(config.rows);
    let mut attempt = 0u64;
    while questions.len() < config.rows {
        let pick = |which: u64, n: u64| below(config.seed, Stream::Data, [1, attempt, which, 0], n);
        let (a, b) = (pick(0, operands) as u32, pick(1, operands) as u32);
        let operator = config.operators[pick(2, config.operators.len() as u64) as usize];
        attempt += 1;
        let question = Question { a, operator, b };
        if Split::of(a, b) == config.split && (config.repeat || seen.insert(question)) {
            questions.push(question);
        }
    }
    Ok(questions)
}

/// Writes questions as JSONL, in one piece: `{"prompt": "12 + 7 =", "answer": "19"}`, with a `completion` between the
/// two where there are completion templates, and with `chosen` and `rejected` in its place where there are templates of
/// worse completions.
pub fn write_arithmetic(path: &Path, config: &ArithmeticConfig) -> Result<usize, DataError> {
    let questions = arithmetic(config)?;
    write_rows(path, &questions, config)?;
    Ok(questions.len())
}

/// Writes `config.rows` questions into two files, a share of `test_fraction` (rounded) of them into `test`: one split
/// each (`config.split` is not read), so that no pair of operands stands in both. Returns the rows of either file.
///
/// # Errors
/// As [`arithmetic`]; a fraction that leaves a file empty; one path for both. Nothing is written then.
pub fn write_arithmetic_split(
    train: &Path,
    test: &Path,
    test_fraction: f64,
    config: &ArithmeticConfig,
) -> Result<(usize, usize), DataError> {
    // A float that is out of range or no number becomes 0 or the largest integer.
    let num_test = (config.rows as f64 * test_fraction).round() as usize;
    if num_test == 0 || num_test >= config.rows {
        return Err(DataError::BadSetting {
            what: "the test fraction",
            got: format!("{test_fraction} of {} rows", config.rows),
            expected: "both files need at least one row",
        });
    }
    if train == test {
        return Err(DataError::BadSetting {
            what: "the test file",
            got: format!("`{}`", test.display()),
            expected: "the training rows go there",
        });
    }
    let part = |rows, split| ArithmeticConfig { rows, split, ..config.clone() };
    let train_config = part(config.rows - num_test, Split::Train);
    let test_config = part(num_test, Split::Eval);
    let (train_questions, test_questions) = (arithmetic(&train_config)?, arithmetic(&test_config)?);
    write_rows(train, &train_questions, &train_config)?;
    write_rows(test, &test_questions, &test_config)?;
    Ok((train_questions.len(), test_questions.len()))
}

fn write_rows(path: &Path, questions: &[Question], config: &ArithmeticConfig) -> Result<(), DataError> {
    create_dirs(parent_of(path))?;
    write_atomic(path, |file| {
        questions.iter().enumerate().try_for_each(|(i, question)| writeln!(file, "{}", row_text(i, question, config)))
    })?;
    Ok(())
}

fn row_text(i: usize, question: &Question, config: &ArithmeticConfig) -> String {
    let width = config.width();
    let prompt = question.fill(&config.prompt_template, width);
    let answer = question.answer().to_string();
    let templates = &config.completion_templates;
    if templates.is_empty() {
        return json!({"prompt": prompt, "answer": answer}).to_string();
    }
    let draw =
        |kind: u64, count: usize| below(config.seed, Stream::Data, [kind, i as u64, 0, 0], count as u64) as usize;
    let completion = question.fill(&templates[draw(2, templates.len())], width);
    if config.rejected_templates.is_empty() {
        return json!({"prompt": prompt, "completion": completion, "answer": answer}).to_string();
    }
    let wrong = question.answer() + NEAR[draw(3, NEAR.len())];
    let template = &config.rejected_templates[draw(4, config.rejected_templates.len())];
    let rejected = question.fill(template, width).replace("{wrong}", &wrong.to_string());
    json!({"prompt": prompt, "chosen": completion, "rejected": rejected, "answer": answer}).to_string()
}

/// How far a wrong answer is from the right one: a slip in counting, a forgotten carry.
const NEAR: [i64; 10] = [-1, 1, -2, 2, -3, 3, -10, 10, -20, 20];

fn check(config: &ArithmeticConfig) -> Result<(), DataError> {
    let bad = |what, got: String, expected| Err(DataError::BadSetting { what, got, expected });
    if config.rows == 0 {
        return bad("the number of rows", "0".into(), "it is at least 1");
    }
    if config.rows > MAX_ROWS {
        return bad("the number of rows", config.rows.to_string(), "it is at most 100000000");
    }
    if config.operators.is_empty() {
        return bad("the operators", "none".into(), "they are `+` and `-`");
    }
    if config.max_operand > 999_999_999 {
        return bad("the largest operand", config.max_operand.to_string(), "it is at most 999999999");
    }
    if !(config.prompt_template.contains("{a}") && config.prompt_template.contains("{b}")) {
        return bad("the prompt template", format!("`{}`", config.prompt_template), "it needs `{a}` and `{b}`");
    }
    if let Some(template) = config.completion_templates.iter().find(|template| !template.contains("{answer}")) {
        return bad("a completion template", format!("`{template}`"), "it needs `{answer}`");
    }
    let rejected = &config.rejected_templates;
    if !rejected.is_empty() && config.completion_templates.is_empty() {
        return bad("the completion template", "none".into(), "a pair needs a better completion too");
    }
    if let Some(template) = config.completion_templates.iter().find(|template| rejected.contains(*template)) {
        return bad("a rejected template", format!("`{template}`"), "it is a completion template too");
    }
    Ok(())
}

struct TooFew<'a> {
    config: &'a ArithmeticConfig,
    available: usize,
}

impl From<TooFew<'_>> for DataError {
    fn from(few: TooFew<'_>) -> Self {
        Self::TooFewQuestions { rows: few.config.rows, split: few.config.split.name(), available: few.available }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(questions: &[Question]) -> HashSet<(u32, u32)> {
        questions.iter().map(|q| (q.a.min(q.b), q.a.max(q.b))).collect()
    }

    #[test]
    fn the_splits_share_no_pair_of_operands() {
        for max_operand in [99, 99_999] {
            let config = ArithmeticConfig { rows: 1000, max_operand, ..ArithmeticConfig::default() };
            let train = arithmetic(&config).unwrap();
            let eval = arithmetic(&ArithmeticConfig { split: Split::Eval, seed: 5, ..config }).unwrap();
            assert!(pairs(&train).is_disjoint(&pairs(&eval)));
            for questions in [train, eval] {
                assert_eq!(questions.iter().collect::<HashSet<_>>().len(), 1000, "all different");
                let sums = questions.iter().filter(|q| q.operator == Operator::Add).count();
                assert!((400..600).contains(&sums), "{sums} sums of 1000");
            }
        }
    }

    #[test]
    fn the_seed_decides_and_rows_extend() {
        let config = ArithmeticConfig { rows: 50, ..ArithmeticConfig::default() };
        let first = arithmetic(&config).unwrap();
        assert_eq!(first, arithmetic(&config).unwrap());
        assert_ne!(first, arithmetic(&ArithmeticConfig { seed: 1, ..config.clone() }).unwrap());
        assert_eq!(first, arithmetic(&ArithmeticConfig { rows: 80, ..config }).unwrap()[..50]);
    }

    #[test]
    fn too_many_rows_fail_or_repeat() {
        let config = ArithmeticConfig { rows: 200, max_operand: 5, ..ArithmeticConfig::default() };
        let error = arithmetic(&config).unwrap_err();
        assert!(error.to_string().starts_with("200 rows asked for, but the train split has only"), "{error}");
        assert_eq!(arithmetic(&ArithmeticConfig { repeat: true, ..config }).unwrap().len(), 200);
        // More than any memory holds is refused before memory is asked for.
        for (rows, max_operand) in [(1_000_000_000_000_000_000, 5), (1_000_000_000_000, 999_999_999)] {
            let config = ArithmeticConfig { rows, max_operand, repeat: true, ..ArithmeticConfig::default() };
            let error = arithmetic(&config).unwrap_err();
            assert!(error.to_string().contains("it is at most 100000000"), "{error}");
        }
    }

    #[test]
    fn rows_are_written_as_json_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/sums.jsonl");
        let config = ArithmeticConfig {
            rows: 3,
            operators: vec![Operator::Subtract],
            completion_templates: vec![" {answer}, since {a} {op} {b}".into()],
            ..ArithmeticConfig::default()
        };
        assert_eq!(write_arithmetic(&path, &config).unwrap(), 3);
        let dataset = super::super::load_rows(&path, &super::super::RowsConfig::default()).unwrap();
        for row in &dataset.rows {
            let prompt = row.prompt.last_text();
            let (a, b) = prompt.strip_suffix(" =").unwrap().split_once(" - ").unwrap();
            let answer = a.parse::<i64>().unwrap() - b.parse::<i64>().unwrap();
            assert_eq!(row.columns.text("answer"), Some(answer.to_string().as_str()));
            assert_eq!(row.completion().unwrap(), format!(" {answer}, since {a} - {b}"));
        }
    }

    /// The sums of the notebook: three digits with zeros in front, and none in front of the answer.
    #[test]
    fn padded_sums_are_cut_into_two_files_without_a_common_pair() {
        let folder = tempfile::tempdir().unwrap();
        let (train, test) = (folder.path().join("train.jsonl"), folder.path().join("test.jsonl"));
        let config = ArithmeticConfig {
            rows: 1000,
            max_operand: 999,
            zero_pad: true,
            operators: vec![Operator::Add],
            prompt_template: "{a}{op}{b}=".into(),
            completion_templates: vec!["{answer}".into()],
            ..ArithmeticConfig::default()
        };
        assert_eq!(write_arithmetic_split(&train, &test, 0.1, &config).unwrap(), (900, 100));
        let mut seen: Vec<HashSet<(u32, u32)>> = Vec::new();
        let mut num_short = 0;
        for path in [&train, &test] {
            let dataset = super::super::load_rows(path, &super::super::RowsConfig::default()).unwrap();
            let mut of_file = HashSet::new();
            for row in &dataset.rows {
                let prompt = row.prompt.last_text();
                let (a, b) = prompt.strip_suffix('=').unwrap().split_once('+').unwrap();
                assert_eq!((a.len(), b.len()), (3, 3), "{prompt}");
                let (a, b): (u32, u32) = (a.parse().unwrap(), b.parse().unwrap());
                let answer = row.columns.text("answer").unwrap();
                assert_eq!(answer, (a + b).to_string());
                assert_eq!(row.completion().unwrap(), answer);
                num_short += usize::from(a < 100 || b < 100);
                of_file.insert((a.min(b), a.max(b)));
            }
            seen.push(of_file);
        }
        assert!(seen[0].is_disjoint(&seen[1]));
        // An operand below 100 has the chance 0.1, one of two 0.19.
        assert!((100..300).contains(&num_short), "{num_short} rows needed a zero");

        let before = std::fs::read(&test).unwrap();
        for fraction in [0.0, 0.0001, 0.9999, 1.5, -1.0, f64::NAN] {
            assert!(write_arithmetic_split(&train, &test, fraction, &config).is_err(), "{fraction}");
        }
        assert!(write_arithmetic_split(&test, &test, 0.1, &config).is_err());
        assert_eq!(std::fs::read(&test).unwrap(), before, "a refused call writes nothing");
    }

    /// The chosen completion has the answer; the rejected one a number near it, or the answer and then the question.
    #[test]
    fn pairs_prefer_the_answer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pairs.jsonl");
        let config = ArithmeticConfig {
            rows: 200,
            completion_templates: vec![" {answer}".into()],
            rejected_templates: vec![" {wrong}".into(), " {answer}, since {a} {op} {b}".into()],
            ..ArithmeticConfig::default()
        };
        write_arithmetic(&path, &config).unwrap();
        let pairs = super::super::RowsConfig { kind: super::super::RowKind::Pair, ..Default::default() };
        let dataset = super::super::load_rows(&path, &pairs).unwrap();
        let mut distances = HashSet::new();
        for row in &dataset.rows {
            let answer: i64 = row.columns.text("answer").unwrap().parse().unwrap();
            let (chosen, rejected) = row.pair().unwrap();
            assert_eq!(chosen, format!(" {answer}"));
            match rejected.trim().parse::<i64>() {
                Ok(wrong) => drop(distances.insert(wrong - answer)),
                Err(_) => assert!(rejected.starts_with(&format!(" {answer}, since ")), "{rejected}"),
            }
        }
        assert_eq!(distances, NEAR.into_iter().collect());
        // Without pairs the same questions come in the same order.
        let plain = ArithmeticConfig { rejected_templates: Vec::new(), ..config };
        let prompts: Vec<&str> = dataset.rows.iter().map(|row| row.prompt.last_text()).collect();
        assert!(arithmetic(&plain).unwrap().iter().map(|q| q.fill(&plain.prompt_template, 1)).eq(prompts));
    }

    #[test]
    fn wrong_settings_are_refused() {
        let base = ArithmeticConfig::default();
        for config in [
            ArithmeticConfig { rows: 0, ..base.clone() },
            ArithmeticConfig { operators: vec![], ..base.clone() },
            ArithmeticConfig { max_operand: u32::MAX, ..base.clone() },
            ArithmeticConfig { prompt_template: "{a} =".into(), ..base.clone() },
            ArithmeticConfig { completion_templates: vec!["{a}".into()], ..base.clone() },
            ArithmeticConfig { rejected_templates: vec!["{wrong}".into()], ..base.clone() },
            ArithmeticConfig {
                completion_templates: vec!["{answer}".into()],
                rejected_templates: vec!["{answer}".into()],
                ..base
            },
        ] {
            assert!(matches!(arithmetic(&config), Err(DataError::BadSetting { .. })));
        }
        assert!(Operator::parse_all("+*").is_err());
        assert_eq!(Operator::parse_all("-+-").unwrap(), [Operator::Subtract, Operator::Add]);
    }
}
