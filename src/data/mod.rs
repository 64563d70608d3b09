//! Data files: Parquet, JSON Lines and JSON arrays as rows with their columns, plain texts, the order in which training
//! draws them, synthetic sums.
//!
//! A row is a prompt plus every other column of its line; the columns reach the rewards by name. Nothing here knows
//! models or tokens. Faults in a file are told with file, line (or row group and row), column and the start of the row.

mod answer;
mod arithmetic;
mod error;
mod json_array;
mod jsonl;
mod layout;
mod load;
mod order;
mod parquet;
mod parse;
mod place;
mod row;
mod slice;
mod source;
mod template;
mod text;

pub use answer::AnswerRule;
pub use arithmetic::{
    ArithmeticConfig, Operator, Question, Split, arithmetic, write_arithmetic, write_arithmetic_split,
};
pub use error::{DataError, Fault, RowFault};
pub use load::{Dataset, OnBadRow, RowKind, RowsConfig, load_files, load_rows};
pub use order::RowOrder;
pub use place::{RowAt, RowPlace};
pub use row::{Columns, Row};
pub use slice::Slice;
pub use source::{Access, Loaded, Source, SplitSource};
pub use template::PromptTemplate;
pub use text::{TextFile, load_text};
