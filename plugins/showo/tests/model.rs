//! Properties that hold for any weights, checked on a small random model.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::sync::MutexGuard;

use common::{GREEDY, SAME, close, confident, fresh, open, serialize_tests, source, strings};
use tch::{Device, Kind, Tensor};
use unirl::model::{
    Answers, BatchSlice, Checkpoint, ImageSampling, Images, Masking, ParameterGroup, Policy, Scoring,
    TextSampling, TrainableTokenizer, UnifiedModel,
};
use unirl::sampling::sample_tokens_with;
use unirl_layers::attention::{self, AttnMask};
use unirl_layers::decoder::StackInput;
use unirl_layers::decoding::GeneratedText;
use unirl_layers::rows::padded;
use unirl_plugin_showo::checkpoint::{self, LoadedCheckpoint};
use unirl_plugin_showo::config::{CheckpointConfig, ShowoConfig};
use unirl_plugin_showo::mask;
use unirl_plugin_showo::maskgit::{self, Schedule, UNKNOWN};
use unirl_plugin_showo::model::Showo;
use unirl_plugin_showo::prompt::Prompting;

struct Tiny {
    showo: Showo,
    config: CheckpointConfig,
    _random: MutexGuard<'static, ()>,
}

fn parts(seed: u64) -> LoadedCheckpoint {
    fresh(ShowoConfig::default(), seed)
}

fn tiny() -> Tiny {
    let random = serialize_tests();
    let parts = parts(1);
    let config = parts.config.clone();
    Tiny { showo: confident(parts), config, _random: random }
}

impl Tiny {
    fn images(&self, batch: i64) -> Images {
        common::images(&self.showo, batch)
    }
}

fn sampling(seed: u64) -> ImageSampling {
    ImageSampling { steps: 5, seed, ..ImageSampling::default() }
}

#[test]
fn code_logits_after_cached_text_equal_those_of_the_full_sequence() {
    let Tiny { showo, config, _random } = &tiny();
    let special = config.special();
    let prompting = Prompting::new(config);
    let prompts = [vec![1, 3], vec![], vec![0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2], vec![1, 3], vec![2]];
    let shape = [prompts.len() as i64, config.num_vq_tokens];
    let codes = Tensor::randint_low(UNKNOWN, config.codebook_size, shape, (Kind::Int64, Device::Cpu));

    let image = (&codes + special.image).masked_fill(&codes.eq(UNKNOWN), special.mask);
    let image: Vec<Vec<i64>> = image.try_into().unwrap();
    let rows: Vec<_> =
        prompts.iter().zip(&image).map(|(prompt, image)| prompting.t2i(prompt, image)).collect();
    let ids = padded(&rows, 0, Device::Cpu).0;
    let positions = Tensor::arange(ids.size()[1], (Kind::Int64, Device::Cpu)).unsqueeze(0);
    let visible = attention::additive_mask(&mask::t2i(&ids, &special, true));
    let language = &showo.phi().language;
    let rows = StackInput {
        x: language.embed(&ids),
        positions: &positions,
        mask: AttnMask::Additive(&visible),
        past: None,
        outputs: None,
    };
    let hidden = language.hidden_states(rows).unwrap();
    let full = showo.phi().code_logits(&hidden.narrow(1, config.max_text_len + 2, config.num_vq_tokens));

    let blocks = showo.text_blocks(showo.phi(), &prompts).unwrap();
    close(&showo.code_logits(showo.phi(), &blocks, &blocks.index, &codes).unwrap(), &full, SAME);
    // Padding that all prompts share is dropped.
    let short = showo.text_blocks(showo.phi(), &prompts[..1]).unwrap();
    close(
        &showo.code_logits(showo.phi(), &short, &short.index, &codes.narrow(0, 0, 1)).unwrap(),
        &full.narrow(0, 0, 1),
        SAME,
    );
}

#[test]
fn answer_does_not_depend_on_the_rest_of_the_batch() {
    let mut tiny = tiny();
    let images = tiny.images(3);
    let questions = strings(["what is the", "how many red car is a blue car", "what"]);
    let together = tiny.showo.answer(&images, &questions, &GREEDY).unwrap();
    let scored = tiny.showo.answer_logp(&images, &questions, &together, Policy::Current).unwrap();
    for row in 0..3 {
        let question = &questions[row as usize..][..1];
        let alone = tiny.showo.answer(&images.narrow(row, 1), question, &GREEDY).unwrap();
        let answered = |answers: &Answers| answers.tokens.masked_select(&answers.mask);
        assert!(answered(&alone).equal(&answered(&together.narrow(row, 1))), "{question:?}");
        assert_eq!(alone.text[0], together.text[row as usize]);
        let logp = tiny.showo.answer_logp(&images.narrow(row, 1), question, &alone, Policy::Current).unwrap();
        close(
            &logp.logp.masked_select(&logp.mask),
            &scored.logp.get(row).masked_select(&scored.mask.get(row)),
            SAME,
        );
    }
}

#[test]
fn kv_cache_does_not_change_generated_answers() {
    let tiny = tiny();
    let (showo, images) = (&tiny.showo, tiny.images(3));
    let questions = [vec![4, 5, 3], vec![6, 7, 8, 1, 3], vec![2]];
    for (temperature, top_k, part) in
        [(0.0, 0, None), (1.0, 0, None), (0.8, 3, Some(BatchSlice { first: 1, of: 5 }))]
    {
        let sampling = TextSampling { temperature, top_k, part, max_tokens: 6, seed: 9 };
        tch::manual_seed(9);
        let generated = showo.generate_text(&images, &questions, &sampling, -1).unwrap();

        tch::manual_seed(9);
        let uniforms = Tensor::rand([6, part.map_or(3, |part| part.of)], (Kind::Float, Device::Cpu));
        let uniforms = uniforms.narrow(1, part.map_or(0, |part| part.first), 3);
        let mut read = questions.clone();
        for at in 0..6 {
            let logits = tch::no_grad(|| showo.prefill(showo.phi(), &images, &read, 0).unwrap().logits());
            let uniforms = (temperature > 0.0).then(|| uniforms.get(at).unsqueeze(1));
            let tokens =
                Vec::<i64>::try_from(sample_tokens_with(&logits, temperature, top_k, uniforms.as_ref()))
                    .unwrap();
            read.iter_mut().zip(tokens).for_each(|(row, token)| row.push(token));
        }
        let answered =
            read.iter().zip(&questions).map(|(row, question)| Tensor::from_slice(&row[question.len()..]));
        assert_eq!(generated.tokens, Tensor::stack(&answered.collect::<Vec<_>>(), 0));
    }
}

#[test]
fn parallel_decoding_with_a_cache_equals_decoding_from_full_logits() {
    let tiny = tiny();
    let showo = &tiny.showo;
    let shape = [3, tiny.config.num_vq_tokens];
    let prompts = [vec![0, 1, 3], vec![2], vec![0, 1, 3]];
    let uniform = || Tensor::rand(shape, (Kind::Float, Device::Cpu));
    let uniforms: Vec<[Tensor; 2]> = (0..5).map(|_| [uniform(), uniform()]).collect();
    let given = |at: i64| uniforms[at as usize].each_ref().map(Tensor::shallow_clone).into();
    let unknown = Tensor::full(shape, UNKNOWN, (Kind::Int64, Device::Cpu));
    let some_known = unknown.where_self(&uniform().lt(0.6), &Tensor::ones(shape, (Kind::Int64, Device::Cpu)));
    for (start, guidance) in [(&unknown, 2.0), (&unknown, 0.0), (&some_known, 2.0)] {
        let sampling = ImageSampling { guidance, steps: 5, ..ImageSampling::default() };
        let generated = showo.generate_tokens(&prompts, start.shallow_clone(), &sampling, given).unwrap();

        let (mut codes, mut temperature) = (start.shallow_clone(), sampling.temperature);
        let mut tokens = codes.shallow_clone();
        for at in 0..5 {
            let all = codes.ones_like().to_kind(Kind::Bool);
            let logits = tch::no_grad(|| {
                let states = (&codes, &all);
                let scored = showo.target_hidden(showo.phi(), &prompts, states, (Scoring::Guided, guidance));
                scored.unwrap().logits(&shape)
            });
            temperature = maskgit::anneal(temperature, at, 5);
            let (uniforms, noise) = given(at);
            let positions = maskgit::all_positions(&codes);
            let logits = (&logits, &positions);
            let step =
                maskgit::step(Schedule::Cosine, logits, &codes, (at, 5), temperature, &uniforms, &noise);
            (codes, tokens) = (step.codes, step.sampled);
        }
        assert_eq!(generated.tokens, tokens);
    }
}

#[test]
fn decoding_steps_launch_the_same_number_of_operations() {
    let tiny = tiny();
    let (showo, images) = (&tiny.showo, tiny.images(2));
    tch::no_grad(|| {
        let mut decoding = showo.prefill(showo.phi(), &images, &[vec![4, 5, 3], vec![6]], 8).unwrap();
        let token = Tensor::from_slice(&[1i64, 2]);
        let counts: Vec<i64> =
            (0..8).map(|_| unirl_torch::ops::count(|| decoding.append(&token).unwrap()).1).collect();
        assert!(counts.iter().all(|count| *count == counts[0]), "{counts:?}");
        assert!(decoding.append(&token).unwrap_err().message().contains("KV cache is full"));
    });
}

#[test]
fn answer_logp_equals_the_log_probabilities_of_decoding() {
    let tiny = tiny();
    let (showo, images) = (&tiny.showo, tiny.images(2));
    let questions = [vec![4, 5, 3], vec![6, 7, 8, 1, 3]];
    let mut decoding = showo.prefill(showo.phi(), &images, &questions, 4).unwrap();
    let (mut tokens, mut logp) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let (best, token) = decoding.logits().log_softmax(-1, Kind::Float).max_dim(-1, false);
        decoding.append(&token).unwrap();
        tokens.push(token);
        logp.push(best);
    }
    let tokens = Tensor::stack(&tokens, 1);
    let sampling = TextSampling { max_tokens: 4, ..GREEDY };
    assert!(showo.generate_text(&images, &questions, &sampling, -1).unwrap().tokens.equal(&tokens));
    let mask = tokens.ones_like().to_kind(Kind::Bool);
    let answers = Answers::new(strings(["", ""]), tokens, mask);
    let scored = showo.score_answers(showo.phi(), &images, &questions, &answers).unwrap();
    close(&scored.logp, &Tensor::stack(&logp, 1), SAME);
}

#[test]
fn generated_answer_stops_at_its_end_token() {
    let tiny = tiny();
    let images = tiny.images(1);
    let question = [vec![4, 5]];
    let generated = |stop| -> Vec<i64> {
        let GeneratedText { tokens, mask, .. } =
            tiny.showo.generate_text(&images, &question, &GREEDY, stop).unwrap();
        tokens.masked_select(&mask).try_into().unwrap()
    };
    let endless = generated(-1);
    assert_eq!(endless.len() as i64, GREEDY.max_tokens);
    let stop = endless[2];
    let first = endless.iter().position(|token| *token == stop).unwrap();
    assert_eq!(generated(stop), endless[..=first]);
}

#[test]
fn answer_gradient_reaches_the_relaxed_image() {
    let mut tiny = tiny();
    let hard = tiny.images(2);
    let relaxed = hard.tokens.one_hot(tiny.config.codebook_size).to_kind(Kind::Float).set_requires_grad(true);
    let images =
        Images { relaxed: Some(relaxed.shallow_clone()), ..Images::from_tokens(hard.tokens.shallow_clone()) };
    let questions = strings(["what is a", "how many"]);
    let answers = tiny.showo.encode_answers(&strings(["red car", "blue"])).unwrap();
    let scored = tiny.showo.answer_logp(&images, &questions, &answers, Policy::Current).unwrap();
    let plain = tiny.showo.answer_logp(&hard, &questions, &answers, Policy::Current).unwrap();
    close(&scored.logp, &plain.logp, SAME);
    scored.logp.sum(Kind::Float).backward();
    let reached = relaxed.grad().abs().sum_dim_intlist([2i64].as_slice(), false, Kind::Float);
    assert!(reached.min().double_value(&[]) > 0.0, "every image token of every row");

    assert!(tiny.showo.answer_logp(&images, &questions, &answers, Policy::Reference).is_err());
    tiny.showo.freeze_reference().unwrap();
    let known = tiny.showo.answer_logp(&images, &questions, &answers, Policy::Reference).unwrap();
    assert!(!known.logp.requires_grad(), "the reference policy has no gradient");
    close(&known.logp, &scored.logp, SAME);
}

#[test]
fn tokenizer_loss_at_the_end_is_the_quantized_reconstruction() {
    let tiny = tiny();
    let side = tiny.showo.card().resolution;
    tch::manual_seed(6);
    let pixels = Tensor::rand([2, 3, side, side], (Kind::Float, Device::Cpu));
    let magvit = tiny.showo.magvit();
    let signed = &pixels * 2.0 - 1.0;
    let codes = magvit.codes(&magvit.latents(&signed));
    let error = magvit.decode(&codes, tiny.config.grid()) - &signed;
    let expected = error.square().mean(Kind::Float) + error.abs().mean(Kind::Float);
    let loss = tiny.showo.tokenizer_loss(&pixels, 1.0).unwrap();
    close(&loss, &expected, SAME);

    loss.backward();
    for parameter in tiny.showo.parameters().unwrap() {
        let gradient = parameter.tensor.grad();
        match parameter.name.as_str() {
            "encoder.conv_in.weight" | "decoder.conv_in.weight" => {
                assert!(gradient.abs().max().double_value(&[]) > 0.0, "{}", parameter.name);
            }
            _ if parameter.group == ParameterGroup::Shared => {
                assert!(!gradient.defined(), "{}", parameter.name);
            }
            _ => {}
        }
    }
}

#[test]
fn generated_images_are_determined_by_the_seed() {
    let mut tiny = tiny();
    let prompts = strings(["a red car", "blue"]);
    let mut generate = |seed| tiny.showo.generate(&prompts, &sampling(seed)).unwrap();
    let (one, again, other) = (generate(1), generate(1), generate(2));
    assert!(one.tokens.equal(&again.tokens) && !one.tokens.equal(&other.tokens));
    assert!(
        one.tokens.ge(0).logical_and(&one.tokens.lt(tiny.config.codebook_size)).all() == Tensor::from(true)
    );
    let pixels = tiny.showo.pixels(&one).unwrap();
    let edge = tiny.showo.card().resolution;
    assert_eq!(pixels.size(), [2, 3, edge, edge]);
    assert_eq!(tiny.showo.encode(&pixels).unwrap().tokens.size(), one.tokens.size());

    let weights =
        |seed| Showo::from_parts(parts(seed), Device::Cpu).unwrap().parameters().unwrap().remove(0).tensor;
    assert!(weights(3).equal(&weights(3)) && !weights(3).equal(&weights(4)));
}

#[test]
fn re_masking_is_determined_by_the_seed_with_one_ratio_per_batch() {
    let tiny = tiny();
    let images = tiny.images(3);
    let prompts = strings(["a", "red", "blue car"]);
    let targets = |seed| {
        let masking = Masking::remask(seed, None);
        tiny.showo.image_logits(&prompts, &images, Policy::Current, &masking).unwrap().targets
    };
    assert!(targets(7).equal(&targets(7)) && !targets(7).equal(&targets(8)));
    let counts = targets(7).sum_dim_intlist([1i64].as_slice(), false, Kind::Int64);
    assert_eq!(counts.min(), counts.max());
}

#[test]
fn reveal_masking_scores_every_token_once_in_its_reveal_state() {
    let tiny = tiny();
    let showo = &tiny.showo;
    let sampling = sampling(0);
    let prompts = strings(["a red car", "blue"]);
    let shape = [2, tiny.config.num_vq_tokens];
    let uniforms: Vec<[Tensor; 2]> = (0..sampling.steps)
        .map(|_| [(); 2].map(|()| Tensor::rand(shape, (Kind::Float, Device::Cpu))))
        .collect();
    let given =
        |at: i64| (uniforms[at as usize][0].shallow_clone(), uniforms[at as usize][1].shallow_clone());
    let unknown = Tensor::full(shape, UNKNOWN, (Kind::Int64, Device::Cpu));
    let generated =
        showo.generate_tokens(&[vec![0, 1, 3], vec![2]], unknown.shallow_clone(), &sampling, given).unwrap();

    let score = |steps: Vec<i64>| {
        let masking = Masking::Reveal { steps, scoring: Scoring::Guided, guidance: sampling.guidance };
        tch::no_grad(|| showo.image_logits(&prompts, &generated, Policy::Current, &masking)).unwrap()
    };
    let all = score((0..sampling.steps).collect());
    assert!(all.targets.all() == Tensor::from(true));
    let mut covered = Tensor::zeros(shape, (Kind::Int64, Device::Cpu));
    for at in 0..sampling.steps {
        let one = score(vec![at]);
        covered += one.targets.to_kind(Kind::Int64);
        let here = one.targets.unsqueeze(-1);
        close(&one.logits.masked_select(&here), &all.logits.masked_select(&here), SAME);
        // The recorded random numbers sample the same tokens again.
        let (uniforms, noise) = given(at);
        let logits = (&one.logits, &maskgit::all_positions(&unknown));
        let step =
            maskgit::step(Schedule::Cosine, logits, &unknown, (at, sampling.steps), 0.0, &uniforms, &noise);
        assert!(
            step.sampled.masked_select(&one.targets).equal(&generated.tokens.masked_select(&one.targets)),
            "{at}"
        );
    }
    assert!(covered.equal(&covered.ones_like()), "{covered}");
}

#[test]
fn saved_model_loads_unchanged() {
    let mut tiny = tiny();
    let dir = tempfile::tempdir().unwrap();
    tiny.showo.save(dir.path()).unwrap();
    let mut opened = open(dir.path()).unwrap();
    assert_eq!(opened.card(), tiny.showo.card());
    let images = tiny.images(2);
    let prompts = strings(["a red car", "what is the blue"]);
    let logits = |showo: &Showo| {
        showo.image_logits(&prompts, &images, Policy::Current, &Masking::remask(3, None)).unwrap().logits
    };
    assert!(logits(&opened).equal(&logits(&tiny.showo)));
    assert!(opened.pixels(&images).unwrap().equal(&tiny.showo.pixels(&images).unwrap()));
    let answered = |showo: &mut Showo| showo.answer(&images, &prompts, &GREEDY).unwrap();
    let (before, after) = (answered(&mut tiny.showo), answered(&mut opened));
    assert!(before.tokens.equal(&after.tokens));
    assert_eq!(before.text, after.text);
}

#[test]
fn packed_model_loads_with_f16_rounding() {
    let tiny = tiny();
    let dir = tempfile::tempdir().unwrap();
    tiny.showo.save(dir.path()).unwrap();
    let file = dir.path().join("packed");
    checkpoint::pack(dir.path(), &file).unwrap();
    let bytes: &'static [u8] = Box::leak(fs::read(file).unwrap().into_boxed_slice());
    let unpack = |bytes| checkpoint::unpack(bytes, &ShowoConfig::default(), &source(Checkpoint::Builtin, 0));
    let unpacked = Showo::from_parts(unpack(bytes).unwrap(), Device::Cpu).unwrap();
    assert_eq!(unpacked.card(), tiny.showo.card());
    let (before, after) = (tiny.showo.parameters().unwrap(), unpacked.parameters().unwrap());
    assert_eq!(before.len(), after.len());
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before.name, after.name);
        assert_eq!(after.tensor.kind(), Kind::Float);
        // f16 has 10 mantissa bits and a smallest step of 2⁻²⁴; rounding is half of that.
        let allowed = before.tensor.abs() * 2f64.powi(-11) + 2f64.powi(-25);
        let off = (&before.tensor - &after.tensor).abs();
        assert!(off.le_tensor(&allowed).all() == Tensor::from(true), "{}", before.name);
    }
    assert!(unpack(&bytes[..bytes.len() / 2]).is_err());
}

#[test]
fn invalid_requests_are_refused() {
    let mut tiny = tiny();
    let images = tiny.images(2);
    let one = strings(["a"]);
    let steps = ImageSampling { steps: 0, ..ImageSampling::default() };
    assert!(tiny.showo.generate(&one, &steps).is_err());
    assert!(tiny.showo.answer(&images, &one, &GREEDY).is_err(), "two images, one question");
    assert!(
        tiny.showo.answer(&images.narrow(0, 1), &one, &TextSampling { max_tokens: 0, ..GREEDY }).is_err()
    );
    let reveal = Masking::Reveal { steps: vec![0], scoring: Scoring::Conditional, guidance: 0.0 };
    let refused = tiny.showo.image_logits(&one, &images.narrow(0, 1), Policy::Current, &reveal);
    assert!(refused.is_err(), "images without `revealed_at`");
}
