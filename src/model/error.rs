//! What can be wrong with a model folder.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Diagnose, Exit};

/// A model folder that cannot be used, and why.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The decoder asked for a parameter that its configuration does not list.
    #[error("the model has no parameter {name}")]
    NoSuchParameter { name: String },
    /// The model path is not a folder.
    #[error("{path} is not a model folder")]
    NotAFolder { path: PathBuf },
    /// A file that a model folder must have is absent.
    #[error("{folder} has no {file}")]
    MissingFile { folder: PathBuf, file: String },
    /// Something that is not a plain file stands where a file should.
    #[error("{path} is not a plain file")]
    NotAFile { path: PathBuf },
    /// The operating system refused a read.
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    /// A file is larger than anything of its kind can be.
    #[error("{path} has {bytes} bytes; at most {limit} are read")]
    TooLarge { path: PathBuf, bytes: u64, limit: u64 },
    /// A JSON file does not parse, or names a key twice.
    #[error("{path}: {message}")]
    Json { path: PathBuf, message: String },
    /// `config.json` does not describe a model that can be trained here.
    #[error("{path}:{}", list(problems))]
    Config { path: PathBuf, problems: Vec<ConfigProblem> },
    /// Only pickled weights are there. Reading a pickle runs code from the file.
    #[error("{path} is a pickle ({format}); only safetensors weights are read")]
    Pickle { path: PathBuf, format: &'static str },
    /// The folder holds weights of a kind that is not read.
    #[error("{path}: {format} is not read; only safetensors weights are")]
    OtherFormat { path: PathBuf, format: &'static str },
    /// A safetensors file is damaged or hostile.
    #[error("{path}: {problem}")]
    Header { path: PathBuf, problem: HeaderProblem },
    /// A shard index names something that is not a file name inside the folder.
    #[error("{path}: tensor {tensor:?} is mapped to {shard:?}, which is not a plain .safetensors file name")]
    ShardName { path: PathBuf, tensor: String, shard: String },
    /// A shard index names files that are absent.
    #[error("{path}: shards listed but absent: {}", shards.join(", "))]
    MissingShards { path: PathBuf, shards: Vec<String> },
    /// A shard index lacks its `weight_map`, or it is not a map of names to files.
    #[error("{path}: {key} must be {expected}")]
    Index { path: PathBuf, key: &'static str, expected: &'static str },
    /// The tensors in the files are not the tensors that the configuration asks for.
    #[error("the weights in {folder} do not fit its config.json:{}", list(problems))]
    Tensors { folder: PathBuf, problems: Vec<TensorProblem> },
    /// `adapter_config.json` describes an adapter that is not supported, or none.
    #[error("{path}: {message}")]
    AdapterConfig { path: PathBuf, message: String },
    /// A name in `target_modules` is that of no map of the model.
    #[error("target_modules: {target:?} is none of the model's linear maps ({known})")]
    TargetModules { target: String, known: String },
    /// The tensors of an adapter are not those that its base model and `adapter_config.json` ask for.
    #[error("the adapter in {folder} does not fit its base model {base}:{}", list(problems))]
    Adapter { folder: PathBuf, base: String, problems: Vec<TensorProblem> },
    /// A weight is NaN or infinite.
    #[error("{path}: tensor {tensor} has values that are not finite ({count} of them)")]
    NonFinite { path: PathBuf, tensor: String, count: usize },
}

/// One thing that `config.json` gets wrong.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigProblem {
    #[error("the file does not hold a JSON object")]
    NotAnObject,
    #[error("{key} is missing")]
    Missing { key: String },
    #[error("{key} must be {expected}, not {found}")]
    Type { key: String, expected: &'static str, found: String },
    #[error("{key} = {value} is out of range: {range}")]
    Range { key: String, value: String, range: String },
    #[error("{key} = {value} is not divisible by {by_key} = {by}")]
    NotDivisible { key: String, value: usize, by_key: String, by: usize },
    #[error("architecture {found} is not supported; supported are {supported}")]
    Architecture { found: String, supported: String },
    #[error("architecture {architecture} does not belong to model_type {model_type:?}")]
    Conflict { architecture: String, model_type: String },
    #[error("architecture {found} is {}; a {wanted} is needed", described(found))]
    OtherTask { found: &'static str, wanted: &'static str },
    #[error("the model has {labels} labels; a reward model has one")]
    Labels { labels: u64 },
    #[error("{key} = {value} is not supported; supported: {supported}")]
    Unsupported { key: String, value: String, supported: String },
    #[error("the model is quantized with {method}; training needs full-precision weights")]
    Quantized { method: String },
}

/// One thing that the header of a safetensors file gets wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderProblem {
    #[error("the file has {bytes} bytes, too few for a safetensors header")]
    TooShort { bytes: u64 },
    #[error("this is {what}, not a safetensors file")]
    OtherFile { what: &'static str },
    #[error("the header length {length} is outside 2..={limit}")]
    Length { length: u64, limit: u64 },
    #[error("the header is not UTF-8 (byte {at})")]
    Utf8 { at: usize },
    #[error("the header is not valid JSON: {message}")]
    Json { message: String },
    #[error("__metadata__ is not a map of strings to strings")]
    Metadata,
    #[error("tensor name {name:?} is empty or holds a control character")]
    Name { name: String },
    #[error("tensor {name:?}: {what} is missing or malformed")]
    Entry { name: String, what: &'static str },
    #[error("tensor {name:?} has dtype {dtype:?}, which safetensors does not define")]
    Dtype { name: String, dtype: String },
    #[error("tensor {name:?} of shape {shape:?} has more bytes than a file can")]
    Overflow { name: String, shape: Vec<u64> },
    #[error("tensor {name:?} needs {expected} bytes, its offsets span {found}")]
    Span { name: String, expected: u64, found: u64 },
    #[error("tensor {name:?} starts at byte {found} of the data, expected {expected} (overlap or hole)")]
    Layout { name: String, expected: u64, found: u64 },
    #[error("the data has {found} bytes, the header describes {expected}: the file is truncated or has bytes to spare")]
    DataLength { expected: u64, found: u64 },
}

/// One tensor that is not what the configuration asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorProblem {
    #[error("{name} is missing")]
    Missing { name: String },
    #[error("{name} has shape {found:?}, expected {expected:?}")]
    Shape { name: String, found: Vec<usize>, expected: Vec<usize> },
    #[error("{name} is not part of this model")]
    Unexpected { name: String },
    #[error("{name} has dtype {dtype}; F32, BF16 and F16 are read")]
    Dtype { name: String, dtype: String },
    #[error("{name} is mapped to {shard}, which does not hold it")]
    NotInShard { name: String, shard: String },
    #[error("{name} is in both {first} and {second}")]
    Twice { name: String, first: String, second: String },
    #[error("lm_head.weight differs from model.embed_tokens.weight although tie_word_embeddings is true")]
    TiedHeadDiffers,
}

/// What a model of an architecture does.
fn described(architecture: &str) -> &'static str {
    if is_classifier(architecture) {
        "a sequence classifier, which scores texts and cannot write any"
    } else {
        "a language model, which has no score head"
    }
}

fn is_classifier(architecture: &str) -> bool {
    architecture.ends_with("ForSequenceClassification")
}

/// One problem reads as a sentence, several as a list with a line each.
fn list<T: fmt::Display>(problems: &[T]) -> String {
    match problems {
        [one] => format!(" {one}"),
        many => many.iter().fold(String::new(), |text, problem| text + "\n  - " + &problem.to_string()),
    }
}

/// Whether a run has left checkpoints in a folder.
fn has_checkpoints(folder: &Path) -> bool {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.into_iter().any(|name| name.to_string_lossy().starts_with("checkpoint-"))
}

impl Diagnose for ModelError {
    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::MissingFile { folder, .. } if has_checkpoints(folder) => {
                return Some(format!(
                    "A run has not ended here yet: name one of its checkpoints, {}/checkpoint-N, or go on with it by \
                     --resume auto.",
                    folder.display()
                ));
            }
            Self::NotAFolder { .. } | Self::MissingFile { .. } => {
                "Give a Hugging Face model folder (config.json, *.safetensors, tokenizer.json) or an org/name id."
            }
            Self::Pickle { .. } => {
                "Convert it once where you trust the file: in Python, \
                 `AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(OUT)` writes safetensors."
            }
            Self::OtherFormat { .. } => {
                "Use the safetensors version of the model; most repositories on the Hub have one."
            }
            Self::Header { problem: HeaderProblem::OtherFile { what }, .. } if what.contains("Git LFS") => {
                "Run `git lfs pull` in the folder to fetch the real file."
            }
            Self::Header { .. } | Self::MissingShards { .. } | Self::Index { .. } | Self::ShardName { .. } => {
                "Download or copy the model again; the files do not belong together or were cut short."
            }
            Self::Config { problems, .. } => return config_hint(problems),
            Self::Tensors { problems, .. } => return tensor_hint(problems),
            Self::NonFinite { .. } => "The checkpoint is broken; go back to an earlier one.",
            Self::AdapterConfig { .. } => {
                "LoRA adapters of PEFT are read (peft_type LORA, without DoRA, biases or modules_to_save); merge others in \
                 Python (`merge_and_unload`) and use the merged folder."
            }
            Self::TargetModules { .. } => "Name some of them, or `target_modules = \"all-linear\"`.",
            Self::Adapter { .. } => {
                "It was trained beside another model: name that one as `base_model_name_or_path` in adapter_config.json."
            }
            Self::Json { .. } => "Restore the file from the original model.",
            Self::NotAFile { .. } | Self::TooLarge { .. } | Self::Read { .. } | Self::NoSuchParameter { .. } => {
                return None;
            }
        };
        Some(text.to_owned())
    }

    fn exit(&self) -> Exit {
        match self {
            Self::Read { .. } => Exit::Io,
            _ => Exit::Model,
        }
    }
}

fn config_hint(problems: &[ConfigProblem]) -> Option<String> {
    problems.iter().find_map(|problem| {
        let text = match problem {
            ConfigProblem::Architecture { .. } => "Choose a model of a supported family.",
            ConfigProblem::OtherTask { found, .. } if is_classifier(found) => {
                "Name a language model; this one can be the `model` of a `[[rewards]]` table with `name = \"model\"`, or the \
                 start of `algorithm = \"reward\"`."
            }
            ConfigProblem::OtherTask { .. } => {
                "Name a reward model; `algorithm = \"reward\"` makes one of a language model and pairs of completions."
            }
            ConfigProblem::Labels { .. } => "Choose a reward model: a sequence classifier with one label.",
            ConfigProblem::Quantized { .. } => "Use the repository with the original bf16 or f32 weights.",
            ConfigProblem::NotAnObject | ConfigProblem::Missing { .. } | ConfigProblem::Type { .. } => {
                "Restore config.json from the original model."
            }
            _ => return None,
        };
        Some(text.to_owned())
    })
}

fn tensor_hint(problems: &[TensorProblem]) -> Option<String> {
    problems.iter().find_map(|problem| {
        let text = match problem {
            TensorProblem::TiedHeadDiffers => {
                "Set \"tie_word_embeddings\": false in config.json if the head was trained apart."
            }
            TensorProblem::Missing { name } if name == "lm_head.weight" => {
                "If the head shares the embedding, set \"tie_word_embeddings\": true in config.json."
            }
            TensorProblem::Missing { name } if name == "score.weight" => {
                "Name the folder of a trained reward model: this one says that it is one, but its files have no score head."
            }
            TensorProblem::Shape { name, .. } if name == "score.weight" => {
                "Choose a reward model: a sequence classifier with one label."
            }
            TensorProblem::Unexpected { name } if name.contains("lora_") => {
                "This is a LoRA adapter without its adapter_config.json: add that file of the adapter to the folder."
            }
            _ => return None,
        };
        Some(text.to_owned())
    })
}
