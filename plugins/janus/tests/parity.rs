//! Numerical parity with the public reference implementation, from which every expected number was recorded, in both
//! checkpoint layouts.
//!
//! `UNIRL_JANUS_FIXTURE=DIR` selects another fixture folder, which defines sizes, settings and expectations.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "parity/fixture.rs"]
mod fixture;

use fixture::{
    Fixture, GUIDED, IGNORE, LAYOUTS, LOSSES, Model, PROBABILITIES, RELATIVE, TOKENIZER, VALUES, close,
    halves, norm, norm_of, number, read_json, same,
};
use tch::{Device, Kind, Reduction, Tensor};
use unirl::sampling::gather_logp;
use unirl_engine::algorithms::objective;
use unirl_layers::attention::AttnMask;
use unirl_layers::decoder::StackInput;
use unirl_layers::guidance::Guidance;
use unirl_plugin_janus::layout::Layout;
use unirl_plugin_janus::network;

#[test]
fn parity_layouts_hold_the_same_weights() {
    let f = Fixture::open();
    let [transformers, original] = LAYOUTS.map(|(folder, _)| f.model(folder));
    assert_eq!(transformers.config, original.config);
    assert_eq!(transformers.weights.len(), original.weights.len());
    for ((name, expected), (found, got)) in transformers.weights.iter().zip(&original.weights) {
        assert_eq!(name, found);
        close(name, got, expected, 0.0);
    }
    // Saving restores every weight of the file, except the image tokenizer's.
    for model in [&transformers, &original] {
        let file = f.checkpoint(model.label);
        let mut saved = model.layout.save(&model.weights, &model.unused);
        saved.sort_by(|(a, _), (b, _)| a.cmp(b));
        assert!(saved.iter().map(|(name, _)| name.as_str()).eq(file.names()), "{}", model.label);
        for (name, tensor) in &saved {
            close(name, tensor, &file.read(name).unwrap(), 0.0);
        }
    }
}

#[test]
fn parity_layouts_name_all_weights() {
    let f = Fixture::open();
    for (original, renamed) in read_json(&f.folder.join("key_map.json")).as_object().unwrap() {
        let names = renamed["to"].as_array().unwrap();
        assert_eq!(names.is_empty(), Layout::Original.unused(original), "{original}");
        for name in names.iter().map(|name| name.as_str().unwrap()) {
            assert_eq!(Layout::Original.name(name), *original);
            assert_eq!(Layout::Transformers.name(name), name);
        }
    }
    let [transformers, original] = LAYOUTS.map(|(folder, _)| f.checkpoint(folder));
    for name in transformers.names() {
        let expected = transformers.shape(name).unwrap();
        assert_eq!(Layout::Original.shape(&original, name).unwrap(), expected, "{name}");
    }
}

#[test]
fn parity_vision() {
    let f = Fixture::open();
    for model in f.models() {
        let pixels = f.tensor("vision.pixel_values");
        let siglip = &model.network.siglip;
        let mut x = siglip.embed(&pixels).unwrap();
        close(&model.named("embeddings"), &x, &f.tensor("vision.embeddings"), VALUES);
        for index in 0..siglip.depth() {
            x = siglip.layer(index, &x);
            let expected = f.tensor(&format!("vision.layer{index}"));
            close(&model.named(&format!("layer {index}")), &x, &expected, VALUES);
        }
        let features = siglip.features(&pixels).unwrap();
        close(&model.named("features"), &features, &f.tensor("vision.features"), VALUES);
        let aligned = model.network.align(&pixels).unwrap();
        close(&model.named("aligned"), &aligned, &f.tensor("vision.aligned"), VALUES);
    }
}

/// The mean cross-entropy of the recorded labels, each under the logits of the previous row.
fn answer_loss(f: &Fixture, logits: &Tensor) -> Tensor {
    let labels = f.tensor("und.labels");
    let rows = labels.size()[1] - 1;
    logits.narrow(1, 0, rows).flatten(0, 1).cross_entropy_loss::<Tensor>(
        &labels.narrow(1, 1, rows).flatten(0, 1),
        None,
        Reduction::Mean,
        IGNORE,
        0.0,
    )
}

/// Hidden states `[B,L,D]` of the recorded dialogues.
fn dialogue_hidden(f: &Fixture, model: &Model) -> Tensor {
    let present = f.tensor("und.attention_mask").to_kind(Kind::Bool);
    let mask = network::causal(&present, present.size()[1]);
    let x = model.question_rows(f);
    let positions = network::positions(&present);
    let rows =
        StackInput { x, positions: &positions, mask: AttnMask::Additive(&mask), past: None, outputs: None };
    model.network.llama.hidden_states(rows).unwrap()
}

#[test]
fn parity_understanding() {
    let f = Fixture::open();
    for model in f.models() {
        let (ids, present) = (f.tensor("und.input_ids"), f.tensor("und.attention_mask").to_kind(Kind::Bool));
        close(&model.named("embeddings"), &model.question_rows(&f), &f.tensor("und.inputs_embeds"), VALUES);
        let positions = network::positions(&present);
        let there = f.tensor("und.attention_mask");
        same(&model.named("positions"), &(&positions * &there), &(f.tensor("und.position_ids") * &there));
        let logits = model.network.llama.logits(&dialogue_hidden(&f, &model));
        let valid = |logits: &Tensor| logits.masked_select(&present.unsqueeze(-1));
        close(&model.named("logits"), &valid(&logits), &valid(&f.tensor("und.logits")), VALUES);
        number(&model.named("loss"), &answer_loss(&f, &logits), f.number("und.loss"), LOSSES);

        let too_few = model.network.align(&f.tensor("vision.pixel_values").narrow(0, 0, 1)).unwrap();
        let error = model.network.embed_images_at(&ids, &ids.eq(f.id("image")), &too_few).unwrap_err();
        assert!(error.message().contains("expected"), "{error}");
    }
}

#[test]
fn parity_understanding_greedy_with_cache() {
    let f = Fixture::open();
    let expected = f.tensor("und.generated");
    for model in f.models() {
        let llama = &model.network.llama;
        let mut present = f.tensor("und.attention_mask").to_kind(Kind::Bool);
        let batch = present.size()[0];
        let mut x = model.question_rows(&f);
        let (mut past, mut answers) = (None, Vec::new());
        let mut ended = Tensor::zeros([batch], (Kind::Bool, Device::Cpu));
        for _ in 0..expected.size()[1] {
            let (rows, length) = (x.size()[1], present.size()[1]);
            let positions = network::positions(&present).narrow(1, length - rows, rows);
            let mask = network::causal(&present, rows);
            let (hidden, cache) = llama
                .forward(StackInput {
                    x,
                    positions: &positions,
                    mask: AttnMask::Additive(&mask),
                    past: past.as_ref(),
                    outputs: None,
                })
                .unwrap();
            past = Some(cache);
            let token = llama.logits(&hidden.select(1, -1)).argmax(-1, false);
            let token = token.masked_fill(&ended, f.id("pad"));
            ended = ended.logical_or(&token.eq(f.id("eos")));
            present = Tensor::cat(&[present, network::present(batch, 1, Device::Cpu)], 1);
            x = llama.embed(&token.unsqueeze(1));
            answers.push(token);
        }
        same(&model.named("tokens"), &Tensor::stack(&answers, 1), &expected);
    }
}

#[test]
fn parity_generation_greedy_with_cache() {
    let f = Fixture::open();
    let (weight, codes) = (f.number("cfg_weight"), f.tensor("t2i.codes"));
    for model in f.models() {
        assert_eq!(model.config.image_tokens(), f.number("num_image_tokens") as i64);
        let guided = |logits: &Tensor| {
            let (cond, uncond) = halves(logits);
            Guidance::FromUnconditional(weight).combine(&cond, &uncond)
        };
        let logits = model.generate_logits(&f, codes.size()[1], |_, logits| guided(logits).argmax(-1, false));
        let expected = f.tensor("t2i.step_logits_cond_uncond");
        close(&model.named("logits"), &logits, &expected, VALUES);
        close(&model.named("guided"), &guided(&logits), &f.tensor("t2i.step_logits_cfg"), GUIDED);
        same(&model.named("codes"), &guided(&logits).argmax(-1, false), &codes);
        let first = (guided(&logits).select(1, 0) / f.number("temperature")).softmax(-1, Kind::Float);
        let expected = f.tensor("t2i.step0_probs_temp");
        close(&model.named("probabilities"), &first, &expected, PROBABILITIES);
    }
}

#[test]
fn parity_generation_guided_steps() {
    let f = Fixture::open();
    let codes = f.tensor("cfg5.codes");
    for model in f.models() {
        let logits = model.generate_logits(&f, codes.size()[1], |at, _| codes.select(1, at));
        close(&model.named("logits"), &logits, &f.tensor("cfg5.logits_cond_uncond"), VALUES);
        let (cond, uncond) = halves(&logits);
        let guided = Guidance::FromUnconditional(f.number("cfg_weight")).combine(&cond, &uncond);
        close(&model.named("guided"), &guided, &f.tensor("cfg5.logits_cfg"), GUIDED);
        let probabilities = (guided / f.number("temperature")).softmax(-1, Kind::Float);
        close(&model.named("probabilities"), &probabilities, &f.tensor("cfg5.probs_temp"), PROBABILITIES);
    }
}

#[test]
fn parity_generation_teacher_forced() {
    let f = Fixture::open();
    let codes = f.tensor("t2i.codes");
    for model in f.models() {
        let rows = model.code_hidden(&f, &codes);
        let head = &model.network.codes.head;
        let [cond, uncond] = rows.each_ref().map(|rows| head.logits(rows));
        close(&model.named("logits"), &cond, &f.tensor("t2i.tf_logits_cond"), VALUES);
        close(
            &model.named("logits of unconditional prompts"),
            &uncond,
            &f.tensor("t2i.tf_logits_uncond"),
            VALUES,
        );
        let logp = gather_logp(&cond, &codes);
        close(&model.named("logp"), &logp, &f.tensor("t2i.tf_logp_cond"), VALUES);

        let loss = -logp.mean(Kind::Float);
        number(&model.named("loss"), &loss, f.number("train.t2i_ce"), LOSSES);
        let guided = Guidance::FromUnconditional(f.number("cfg_weight")).combine(&cond, &uncond);
        let loss = -gather_logp(&guided, &codes).mean(Kind::Float);
        number(&model.named("guided loss"), &loss, f.number("train.t2i_cfg_ce"), LOSSES);

        // Left padding has no effect: the same with two pads before each prompt.
        let prompts = f.tensor("t2i.prompt_ids");
        let batch = prompts.size()[0];
        let pads = Tensor::full([batch, 2], f.id("pad"), (Kind::Int64, Device::Cpu));
        let present = Tensor::cat(
            &[
                network::present(batch, 2, Device::Cpu).logical_not(),
                network::present(batch, prompts.size()[1], Device::Cpu),
            ],
            1,
        );
        let padded = Tensor::cat(&[pads, prompts], 1);
        let padded = model.network.generation_hidden(&padded, Some(&present), &codes).unwrap();
        close(&model.named("padded"), &head.logits(&padded), &f.tensor("t2i.tf_logits_cond"), VALUES);
    }
}

/// Compares the gradient norms of the weights that generation and understanding share, and of those specific to either.
fn group_norms(f: &Fixture, model: &Model, name: &str, gradients: &[(String, Tensor)]) {
    let groups: [(&str, &[&str]); 3] = [
        ("shared", &["model.language_model."]),
        ("und", &["model.vision_model.", "model.aligner.", "lm_head."]),
        ("gen", &["model.generation_"]),
    ];
    for (group, prefixes) in groups {
        let members = gradients.iter().filter(|(name, _)| prefixes.iter().any(|p| name.starts_with(p)));
        let got = norm_of(members.map(|(_, gradient)| gradient));
        let expected = f.number(&format!("train.grad_norm.{name}.{group}"));
        assert!(
            (got - expected).abs() <= RELATIVE * expected,
            "{}: {name}: norm of {group} {got}, expected {expected}",
            model.label
        );
    }
    let none = f.meta["train"]["none_grads"][name].as_array();
    for prefix in none.into_iter().flatten().map(|prefix| prefix.as_str().unwrap()) {
        for (name, gradient) in gradients.iter().filter(|(name, _)| name.starts_with(prefix)) {
            assert!(!gradient.defined(), "{}: a gradient of {name}", model.label);
        }
    }
}

#[test]
fn parity_gradients_of_training_losses() {
    let f = Fixture::open();
    let codes = f.tensor("t2i.codes");
    for model in f.models() {
        let [cond, uncond] = model.code_hidden(&f, &codes).map(|rows| model.network.codes.head.logits(&rows));
        let guided = Guidance::FromUnconditional(f.number("cfg_weight")).combine(&cond, &uncond);
        let generation = |logits: &Tensor| -gather_logp(logits, &codes).mean(Kind::Float);
        let decoding = answer_loss(&f, &model.network.llama.logits(&dialogue_hidden(&f, &model)));
        for (name, loss) in [("t2i", generation(&cond)), ("t2i_cfg", generation(&guided)), ("und", decoding)]
        {
            let gradients = model.gradients(&loss);
            f.gradients(&model.named(name), &format!("grad_{name}."), &gradients);
            group_norms(&f, &model, name, &gradients);
        }
    }
}

#[test]
fn parity_split_losses() {
    let f = Fixture::open();
    let (codes, beta) = (f.tensor("split.codes"), f.number("split.beta"));
    for model in f.models() {
        let [cond, uncond] = model.code_hidden(&f, &codes).map(|rows| model.network.codes.head.logits(&rows));
        let guided = Guidance::FromUnconditional(f.number("cfg_weight")).combine(&cond, &uncond);
        let all = codes.ge(0);
        for (name, logits, tolerance) in [("cond", cond, VALUES), ("cfg", guided, GUIDED)] {
            let what = |part: &str| model.named(&format!("{name}: {part}"));
            let stored = |part: &str| f.tensor(&format!("split.{name}.{part}"));
            let logp = gather_logp(&logits, &codes);
            close(&what("logp"), &logp, &stored("logp"), tolerance);
            let (k3, _) = objective::k3(&logp, &stored("ref_logp"));
            close(&what("k3"), &k3, &stored("k3"), tolerance);
            let weights = f.tensor("split.weights");
            let policy = objective::weighted_loss(&logp, &all, &weights, weights.size()[0]);
            let kl = objective::mean_per_token(&k3, &all);
            let loss = &policy + beta * &kl;
            for (part, got) in [("policy", &policy), ("kl", &kl), ("loss", &loss)] {
                number(&what(part), got, f.number(&format!("split.{part}.{name}")), LOSSES);
            }
            split_gradients(&f, &model, name, &loss);
        }

        let labels = f.tensor("und.labels");
        let rows = labels.size()[1] - 1;
        let targets = labels.narrow(1, 1, rows);
        let answered = targets.ne(IGNORE);
        let hidden = dialogue_hidden(&f, &model).narrow(1, 0, rows);
        let width = hidden.size()[2];
        let scored = hidden.masked_select(&answered.unsqueeze(-1)).view([-1, width]);
        let scored = model.network.llama.logp(&scored, &targets.masked_select(&answered)).unwrap();
        let logp = Tensor::zeros_like(&targets).to_kind(Kind::Float).masked_scatter(&answered, &scored);
        let expected = f.tensor("split.mmu.answer_logp").narrow(1, 1, rows);
        close(&model.named("mmu: logp"), &logp, &expected, VALUES);
        let sums = logp.sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
        let loss = -(sums * f.tensor("split.mmu.weights")).sum(Kind::Float);
        number(&model.named("mmu: loss"), &loss, f.number("split.loss.mmu"), LOSSES);
        split_gradients(&f, &model, "mmu", &loss);
    }
}

/// Compares the norms of all gradients, and the stored gradients.
fn split_gradients(f: &Fixture, model: &Model, name: &str, loss: &Tensor) {
    let gradients = model.gradients(loss);
    f.gradients(&model.named(name), &format!("split.{name}.grad."), &gradients);
    let norms = f.meta["split"]["grad_norms"][name].as_object().unwrap();
    let mut expected: Vec<&String> = norms.keys().collect();
    expected.retain(|name| !TOKENIZER.iter().any(|prefix| name.starts_with(prefix)));
    assert_eq!(expected.len(), gradients.len(), "weights of `{name}`");
    for (weight, gradient) in &gradients {
        norm(&model.named(&format!("{name}: gradient of {weight}")), gradient, &norms[weight]);
    }
}
