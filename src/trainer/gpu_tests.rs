//! Training on the kernels for a GPU.

use super::policy::{Policy, PolicyConfig, TokenGrads};
use crate::batch::{Group, pack};
use crate::model::adapter::init_adapter;
use crate::model::{Adapter, Decoder, ModelConfig, Param, Params, PeftConfig, TargetModules, load_weights};
use crate::ops::quantized::QuantFormat;
use crate::ops::testing::{compute, on_gpu};
use crate::optim::{AdamWConfig, LrSchedule, LrSchedulerType};
use candle_core::{DType, Tensor};
use std::path::Path;

/// What is trained.
#[derive(Clone, Copy)]
enum Trained {
    Model,
    /// An adapter beside the model in few bits.
    Adapter(QuantFormat),
}

fn policy(dtype: DType, trained: Trained) -> Policy {
    let folder = Path::new("data/starter");
    let config = ModelConfig::load(folder).expect("a model folder");
    let (tensors, _) = load_weights(folder, &config).expect("weights");
    let compute = compute(dtype);
    let decoder = match trained {
        Trained::Model => Decoder::new(config, Params::new(tensors, &compute, true).expect("fits")).expect("complete"),
        Trained::Adapter(format) => {
            let peft = PeftConfig::new(4, 8.0, 0.0, false, TargetModules::AllLinear);
            let maps = peft.maps(&config).expect("there are maps");
            let drawn = init_adapter(&maps, 1);
            let frozen = tensors.into_iter().map(|tensor| Param::frozen(tensor, &compute, Some(format)).expect("fits"));
            let model = Decoder::new(config, Params::of(frozen.collect())).expect("complete");
            model.with_adapter(Adapter::new(&peft, maps, drawn, &compute, true).expect("fits")).expect("complete")
        }
    };
    let config = PolicyConfig {
        adamw: AdamWConfig::default(),
        learning_rate: 1e-3,
        schedule: LrSchedule { kind: LrSchedulerType::Constant, warmup_steps: 0, num_steps: 3 },
        max_grad_norm: Some(1.0),
        gradient_checkpointing: false,
        seed: 0,
    };
    Policy::new(decoder, config).expect("fits")
}

/// Three steps towards one text; the loss before each, nats a token.
fn train(policy: &mut Policy) -> Vec<f64> {
    let group = Group { prompt: &[20, 13, 29], completions: vec![(0, &[22, 18, 0]), (1, &[23, 0])] };
    let batches = pack(&[group], 64);
    let mut losses = Vec::new();
    for step in 1..=3 {
        let objective =
            |_: usize, _: &super::policy::Score<'_>| Ok((TokenGrads { logprobs: vec![-0.2; 5], entropies: None }, ()));
        let found = policy.accumulate(&batches, 1.0, objective).expect("runs");
        policy.update(step).expect("finite");
        losses.push(-found[0].0.logprobs.iter().map(|l| f64::from(*l)).sum::<f64>() / 5.0);
    }
    losses
}

/// All master weights, one after the other.
fn masters(policy: &Policy) -> Vec<f32> {
    let values = |t: &Tensor| t.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("f32");
    policy.decoder.trained().iter().flat_map(|param| values(param.weight.master())).collect()
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt()
}

/// The same losses as on the CPU, to rounding, and the masters go the same way: they end apart by a small share of what
/// they have moved.
#[test]
fn steps_on_a_gpu_are_those_on_the_cpu() {
    compare(Trained::Model);
}

#[test]
fn steps_of_an_adapter_are_those_on_the_cpu() {
    for format in [QuantFormat::Q8_0, QuantFormat::Q4_0] {
        compare(Trained::Adapter(format));
    }
}

fn compare(trained: Trained) {
    let mut on_cpu = policy(DType::F32, trained);
    let start = masters(&on_cpu);
    let expected = train(&mut on_cpu);
    assert!(expected[2] < expected[0]);
    let moved = distance(&masters(&on_cpu), &start);
    for (dtype, of_loss, of_way) in [(DType::F32, 1e-4, 0.01), (DType::BF16, 0.05, 0.3)] {
        let (losses, ends) = on_gpu(|| {
            let mut gpu = policy(dtype, trained);
            (train(&mut gpu), masters(&gpu))
        });
        for (loss, expected) in losses.iter().zip(&expected) {
            assert!((loss - expected).abs() < of_loss * expected, "{dtype:?}: {losses:?} {expected:?}");
        }
        let share = distance(&ends, &masters(&on_cpu)) / moved;
        assert!(share < of_way, "{dtype:?}: {share} of the way apart");
    }
}
