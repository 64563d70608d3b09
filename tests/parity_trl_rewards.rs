//! The rewards that TRL has too give TRL's scores.
//!
//! The numbers to compare with were made by `scripts/make_trl_fixtures.py`, which names the versions and says how.

use candlewick::reward::{RepetitionPenalty, SoftOverlong};
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    completions: Vec<Vec<u32>>,
    repetition: Vec<Repetition>,
    overlong: Vec<Overlong>,
}

#[derive(Deserialize)]
struct Repetition {
    ngram_size: usize,
    max_penalty: f64,
    scores: Vec<f64>,
}

#[derive(Deserialize)]
struct Overlong {
    max_completion_len: usize,
    soft_punish_cache: usize,
    scores: Vec<f64>,
}

/// Both sides do the same operations in f64; reading the file may round the last bit.
fn assert_equal(what: &str, got: &[f64], expected: &[f64]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-15), "{what}: {got:?}, not {expected:?}");
}

#[test]
fn scores_equal_those_of_trl() {
    let fixture: Fixture = serde_json::from_str(include_str!("fixtures/trl/rewards.json")).unwrap();
    assert!(fixture.repetition.len() == 16 && fixture.overlong.len() >= 12);
    let mut seen = std::collections::BTreeSet::new();
    for Repetition { ngram_size, max_penalty, scores } in fixture.repetition {
        let reward = RepetitionPenalty { ngram_size, max_penalty };
        let got: Vec<f64> = fixture.completions.iter().map(|ids| reward.compute(ids)).collect();
        assert_equal(&format!("{reward:?}"), &got, &scores);
        seen.extend(scores.iter().map(|score| score.to_bits()));
    }
    for Overlong { max_completion_len, soft_punish_cache, scores } in fixture.overlong {
        let reward = SoftOverlong { max_completion_len, soft_punish_cache };
        let got: Vec<f64> = fixture.completions.iter().map(|ids| reward.compute(ids.len())).collect();
        assert_equal(&format!("{reward:?}"), &got, &scores);
        seen.extend(scores.iter().map(|score| score.to_bits()));
    }
    assert!(seen.len() > 20, "the fixture tells little apart");
}
