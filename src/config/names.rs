//! Which settings exist, and what people from elsewhere call them.
//!
//! Owns the list of known names (read from the source text of `run_config.rs`, so that it cannot differ from it) and the
//! table of foreign names. Foreign names are explained, not accepted: two names
//! for one setting would leave open which of them wins.

pub(super) use crate::text::nearest;
use std::sync::LazyLock;

/// A setting as its declaration describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field {
    /// Section of the reference page.
    pub section: String,
    /// The key.
    pub name: String,
    /// Rust type of the field, as written.
    pub kind: String,
    /// The doc comment on one line.
    pub doc: String,
}

/// The settings of `RunConfig`, in the order of their declaration.
pub(super) static RUN_FIELDS: LazyLock<Vec<Field>> =
    LazyLock::new(|| fields(include_str!("run_config.rs"), "RunConfig"));

/// The settings of a `[[rewards]]` table.
pub(super) static REWARD_FIELDS: LazyLock<Vec<Field>> =
    LazyLock::new(|| fields(include_str!("reward_config.rs"), "RewardConfig"));

/// The settings of the `[architecture]` table.
pub(super) static ARCHITECTURE_FIELDS: LazyLock<Vec<Field>> =
    LazyLock::new(|| fields(include_str!("architecture.rs"), "ArchitectureConfig"));

/// The settings of the `[lora]` table.
pub(super) static LORA_FIELDS: LazyLock<Vec<Field>> = LazyLock::new(|| fields(include_str!("lora.rs"), "LoraConfig"));
/// The settings of a `[[train_mix]]` table.
pub(super) static MIX_FIELDS: LazyLock<Vec<Field>> = LazyLock::new(|| fields(include_str!("data.rs"), "MixConfig"));

/// Reads the public fields of `pub struct <name>` with their doc comments out of Rust source text that rustfmt wrote.
fn fields(source: &str, name: &str) -> Vec<Field> {
    let head = format!("pub struct {name} {{");
    let body = source.lines().skip_while(|line| *line != head).skip(1).take_while(|line| *line != "}");
    let (mut section, mut doc, mut found) = (String::new(), String::new(), Vec::new());
    for line in body.map(str::trim) {
        if let Some(title) = line.strip_prefix("// # ") {
            title.clone_into(&mut section);
        } else if let Some(text) = line.strip_prefix("///") {
            if !doc.is_empty() {
                doc.push(' ');
            }
            doc.push_str(text.trim());
        } else if let Some((name, kind)) = line.strip_prefix("pub ").and_then(|rest| rest.split_once(": ")) {
            let (name, kind) = (name.to_owned(), kind.trim_end_matches(',').to_owned());
            found.push(Field { section: section.clone(), name, kind, doc: std::mem::take(&mut doc) });
        }
    }
    found
}

/// A name that other trainers use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Foreign {
    /// The name over there.
    pub name: &'static str,
    /// The setting here; empty where there is none.
    pub ours: &'static str,
    /// What differs in meaning, as the end of a sentence; empty where nothing does.
    pub note: &'static str,
}

const fn same(name: &'static str, ours: &'static str) -> Foreign {
    Foreign { name, ours, note: "" }
}

const fn noted(name: &'static str, ours: &'static str, note: &'static str) -> Foreign {
    Foreign { name, ours, note }
}

/// Names of other trainers, in the order of the reference page.
pub(super) const FOREIGN: &[Foreign] = &[
    same("model_name", "model"),
    same("model_name_or_path", "model"),
    same("model_path", "model"),
    same("base_model", "model"),
    same("model_revision", "revision"),
    noted("torch_dtype", "dtype", "`f32` or `bf16`"),
    noted("bf16", "dtype", "`bf16 = true` is `dtype = \"bf16\"`"),
    noted("fp16", "dtype", "computing in f16 is not supported"),
    same("dataset", "dataset_name"),
    same("dataset_path", "dataset_name"),
    noted("dataset_split", "dataset_train_split", "and `dataset_test_split`"),
    noted("datasets", "train_mix", "one `[[train_mix]]` table each"),
    noted("dataset_mixer", "train_mix", "one `[[train_mix]]` table each"),
    noted("data_files", "train_file", "one file; several are a `dataset_name`, a folder of them"),
    same("train_data", "train_file"),
    same("train_path", "train_file"),
    same("context_length", "block_size"),
    same("context_size", "block_size"),
    same("seq_length", "block_size"),
    noted("hidden_size", "", "it is `hidden_size` of the `[architecture]` table"),
    noted("n_embd", "", "it is `hidden_size` of the `[architecture]` table"),
    noted("n_layer", "", "it is `num_hidden_layers` of the `[architecture]` table"),
    noted("n_head", "", "it is `num_attention_heads` of the `[architecture]` table"),
    noted("model_type", "", "it is `model_type` of the `[architecture]` table"),
    noted("use_peft", "lora", "a `[lora]` table trains an adapter"),
    noted("lora_r", "lora", "it is `r` of the `[lora]` table"),
    noted("lora_rank", "lora", "it is `r` of the `[lora]` table"),
    noted("lora_alpha", "lora", "it is `alpha` of the `[lora]` table"),
    noted("lora_dropout", "lora", "it is `dropout` of the `[lora]` table"),
    noted("lora_target_modules", "lora", "it is `target_modules` of the `[lora]` table"),
    noted("use_rslora", "lora", "it is `use_rslora` of the `[lora]` table"),
    same("eval_data", "eval_file"),
    noted("eval_dataset", "eval_file", "or `dataset_test_split`"),
    same("prompt_field", "prompt_column"),
    same("answer_field", "answer_column"),
    same("group_size", "num_generations"),
    same("num_generations_per_prompt", "num_generations"),
    same("num_return_sequences", "num_generations"),
    same("max_new_tokens", "max_completion_length"),
    same("max_tokens", "max_completion_length"),
    same("max_length", "max_completion_length"),
    same("max_prompt_tokens", "max_prompt_length"),
    same("stop_strings", "stop"),
    noted("reward_funcs", "rewards", "one `[[rewards]]` table each"),
    noted("reward_weights", "rewards", "the `weight` of each `[[rewards]]` table"),
    noted("correct_reward", "rewards", "a key of its `[[rewards]]` table"),
    noted("wrong_reward", "rewards", "a key of its `[[rewards]]` table"),
    same("kl_coeff", "beta"),
    same("kl_coef", "beta"),
    same("kl_beta", "beta"),
    same("kl_penalty", "kl_estimator"),
    same("clip_range", "epsilon"),
    same("clip_eps", "epsilon"),
    same("clip_ratio", "epsilon"),
    same("cliprange", "epsilon"),
    same("epsilon_low", "epsilon"),
    same("clip_range_high", "epsilon_high"),
    same("clip_ratio_high", "epsilon_high"),
    same("num_inner_epochs", "num_iterations"),
    same("ppo_epochs", "num_iterations"),
    same("discount", "gamma"),
    same("filter_groups", "dynamic_sampling"),
    same("max_num_gen_batches", "max_sampling_rounds"),
    same("ref_model_mixup_coef", "ref_model_mixup_alpha"),
    same("lr", "learning_rate"),
    same("lr_scheduler", "lr_scheduler_type"),
    noted("warmup_ratio", "warmup_steps", "a value below 1 is a share of all steps"),
    same("num_warmup_steps", "warmup_steps"),
    noted("optim", "", "the optimizer is AdamW"),
    noted("optimizer", "", "the optimizer is AdamW"),
    same("grad_clip", "max_grad_norm"),
    same("gradient_clip", "max_grad_norm"),
    same("max_norm", "max_grad_norm"),
    noted("batch_size", "prompts_per_step", "counted in prompts"),
    noted("train_batch_size", "prompts_per_step", "counted in prompts"),
    noted(
        "per_device_train_batch_size",
        "prompts_per_step",
        "counted in prompts: divide the number of completions by `num_generations`",
    ),
    noted("per_device_eval_batch_size", "rollout_slots", "completions that decode at the same time"),
    noted("eval_batch_size", "rollout_slots", "completions that decode at the same time"),
    noted(
        "generation_batch_size",
        "prompts_per_step",
        "counted in prompts: divide the number of completions by `num_generations`",
    ),
    noted("steps_per_generation", "gradient_accumulation_steps", "micro-batches follow from the token budget"),
    noted("micro_batch_size", "max_tokens_per_micro_batch", "counted in tokens"),
    same("num_epochs", "num_train_epochs"),
    same("epochs", "num_train_epochs"),
    same("num_train_steps", "max_steps"),
    same("num_steps", "max_steps"),
    same("total_steps", "max_steps"),
    same("train_steps", "max_steps"),
    same("eval_every", "eval_steps"),
    same("eval_interval", "eval_steps"),
    noted("eval_strategy", "eval_steps", "a number of steps, or 0"),
    noted("do_eval", "eval_file", "evaluations run where it is set"),
    same("save_every", "save_steps"),
    same("save_interval", "save_steps"),
    noted("save_strategy", "save_steps", "a number of steps, or 0"),
    same("log_every", "logging_steps"),
    same("log_interval", "logging_steps"),
    noted("logging_dir", "output_dir", "metrics lie beside the checkpoints"),
    same("num_completions_to_print", "log_completions"),
    same("out_dir", "output_dir"),
    same("resume_from_checkpoint", "resume"),
    same("random_seed", "seed"),
    noted("no_cuda", "device", "`\"cpu\"`"),
    noted("use_cpu", "device", "`\"cpu\"`"),
    same("num_threads", "threads"),
    noted("use_wandb", "report_to", "`[\"wandb\"]`"),
    same("wandb_project", "project"),
    same("wandb_run_name", "run_name"),
    noted("use_vllm", "", "completions are sampled by this program itself"),
    noted("remove_unused_columns", "", "every column reaches the rewards"),
];

/// What a foreign name is called here.
pub(super) fn foreign(name: &str) -> Option<&'static Foreign> {
    let name = name.to_lowercase().replace('-', "_");
    FOREIGN.iter().find(|foreign| foreign.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ArchitectureConfig, LoraConfig, MixConfig, RewardConfig, RunConfig};

    fn keys(value: &serde_json::Value) -> Vec<String> {
        value.as_object().unwrap().keys().cloned().collect()
    }

    #[test]
    fn the_names_read_from_the_source_are_those_that_serde_knows() {
        let names = |fields: &[Field]| fields.iter().map(|f| f.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&RUN_FIELDS), keys(&serde_json::to_value(RunConfig::default()).unwrap()));
        assert_eq!(names(&REWARD_FIELDS), keys(&serde_json::to_value(RewardConfig::default()).unwrap()));
        let architecture = serde_json::to_value(ArchitectureConfig::default()).unwrap();
        assert_eq!(names(&ARCHITECTURE_FIELDS), keys(&architecture));
        assert_eq!(names(&LORA_FIELDS), keys(&serde_json::to_value(LoraConfig::default()).unwrap()));
        assert_eq!(names(&MIX_FIELDS), keys(&serde_json::to_value(MixConfig::default()).unwrap()));
    }

    #[test]
    fn foreign_names_lead_to_settings_that_exist_and_shadow_none() {
        let known = |name: &str| RUN_FIELDS.iter().any(|f| f.name == name);
        for foreign in FOREIGN {
            assert!(foreign.ours.is_empty() || known(foreign.ours), "{}", foreign.ours);
            assert!(!known(foreign.name), "{} is a setting", foreign.name);
            assert!(!foreign.ours.is_empty() || !foreign.note.is_empty(), "{}", foreign.name);
        }
    }

    #[test]
    fn slips_of_the_finger_find_their_name_and_other_words_find_none() {
        let names = || RUN_FIELDS.iter().map(|f| f.name.as_str());
        for (typed, meant) in [
            ("learnin_rate", "learning_rate"),
            ("learing-rate", "learning_rate"),
            ("Beta", "beta"),
            ("beat", "beta"),
            ("max_step", "max_steps"),
            ("num_generation", "num_generations"),
        ] {
            assert_eq!(nearest(typed, names()), Some(meant), "{typed}");
        }
        assert_eq!(nearest("xyzzy", names()), None);
        assert_eq!(nearest(&"x".repeat(100_000), names()), None);
    }
}
