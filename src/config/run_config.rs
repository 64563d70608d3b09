//! Every setting of a training run, in one flat table.
//!
//! Owns names, types, defaults and their description: the doc comments below are the only source of the reference
//! page (`reference.rs` reads them), so each states the unit, the range and, last, the default with its reason. A line
//! `// # Title` opens a section of that page. What a setting does is the business of the component it is handed to;
//! whether the values fit together is checked in `checks.rs`.

use super::architecture::ArchitectureConfig;
use super::data::MixConfig;
use super::kinds::{
    Algorithm, ComputeDtype, DeviceKind, DpoLossType, DpoPairs, EvalGrader, ImportanceSamplingLevel, Init, KlEstimator,
    LossType, LrSchedulerType, OnBadRow, SaveDtype, ScaleRewards,
};
use super::lora::LoraConfig;
use super::reward_config::RewardConfig;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The settings of a run. Missing keys take the defaults; unknown keys are errors.
///
/// ```
/// let config = candlewick::config::RunConfig { num_generations: 4, ..Default::default() };
/// assert_eq!(config.completions_per_step(), 32);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own in the file")]
pub struct RunConfig {
    // # Run
    /// How the model learns. From its own completions and their rewards: `grpo`, `rloo`, `remax`, `reinforce++` or
    /// `raft`. From pairs of a better and a worse completion: `dpo`; or with `reward` it becomes a reward model, which
    /// scores completions for the others. From given completions: `sft`. To predict a text: `pretrain`.
    /// Default `"grpo"`: it is what this program is for.
    pub algorithm: Algorithm,
    /// Folder that receives checkpoints, metrics and the final model. One run at a time may hold it.
    /// Default `"output"`: a folder beside the call.
    pub output_dir: PathBuf,
    /// `never` starts afresh and refuses a folder that already holds checkpoints; `auto` continues from the newest
    /// valid checkpoint of `output_dir`, or starts afresh where there is none; anything else is the path of the
    /// checkpoint to continue from. Default `"never"`: continuing is said, not guessed.
    pub resume: String,
    /// Names every random draw of the run: equal seeds give equal runs. Whole number from 0 to 2^64 - 1.
    /// Default `42`: as transformers.
    pub seed: u64,
    /// Where the run computes: `cpu`, `cuda` (an NVIDIA GPU; needs the build with `--features cuda`) or `auto`: a GPU
    /// where the program is built for it and one can be used, else the CPU. Default `"auto"`: the fastest there is.
    pub device: DeviceKind,
    /// Number format of forward and backward: `auto` (f32 on the CPU, bf16 on a GPU), `f32`, or on a GPU `bf16` or `tf32`
    /// (f32 with rounded products). Master weights, gradients of weights and optimizer moments are f32 always. Default
    /// `"auto"`: what each device is fast at.
    pub dtype: ComputeDtype,
    /// CPU threads, 1 or more. The results do not depend on it. Default none: as many as there are cores.
    pub threads: Option<usize>,
    /// Allow no network access: models come from folders and the local Hub cache only.
    /// Default `false`: a model that is missing is downloaded.
    pub offline: bool,

    // # Model
    /// The model to start from: a folder in Hugging Face layout, or a Hub id (`org/name`). Required, unless
    /// `[architecture]` makes a new one. Default `""`: there is no model that fits everyone.
    pub model: String,
    /// Branch, tag or commit of a Hub id. Default none: the main branch.
    pub revision: Option<String>,
    /// First weights: `pretrained`, or `random` for a folder that holds only config.json and tokenizer files (drawn
    /// from `seed`). Default `"pretrained"`: this is fine-tuning.
    pub init: Init,
    /// Number format of saved models: `auto` (that of the start model), `f32`, `bf16` or `f16`.
    /// Default `"auto"`: the saved model is as large as the one it came from.
    pub save_dtype: SaveDtype,
    /// A model made from nothing, in place of `model`: an `[architecture]` table (`pretrain`, `sft`). Its configuration
    /// and its tokenizer are written to the folder `base` of `output_dir`, its weights are drawn from `seed`.
    /// Default none: training starts from `model`.
    pub architecture: Option<ArchitectureConfig>,
    /// Train a low-rank adapter and leave the model as it is: a `[lora]` table. The reference policy is then the model
    /// without the adapter; checkpoints and the result are adapter folders as PEFT reads them.
    /// Default none: all weights are trained.
    pub lora: Option<LoraConfig>,

    // # Data
    /// File of the training rows: JSON Lines, one JSON array of objects, or Parquet (`pretrain`: a text file in UTF-8).
    /// Required, unless `dataset_name` or `[[train_mix]]` says what to train on.
    /// Default `""`: there is no data that fits everyone.
    pub train_file: String,
    /// File of the rows that evaluations measure on, of the same formats. Default none: nothing is evaluated, unless
    /// `dataset_test_split` names a split.
    pub eval_file: Option<String>,
    /// Data set in place of `train_file`: `org/name` on the Hub, or a folder with files as there. Its card's `configs`
    /// say which files are which split, else their names do (`data/train-00000-of-00001.parquet`, `train.jsonl`; a folder
    /// of splits is a configuration). Default none: `train_file` is read.
    pub dataset_name: Option<String>,
    /// Configuration of the data set. Default none: the only one, or the default one.
    pub dataset_config: Option<String>,
    /// Branch, tag or commit of a data set on the Hub. Default none: the main branch.
    pub dataset_revision: Option<String>,
    /// Split to train on, or a part of it as in `datasets`: `train[:500]`, `train[10%:20%]`. Default `"train"`: as TRL.
    pub dataset_train_split: String,
    /// Split to evaluate on, or a part of it, in place of `eval_file`. Default none: `eval_file` is read, where there is
    /// one; TRL's `"test"` would evaluate where nobody asked for it.
    pub dataset_test_split: Option<String>,
    /// Several sources to train on, one `[[train_mix]]` table each, in place of `train_file`. An epoch has as many rows as
    /// all of them together, and each source its share by `weight`; a file that has any replaces the whole list.
    /// Default `[]`: one source is enough.
    pub train_mix: Vec<MixConfig>,
    /// Column with the prompt: a string, or a list of chat messages. A row without it may have `messages` instead: the
    /// turns before the last one of the assistant are the prompt, that one is the column `completion`.
    /// Default `"prompt"`: as TRL.
    pub prompt_column: String,
    /// The prompt as a text with columns in braces, such as `"Question: {question}\\nAnswer:"`, in place of
    /// `prompt_column`; `{{` is a brace. Values that are no text are written as JSON.
    /// Default none: a column is the prompt.
    pub prompt_template: Option<String>,
    /// Column with the expected answer that rewards compare with (of `messages` rows, `completion` is the assistant's last
    /// turn). Default `"answer"`: as GSM8K.
    pub answer_column: String,
    /// Regular expression with one group: what the group matches first in the answer column is the answer, as in
    /// `'#### (-?[0-9,]+)'`, and rewards see nothing else of that column. A row where it matches nothing is a bad row.
    /// Default none: the whole column.
    pub answer_regex: Option<String>,
    /// Column with the completion to learn (`sft`). Default `"completion"`: as TRL.
    pub completion_column: String,
    /// Column with the better completion of a pair (`dpo`, `reward`). Default `"chosen"`: as TRL.
    pub chosen_column: String,
    /// Column with the worse completion of a pair (`dpo`, `reward`). Default `"rejected"`: as TRL.
    pub rejected_column: String,
    /// System message put before the messages of each prompt that has none of its own; it makes plain prompts
    /// conversational. Default none: rows are taken as they are.
    pub system_prompt: Option<String>,
    /// Chat template: the path of a Jinja file, or the template itself.
    /// Default none: the model's own.
    pub chat_template: Option<String>,
    /// Extra variables of the chat template, such as `{ enable_thinking = false }`.
    /// Default `{}`: the template decides.
    pub chat_template_kwargs: serde_json::Map<String, serde_json::Value>,
    /// A row that cannot be read: `stop` the run and name it, or `skip` and count it.
    /// Default `"stop"`: lost data should be noticed.
    pub on_bad_row: OnBadRow,
    /// Shuffle the training rows anew in each epoch, by `seed`.
    /// Default `true`: neighbours in a file are often alike.
    pub shuffle: bool,
    /// Longest prompt, in tokens, 1 or more. Rows with longer prompts are left out and counted (`reward`: those where a
    /// prompt with its completion is longer than this and `max_completion_length` together).
    /// Default `512`: as TRL.
    pub max_prompt_length: usize,

    // # Rollouts
    /// Completions sampled for each prompt (the group), 2 or more (`remax`: 1 or more; `dpo`: of sampled
    /// pairs). More give a better baseline and
    /// cost more time. Default `8`: as TRL.
    pub num_generations: usize,
    /// Longest completion (`pretrain`: sample), in tokens, 1 or more. Default `512`: as TRL.
    pub max_completion_length: usize,
    /// Divides the logits before sampling, above 0. Lower is more careful, higher more varied.
    /// Default `1.0`: the distribution that the loss is about.
    pub temperature: f64,
    /// Sample from the smallest set of tokens that holds this much probability, above 0 to 1; 1 switches it off.
    /// Default `1.0`: off, because a cut distribution is no longer the policy's own.
    pub top_p: f64,
    /// Sample from this many most likely tokens; 0 switches it off.
    /// Default `0`: off, as `top_p`.
    pub top_k: usize,
    /// Leave out tokens less likely than this share of the likeliest one, 0 to 1.
    /// Default none: off, as `top_p`.
    pub min_p: Option<f64>,
    /// Divides positive and multiplies negative logits of tokens that already occurred, above 0; 1 switches it off.
    /// Default `1.0`: off, as `top_p`.
    pub repetition_penalty: f64,
    /// A completion also ends where its text contains one of these strings.
    /// Default `[]`: only the model's end tokens and the length end it.
    pub stop: Vec<String>,
    /// Completions that decode at the same time; a finished one makes room for the next. Bounds the memory of the KV
    /// cache; the results do not depend on it. 0 takes all completions of a step, within bounds.
    /// Default `0`: the widest batch is the fastest.
    pub rollout_slots: usize,

    // # Rewards
    /// The reward functions, one `[[rewards]]` table each; a completion's reward is their weighted sum. A file that
    /// has any replaces the whole list. Default `[{ name = "last_integer", weight = 1.0 }]`: grades arithmetic.
    pub rewards: Vec<RewardConfig>,

    // # Reinforcement
    /// Weight of the KL divergence to the start model, 0 or more. 0 loads no reference model. `dpo`: factor of the
    /// margin over the start model, above 0; the larger, the less the policy moves.
    /// Default none: `0.04` (the value of the GRPO paper; TRL's is 0), `0.05` for rloo and `0.1` for dpo
    /// (both as TRL), `0` for remax.
    pub beta: Option<f64>,
    /// Estimator of that KL divergence: `k1`, `k2` or `k3` of each token, or `sequence_squared`, the square of a
    /// completion's summed log-ratio. `k1` has no useful gradient, so its penalty goes into the reward.
    /// Default `"k3"`: never negative and of low variance; the paper's.
    pub kl_estimator: KlEstimator,
    /// Multiply `k3` by the probability ratio and differentiate that too: an unbiased penalty where rollouts are used
    /// more than once. Default `false`: as TRL.
    pub use_bias_correction_kl: bool,
    /// Let the model that the KL divergence is measured to follow the policy (TR-DPO, arXiv:2404.09656 eq. 3): every
    /// `ref_model_sync_steps` steps it becomes (1 - `ref_model_mixup_alpha`) times itself plus `ref_model_mixup_alpha`
    /// times the policy. Needs `beta` above 0. Default `false`: it stays the start model, as TRL.
    pub sync_ref_model: bool,
    /// Share of the policy in that mixture, above 0 to 1. Default `0.6`: as TRL.
    pub ref_model_mixup_alpha: f64,
    /// Optimizer steps between two such mixtures, 1 or more. Default `512`: as TRL.
    pub ref_model_sync_steps: u64,
    /// Passes over the rollouts of a step, 1 or more. Default `1`: on-policy, as TRL.
    pub num_iterations: usize,
    /// What the probability ratio between the policy and the one that sampled is taken of: of each `token`, of the
    /// `sequence` (GSPO), or `none`, the plain policy gradient. Default `"token"`: as PPO and TRL.
    pub importance_sampling_level: ImportanceSamplingLevel,
    /// Clip bound of the probability ratio: it counts from 1 - epsilon to 1 + epsilon. Above 0 and below 1.
    /// Default `0.2`: as PPO and TRL.
    pub epsilon: f64,
    /// Upper clip bound where it is to differ (clip-higher of DAPO), at least `epsilon`. With `cispo` the cap of the
    /// ratio itself, 1 or more. Default none: equal to `epsilon`; with `cispo` 5, as TRL advises.
    pub epsilon_high: Option<f64>,
    /// Upper limit of the ratio also where the advantage is negative (two-sided clipping), above 1 + `epsilon_high`.
    /// Default none: no limit, as TRL.
    pub delta: Option<f64>,
    /// How the tokens' losses are averaged: `grpo`, `bnpo`, `dr_grpo`, `dapo` or `reinforce` (summed within a
    /// completion); or with another form of the loss, `cispo` or `sapo`.
    /// Default `"dapo"`: long and short completions weigh by their tokens; as TRL.
    pub loss_type: LossType,
    /// Steepness of the gate of `sapo` where the advantage is positive, above 0. Default `1.0`: as TRL.
    pub sapo_temperature_pos: f64,
    /// Steepness of the gate of `sapo` where the advantage is negative, above 0. Default `1.05`: as TRL.
    pub sapo_temperature_neg: f64,
    /// What centred rewards are divided by: the standard deviation of the `group`, of the `batch`, or `none`.
    /// Default `"group"`: the paper's, as TRL.
    pub scale_rewards: ScaleRewards,
    /// Leave completions that hit the length limit out of the loss; their reward still counts in the baseline.
    /// Default `false`: as TRL.
    pub mask_truncated_completions: bool,
    /// Learn only from prompts whose completions have different rewards (DAPO, arXiv:2503.14476 section 3.2): others
    /// teach nothing, so further prompts are drawn in their place. The metrics of rewards and completions count every
    /// prompt drawn. Default `false`: as TRL; sampling takes longer with it.
    pub dynamic_sampling: bool,
    /// Rounds in which `dynamic_sampling` draws prompts for one step, 1 or more, each at most `prompts_per_step`. A step
    /// that finds too few learns from those it has. Default `5`: enough where one prompt in five is of use.
    pub max_sampling_rounds: usize,
    /// Discount of the advantage by the tokens that follow: token t of n gets gamma^(n-1-t). Above 0 to 1.
    /// Default `1.0`: no discount.
    pub gamma: f64,
    /// Share of a step's tokens, the most uncertain ones, that the policy learns from, above 0 to 1. Below 1 a step runs
    /// the model forward once more. Default `1.0`: every token, as TRL.
    pub top_entropy_quantile: f64,
    /// Weight of the mean entropy in the loss, 0 or more: it keeps completions varied.
    /// Default `0.0`: the objective is the reward.
    pub entropy_coef: f64,
    /// Learn the best completion of a prompt (`raft`) only where its reward is above this, any finite number.
    /// Default none: the best is learned, however bad.
    pub raft_min_reward: Option<f64>,

    // # DPO
    /// Where pairs come from: from the rows of the training `file`, or `sampled`: of `num_generations` completions of a
    /// prompt the best and the worst by their `rewards`. Default `"file"`: as TRL.
    pub dpo_pairs: DpoPairs,
    /// What the margin between a pair's completions is held to: `sigmoid`, `hinge` (RSO), `ipo`, or `sigmoid_norm`, the
    /// sigmoid of means over tokens. TRL's `loss_type`. Default `"sigmoid"`: the paper's, as TRL.
    pub dpo_loss_type: DpoLossType,
    /// Probability that a pair is the wrong way round, 0 to below 0.5. Default `0.0`: as TRL.
    pub label_smoothing: f64,

    // # Reward model
    /// Weight of the square of a pair's summed scores, 0 or more: it keeps scores around 0 (arXiv:2312.09244 eq. 2).
    /// Default none: the scores' level is free, as TRL, which recommends 0.01.
    pub center_rewards_coefficient: Option<f64>,

    // # SFT
    /// Learn the completion only (`true`), or the prompt too (`false`).
    /// Default `true`: the prompt is given when the model is used.
    pub completion_only_loss: bool,

    // # Pretraining
    /// Tokens of a block, 1 or more: the text is cut into them, and a token is predicted from those before it in its
    /// block. At most the model's context. Default `256`: enough for sentences, letter by letter.
    pub block_size: usize,
    /// Share of the text, from its end, that is not learned but evaluated on, 0 to below 1; 0 evaluates nothing.
    /// Default `0.1`: a tenth tells what was learned from what was memorised.
    pub validation_fraction: f64,
    /// Texts that the model writes at each evaluation, shown on the terminal and kept in completions.jsonl; 0 writes
    /// none. Default `2`: enough to see it learn.
    pub num_samples: usize,
    /// How those texts begin. Default `""`: with a line break, or with the first token of the training text where the
    /// tokenizer has none.
    pub sample_prompt: String,

    // # Optimizer
    /// Step size of AdamW, above 0. Default none: `2e-5` for sft, `1e-4` for reward, `1e-3` for pretrain, whose models are
    /// small, `1e-6` for every other algorithm, as TRL; ten times as much with `[lora]`, which wants more.
    pub learning_rate: Option<f64>,
    /// Course of the learning rate after the warm-up: `constant`, or to 0 as `linear` or `cosine`.
    /// Default `"linear"`: as transformers.
    pub lr_scheduler_type: LrSchedulerType,
    /// Optimizer steps in which the learning rate rises from 0, 0 or more; a value below 1 is a share of all steps.
    /// Default `0.0`: as transformers.
    pub warmup_steps: f64,
    /// Decay of AdamW's first moment, 0 to below 1. Default `0.9`: as torch.
    pub adam_beta1: f64,
    /// Decay of AdamW's second moment, 0 to below 1. Default `0.999`: as torch.
    pub adam_beta2: f64,
    /// Added to AdamW's denominator, above 0. Default `1e-8`: as torch.
    pub adam_epsilon: f64,
    /// Decoupled weight decay, 0 or more; norms and biases are left out. Default `0.0`: as TRL.
    pub weight_decay: f64,
    /// Largest L2 norm of the whole gradient, above 0; a larger one is scaled down to it.
    /// Default `1.0`: as transformers.
    pub max_grad_norm: f64,

    // # Batch and length
    /// Prompts of an optimizer step, 1 or more, times `gradient_accumulation_steps`; each brings `num_generations`
    /// completions (`sft`, `reward`, and `dpo` from a file: rows; `pretrain`: blocks).
    /// Default `8`: with the default group 64 completions.
    pub prompts_per_step: usize,
    /// A factor of the prompts of an optimizer step, 1 or more: it covers `prompts_per_step` times this many, which are
    /// all sampled at once, as TRL's generation batch is. Micro-batches follow from `max_tokens_per_micro_batch`.
    /// Default `1`: the batch is as large as `prompts_per_step` says.
    pub gradient_accumulation_steps: usize,
    /// Tokens that go through forward and backward at once, 1 or more. Bounds the memory of training; the results do
    /// not depend on it but for rounding (`loss_type = "bnpo"` apart). Default `1024`: about 1.3 GiB of activations for a 0.5B
    /// model, and as fast as more.
    pub max_tokens_per_micro_batch: usize,
    /// Compute activations again in the backward pass: less memory, about a third more time, the same results.
    /// Default none: where the memory that is free would not do without it.
    pub gradient_checkpointing: Option<bool>,
    /// Passes over the training data, above 0; fractions are allowed. Default `1.0`: as TRL's GRPO.
    pub num_train_epochs: f64,
    /// Optimizer steps, 1 or more; overrides `num_train_epochs`. Default none: the epochs decide.
    pub max_steps: Option<u64>,

    // # Evaluation
    /// Optimizer steps between evaluations; 0 evaluates before and after only.
    /// Default `0`: an evaluation can cost more than a step.
    pub eval_steps: u64,
    /// Evaluate before the first step, where there is an `eval_file` (`pretrain`: a `validation_fraction`).
    /// Default `true`: a result needs something to compare with.
    pub eval_on_start: bool,
    /// Evaluate on the first rows of `eval_file` only, 1 or more. Default none: all rows.
    pub eval_max_rows: Option<usize>,

    /// What counts as right, in `eval_accuracy` and `candlewick eval`: a completion that ends in the integer of the
    /// answer (`last_integer`), that is the answer (`exact_match`), or that the first of the `rewards` scores above
    /// 0.5 (`reward`). Default none: `last_integer`, and `reward` where a program brings rewards of its own.
    pub eval_grader: Option<EvalGrader>,

    // # Logs and checkpoints
    /// Optimizer steps between lines of the log where there is no terminal, 1 or more; metrics.jsonl has every step.
    /// Default `1`: steps are long.
    pub logging_steps: u64,
    /// Completions written to completions.jsonl at each step that samples, the first ones; 0 writes none.
    /// Default `8`: enough to see what the model does.
    pub log_completions: usize,
    /// Optimizer steps between checkpoints; 0 saves at the end only. Default `100`: bounds what a crash can cost.
    pub save_steps: u64,
    /// Checkpoints kept, the newest ones and the best; 0 keeps all. Default `3`: disks are finite.
    pub save_total_limit: usize,
    /// Where metrics go besides metrics.jsonl and completions.jsonl: `tensorboard` (event files below
    /// `output_dir/runs`), `csv` (metrics.csv), `wandb` and `trackio` (by their own packages, in `python`); any of them.
    /// Default `[]`: the two files are always written.
    pub report_to: Vec<String>,
    /// Push the final model to the Hub. It takes an access token (`HF_TOKEN`), which is tried before the run begins.
    /// Default `false`: what is yours stays here.
    pub push_to_hub: bool,
    /// Repository of the push: `org/name`, or `name` for the account of the token. Default none: the name of `output_dir`.
    pub hub_model_id: Option<String>,
    /// Whether a repository that is made for the push is private. Default none: as the account's settings say.
    pub hub_private_repo: Option<bool>,
    /// Python interpreter that has the packages `wandb` or `trackio`: a path, or a name on the PATH. Only `report_to` can
    /// need one. Default `"python3"`: that of an active virtual environment.
    pub python: String,
    /// Name of the project the run belongs to in `wandb` and `trackio`. Default none: that of the tracker's environment
    /// (`WANDB_PROJECT`, `TRACKIO_PROJECT`), else `candlewick`.
    pub project: Option<String>,
    /// Name of the run in `wandb` and `trackio`, and of its folder of event files. Default none: the name of
    /// `output_dir`, and `run` for the event files.
    pub run_name: Option<String>,
}

impl Default for RunConfig {
    #[expect(clippy::too_many_lines, reason = "a line a setting")]
    fn default() -> Self {
        Self {
            algorithm: Algorithm::default(),
            output_dir: PathBuf::from("output"),
            resume: "never".to_owned(),
            seed: 42,
            device: DeviceKind::default(),
            dtype: ComputeDtype::default(),
            threads: None,
            offline: false,
            model: String::new(),
            revision: None,
            init: Init::default(),
            save_dtype: SaveDtype::default(),
            architecture: None,
            lora: None,
            train_file: String::new(),
            eval_file: None,
            dataset_name: None,
            dataset_config: None,
            dataset_revision: None,
            dataset_train_split: "train".to_owned(),
            dataset_test_split: None,
            train_mix: Vec::new(),
            prompt_column: "prompt".to_owned(),
            prompt_template: None,
            answer_column: "answer".to_owned(),
            answer_regex: None,
            completion_column: "completion".to_owned(),
            chosen_column: "chosen".to_owned(),
            rejected_column: "rejected".to_owned(),
            system_prompt: None,
            chat_template: None,
            chat_template_kwargs: serde_json::Map::new(),
            on_bad_row: OnBadRow::default(),
            shuffle: true,
            max_prompt_length: 512,
            num_generations: 8,
            max_completion_length: 512,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: None,
            repetition_penalty: 1.0,
            stop: Vec::new(),
            rollout_slots: 0,
            rewards: vec![RewardConfig::default()],
            beta: None,
            kl_estimator: KlEstimator::default(),
            use_bias_correction_kl: false,
            sync_ref_model: false,
            ref_model_mixup_alpha: 0.6,
            ref_model_sync_steps: 512,
            num_iterations: 1,
            importance_sampling_level: ImportanceSamplingLevel::default(),
            epsilon: 0.2,
            epsilon_high: None,
            delta: None,
            loss_type: LossType::default(),
            sapo_temperature_pos: 1.0,
            sapo_temperature_neg: 1.05,
            scale_rewards: ScaleRewards::default(),
            mask_truncated_completions: false,
            dynamic_sampling: false,
            max_sampling_rounds: 5,
            gamma: 1.0,
            top_entropy_quantile: 1.0,
            entropy_coef: 0.0,
            raft_min_reward: None,
            dpo_pairs: DpoPairs::default(),
            dpo_loss_type: DpoLossType::default(),
            label_smoothing: 0.0,
            center_rewards_coefficient: None,
            completion_only_loss: true,
            block_size: 256,
            validation_fraction: 0.1,
            num_samples: 2,
            sample_prompt: String::new(),
            learning_rate: None,
            lr_scheduler_type: LrSchedulerType::default(),
            warmup_steps: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            prompts_per_step: 8,
            gradient_accumulation_steps: 1,
            max_tokens_per_micro_batch: 1024,
            gradient_checkpointing: None,
            num_train_epochs: 1.0,
            max_steps: None,
            eval_steps: 0,
            eval_on_start: true,
            eval_max_rows: None,
            eval_grader: None,
            logging_steps: 1,
            log_completions: 8,
            save_steps: 100,
            save_total_limit: 3,
            report_to: Vec::new(),
            push_to_hub: false,
            hub_model_id: None,
            hub_private_repo: None,
            python: "python3".to_owned(),
            project: None,
            run_name: None,
        }
    }
}
