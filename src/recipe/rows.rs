//! The rows of a run: read from their sources, and in the order in which the run draws them.

use super::RecipeError;
use crate::config::{Algorithm, RunConfig, TrainingSource};
use crate::data::{Access, Dataset, Loaded, Row, RowKind, RowOrder, RowsConfig, Source};
use crate::env::HubEnv;
use crate::io::sha256_bytes;

/// Training rows, of one source or of several.
#[derive(Debug, Clone)]
pub(super) struct TrainingRows {
    /// At least one.
    pub parts: Vec<Part>,
}

/// The rows of one source.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub data: Dataset,
    pub weight: f64,
    /// The commit of the Hub that they are from.
    pub commit: Option<String>,
}

impl TrainingRows {
    /// Reads the rows of every source. They are numbered through all of them.
    pub fn load(settings: &RunConfig, kind: RowKind) -> Result<Self, RecipeError> {
        let mut parts = Vec::new();
        let mut first = 0;
        for TrainingSource { source, rows, weight } in settings.training_sources(kind)? {
            let Loaded { mut dataset, commit } = load_source(&source, &rows, settings.offline)?;
            dataset.rows.iter_mut().for_each(|row| row.index += first);
            first += dataset.num_rows;
            parts.push(Part { data: dataset, weight, commit });
        }
        Ok(Self { parts })
    }

    /// Every row.
    pub fn all(&self) -> impl Iterator<Item = &Row> {
        self.parts.iter().flat_map(|part| &part.data.rows)
    }

    /// SHA-256 of the file, in hex; of several sources that of theirs, a line each.
    pub fn sha256(&self) -> String {
        match self.parts.as_slice() {
            [one] => one.data.sha256.clone(),
            several => {
                let lines: Vec<&str> = several.iter().map(|part| part.data.sha256.as_str()).collect();
                sha256_bytes(lines.join("\n").as_bytes())
            }
        }
    }

    /// The commits of the data sets that came from the Hub, as `name@commit`; None where none did.
    pub fn revision(&self) -> Option<String> {
        let commits: Vec<&str> = self.parts.iter().filter_map(|part| part.commit.as_deref()).collect();
        (!commits.is_empty()).then(|| commits.join(" "))
    }
}

/// The rows that a run evaluates on, as its evaluation reads them; None where there are none.
pub(super) fn eval_rows(settings: &RunConfig) -> Result<Option<Dataset>, RecipeError> {
    let Some(source) = settings.eval_source()? else { return Ok(None) };
    // A reward model ranks pairs; every other model answers prompts.
    let kind = if settings.algorithm == Algorithm::Reward { RowKind::Pair } else { RowKind::Prompt };
    let mut data = load_source(&source, &settings.rows_config(kind)?, settings.offline)?.dataset;
    data.rows.truncate(settings.eval_max_rows.unwrap_or(usize::MAX));
    Ok(Some(data))
}

/// What is used of each part, and the order in which the run draws it.
#[derive(Debug)]
pub(super) struct Prepared<T> {
    pub items: Vec<T>,
    pub order: RowOrder,
}

/// Prepares each part and mixes the order.
pub(super) fn prepare_parts<T>(
    settings: &RunConfig,
    rows: TrainingRows,
    mut prepare: impl FnMut(Dataset) -> Result<Vec<T>, RecipeError>,
) -> Result<Prepared<T>, RecipeError> {
    let (mut items, mut sizes) = (Vec::new(), Vec::new());
    for Part { data, weight, .. } in rows.parts {
        let of_part = prepare(data)?;
        sizes.push((of_part.len(), weight));
        items.extend(of_part);
    }
    Ok(Prepared { items, order: RowOrder::mixed(settings.seed, &sizes, settings.shuffle) })
}

/// Reads the rows of a source; bad rows that are left out are warned of.
pub(super) fn load_source(source: &Source, rows: &RowsConfig, offline: bool) -> Result<Loaded, RecipeError> {
    let env = HubEnv::read();
    let access = Access { env: &env, offline, progress: &|message| tracing::info!("{message}") };
    let loaded = source.load(rows, access)?;
    if loaded.dataset.skipped > 0 {
        tracing::warn!("{source}: {} bad rows left out", loaded.dataset.skipped);
    }
    Ok(loaded)
}
