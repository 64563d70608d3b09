//! From settings to the algorithm of a run: what it samples or reads, what it compares with, what it minimises.

use super::RecipeError;
use super::parts::{LoadedModel, PromptLimit, example_config, max_steps, prepare, sampling};
use super::reward_model;
use super::rows::{Prepared, TrainingRows, prepare_parts};
use super::start::TrainingData;
use crate::algorithm::{
    AdvantageEstimator, DpoConfig, ImportanceSamplingLevel, KlEstimator, LossType, ObjectiveConfig,
};
use crate::batch::blocks;
use crate::config::{Algorithm, DpoPairs, RunConfig};
use crate::data::{Dataset, RowOrder};
use crate::model::Decoder;
use crate::reward::WeightedRewards;
use crate::trainer::{
    Dpo, DpoStepConfig, Example, Method, Pair, PairSource, PolicyGradient, PolicyGradientConfig, PreparedPrompt,
    Reference, ReferenceSync, RolloutConfig, RolloutSource, Sft, SftConfig, prepare_examples, prepare_pairs,
};

/// The algorithm with its data, and the optimizer steps of the whole run. `reference` gives the model that the policy is
/// held to, where the algorithm has one.
pub(super) fn method(
    settings: &RunConfig,
    model: &LoadedModel,
    data: TrainingData,
    rewards: WeightedRewards,
    reference: impl FnOnce() -> Result<Decoder, RecipeError>,
) -> Result<(Method, u64), RecipeError> {
    let data = match data {
        TrainingData::Rows(data) => data,
        TrainingData::Text(corpus) => {
            let items: Vec<Example> = blocks(&corpus.train, settings.block_size).map(Example::of_block).collect();
            let order = RowOrder::new(settings.seed, items.len(), settings.shuffle);
            return Ok(supervised(settings, Prepared { items, order }));
        }
    };
    if settings.algorithm == Algorithm::Reward {
        return reward_model::method(settings, model, data);
    }
    if settings.algorithm == Algorithm::Dpo {
        return preferences(settings, model, data, rewards, reference);
    }
    if !settings.samples_completions() {
        return Ok(supervised(settings, prepare_parts(settings, data, |part| examples(settings, model, &part))?));
    }
    let source = source(settings, model, data, rewards)?;
    let max_steps = max_steps(settings, source.prompts.len());
    let reference = following(settings, reference)?;
    let method = PolicyGradient { config: policy_gradient_config(settings), source, reference };
    Ok((Method::PolicyGradient(Box::new(method)), max_steps))
}

/// Learning of pairs, and its optimizer steps.
fn preferences(
    settings: &RunConfig,
    model: &LoadedModel,
    data: TrainingRows,
    rewards: WeightedRewards,
    reference: impl FnOnce() -> Result<Decoder, RecipeError>,
) -> Result<(Method, u64), RecipeError> {
    let (source, num_rows) = match settings.dpo_pairs {
        DpoPairs::File => {
            let Prepared { items: pairs, order } = prepare_parts(settings, data, |part| pairs(settings, model, &part))?;
            let num_rows = pairs.len();
            (PairSource::Given { pairs, order }, num_rows)
        }
        DpoPairs::Sampled => {
            let source = source(settings, model, data, rewards)?;
            let num_rows = source.prompts.len();
            (PairSource::Sampled(source), num_rows)
        }
    };
    let objective = DpoConfig {
        loss_type: settings.dpo_loss_type,
        beta: settings.resolved_beta(),
        label_smoothing: settings.label_smoothing,
    };
    let config = DpoStepConfig {
        prompts_per_step: settings.prompts_per_optimizer_step(),
        objective,
        max_tokens_per_micro_batch: settings.max_tokens_per_micro_batch,
        log_completions: settings.log_completions,
    };
    // Margins are those over the start model, which therefore never moves.
    let reference = Reference::new(reference()?, None);
    Ok((Method::Dpo(Box::new(Dpo { config, source, reference })), max_steps(settings, num_rows)))
}

/// The rows of a source as pairs; there is one at least.
pub(super) fn pairs(settings: &RunConfig, model: &LoadedModel, data: &Dataset) -> Result<Vec<Pair>, RecipeError> {
    let path = &data.source;
    let limits = example_config(settings, model);
    let (pairs, left_out) = prepare_pairs(&data.rows, &model.renderer(settings), limits)?;
    let left_out = left_out.len();
    if pairs.is_empty() {
        return Err(RecipeError::NoExamples { path: path.to_owned(), left_out });
    }
    if left_out > 0 {
        tracing::warn!("{}: {left_out} pairs are empty, too long or of equal tokens and were left out", path.display());
    }
    Ok(pairs)
}

/// The rows of a source as tokens to learn; there is one at least.
pub(super) fn examples(settings: &RunConfig, model: &LoadedModel, data: &Dataset) -> Result<Vec<Example>, RecipeError> {
    let path = &data.source;
    let limits = example_config(settings, model);
    let (examples, left_out) = prepare_examples(&data.rows, &model.renderer(settings), limits)?;
    let left_out = left_out.len();
    if examples.is_empty() {
        return Err(RecipeError::NoExamples { path: path.to_owned(), left_out });
    }
    if left_out > 0 {
        tracing::warn!("{}: {left_out} rows are empty or too long and were left out", path.display());
    }
    Ok(examples)
}

/// Learning of given tokens, and its optimizer steps.
fn supervised(settings: &RunConfig, Prepared { items: examples, order }: Prepared<Example>) -> (Method, u64) {
    let max_steps = max_steps(settings, examples.len());
    let config = SftConfig {
        rows_per_step: settings.prompts_per_optimizer_step(),
        max_tokens_per_micro_batch: settings.max_tokens_per_micro_batch,
    };
    (Method::Sft(Sft { config, examples, order }), max_steps)
}

/// The prompts of the training rows, ready to be sampled from and scored.
fn source(
    settings: &RunConfig,
    model: &LoadedModel,
    data: TrainingRows,
    rewards: WeightedRewards,
) -> Result<RolloutSource, RecipeError> {
    let Prepared { items: prompts, order } =
        prepare_parts(settings, data, |part| prompts(settings, model, part, &rewards))?;
    let config = RolloutConfig {
        num_generations: settings.num_generations,
        sampling: sampling(settings),
        stop: model.stop_rules(&settings.stop, settings.max_completion_length),
        slots: settings.rollout_slots,
        seed: settings.seed,
    };
    if config.sampling.is_truncated() {
        tracing::info!(
            "top_p, top_k, min_p or repetition_penalty is on: log-probs are those of the whole distribution"
        );
    }
    Ok(RolloutSource { config, prompts, order, rewards, tokenizer: model.tokenizer.clone() })
}

/// The rows of a source as prompts whose completions the rewards can score; there is one at least.
pub(super) fn prompts(
    settings: &RunConfig,
    model: &LoadedModel,
    data: Dataset,
    rewards: &WeightedRewards,
) -> Result<Vec<PreparedPrompt>, RecipeError> {
    rewards.check_rows(&data.rows)?;
    let limit = PromptLimit::new(settings, model);
    Ok(prepare(&data.source, data.rows, &model.renderer(settings), limit)?.prompts)
}

fn policy_gradient_config(settings: &RunConfig) -> PolicyGradientConfig {
    PolicyGradientConfig {
        prompts_per_step: settings.prompts_per_optimizer_step(),
        max_sampling_rounds: settings.dynamic_sampling.then_some(settings.max_sampling_rounds),
        num_iterations: settings.num_iterations.max(1) as u64,
        estimator: estimator(settings),
        objective: objective(settings),
        top_entropy_quantile: settings.top_entropy_quantile,
        mask_truncated_completions: settings.mask_truncated_completions,
        max_tokens_per_micro_batch: settings.max_tokens_per_micro_batch,
        log_completions: settings.log_completions,
    }
}

/// What the algorithm compares rewards with.
fn estimator(settings: &RunConfig) -> AdvantageEstimator {
    match settings.algorithm {
        Algorithm::Rloo => AdvantageEstimator::LeaveOneOut,
        Algorithm::Remax => AdvantageEstimator::Greedy,
        Algorithm::ReinforcePlusPlus => AdvantageEstimator::Whitened,
        Algorithm::Raft => AdvantageEstimator::Best { min_reward: settings.raft_min_reward },
        _ => AdvantageEstimator::Group(settings.scale_rewards),
    }
}

/// The objective as the settings say, but for what an algorithm fixes.
fn objective(settings: &RunConfig) -> ObjectiveConfig {
    let as_set = ObjectiveConfig {
        loss_type: settings.loss_type,
        importance_sampling_level: settings.importance_sampling_level,
        epsilon: settings.epsilon,
        epsilon_high: settings.resolved_epsilon_high(),
        delta: settings.delta,
        beta: settings.resolved_beta(),
        kl_estimator: settings.kl_estimator,
        use_bias_correction_kl: settings.use_bias_correction_kl,
        sapo_temperature_pos: settings.sapo_temperature_pos,
        sapo_temperature_neg: settings.sapo_temperature_neg,
        entropy_coef: settings.entropy_coef,
        max_completion_length: settings.max_completion_length,
        gamma: settings.gamma,
    };
    match settings.algorithm {
        // -mean over rows of min(W A, clip(W) A), W the ratio of the whole completion; the KL is in the reward.
        Algorithm::Rloo => ObjectiveConfig {
            loss_type: LossType::Grpo,
            importance_sampling_level: ImportanceSamplingLevel::SequenceSum,
            kl_estimator: KlEstimator::K1,
            ..as_set
        },
        // The mean negative log-likelihood of the kept tokens.
        Algorithm::Raft => ObjectiveConfig {
            loss_type: LossType::Dapo,
            importance_sampling_level: ImportanceSamplingLevel::None,
            beta: 0.0,
            ..as_set
        },
        _ => as_set,
    }
}

/// The reference, frozen but for the steps with which it may follow the policy; none where beta is 0.
fn following(
    settings: &RunConfig,
    reference: impl FnOnce() -> Result<Decoder, RecipeError>,
) -> Result<Option<Reference>, RecipeError> {
    if settings.resolved_beta() <= 0.0 {
        return Ok(None);
    }
    let sync = ReferenceSync { alpha: settings.ref_model_mixup_alpha, steps: settings.ref_model_sync_steps };
    Ok(Some(Reference::new(reference()?, settings.sync_ref_model.then_some(sync))))
}
