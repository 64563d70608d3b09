//! The making of the rewards that ask something outside of this process: `command` and `judge`.

use super::diagnostic::is_variable_name;
use super::reward_config::RewardConfig;
use super::reward_kinds::{Fault, Made, required};
use crate::reward::{CommandConfig, CommandReward, Judge, JudgeConfig, RewardError, Scale, Verdict};
use std::sync::Arc;
use std::time::Duration;

const DEFAULT_TIMEOUT_SECS: f64 = 60.0;
const MAX_TIMEOUT_SECS: f64 = 86_400.0;
const DEFAULT_RESTARTS: usize = 2;
const DEFAULT_RETRIES: usize = 5;
const DEFAULT_CONCURRENCY: usize = 8;
/// Each request has a thread.
const MAX_CONCURRENCY: usize = 256;

pub(super) fn command(table: &RewardConfig) -> Made {
    let command = required(table.command.as_ref(), "command", table)?.clone();
    if command.first().is_none_or(|program| program.trim().is_empty()) {
        let help = "a list of the program and its arguments: [\"python3\", \"grade.py\"]";
        return Err(Fault::new("command", "`command` names no program").help(help));
    }
    if command.iter().any(|word| word.contains('\0')) {
        return Err(Fault::new("command", "`command` holds a character that no argument can have"));
    }
    let max_restarts = table.max_restarts.unwrap_or(DEFAULT_RESTARTS);
    let config = CommandConfig { command, timeout: timeout(table)?, max_restarts };
    Ok(Arc::new(CommandReward::new(table.called(), config)))
}

pub(super) fn judge(table: &RewardConfig) -> Made {
    let config = JudgeConfig {
        base_url: base_url(table)?,
        judge_model: required(table.judge_model.as_ref(), "judge_model", table)?.clone(),
        prompt_template: required(table.prompt_template.as_ref(), "prompt_template", table)?.clone(),
        verdict: verdict(table)?,
        scale: scale(table)?,
        temperature: temperature(table)?,
        concurrency: concurrency(table)?,
        timeout: timeout(table)?,
        max_retries: table.max_retries.unwrap_or(DEFAULT_RETRIES),
        api_key_env: api_key_env(table)?,
        on_failure: table.on_failure.unwrap_or_default(),
    };
    let judge = Judge::new(table.called(), config);
    if !judge.sees_completion() {
        let message = "`prompt_template` has no `{completion}`: the judge would not see what it judges";
        return Err(Fault::new("prompt_template", message));
    }
    Ok(Arc::new(judge))
}

fn timeout(table: &RewardConfig) -> Result<Duration, Fault> {
    let secs = table.timeout_secs.unwrap_or(DEFAULT_TIMEOUT_SECS);
    if secs > 0.0 && secs <= MAX_TIMEOUT_SECS {
        Ok(Duration::from_secs_f64(secs))
    } else {
        Err(Fault::new("timeout_secs", format!("`timeout_secs` must be above 0 and at most 86400, not {secs}")))
    }
}

/// An address without a slash at the end. What it holds is not repeated where it may be a password.
fn base_url(table: &RewardConfig) -> Result<String, Fault> {
    let given = required(table.base_url.as_ref(), "base_url", table)?.trim().trim_end_matches('/');
    let fault = |message: &str| Err(Fault::new("base_url", message).help("such as http://localhost:8000/v1"));
    let Some(rest) = given.strip_prefix("http://").or_else(|| given.strip_prefix("https://")) else {
        return fault("`base_url` must begin with http:// or https://");
    };
    let host = rest.split('/').next().unwrap_or_default();
    if host.contains('@') {
        let message = "`base_url` holds a user name or a password; the key of a service is named by `api_key_env`";
        return Err(Fault::new("base_url", message));
    }
    let is_plain = |c: char| {
        c.is_ascii_graphic() && !matches!(c, '?' | '#' | '"' | '<' | '>' | '\\' | '^' | '`' | '{' | '|' | '}')
    };
    if host.is_empty() || !rest.chars().all(is_plain) {
        return fault("`base_url` is no address");
    }
    if given.ends_with("/chat/completions") {
        return fault("`/chat/completions` is added to `base_url`: leave it out");
    }
    Ok(given.to_owned())
}

fn verdict(table: &RewardConfig) -> Result<Verdict, Fault> {
    match (&table.score_pattern, &table.score_key) {
        (Some(pattern), None) => Verdict::pattern(table.called(), pattern).map_err(|error| {
            let reason = match error {
                RewardError::Pattern { reason, .. } => reason,
                other => other.to_string(),
            };
            let help = "such as 'Score: *(-?[0-9.]+)'; in TOML, 'single quotes' leave backslashes alone";
            Fault::new("score_pattern", format!("`score_pattern` cannot be used: {reason}")).help(help)
        }),
        (None, Some(key)) if !key.is_empty() => Ok(Verdict::Key(key.clone())),
        (None, Some(_)) => Err(Fault::new("score_key", "`score_key` is empty")),
        (None, None) => Err(Fault::new("name", "the reward `judge` needs `score_pattern` or `score_key`")),
        (Some(_), Some(_)) => {
            Err(Fault::new("score_key", "`score_pattern` and `score_key` both say how the score is read")
                .help("set one"))
        }
    }
}

fn scale(table: &RewardConfig) -> Result<Option<Scale>, Fault> {
    match (table.min_score, table.max_score) {
        (None, None) => Ok(None),
        (Some(min_score), Some(max_score)) if min_score < max_score => Ok(Some(Scale { min_score, max_score })),
        (Some(min), Some(max)) => {
            Err(Fault::new("max_score", format!("`max_score` ({max}) must be above `min_score` ({min})")))
        }
        (Some(_), None) => Err(Fault::new("min_score", "`min_score` needs `max_score` beside it")),
        (None, Some(_)) => Err(Fault::new("max_score", "`max_score` needs `min_score` beside it")),
    }
}

fn temperature(table: &RewardConfig) -> Result<f64, Fault> {
    let temperature = table.temperature.unwrap_or(0.0);
    if temperature >= 0.0 {
        Ok(temperature)
    } else {
        Err(Fault::new("temperature", format!("`temperature` must be 0 or more, not {temperature}")))
    }
}

fn concurrency(table: &RewardConfig) -> Result<usize, Fault> {
    let concurrency = table.concurrency.unwrap_or(DEFAULT_CONCURRENCY);
    if (1..=MAX_CONCURRENCY).contains(&concurrency) {
        Ok(concurrency)
    } else {
        let message = format!("`concurrency` must be 1 to {MAX_CONCURRENCY}, not {concurrency}");
        Err(Fault::new("concurrency", message))
    }
}

fn api_key_env(table: &RewardConfig) -> Result<Option<String>, Fault> {
    let Some(variable) = &table.api_key_env else { return Ok(None) };
    if is_variable_name(variable) {
        return Ok(Some(variable.clone()));
    }
    // The value is not shown: somebody may have put the key itself there.
    let message = "`api_key_env` must be the name of an environment variable, in capitals, such as OPENAI_API_KEY";
    Err(Fault::new("api_key_env", message)
        .help("export the variable with the key; the key itself never goes into a file"))
}
