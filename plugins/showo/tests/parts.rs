//! Micro-batches and gradient checkpointing save memory and do not change the result.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;

use common::{architecture, confident, images, serialize_tests, source, strings};
use tch::{Kind, Tensor};
use unirl::Result;
use unirl::model::{
    BatchSlice, Checkpoint, ImageSampling, Masking, ParameterGroup, Policy, TextSampling, UnifiedModel,
};
use unirl::reward::{Reward, RewardFunction, Sample};
use unirl_benchmarks::Benchmark as _;
use unirl_benchmarks::tiles::Tiles;
use unirl_engine::algorithms::{self, Iteration, Phases, ReaderWeights};
use unirl_engine::config::Rollout;
use unirl_engine::rewards::{Reader, RewardKind, RewardOptions, RewardSet, View, WeightedReward};
use unirl_plugin_showo::checkpoint;
use unirl_plugin_showo::config::{Architecture, ShowoConfig};
use unirl_plugin_showo::model::Showo;

/// The f32 error between two orders of the same sum, relative to the largest gradient of a tensor.
const SAME: f64 = 1e-5;

/// The small model with the vocabulary of the tiles benchmark.
fn tiny(gradient_checkpointing: bool) -> Showo {
    let architecture = Architecture { words: Vec::new(), max_text_len: 20, ..architecture() };
    let options =
        ShowoConfig { architecture: Some(architecture), gradient_checkpointing, ..ShowoConfig::default() };
    confident(checkpoint::load(&options, &source(Checkpoint::Fresh, 1)).unwrap())
}

/// A reward that depends on the length of an answer, so that answers differ in reward.
struct Length;

impl RewardFunction for Length {
    fn score(&self, samples: &[Sample], _: Option<&Tensor>) -> Result<Vec<Reward>> {
        let score = |sample: &Sample| Reward::new((sample.answer.len() % 7) as f64, 7.0);
        Ok(samples.iter().map(score).collect())
    }
}

struct Step {
    tokens: Tensor,
    answers: Vec<String>,
    metrics: BTreeMap<&'static str, f64>,
    gradients: Vec<(String, Tensor)>,
}

/// One step of an algorithm on two prompts with groups of three.
fn step(
    name: &str,
    options: &str,
    reward: &RewardOptions,
    micro_batch: usize,
    gradient_checkpointing: bool,
) -> Step {
    let mut model = tiny(gradient_checkpointing);
    model.freeze_reference().unwrap();
    let mut trained = model.parameters().unwrap();
    trained.retain(|parameter| parameter.group != ParameterGroup::Tokenizer);
    let mut reader = ReaderWeights::new(&trained, reward);
    tch::manual_seed(4);
    for mut parameter in model.parameters().unwrap() {
        tch::no_grad(|| parameter.tensor += parameter.tensor.randn_like() * 1e-3); // so that the KL term is not 0
    }
    let rule = WeightedReward::named("length");
    let rules = RewardSet::new(vec![(rule, Box::new(Length))]).unwrap();
    let tasks: Vec<_> = Tiles.test_tasks(1, 3).unwrap()[..2]
        .iter()
        .flat_map(|task| std::iter::repeat_n(task.clone(), 3))
        .collect();
    let rollout = Rollout {
        prompts_per_step: 2,
        group_size: 3,
        micro_batch,
        images: ImageSampling { guidance: 0.5, steps: 4, ..ImageSampling::default() },
        answers: TextSampling { temperature: 1.0, max_tokens: 6, ..TextSampling::default() },
    };
    let mut iteration = Iteration {
        model: &mut model,
        tasks: &tasks,
        rules: &rules,
        answer_rules: None,
        reward,
        reader: &mut reader,
        rollout: &rollout,
        step: 1,
        seed: 9,
        shuffle_rewards: false,
        phases: Phases::default(),
    };
    let optimizer = (algorithms::find(name).unwrap().build)(options.parse().unwrap()).unwrap();
    let outcome = optimizer.accumulate(&mut iteration).unwrap();
    let gradients = model
        .parameters()
        .unwrap()
        .into_iter()
        .map(|parameter| (parameter.name, parameter.tensor.grad()))
        .filter(|(_, gradient)| gradient.defined())
        .collect();
    Step { tokens: outcome.images.tokens, answers: outcome.answers, metrics: outcome.metrics, gradients }
}

#[track_caller]
fn same(what: &str, plain: &Step, other: &Step) {
    assert!(plain.tokens.equal(&other.tokens), "{what}: images");
    assert_eq!(plain.answers, other.answers, "{what}");
    assert_eq!(plain.metrics.keys().collect::<Vec<_>>(), other.metrics.keys().collect::<Vec<_>>());
    for (name, value) in &plain.metrics {
        let off = (value - other.metrics[name]).abs();
        assert!(off <= SAME * (1.0 + value.abs()), "{what}: {name}: {value}, {}", other.metrics[name]);
    }
    assert_eq!(plain.gradients.len(), other.gradients.len(), "{what}");
    for ((name, plain), (_, other)) in plain.gradients.iter().zip(&other.gradients) {
        let largest = plain.abs().max().double_value(&[]);
        let off = (plain - other).abs().max().double_value(&[]);
        assert!(off <= SAME * (1.0 + largest), "{what}: `{name}` differs by {off}, largest {largest}");
    }
}

#[test]
fn micro_batches_and_gradient_checkpointing_do_not_change_the_step() {
    let _guard = serialize_tests();
    let image = r#"{ coefficient = 1.0, replay = "reveal", reveal_steps = 2, beta = 0.3 }"#;
    let remask = r#"{ coefficient = 1.0, replay = "remask", beta = 0.3 }"#;
    let paper = "replay = \"remask\"\nreader_gradient = true\nright_answer = \"reference\"";
    let right = "answers = \"right\"\nanswer_weighting = \"reward\"\nreplay = \"reveal\"\nreveal_steps = 2";
    let rules = RewardOptions::default();
    let likelihood = RewardOptions {
        kind: RewardKind::Likelihood,
        reader: Reader::Reference,
        view: View::Pixels,
        questions: 3,
        ..RewardOptions::default()
    };
    let asked_again = RewardOptions { reader: Reader::Ema, questions: 2, ..RewardOptions::default() };
    for (name, options, reward) in [
        ("sft", String::new(), &rules),
        ("sft", "reader_gradient = true\nreveal_steps = 2".into(), &likelihood),
        ("sft", format!("{paper}\nimage_beta = 0.0\nbeta = 0.0"), &rules),
        ("grpo", "weighting = \"advantage\"".into(), &rules),
        ("grpo", format!("reader_gradient = false\nimage = {image}"), &asked_again),
        ("grpo", format!("{right}\nimage = {image}"), &likelihood),
        ("grpo-split", format!("weighting = \"advantage\"\nimage = {remask}"), &rules),
        ("grpo-split", format!("weighting = \"advantage\"\nimage = {remask}"), &likelihood),
    ] {
        let what = format!("{name}, {options}, {:?} by {:?}", reward.kind, reward.reader);
        let plain = step(name, &options, reward, 0, false);
        assert!(plain.gradients.iter().any(|(_, gradient)| gradient.abs().max().double_value(&[]) > 1e-3));
        for micro_batch in [1, 2, 4, 6] {
            let parts = step(name, &options, reward, micro_batch, false);
            same(&format!("{what}, {micro_batch} images at once"), &plain, &parts);
        }
        same(&format!("{what}, with checkpointing"), &plain, &step(name, &options, reward, 0, true));
        same(
            &format!("{what}, with checkpointing, 1 at once"),
            &plain,
            &step(name, &options, reward, 1, true),
        );
    }
}

#[test]
fn micro_batches_do_not_change_images_and_answers() {
    let _guard = serialize_tests();
    let mut showo = tiny(false);
    let prompts = strings(["a red circle", "two blue squares", "a star", "a photo of a green heart"]);
    let sampling = ImageSampling { seed: 3, steps: 4, ..ImageSampling::default() };
    let full = showo.generate(&prompts, &sampling).unwrap();
    let answer_sampling =
        TextSampling { temperature: 1.0, max_tokens: 8, seed: 5, ..TextSampling::default() };
    let answers = showo.answer(&full, &prompts, &answer_sampling).unwrap();
    for first in 0..prompts.len() {
        let one = &prompts[first..=first];
        let part = Some(BatchSlice { first: first as i64, of: 4 });
        let image = showo.generate(one, &ImageSampling { part, ..sampling.clone() }).unwrap();
        assert!(image.tokens.equal(&full.narrow(first as i64, 1).tokens));
        let answer = showo.answer(&image, one, &TextSampling { part, ..answer_sampling.clone() }).unwrap();
        assert_eq!(answer.text[0], answers.text[first]);
    }
}

#[test]
fn top_k_and_temperature_limit_the_sampled_tokens() {
    let _guard = serialize_tests();
    let mut showo = tiny(false);
    let generated = images(&showo, 3);
    let questions = strings(["what is this", "how many", "what color"]);
    let mut answer = |temperature, top_k, seed| {
        let sampling = TextSampling { temperature, top_k, seed, max_tokens: 6, part: None };
        showo.answer(&generated, &questions, &sampling).unwrap().tokens
    };
    let greedy = answer(0.0, 0, 0);
    assert!(answer(1.0, 1, 7).equal(&greedy), "the original's `top_k=1`");
    assert!(!answer(1.0, 0, 7).equal(&greedy));
    assert!(answer(1.0, 2, 7).equal(&answer(1.0, 2, 7)) && !answer(1.0, 2, 7).equal(&answer(1.0, 2, 8)));
    assert!(answer(1e-4, 0, 7).equal(&greedy), "a tiny temperature is greedy");
}

#[test]
fn chunked_logp_has_the_same_value_and_gradient() {
    let _guard = serialize_tests();
    let showo = tiny(false);
    let phi = showo.phi();
    tch::manual_seed(2);
    // As many rows as the head computes in three chunks.
    let rows =
        (1i64 << 24) / phi.language.logits(&Tensor::zeros([1, 32], tch::kind::FLOAT_CPU)).size()[1] * 2 + 5;
    let hidden = Tensor::randn([rows, 32], tch::kind::FLOAT_CPU).set_requires_grad(true);
    let targets = Tensor::randint(40, [rows], tch::kind::INT64_CPU);
    let weights = Tensor::randn([rows], tch::kind::FLOAT_CPU);
    let chunked = phi.language.logp(&hidden, &targets).unwrap();
    (&chunked * &weights).sum(Kind::Float).backward();
    let gradient = hidden.grad().copy();

    let leaf = hidden.detach().set_requires_grad(true);
    let plain = phi.language.logits(&leaf).log_softmax(-1, Kind::Float);
    let plain = plain.gather(1, &targets.unsqueeze(1), false).squeeze_dim(1);
    (&plain * &weights).sum(Kind::Float).backward();
    for (chunked, plain) in [(chunked, plain), (gradient, leaf.grad())] {
        let off = (&chunked - &plain).abs().max().double_value(&[]);
        assert!(off <= SAME * (1.0 + plain.abs().max().double_value(&[])), "differs by {off}");
    }
}

#[test]
fn micro_batches_do_not_change_the_re_masked_tokens() {
    let _guard = serialize_tests();
    let showo = tiny(false);
    let generated = images(&showo, 5);
    let prompts = vec!["a star".to_string(); 5];
    let targets = |rows: std::ops::Range<i64>, part| {
        let (first, len) = (rows.start, rows.end - rows.start);
        let masking = Masking::remask(8, part);
        let prompts = &prompts[first as usize..rows.end as usize];
        showo.image_logits(prompts, &generated.narrow(first, len), Policy::Current, &masking).unwrap().targets
    };
    let full = targets(0..5, None);
    for rows in [0..2, 2..3, 3..5] {
        let part = Some(BatchSlice { first: rows.start, of: 5 });
        let expected = full.narrow(0, rows.start, rows.end - rows.start);
        assert!(targets(rows, part).equal(&expected));
    }
}
