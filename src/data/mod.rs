//! Data files: JSONL rows with their columns, plain texts, the order in which training draws them, synthetic sums.
//!
//! A row is a prompt plus every other column of its line; the columns reach the rewards by name. Nothing here knows
//! models or tokens. Faults in a file are told with file, line, column and the start of the line.

mod arithmetic;
mod error;
mod jsonl;
mod order;
mod parse;
mod row;
mod text;

pub use arithmetic::{
    ArithmeticConfig, Operator, Question, Split, arithmetic, write_arithmetic, write_arithmetic_split,
};
pub use error::{DataError, Fault, RowFault};
pub use jsonl::{Dataset, JsonlConfig, OnBadRow, RowKind, load_jsonl};
pub use order::RowOrder;
pub use row::{Columns, Row};
pub use text::{TextFile, load_text};
