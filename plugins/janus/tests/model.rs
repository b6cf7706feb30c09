//! The model as a `UnifiedModel`: batches of different lengths, generation, scoring, checkpoints and errors.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use unirl::Error;
use unirl::model::{
    Answers, BatchSlice, Checkpoint, ImageSampling, Images, Masking, ModelSource, ParameterGroup, Policy,
    Scoring, TextSampling, UnifiedModel,
};
use unirl::sampling::{gather_logp, sample_tokens_with};
use unirl_plugin_janus::checkpoint;
use unirl_plugin_janus::model::Janus;
use unirl_plugin_janus::options::{Architecture, JanusOptions, Vision};
use unirl_plugin_janus::prompt::{Prompting, SPECIAL};
use unirl_plugin_janus::vq::VqConfig;
use unirl_text::Text;

/// The f32 error of another order of summation, for values of about 1.
const SAME: f64 = 2e-5;

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/janus_dev");

/// Runs one test at a time: libtorch has one random number generator for all threads.
fn serialize_tests() -> MutexGuard<'static, ()> {
    static RANDOM: Mutex<()> = Mutex::new(());
    tch::set_num_threads(1); // the work is small
    RANDOM.lock().unwrap_or_else(PoisonError::into_inner)
}

fn options() -> JanusOptions {
    let architecture = Architecture {
        hidden_size: 32,
        intermediate_size: 48,
        layers: 2,
        heads: 4,
        key_value_heads: 2,
        grid: 2,
        words: ["a", "photo", "of", "red", "cat", "two", "what", "is", "it"].map(String::from).into(),
        guidance: 2.0,
        temperature: 0.9,
        vision: Vision { hidden_size: 16, intermediate_size: 24, layers: 1, heads: 2 },
        vq: VqConfig {
            base_channels: 8,
            channel_multiplier: vec![1, 2],
            num_res_blocks: 1,
            latent_channels: 8,
            num_embeddings: 24,
            embed_dim: 4,
            norm_groups: 4,
        },
    };
    JanusOptions { architecture: Some(architecture), ..JanusOptions::default() }
}

fn source(checkpoint: Checkpoint) -> ModelSource {
    ModelSource { checkpoint, device: Device::Cpu, seed: 7, dry: false }
}

/// A fresh model with weights scaled up, so that differences show.
fn tiny() -> Janus {
    let janus =
        Janus::from_parts(checkpoint::load(&options(), &source(Checkpoint::Fresh)).unwrap(), Device::Cpu);
    let janus = janus.unwrap();
    tch::no_grad(|| {
        for parameter in janus.parameters().unwrap() {
            let mut tensor = parameter.tensor;
            if tensor.dim() == 2 && parameter.group != ParameterGroup::Tokenizer {
                tensor *= 10.0;
            }
        }
    });
    janus
}

fn open(folder: &Path) -> Result<Janus, Error> {
    let parts = checkpoint::load(&JanusOptions::default(), &source(Checkpoint::Folder(folder.into())))?;
    Janus::from_parts(parts, Device::Cpu)
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).into()).collect()
}

fn prompts() -> Vec<String> {
    texts(&["a red cat", "a photo of two red cat", "cat", "a red cat"])
}

fn questions() -> Vec<String> {
    texts(&["what is it", "is it a cat", "what", "is it two red cat"])
}

#[track_caller]
fn close(got: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(got.size(), expected.size());
    let off = (got - expected).abs().max().double_value(&[]);
    assert!(off <= tolerance, "differs by {off}");
}

fn row(images: &Images, row: i64) -> Images {
    images.narrow(row, 1)
}

#[test]
fn kv_cache_does_not_change_generated_codes() {
    let _guard = serialize_tests();
    let mut janus = tiny(); // four query heads, two key and value heads
    let n = janus.card().image_tokens;
    for (guidance, part) in [(3.0, None), (1.0, None), (3.0, Some(BatchSlice { first: 2, of: 7 }))] {
        let sampling =
            ImageSampling { seed: 5, guidance, temperature: 0.9, part, ..ImageSampling::default() };
        let generated = janus.generate(&prompts(), &sampling).unwrap();

        tch::manual_seed(5);
        let rows = part.map_or(4, |part| part.of);
        let uniforms = Tensor::rand([n, rows], (Kind::Float, Device::Cpu));
        let uniforms = uniforms.narrow(1, part.map_or(0, |part| part.first), 4);
        let tokens = Tensor::zeros([4, n], (Kind::Int64, Device::Cpu));
        let masking = Masking::Remask { seed: 1, part: None, scoring: Scoring::Guided, guidance };
        for at in 0..n {
            let so_far = Images::from_tokens(tokens.shallow_clone());
            let logits = tch::no_grad(|| janus.image_logits(&prompts(), &so_far, Policy::Current, &masking))
                .unwrap()
                .logits;
            let uniforms = uniforms.get(at).unsqueeze(1);
            let code = sample_tokens_with(&logits.select(1, at), sampling.temperature, 0, Some(&uniforms));
            tokens.select(1, at).copy_(&code);
        }
        assert_eq!(generated.tokens, tokens);
    }
}

#[test]
fn padding_does_not_change_the_rows_of_a_batch() {
    let _guard = serialize_tests();
    let mut janus = tiny();
    let greedy = ImageSampling { temperature: 0.0, guidance: 3.0, ..ImageSampling::default() };
    let generated = janus.generate(&prompts(), &greedy).unwrap();
    let masking =
        Masking::Remask { seed: 1, part: None, scoring: Scoring::Guided, guidance: greedy.guidance };
    let logits = janus.image_logits(&prompts(), &generated, Policy::Current, &masking).unwrap().logits;
    // Generated with a cache, scored without one.
    assert_eq!(logits.argmax(-1, false), generated.tokens);
    let answers =
        janus.answer(&generated, &questions(), &TextSampling { max_tokens: 6, ..TextSampling::default() });
    let answers = answers.unwrap();
    let logp = janus.answer_logp(&generated, &questions(), &answers, Policy::Current).unwrap().logp;
    for at in 0..4 {
        let (prompt, question) = (&prompts()[at..=at], &questions()[at..=at]);
        let at = at as i64;
        let image = janus.generate(prompt, &greedy).unwrap();
        assert_eq!(image.tokens, row(&generated, at).tokens);
        let alone = janus.image_logits(prompt, &image, Policy::Current, &masking).unwrap().logits;
        close(&alone, &logits.narrow(0, at, 1), SAME * logits.abs().max().double_value(&[]));
        let sampling = TextSampling { max_tokens: 6, ..TextSampling::default() };
        let answer = janus.answer(&image, question, &sampling).unwrap();
        assert_eq!(answer.text[0], answers.text[at as usize]);
        let length = answer.tokens.size()[1];
        assert_eq!(answer.tokens, answers.tokens.narrow(0, at, 1).narrow(1, 0, length));
        let alone = janus.answer_logp(&image, question, &answer, Policy::Current).unwrap().logp;
        close(&alone, &logp.narrow(0, at, 1).narrow(1, 0, length), SAME * 10.0);
    }
}

/// No other first token is more likely than that of the greedy answer.
#[test]
fn answer_logp_is_highest_for_the_greedy_token() {
    let _guard = serialize_tests();
    let mut janus = tiny();
    let generated =
        janus.generate(&prompts(), &ImageSampling { seed: 3, ..janus.card().sampling.clone() }).unwrap();
    let sampling = TextSampling { max_tokens: 5, ..TextSampling::default() };
    let answers = janus.answer(&generated, &questions(), &sampling).unwrap();
    let best = janus.answer_logp(&generated, &questions(), &answers, Policy::Current).unwrap().logp;
    for other in 0..janus.prompting().text().vocabulary_size() {
        // Replace the first token.
        let tokens = Tensor::cat(
            &[
                Tensor::full([4, 1], other, (Kind::Int64, Device::Cpu)),
                answers.tokens.narrow(1, 1, answers.tokens.size()[1] - 1),
            ],
            1,
        );
        let changed = Answers::new(answers.text.clone(), tokens, answers.mask.shallow_clone());
        let logp = janus.answer_logp(&generated, &questions(), &changed, Policy::Current).unwrap().logp;
        let ahead = (best.narrow(1, 0, 1) - logp.narrow(1, 0, 1)).min().double_value(&[]);
        assert!(ahead >= -SAME, "{other}: {ahead}");
    }
}

#[test]
fn micro_batches_do_not_change_images_and_answers() {
    let _guard = serialize_tests();
    let mut janus = tiny();
    let sampling = ImageSampling { seed: 5, ..janus.card().sampling.clone() };
    assert!((sampling.guidance - 2.0).abs() < f64::EPSILON, "the checkpoint's guidance");
    let full = janus.generate(&prompts(), &sampling).unwrap();
    let text_sampling = TextSampling { temperature: 1.0, max_tokens: 4, seed: 6, ..TextSampling::default() };
    let answers = janus.answer(&full, &questions(), &text_sampling).unwrap();
    for first in [0, 2] {
        let part = Some(BatchSlice { first, of: 4 });
        let rows = first as usize..first as usize + 2;
        let images = janus.generate(&prompts()[rows.clone()], &ImageSampling { part, ..sampling.clone() });
        assert_eq!(images.unwrap().tokens, full.tokens.narrow(0, first, 2));
        let sampling = TextSampling { part, ..text_sampling.clone() };
        let part = janus.answer(&full.narrow(first, 2), &questions()[rows.clone()], &sampling).unwrap();
        assert_eq!(part.text, answers.text[rows]);
    }
    let other = janus.generate(&prompts(), &ImageSampling { seed: 6, ..sampling }).unwrap();
    assert_ne!(other.tokens, full.tokens);
}

/// Log-probabilities of images, and the gradient of their mean with respect to the token embedding.
fn logp_and_gradient(janus: &Janus, images: &Images, scoring: Scoring, guidance: f64) -> (Tensor, Tensor) {
    let masking = Masking::Remask { seed: 1, part: None, scoring, guidance };
    let scored = janus.image_logits(&prompts(), images, Policy::Current, &masking).unwrap();
    assert!(bool::try_from(scored.targets.all()).unwrap(), "every token is predicted");
    let logp = gather_logp(&scored.logits, &images.tokens);
    let parameters = janus.parameters().unwrap();
    let embedding = parameters.iter().find(|p| p.name.ends_with("embed_tokens.weight")).unwrap();
    let gradient = Tensor::run_backward(&[logp.mean(Kind::Float)], &[&embedding.tensor], false, false);
    (logp.detach(), gradient[0].shallow_clone())
}

#[test]
fn scoring_conditional_guided_and_guided_detached() {
    let _guard = serialize_tests();
    let mut janus = tiny();
    let sampling = ImageSampling { seed: 5, ..janus.card().sampling.clone() };
    let images = janus.generate(&prompts(), &sampling).unwrap();
    let guidance = sampling.guidance;
    let (conditional, plain) = logp_and_gradient(&janus, &images, Scoring::Conditional, guidance);
    let (guided, both) = logp_and_gradient(&janus, &images, Scoring::Guided, guidance);
    let (detached, one) = logp_and_gradient(&janus, &images, Scoring::GuidedDetached, guidance);
    close(&guided, &detached, SAME);
    assert!(
        (&guided - &conditional).abs().max().double_value(&[]) > 0.01,
        "guidance changes the distribution"
    );

    // Only unconditional prompts contain the padding token, so only their branch has a gradient for it.
    let pad = janus.prompting().special.pad;
    let pad_gradient = |gradient: &Tensor| gradient.get(pad).abs().max().double_value(&[]);
    assert!(pad_gradient(&both) > 0.0);
    assert!(pad_gradient(&one) == 0.0 && pad_gradient(&plain) == 0.0);
    assert!((&both - &one).abs().max().double_value(&[]) > 1e-6);

    // A guidance of 1 is none.
    let (unguided, gradient) = logp_and_gradient(&janus, &images, Scoring::Guided, 1.0);
    close(&unguided, &conditional, SAME);
    close(&gradient, &plain, SAME);
    // Reveal masking is the same: every code is revealed in its own step.
    let reveal = Masking::Reveal { steps: vec![0], scoring: Scoring::Conditional, guidance };
    let scored = janus.image_logits(&prompts(), &images, Policy::Current, &reveal).unwrap();
    close(&gather_logp(&scored.logits, &images.tokens).detach(), &conditional, SAME);
}

/// Pretraining drops a tenth of the prompts.
#[test]
fn pretrain_masking_drops_a_tenth_of_the_prompts() {
    let _guard = serialize_tests();
    let mut janus = tiny();
    let sampling = ImageSampling { seed: 5, ..janus.card().sampling.clone() };
    let many = vec!["a red cat".to_string(); 200];
    let images = janus.generate(&many[..1], &sampling).unwrap();
    let images = Images::from_tokens(images.tokens.repeat([200, 1]));
    let logits = |masking: &Masking| {
        tch::no_grad(|| janus.image_logits(&many, &images, Policy::Current, masking)).unwrap().logits
    };
    let plain = logits(&Masking::remask(1, None));
    let dropped = (logits(&Masking::Pretrain { seed: 1 }) - plain).abs().amax([1i64, 2].as_slice(), false);
    let count = dropped.gt(1e-3).sum(Kind::Int64).int64_value(&[]);
    assert!((8..=34).contains(&count), "{count} of 200, expected 20 with a standard deviation of 4");
}

#[test]
fn reference_is_frozen_and_gradients_stay_within_parameter_groups() {
    let _guard = serialize_tests();
    let mut janus = tiny();
    janus.freeze_reference().unwrap();
    let images = janus.generate(&prompts(), &ImageSampling::default()).unwrap();
    let answers = janus.encode_answers(&texts(&["a cat", "two", "red cat", "it is"])).unwrap();
    let before = janus.answer_logp(&images, &questions(), &answers, Policy::Reference).unwrap().logp;
    let generation =
        janus.image_logits(&prompts(), &images, Policy::Current, &Masking::remask(1, None)).unwrap();
    let decoding = janus.answer_logp(&images, &questions(), &answers, Policy::Current).unwrap();
    close(&decoding.logp.detach(), &before, SAME);
    assert!(!before.requires_grad());
    for (loss, other) in [
        (gather_logp(&generation.logits, &images.tokens).mean(Kind::Float), ParameterGroup::Understanding),
        (decoding.logp.mean(Kind::Float), ParameterGroup::Generation),
    ] {
        let parameters = janus.parameters().unwrap();
        let tensors: Vec<&Tensor> = parameters.iter().map(|parameter| &parameter.tensor).collect();
        let gradients = Tensor::run_backward(&[loss], &tensors, true, false);
        for (parameter, gradient) in parameters.iter().zip(gradients) {
            let none = parameter.group == other || parameter.group == ParameterGroup::Tokenizer;
            assert_eq!(gradient.defined(), !none, "{}", parameter.name);
        }
    }
    tch::no_grad(|| {
        for parameter in janus.parameters().unwrap() {
            let mut tensor = parameter.tensor;
            tensor *= 0.9;
        }
    });
    let after = janus.answer_logp(&images, &questions(), &answers, Policy::Reference).unwrap().logp;
    close(&after, &before, 0.0);
}

/// Understanding uses given pixels or decoded tokens; relaxed images carry gradient.
#[test]
fn understanding_uses_pixels_decoded_or_relaxed_images() {
    let _guard = serialize_tests();
    let janus = tiny();
    let pixels = Tensor::rand([1, 3, 4, 4], tch::kind::FLOAT_CPU);
    let read = janus.encode(&pixels).unwrap();
    assert_eq!(read.pixels.as_ref().unwrap(), &pixels);
    let answers = janus.encode_answers(&texts(&["a cat"])).unwrap();
    let logp = |images: &Images| {
        janus.answer_logp(images, &questions()[..1], &answers, Policy::Current).unwrap().logp
    };
    let generated = Images::from_tokens(read.tokens.shallow_clone());
    assert!(
        (logp(&read) - logp(&generated)).abs().max().double_value(&[]) > 1e-3,
        "the image tokenizer is lossy"
    );
    let decoded = Images {
        pixels: Some(janus.pixels(&generated).unwrap()),
        ..Images::from_tokens(generated.tokens.shallow_clone())
    };
    close(&logp(&decoded).detach(), &logp(&generated).detach(), SAME);
    let relaxed = generated.tokens.one_hot(24).to_kind(Kind::Float).set_requires_grad(true);
    let seen = Images {
        relaxed: Some(relaxed.shallow_clone()),
        ..Images::from_tokens(generated.tokens.shallow_clone())
    };
    let scored = logp(&seen);
    close(&scored.detach(), &logp(&generated).detach(), SAME);
    scored.sum(Kind::Float).backward();
    assert!(relaxed.grad().abs().max().double_value(&[]) > 0.0);
}

/// A checkpoint folder with the fixture's weights in one layout and a tokenizer.
fn folder(layout: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(Path::new(FIXTURE).join(layout).join(name), dir.path().join(name)).unwrap();
    }
    let words: Vec<String> = (0..100).map(|word| format!("word{word}")).collect();
    fs::write(dir.path().join("tokenizer.json"), Text::of_words(&words, &SPECIAL).unwrap().json()).unwrap();
    fs::write(dir.path().join("notes.json"), "{\"kept\": true}").unwrap();
    dir
}

fn names(folder: &Path) -> Vec<String> {
    let weights = unirl::weights::Weights::find(folder).unwrap();
    weights.names().map(String::from).collect()
}

#[test]
fn checkpoint_is_saved_in_its_original_layout() {
    let _guard = serialize_tests();
    let sampling = ImageSampling { temperature: 0.0, guidance: 5.0, ..ImageSampling::default() };
    let prompts = texts(&["word1 word2", "word3"]);
    let generated = ["hf", "original"].map(|layout| {
        let dir = folder(layout);
        let mut janus = open(dir.path()).unwrap();
        assert!(
            (janus.card().sampling.guidance - 5.0).abs() < f64::EPSILON,
            "the original's guidance by default"
        );
        let before = janus.generate(&prompts, &sampling).unwrap().tokens;
        let saved = tempfile::tempdir().unwrap();
        janus.save(saved.path()).unwrap();
        assert_eq!(names(saved.path()), names(dir.path()), "{layout}");
        for name in ["config.json", "tokenizer.json", "notes.json"] {
            assert_eq!(fs::read(saved.path().join(name)).unwrap(), fs::read(dir.path().join(name)).unwrap());
        }
        let mut again = open(saved.path()).unwrap();
        assert_eq!(again.generate(&prompts, &sampling).unwrap().tokens, before, "{layout}");
        before
    });
    assert_eq!(generated[0], generated[1], "both layouts hold the same weights");
}

#[test]
fn fresh_model_round_trips_through_its_checkpoint() {
    let _guard = serialize_tests();
    let mut fresh = tiny();
    let dir = tempfile::tempdir().unwrap();
    fresh.save(dir.path()).unwrap();
    let mut again = open(dir.path()).unwrap();
    assert_eq!(again.card(), fresh.card());
    let sampling = ImageSampling { seed: 2, ..fresh.card().sampling.clone() };
    let (before, after) =
        (fresh.generate(&prompts(), &sampling).unwrap(), again.generate(&prompts(), &sampling).unwrap());
    assert_eq!(before.tokens, after.tokens);
    assert_eq!(before.pixels.unwrap(), after.pixels.unwrap());
    let sampling = TextSampling { max_tokens: 4, ..TextSampling::default() };
    let images = Images::from_tokens(before.tokens);
    let answers =
        [&mut fresh, &mut again].map(|model| model.answer(&images, &questions(), &sampling).unwrap().text);
    assert_eq!(answers[0], answers[1]);
}

#[track_caller]
fn assert_refused(folder: &Path, message: &str) {
    let error = open(folder).err().expect("an error");
    let text = format!("{error:?}");
    assert!(text.contains(message), "{text}");
}

fn edit(path: PathBuf, change: impl FnOnce(&mut Value)) {
    let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    fs::write(path, json.to_string()).unwrap();
}

#[test]
fn inconsistent_checkpoints_and_invalid_requests_are_refused() {
    let _guard = serialize_tests();
    let dir = folder("hf");
    let path = dir.path();
    let tokenizer = fs::read(path.join("tokenizer.json")).unwrap();
    fs::remove_file(path.join("tokenizer.json")).unwrap();
    assert_refused(path, "no text tokenizer in");
    let words = |count: usize, special: &[&str]| {
        let words: Vec<String> = (0..count).map(|word| format!("word{word}")).collect();
        fs::write(path.join("tokenizer.json"), Text::of_words(&words, special).unwrap().json()).unwrap();
    };
    words(10, &SPECIAL[1..]);
    assert_refused(path, "the text tokenizer has no token `<｜begin▁of▁sentence｜>`");
    words(1000, &SPECIAL);
    assert_refused(path, "tokens, the language model's `vocab_size`, got 1009");
    fs::write(path.join("tokenizer.json"), tokenizer).unwrap();
    fs::write(path.join("generation_config.json"), "{").unwrap();
    assert_refused(path, "generation_config.json");
    fs::remove_file(path.join("generation_config.json")).unwrap();
    edit(path.join("config.json"), |config| config["vision_config"]["image_size"] = json!(16));
    assert_refused(path, "num_image_tokens");
    edit(path.join("config.json"), |config| {
        config["model_type"] = json!("multi_modality");
        config["vision_gen_enc_config"] = json!({});
    });
    assert_refused(path, "JanusFlow");
    fs::remove_file(path.join("config.json")).unwrap();
    assert_refused(path, "no `config.json`");

    let janus = tiny();
    let wrong = janus.encode(&Tensor::zeros([1, 3, 4, 6], tch::kind::FLOAT_CPU)).unwrap_err();
    assert_eq!(wrong.message(), "images: expected [B,3,4,4], got [1, 3, 4, 6]");
    let image = Images::from_tokens(Tensor::zeros([1, 4], tch::kind::INT64_CPU));
    let answers = janus.encode_answers(&texts(&["a cat"])).unwrap();
    let wrong =
        janus.answer_logp(&image, &texts(&["<image_placeholder>"]), &answers, Policy::Current).unwrap_err();
    assert_eq!(wrong.message(), "a question must not contain the image placeholder `<image_placeholder>`");
    assert!(
        janus.answer_logp(&image, &texts(&["it"]), &answers, Policy::Reference).is_err(),
        "no reference was frozen"
    );
    let both = checkpoint::load(&options(), &source(Checkpoint::Folder(path.into()))).err().unwrap();
    assert!(both.message().contains("`model.options.architecture`"), "{both}");
}

#[test]
fn prompt_roles_are_special_tokens_or_plain_words() {
    let words = texts(&["user:", "assistant:", ":", "a", "cat", "hello"]);
    let id = |text: &Text, token: &str| text.id(token).unwrap();
    let pro = Text::of_words(&words, &SPECIAL).unwrap();
    let ids = |tokens: &[&str], text: &Text| tokens.iter().map(|token| id(text, token)).collect::<Vec<_>>();
    let prompting = Prompting::new(pro.clone(), "hello", 2).unwrap();
    let [bos, _, _, boi, eoi, image, user, assistant] = SPECIAL;
    let expected = ids(&[bos, user, ":", "a", "cat", assistant, ":", boi], &pro);
    assert_eq!(prompting.generation_ids(" a cat ").unwrap(), expected);
    let asked = [bos, "hello", user, ":", boi, image, image, eoi, "a", "cat", assistant, ":"];
    assert_eq!(prompting.question("a cat").unwrap(), ids(&asked, &pro));
    assert_eq!(prompting.answer("a cat").unwrap(), ids(&["a", "cat"], &pro));
    let pad = prompting.special.pad;
    let unconditional = prompting.unconditional(&expected);
    assert_eq!((unconditional[0], unconditional[7]), (expected[0], expected[7]));
    assert!(unconditional[1..7].iter().all(|id| *id == pad));

    // Janus-1.3B: no role tokens, and the image placeholder follows the last token.
    let plain = Text::of_words(&words, &SPECIAL[..5]).unwrap();
    let prompting = Prompting::new(plain.clone(), "", 2).unwrap();
    assert_eq!(
        prompting.generation_ids("a cat").unwrap(),
        ids(&[bos, "user:", "a", "cat", "assistant:", boi], &plain)
    );
    let image = plain.vocabulary_size();
    let mut asked = ids(&[bos, "user:", boi], &plain);
    asked.extend([image, image]);
    asked.extend(ids(&[eoi, "a", "cat", "assistant:"], &plain));
    assert_eq!(prompting.question("a cat").unwrap(), asked);
}

/// A dry run reads no weights and still estimates memory.
#[test]
fn dry_run_estimates_memory() {
    let dir = folder("original");
    let dry = ModelSource { dry: true, ..source(Checkpoint::Folder(dir.path().into())) };
    let janus = Janus::new(JanusOptions::default(), &dry).unwrap();
    let workload = unirl::model::Workload {
        images: janus.card().sampling.clone(),
        answers: TextSampling::default(),
        states: 1,
    };
    let of = janus.footprint(&workload).unwrap();
    let loaded = open(dir.path()).unwrap();
    let values: usize = loaded.parameters().unwrap().iter().map(|parameter| parameter.tensor.numel()).sum();
    assert_eq!(of.values, values as i64);
    assert!(of.trainable < of.values, "the image tokenizer is not trained");
    let guided = janus.footprint(&unirl::model::Workload { states: 2, ..workload }).unwrap();
    assert!(guided.image_logits.activations > of.image_logits.activations);
}
