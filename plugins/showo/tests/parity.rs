//! Numerical parity with the public reference implementation, from which every expected number was recorded.
//!
//! `UNIRL_SHOWO_FIXTURE=DIR` selects another fixture folder, which defines sizes, settings and expectations.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "parity/fixture.rs"]
mod fixture;

use fixture::{
    BYTES, Fixture, GUIDED, LOSSES, PROBABILITIES, VALUES, close, gradient, gradients, images, integers,
    norm, number, rows, same,
};
use serde_json::Value;
use tch::{Device, IndexOp, Kind, Reduction, Tensor};
use unirl::model::{ImageSampling, Images, Scoring, TextSampling, UnifiedModel};
use unirl::sampling::gather_logp;
use unirl_engine::algorithms::objective::{self, Weighting};
use unirl_layers::attention::{self, AttnMask};
use unirl_layers::decoder::StackInput;
use unirl_layers::decoding::GeneratedText;
use unirl_layers::rows::padded;
use unirl_plugin_showo::maskgit::{self, Schedule, UNKNOWN};
use unirl_plugin_showo::model::Showo;
use unirl_plugin_showo::{mask, prompt};

/// The paper's scoring.
const PLAIN: (Scoring, f64) = (Scoring::Conditional, 0.0);

/// Logits `[B,L,V]` of full sequences under the visibility `visible`, without a cache.
fn full_logits(showo: &Showo, ids: &Tensor, visible: &Tensor) -> Tensor {
    let positions = Tensor::arange(ids.size()[1], (Kind::Int64, Device::Cpu)).unsqueeze(0);
    let (language, mask) = (&showo.phi().language, attention::additive_mask(visible));
    let rows = StackInput {
        x: language.embed(ids),
        positions: &positions,
        mask: AttnMask::Additive(&mask),
        past: None,
        outputs: None,
    };
    language.logits(&language.hidden_states(rows).unwrap())
}

/// Logits of images `tokens [B,N]` with the `targets [B,N]` masked; only those of targets are meaningful.
fn masked_logits(showo: &Showo, prompts: &[Vec<i64>], tokens: &Tensor, targets: &Tensor) -> Tensor {
    let states = maskgit::mask_tokens(tokens, targets);
    let scored = showo.target_hidden(showo.phi(), prompts, (&states, targets), PLAIN).unwrap();
    scored.logits(&tokens.size())
}

/// The columns of image codes.
fn code_columns(fixture: &Fixture, logits: &Tensor) -> Tensor {
    logits.narrow(-1, fixture.special.image, fixture.config.codebook_size)
}

#[test]
fn parity_0_prompts_and_labels() {
    let f = Fixture::open();
    let case = f.case("prompt_layouts");
    let length = case.number("L_lm") as usize;
    let texts = case.json["text_ids"].as_array().unwrap();
    let image = rows(&case.tensor("image"));
    let image_labels = rows(&case.tensor("image_labels"));
    let check = |name: &str, build: &dyn Fn(usize, &[i64]) -> Vec<i64>| {
        let built: Vec<_> = texts.iter().enumerate().map(|(i, text)| build(i, &integers(text))).collect();
        same(name, &padded(&built, 0, Device::Cpu).0, &case.tensor(name));
    };
    check("t2i_gen", &|i, text| f.prompting.t2i(text, &image[i]));
    check("t2i", &|i, text| f.prompting.t2i(text, &image[i]));
    check("t2i_labels", &|i, text| f.prompting.t2i_labels(text, &image_labels[i]));
    check("mmu", &|i, text| f.prompting.mmu(&image[i], text));
    check("mmu_labels", &|i, text| f.prompting.mmu_labels(&image[i], text));
    check("lm", &|_, text| f.prompting.lm(text, length));
    check("lm_labels", &|_, text| f.prompting.lm_labels(text, length));
}

#[test]
fn parity_1_generation_logits() {
    let f = Fixture::open();
    let case = f.case("t2i_forward");
    let showo = f.policy();
    let ids = case.tensor("input_ids");
    let visible = mask::t2i(&ids, &f.special, true);
    same("visible", &visible, &case.tensor("visible"));
    close("logits", &full_logits(&showo, &ids, &visible), &case.tensor("logits"), VALUES);

    // The same with cached text blocks, which equal prompts share.
    let blocks = showo.text_blocks(showo.phi(), &f.prompts(&ids)).unwrap();
    let got = showo.code_logits(showo.phi(), &blocks, &blocks.index, &f.codes(&f.image_ids(&ids))).unwrap();
    let expected = code_columns(&f, &case.tensor("logits").narrow(1, f.start() + 1, f.tokens()));
    close("code logits after cached text", &got, &expected, VALUES);
}

#[test]
fn parity_2_understanding_logits() {
    let f = Fixture::open();
    let case = f.case("mmu_forward");
    let showo = f.policy();
    let ids = case.tensor("input_ids");
    let visible = mask::mmu(&ids, &f.special);
    same("visible", &visible, &case.tensor("visible"));
    close("logits", &full_logits(&showo, &ids, &visible), &case.tensor("logits"), VALUES);

    let text = |row: &Vec<i64>| -> Vec<i64> {
        let text = &row[f.tokens() as usize + 3..];
        let end = text.iter().position(|id| *id == f.special.pad).unwrap_or(text.len());
        text[..end - 1].to_vec() // without the end token that the layout adds
    };
    let image = rows(&(f.image_codes(&ids) + f.special.image));
    let built: Vec<_> =
        rows(&ids).iter().zip(&image).map(|(row, image)| f.prompting.mmu_labels(image, &text(row))).collect();
    same("labels", &padded(&built, 0, Device::Cpu).0, &case.tensor("labels"));

    let (ids, expected) = (case.tensor("infer_input_ids"), case.tensor("infer_logits"));
    close("unpadded", &full_logits(&showo, &ids, &mask::mmu(&ids, &f.special)), &expected, VALUES);
    let questions: Vec<_> = rows(&ids).iter().map(|row| row[f.tokens() as usize + 3..].to_vec()).collect();
    let decoding = showo.prefill(showo.phi(), &images(&f.image_codes(&ids)), &questions, 0).unwrap();
    close("prefill", &decoding.logits(), &expected.select(1, -1), VALUES);
}

#[test]
fn parity_3_masks() {
    let f = Fixture::open();
    let case = f.case("masks");
    let ids = case.tensor("t2i_ids");
    same("t2i", &mask::t2i(&ids, &f.special, true), &case.tensor("t2i_visible"));
    same("t2i with pads", &mask::t2i(&ids, &f.special, false), &case.tensor("t2i_keep_pad_visible"));
    same("mmu", &mask::mmu(&case.tensor("mmu_ids"), &f.special), &case.tensor("mmu_visible"));
    same("lm", &mask::t2i(&case.tensor("lm_ids"), &f.special, false), &case.tensor("lm_visible"));
    let masked = attention::additive_mask(&case.mask("lm_visible"))
        .masked_select(&case.mask("lm_visible").logical_not().unsqueeze(1));
    assert!(masked.eq(-(2f64.powi(63))).all() == Tensor::from(true), "−2⁶³ is added to masked scores");
}

#[test]
fn parity_4_maskgit() {
    let f = Fixture::open();
    let showo = f.policy();
    for case in f.cases("maskgit") {
        let named = |what: &str, at: i64| format!("{}, step {at}: {what}", case.prefix);
        let (steps, guidance) = (case.number("timesteps") as i64, case.number("guidance"));
        let values = if guidance > 0.0 { GUIDED } else { VALUES };
        let ids = case.tensor("input_ids");
        let prompts = f.prompts(&ids);
        if let Some(uncond) = case.find("uncond_ids") {
            let block = padded(&vec![f.prompting.t2i_text(&[]); prompts.len()], 0, Device::Cpu).0;
            same(&case.prefix, &block, &uncond.narrow(1, 0, f.start()));
        }
        let mut temperature = 1.0;
        for at in 0..steps {
            let codes = f.codes(&case.tensor("ids_in").get(at));
            let all = codes.ones_like().to_kind(Kind::Bool);
            let scored =
                showo.target_hidden(showo.phi(), &prompts, (&codes, &all), (Scoring::Guided, guidance));
            let logits = scored.unwrap().logits(&codes.size());
            if let Some(expected) = case.find("code_logits") {
                close(&named("logits", at), &logits, &expected.get(at), values);
            }
            temperature = maskgit::anneal(temperature, at, steps);
            number(
                &named("temperature", at),
                &case.tensor("temperature").get(at),
                &Value::from(temperature),
                PROBABILITIES,
            );
            let [uniforms, noise] = ["cat_uniforms", "gumbel_uniforms"].map(|name| case.tensor(name).get(at));
            let positions = maskgit::all_positions(&codes);
            let step = maskgit::step(
                Schedule::Cosine,
                (&logits, &positions),
                &codes,
                (at, steps),
                temperature,
                &uniforms,
                &noise,
            );
            let expected = |name: &str| case.tensor(name).get(at);
            close(
                &named("probabilities", at),
                &logits.softmax(-1, Kind::Float),
                &expected("probs"),
                PROBABILITIES,
            );
            same(&named("sampled", at), &step.sampled, &expected("sampled"));
            close(&named("confidence", at), &step.confidence, &expected("selected_conf"), PROBABILITIES);
            close(&named("noisy", at), &step.noisy, &expected("conf_noisy"), values);
            close(&named("cut", at), &step.cutoff, &expected("cut"), values);
            same(&named("masked", at), &step.masked, &expected("masked"));
            let unknown = codes.eq(UNKNOWN).sum_dim_intlist([1i64].as_slice(), false, Kind::Int64);
            same(
                &named("count", at),
                &maskgit::masked_count(Schedule::Cosine, &unknown, f.tokens(), (at, steps)),
                &expected("mask_len"),
            );
            same(&named("codes", at), &step.codes, &f.codes(&expected("ids_out")));
        }

        // The same in one loop, each step continuing the previous one.
        let sampling = ImageSampling { guidance, steps, ..ImageSampling::default() };
        let uniforms = |at| (case.tensor("cat_uniforms").get(at), case.tensor("gumbel_uniforms").get(at));
        let generated =
            showo.generate_tokens(&prompts, f.codes(&f.image_ids(&ids)), &sampling, uniforms).unwrap();
        same(&format!("{}: result", case.prefix), &generated.tokens, &case.tensor("result"));
    }
}

#[test]
fn parity_4d_schedules() {
    let f = Fixture::open();
    for (sizes, expected) in f.case("schedules").json["mask_len"].as_object().unwrap() {
        let (tokens, steps) = sizes.split_once('x').unwrap();
        let (tokens, steps): (i64, i64) = (tokens.parse().unwrap(), steps.parse().unwrap());
        let mut unknown = Tensor::from_slice(&[tokens]);
        let counts = (0..steps).map(|at| {
            unknown = maskgit::masked_count(Schedule::Cosine, &unknown, tokens, (at, steps));
            unknown.int64_value(&[0])
        });
        assert_eq!(counts.collect::<Vec<_>>(), integers(expected), "{sizes}");
    }
}

#[test]
fn parity_5_greedy_answers() {
    let f = Fixture::open();
    let case = f.case("mmu_greedy");
    let showo = f.policy();
    let ids = case.tensor("input_ids");
    let image = images(&f.image_codes(&ids));
    let questions: Vec<_> = rows(&ids).iter().map(|row| row[f.tokens() as usize + 3..].to_vec()).collect();
    let sampling =
        TextSampling { max_tokens: case.number("max_new_tokens") as i64, ..TextSampling::default() };

    let tokens = case.tensor("tokens");
    let mut decoding = showo.prefill(showo.phi(), &image, &questions, tokens.size()[0]).unwrap();
    for at in 0..tokens.size()[0] {
        let expected = case.tensor("step_logits").get(at);
        close(&format!("logits of token {at}"), &decoding.logits().get(0), &expected, VALUES);
        decoding.append(&tokens.i(at..=at)).unwrap();
    }
    for (stop, expected) in
        [(-1, tokens), (case.number("stop_token") as i64, case.tensor("tokens_with_stop"))]
    {
        let GeneratedText { tokens, mask, .. } =
            showo.generate_text(&image, &questions, &sampling, stop).unwrap();
        same(&format!("tokens, stopping at {stop}"), &tokens.masked_select(&mask), &expected);
    }
}

#[test]
fn parity_6_random_masking() {
    let f = Fixture::open();
    let case = f.case("mask_or_random_replace");
    let ids = case.tensor("image_ids");
    close("ratio", &Schedule::Cosine.mask_ratio(&case.tensor("t")), &case.tensor("mask_prob"), PROBABILITIES);
    for shared in ["", "shared_"] {
        let tensor = |name: &str| case.tensor(&format!("{shared}{name}"));
        let hidden = maskgit::remask(Schedule::Cosine, &tensor("uniforms"), &tensor("t"));
        same("input", &ids.masked_fill(&hidden, f.special.mask), &tensor("input_ids"));
        same("labels", &ids.masked_fill(&hidden.logical_not(), prompt::IGNORE), &tensor("labels"));
        if let Some(count) = case.find(&format!("{shared}n")) {
            same("count", &hidden.sum_dim_intlist([1i64].as_slice(), false, Kind::Int64), &count);
        }
    }
}

#[test]
fn parity_7_image_tokenizer() {
    let f = Fixture::open();
    let case = f.case("magvit");
    let showo = f.policy();
    let magvit = showo.magvit();
    let factor = f.magvit.factor();
    let grid = |pixels: &Tensor| (pixels.size()[2] / factor, pixels.size()[3] / factor);
    for shape in case.between("", "_pixels") {
        let tensor = |name: &str| case.tensor(&format!("{shape}_{name}"));
        let pixels = tensor("pixels");
        let latents = magvit.latents(&pixels);
        close(&format!("{shape}: latents"), &latents, &tensor("z"), VALUES);
        same(&format!("{shape}: codes"), &magvit.codes(&latents), &tensor("indices"));
        let decoded = magvit.decode(&tensor("indices"), grid(&pixels));
        close(&format!("{shape}: pixels"), &decoded, &tensor("decoded"), VALUES);
        if grid(&pixels) == f.config.grid() {
            // The public interface, with pixels in 0..=1.
            let encoded = showo.encode(&((pixels + 1.0) / 2.0)).unwrap();
            same(&format!("{shape}: encoded"), &encoded.tokens, &tensor("indices"));
        }
        let unit = ((decoded + 1.0) / 2.0).clamp(0.0, 1.0);
        if unit.size()[2..] == [f.config.grid().0 * factor, f.config.grid().1 * factor] {
            let pixels = showo.pixels(&images(&tensor("indices"))).unwrap();
            close(&format!("{shape}: public pixels"), &pixels, &unit, PROBABILITIES);
        }
        let bytes = (unit * 255.0).to_kind(Kind::Uint8).to_kind(Kind::Int64);
        let off = (bytes - tensor("u8").to_kind(Kind::Int64)).abs();
        assert!(off.max().int64_value(&[]) <= 1, "{shape}: a byte differs by more than 1");
        assert!(
            off.to_kind(Kind::Double).mean(Kind::Double).double_value(&[]) <= BYTES,
            "{shape}: too many bytes differ"
        );
    }
    let relaxed = case.tensor("soft_onehot").set_requires_grad(true);
    let expected = case.tensor("soft_decoded");
    let decoded = magvit.decode_relaxed(&relaxed, grid(&expected));
    close("soft pixels", &decoded, &expected, VALUES);
    let loss = (decoded * case.tensor("soft_loss_weights")).sum(Kind::Float);
    let found = Tensor::run_backward(&[loss], &[&relaxed], false, false);
    gradient("gradient of soft codes", &found[0], &case.tensor("soft_onehot_grad"));
    close("codebook", magvit.codebook(), &case.tensor("codebook"), 0.0);
}

#[test]
fn parity_8_straight_through() {
    let f = Fixture::open();
    let case = f.case("st_gumbel_softmax");
    let showo = f.policy();
    let ids = case.tensor("input_ids_hard");
    let (questions, answers) = f.dialogue(&ids, &case.tensor("answer_mask"));
    let asked = case.number("question_len") as usize + 1; // and the end token before it
    assert!(questions.iter().all(|question| question.len() == asked), "questions of {asked} tokens");
    let mut hard_ids = 0;
    for tau in case.between("tau", ".gumbel") {
        let name = format!("tau{tau}");
        let tensor = |part: &str| case.tensor(&format!("{name}.{part}"));
        let scalars = &case.json["scalars"][&name];
        let tau: f64 = tau.parse().unwrap();
        let logits = case.tensor("logits").detach().set_requires_grad(true);
        let soft = ((&logits + tensor("gumbel")) / tau).softmax(-1, Kind::Float);
        close(&format!("{name}: soft"), &soft, &tensor("soft"), PROBABILITIES);
        let relaxed = objective::straight_through(&logits, &tensor("gumbel"), tau);
        close(&format!("{name}: hard"), &relaxed, &tensor("hard"), PROBABILITIES);
        let tokens = relaxed.detach().argmax(-1, false);
        same(&format!("{name}: codes"), &tokens, &tensor("hard").argmax(-1, false));
        hard_ids += i64::from(tokens.equal(&f.image_codes(&ids)));

        let generated = Images { relaxed: Some(relaxed), ..Images::from_tokens(tokens) };
        let scored = showo.score_answers(showo.phi(), &generated, &questions, &answers).unwrap();
        let expected = tensor("logp").masked_select(&case.mask("answer_mask"));
        close(&format!("{name}: logp"), &scored.logp.masked_select(&scored.mask), &expected, VALUES);
        let loss = -scored.logp.sum(Kind::Float);
        number(&format!("{name}: loss"), &loss, &scalars["loss"], LOSSES);
        let (others, weights) = gradients(&showo, &loss, &[&logits]);
        gradient(&format!("{name}: gradient of logits"), &others[0], &tensor("grad_logits"));
        case.gradients(&name, &scalars["grad_norms"], &weights);
    }
    assert!(hard_ids > 0, "the stored ids belong to one of the temperatures");

    let image = rows(&(f.image_codes(&ids) + f.special.image));
    let labelled = |((row, image), end): ((&Vec<i64>, &Vec<i64>), &Vec<i64>)| {
        let last = end.iter().rposition(|there| *there != 0).unwrap(); // the closing end token
        let text = &row[f.tokens() as usize + 3..last];
        assert_eq!(&f.prompting.mmu(image, text), row);
        f.prompting.mmu_labels(image, text)
    };
    let (ids, ends) = (rows(&ids), rows(&case.tensor("answer_mask")));
    let labels: Vec<_> = ids.iter().zip(&image).zip(&ends).map(labelled).collect();
    same("labels", &padded(&labels, 0, Device::Cpu).0, &case.tensor("labels"));
}

#[test]
fn parity_9_group_weights() {
    let f = Fixture::open();
    for (name, group) in f.case("unirl_step").json["group_weights"].as_object().unwrap() {
        let list = |key: &str| -> Vec<f32> {
            group[key].as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32).collect()
        };
        let rewards = Tensor::from_slice(&list("rewards"));
        let got = Weighting::Softmax.weights(&rewards, rewards.size()[0], group["tau_w"].as_f64().unwrap());
        close(name, &got, &Tensor::from_slice(&list("weights")), PROBABILITIES);
    }
}

#[test]
fn parity_9_end_to_end_step() {
    let f = Fixture::open();
    let case = f.case("unirl_step");
    let (showo, reference) = (f.policy(), f.reference());
    let phi = showo.phi();
    let group = case.number("G") as i64;

    // 1. Generate.
    let prompts = vec![case.ids("prompt"); group as usize];
    let hidden = vec![f.special.mask; f.tokens() as usize];
    let built: Vec<_> = prompts.iter().map(|prompt| f.prompting.t2i(prompt, &hidden)).collect();
    same("rollout input", &padded(&built, 0, Device::Cpu).0, &case.tensor("cond_ids"));
    let blank: Vec<_> = prompts.iter().map(|_| f.prompting.t2i(&[], &hidden)).collect();
    same("unconditional input", &padded(&blank, 0, Device::Cpu).0, &case.tensor("uncond_ids"));
    let sampling = ImageSampling {
        guidance: case.number("guidance"),
        steps: case.number("timesteps") as i64,
        ..ImageSampling::default()
    };
    let uniforms = |at| (case.tensor("cat_uniforms").get(at), case.tensor("gumbel_uniforms").get(at));
    let codes = Tensor::full([group, f.tokens()], UNKNOWN, (Kind::Int64, Device::Cpu));
    let generated = showo.generate_tokens(&prompts, codes, &sampling, uniforms).unwrap().tokens;
    same("rollout", &generated, &case.tensor("codes"));

    // 2. and 3. Mask some tokens and predict them.
    let targets = maskgit::remask(Schedule::Cosine, &case.tensor("mask_uniforms"), &case.tensor("t"));
    same("masked", &targets, &case.tensor("masked"));
    let sequences: Vec<_> = prompts.iter().zip(rows(&f.ids(&generated, &targets))).collect();
    let sequences: Vec<_> =
        sequences.into_iter().map(|(prompt, image)| f.prompting.t2i(prompt, &image)).collect();
    same("re-masked input", &padded(&sequences, 0, Device::Cpu).0, &case.tensor("t2i_ids"));
    let logits = masked_logits(&showo, &prompts, &generated, &targets);
    let hidden = |logits: &Tensor| logits.masked_select(&targets.unsqueeze(-1));
    close("image logits", &hidden(&logits), &hidden(&case.tensor("image_logits")), VALUES);

    // 4. Complete the images.
    let sampled = objective::straight_through(&logits, &case.tensor("gumbel"), case.number("tau"));
    let (relaxed, mixed) = objective::fill_masked(&sampled, &generated, &targets);
    same("mixed codes", &mixed, &case.tensor("mixed_codes"));

    // 5. Answer.
    let sequence = |answer: &[i64], image: Vec<i64>| {
        f.prompting.mmu(&image, &[case.ids("question").as_slice(), answer].concat())
    };
    let image = || rows(&(&mixed + f.special.image)).into_iter();
    let answered = case.json["scalars"]["answers"].as_array().unwrap();
    let built: Vec<_> =
        answered.iter().zip(image()).map(|(answered, image)| sequence(&integers(answered), image)).collect();
    same("dialogue", &padded(&built, 0, Device::Cpu).0, &case.tensor("mmu_ids"));
    let built: Vec<_> = image().map(|image| sequence(&case.ids("gt_answer"), image)).collect();
    same("supervised dialogue", &padded(&built, 0, Device::Cpu).0, &case.tensor("sft.mmu_ids"));

    let completed =
        Images { relaxed: Some(relaxed.shallow_clone()), ..Images::from_tokens(mixed.shallow_clone()) };
    let (questions, answers) = f.dialogue(&case.tensor("mmu_ids"), &case.tensor("answer_mask"));
    let scored = showo.score_answers(phi, &completed, &questions, &answers).unwrap();
    let known =
        tch::no_grad(|| reference.score_answers(reference.phi(), &images(&mixed), &questions, &answers))
            .unwrap();
    let (k3, _) = objective::k3(&scored.logp, &known.logp);
    let answer = case.mask("answer_mask");
    for (name, got) in [("logp", &scored.logp), ("logp_ref", &known.logp), ("k3", &k3)] {
        close(name, &got.masked_select(&scored.mask), &case.tensor(name).masked_select(&answer), VALUES);
    }
    let sums = |values: &Tensor| values.sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
    let kl = objective::mean_per_token(&k3, &scored.mask);
    let stored = &case.json["scalars"];
    number("KL per token", &kl, &stored["kl_token_mean"], LOSSES);
    number("KL per sequence", &sums(&k3).mean(Kind::Float), &stored["kl_seq"], LOSSES);
    assert_eq!(scored.mask.sum(Kind::Int64).int64_value(&[]), case.number("n_answer_tokens") as i64);

    let (questions, answers) = f.dialogue(&case.tensor("sft.mmu_ids"), &case.tensor("sft.answer_mask"));
    let supervised = showo.score_answers(phi, &completed, &questions, &answers).unwrap();
    let expected = case.tensor("sft.logp").masked_select(&case.mask("sft.answer_mask"));
    close("supervised logp", &supervised.logp.masked_select(&supervised.mask), &expected, VALUES);

    // 6. The losses.
    let mut checked = Vec::new();
    for (name, expected) in case.json["losses"].as_object().unwrap() {
        let loss = match name.as_str() {
            "sft_sum" => -sums(&supervised.logp).mean(Kind::Float),
            "sft_token" => -objective::mean_per_token(&supervised.logp, &supervised.mask),
            _ => {
                let (rule, temperature) = name.split_once("_tauw").unwrap();
                let weighted = &case.json["group_weights"][format!("rewards_tauw{temperature}")]["weights"];
                let weights: Vec<f32> = serde_json::from_value(weighted.clone()).unwrap();
                let weights = Tensor::from_slice(&weights);
                let policy = match rule {
                    "grpo_sum" => -(sums(&scored.logp) * weights).sum(Kind::Float),
                    "grpo_mean" => objective::weighted_loss(&scored.logp, &scored.mask, &weights, group),
                    _ => panic!("an unknown loss `{name}`"),
                };
                number(&format!("{name}: policy"), &policy, &expected["policy"], LOSSES);
                number(&format!("{name}: KL"), &kl, &expected["kl"], LOSSES);
                policy + case.number("beta") * &kl
            }
        };
        number(name, &loss, &expected["loss"], LOSSES);
        let (others, weights) = gradients(&showo, &loss, &[&logits]);
        norm(&format!("{name}: gradient of image logits"), &others[0], &expected["grad_norm_image_logits"]);
        let tensors = name.trim_end_matches(".0"); // how the names of tensors spell an integral temperature
        case.gradients(tensors, &expected["grad_norms"], &weights);
        if let Some(expected) = case.find(&format!("{tensors}.grad_image_logits")) {
            gradient(&format!("{name}: gradient of image logits"), &others[0], &expected);
        }
        checked.push(tensors);
    }
    let stored = case.between("", ".grad");
    assert!(stored.iter().all(|name| checked.contains(&name.as_str())), "gradients of {stored:?}");
}

#[test]
fn parity_10_split_losses() {
    let f = Fixture::open();
    let (case, step) = (f.case("split_losses"), f.case("unirl_step"));
    let (showo, reference) = (f.policy(), f.reference());
    let phi = showo.phi();
    let weights = case.tensor("weights");
    let (codes, targets) = (step.tensor("codes"), step.mask("masked"));
    let prompts = f.prompts(&step.tensor("t2i_ids"));

    let masked = |showo: &Showo| {
        gather_logp(&masked_logits(showo, &prompts, &codes, &targets), &codes) * targets.to_kind(Kind::Float)
    };
    let logp = masked(&showo);
    let known = tch::no_grad(|| masked(&reference));
    close("image logp", &logp, &case.tensor("t2i_logp"), VALUES);
    close("image logp of the reference", &known, &case.tensor("t2i_logp_ref"), VALUES);
    let ids = step.tensor("t2i_ids");
    let full =
        full_logits(&showo, &ids, &mask::t2i(&ids, &f.special, true)).narrow(1, f.start() + 1, f.tokens());
    let full = gather_logp(&full, &(&codes + f.special.image)) * targets.to_kind(Kind::Float);
    close("image logp over the vocabulary", &full, &case.tensor("t2i_logp_full"), VALUES);

    let (questions, answers) = f.dialogue(&case.tensor("mmu_ids"), &case.tensor("mmu_answer_mask"));
    let scored = showo.score_answers(phi, &images(&codes), &questions, &answers).unwrap();
    let expected = case.tensor("mmu_logp").masked_select(&case.mask("mmu_answer_mask"));
    close("answer logp", &scored.logp.masked_select(&scored.mask), &expected, VALUES);

    let sums = |values: &Tensor| values.sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
    let kl = objective::mean_per_token(&objective::k3(&logp, &known).0, &targets);
    for (name, expected) in case.json["losses"].as_object().unwrap() {
        let mean = || objective::weighted_loss(&logp, &targets, &weights, weights.size()[0]);
        let loss = match name.as_str() {
            "t2i_sum" => -(sums(&logp) * &weights).sum(Kind::Float),
            "t2i_mean" => mean(),
            "t2i_kl" => mean() + case.number("beta") * &kl,
            "mmu" => -(sums(&scored.logp) * &weights).sum(Kind::Float),
            _ => panic!("an unknown loss `{name}`"),
        };
        number(name, &loss, &expected["loss"], LOSSES);
        if !expected["kl"].is_null() {
            number(&format!("{name}: KL"), &kl, &expected["kl"], LOSSES);
        }
        case.gradients(name, &expected["grad_norms"], &gradients(&showo, &loss, &[]).1);
    }
}

#[test]
fn parity_11_training_losses() {
    let f = Fixture::open();
    let case = f.case("showo_training_losses");
    let showo = f.policy();
    let (ids, labels) = (case.tensor("input_ids"), case.tensor("labels"));
    let batch = case.ids("batch");
    let coefficients = case.json["scalars"]["coeff"].as_array().unwrap();
    let length = ids.size()[1];
    let mut total = Tensor::from(0.0f32);
    let mut row = 0;
    for (task, name) in ["t2i", "lm", "mmu"].into_iter().enumerate() {
        let ids = ids.narrow(0, row, batch[task]);
        let labels = labels.narrow(0, row, batch[task]);
        row += batch[task];
        let visible = if name == "mmu" {
            mask::mmu(&ids, &f.special)
        } else {
            mask::t2i(&ids, &f.special, name == "t2i")
        };
        let logits = full_logits(&showo, &ids, &visible);
        // An image position predicts itself, a text position the next token.
        let (logits, labels) = if name == "t2i" {
            (logits.narrow(1, f.start(), length - f.start()), labels.narrow(1, f.start(), length - f.start()))
        } else {
            (logits.narrow(1, 0, length - 1), labels.narrow(1, 1, length - 1))
        };
        let loss = logits.flatten(0, 1).cross_entropy_loss::<Tensor>(
            &labels.flatten(0, 1),
            None,
            Reduction::Mean,
            prompt::IGNORE,
            0.0,
        );
        number(name, &loss, &case.json["scalars"][name], LOSSES);
        total += loss * coefficients[task].as_f64().unwrap();
    }
    assert_eq!(row, ids.size()[0]);
    number("total", &total, &case.json["scalars"]["total"], LOSSES);
    let norms = &case.json["scalars"]["grad_norms"];
    case.gradients("train", norms, &gradients(&showo, &total, &[]).1);
}
