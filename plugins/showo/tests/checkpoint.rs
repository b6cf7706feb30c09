//! Checkpoints: the weights of published ones, round trips, LoRA adapters, precision, and corrupt files.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::{
    GREEDY, architecture, close, confident, fresh, images, open, open_with, serialize_tests, source, strings,
};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use unirl::model::{Answers, Checkpoint, ImageSampling, Images, Masking, Policy, UnifiedModel};
use unirl::weights::{self, Expected, Store, Weights, read_json};
use unirl_layers::Precision;
use unirl_layers::attention::{self, AttnMask};
use unirl_layers::decoder::StackInput;
use unirl_layers::lora::{LoraConfig, Targets};
use unirl_plugin_showo::checkpoint;
use unirl_plugin_showo::clip::{Clip, ClipConfig};
use unirl_plugin_showo::config::{
    Architecture, CheckpointConfig, MagvitConfig, PhiConfig, Pyramid, ShowoConfig,
};
use unirl_plugin_showo::magvit::Magvit;
use unirl_plugin_showo::model::Showo;
use unirl_plugin_showo::phi::Phi;
use unirl_text::Text;

const WEIGHTS: &str = "pytorch_model.safetensors";

/// Logits to compare models by.
fn logits(showo: &Showo) -> Tensor {
    let prompts = strings(["a red car", "what is the blue"]);
    let masking = Masking::remask(3, None);
    tch::no_grad(|| showo.image_logits(&prompts, &images(showo, 2), Policy::Current, &masking))
        .unwrap()
        .logits
}

/// A fresh model and the folder where it is saved.
fn saved(options: ShowoConfig) -> (Showo, tempfile::TempDir) {
    let showo = confident(fresh(options, 1));
    let dir = tempfile::tempdir().unwrap();
    showo.save(dir.path()).unwrap();
    (showo, dir)
}

fn table(expected: Vec<Expected>) -> BTreeMap<String, Vec<i64>> {
    expected.into_iter().map(|expected| (expected.name, expected.shape)).collect()
}

fn published(name: &str) -> BTreeMap<String, Vec<i64>> {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/keys"));
    read_json(&folder.join(name)).unwrap()
}

/// `config.json` of `showlab/show-o-512x512`.
fn published_config() -> Value {
    json!({
        "_class_name": "Showo", "_diffusers_version": "0.30.1", "codebook_size": 8192,
        "llm_model_path": "microsoft/phi-1_5", "llm_vocab_size": 50295, "load_from_showo": true,
        "mask_token_id": 58497, "num_vq_tokens": 1024, "vocab_size": 58498, "w_clip_vit": false,
    })
}

#[test]
fn expected_weights_are_those_of_published_checkpoints() {
    let mut config: CheckpointConfig = serde_json::from_value(published_config()).unwrap();
    config.check("config.json").unwrap();
    let transformer = table(Phi::expected(&config).unwrap());
    assert_eq!(transformer.len(), 437);
    assert_eq!(transformer, published("showo_512.json"));
    let values: i64 = transformer.values().map(|shape| shape.iter().product::<i64>()).sum();
    assert_eq!(values, 1_448_176_770);

    let tokenizer = table(Magvit::expected(&MagvitConfig::default()).unwrap());
    assert_eq!(tokenizer.len(), 382);
    assert_eq!(tokenizer, published("magvitv2.json"));

    config.w_clip_vit = true;
    let with_clip = table(Phi::expected(&config).unwrap());
    let added: Vec<_> = with_clip
        .iter()
        .filter(|(name, _)| !transformer.contains_key(*name))
        .map(|(n, s)| (n.as_str(), s.as_slice()))
        .collect();
    let projector: [(&str, &[i64]); 4] = [
        ("mm_projector.0.bias", &[2048]),
        ("mm_projector.0.weight", &[2048, 1024]),
        ("mm_projector.2.bias", &[2048]),
        ("mm_projector.2.weight", &[2048, 2048]),
    ];
    assert_eq!(added, projector);
}

#[test]
fn saved_checkpoint_has_the_original_names_and_configuration() {
    let _guard = serialize_tests();
    let (showo, dir) = saved(ShowoConfig::default());
    let names = |file: &str| -> Vec<String> {
        Weights::open(&dir.path().join(file)).unwrap().names().map(String::from).collect()
    };
    let layers = |name: &&String| !name.contains(".layers.") || name.contains(".layers.0.");
    let got: Vec<String> = names(WEIGHTS).iter().filter(layers).cloned().collect();
    let original = published("showo_512.json");
    let expected: Vec<String> = original.keys().filter(layers).cloned().collect();
    assert_eq!(got, expected, "one layer and the weights outside of layers");
    let buffers: Vec<String> = names("magvitv2/pytorch_model.safetensors");
    for buffer in ["quantize.embedding", "quantize.power_vals"] {
        assert!(buffers.iter().any(|name| name == buffer), "a strict loader requires `{buffer}`");
    }

    // Unknown keys are preserved.
    let path = dir.path().join("config.json");
    let mut config: Value = read_json(&path).unwrap();
    config["llm_model_path"] = "microsoft/phi-1_5".into();
    fs::write(&path, config.to_string()).unwrap();
    let again = tempfile::tempdir().unwrap();
    open(dir.path()).unwrap().save(again.path()).unwrap();
    assert_eq!(read_json::<Value>(&again.path().join("config.json")).unwrap(), config);
    assert!(logits(&open(again.path()).unwrap()).equal(&logits(&showo)));
}

#[test]
fn missing_config_sizes_are_inferred_from_weights() {
    let _guard = serialize_tests();
    let (showo, dir) = saved(ShowoConfig::default());
    let weights = Weights::find(dir.path()).unwrap();
    let config: CheckpointConfig = read_json(&dir.path().join("config.json")).unwrap();
    assert_eq!(PhiConfig::of(&weights), config.phi);
    let tokenizer = Weights::find(&dir.path().join("magvitv2")).unwrap();
    let found = MagvitConfig::of(&tokenizer);
    let sizes = architecture().magvit;
    assert_eq!(
        (found.z_channels, &found.encoder, &found.decoder),
        (sizes.z_channels, &sizes.encoder, &sizes.decoder)
    );

    let path = dir.path().join("config.json");
    let mut config: Value = read_json(&path).unwrap();
    config.as_object_mut().unwrap().remove("phi");
    fs::write(&path, config.to_string()).unwrap();
    assert!(logits(&open(dir.path()).unwrap()).equal(&logits(&showo)));
}

#[test]
fn fifty_random_configurations_round_trip() {
    let _guard = serialize_tests();
    let mut state = 7u64;
    let mut pick = |choices: &[i64]| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        choices[(state >> 33) as usize % choices.len()]
    };
    for seed in 0..50 {
        let (heads, head_dim) = (pick(&[1, 2, 3, 4]), pick(&[8, 12, 16]));
        let levels = pick(&[1, 2, 3]) as usize;
        let mut half = || Pyramid {
            ch: 4 * pick(&[1, 2]),
            ch_mult: (0..levels).map(|_| pick(&[1, 2, 3])).collect(),
            num_res_blocks: (0..levels).map(|_| pick(&[1, 2])).collect(),
        };
        let (encoder, decoder) = (half(), half());
        let architecture = Architecture {
            hidden_size: heads * head_dim,
            intermediate_size: pick(&[8, 24, 40]),
            layers: pick(&[1, 2, 3]),
            heads,
            max_text_len: pick(&[6, 9, 20]),
            grid: pick(&[1, 2, 3, 4]),
            words: architecture().words,
            question_template: "{question} :".into(),
            sampling: (pick(&[0, 1]) == 1).then(|| ImageSampling { steps: 3, ..ImageSampling::default() }),
            magvit: MagvitConfig {
                z_channels: pick(&[1, 2, 5, 8]),
                norm_groups: pick(&[1, 2, 4]),
                encoder,
                decoder,
                ..MagvitConfig::default()
            },
        };
        let options = ShowoConfig { architecture: Some(architecture), ..ShowoConfig::default() };
        let mut before = confident(checkpoint::load(&options, &source(Checkpoint::Fresh, seed)).unwrap());
        let dir = tempfile::tempdir().unwrap();
        before.save(dir.path()).unwrap();
        let mut after = open(dir.path()).unwrap();
        assert_eq!(before.card(), after.card());
        assert!(logits(&before).equal(&logits(&after)), "{options:?}");
        let generated = images(&before, 2);
        assert!(before.pixels(&generated).unwrap().equal(&after.pixels(&generated).unwrap()), "{options:?}");
        let questions = strings(["how many", "what is the red car"]);
        let answered = |showo: &mut Showo| showo.answer(&generated, &questions, &GREEDY).unwrap().tokens;
        assert!(answered(&mut before).equal(&answered(&mut after)), "{options:?}");
    }
}

#[test]
fn weight_files_of_every_name_and_form_are_found() {
    let _guard = serialize_tests();
    let (showo, dir) = saved(ShowoConfig::default());
    let expected = logits(&showo);
    let path = dir.path().join(WEIGHTS);
    for name in ["model.safetensors", "diffusion_pytorch_model.safetensors", WEIGHTS] {
        fs::rename(&path, dir.path().join("aside")).unwrap();
        fs::rename(dir.path().join("aside"), dir.path().join(name)).unwrap();
        assert!(logits(&open(dir.path()).unwrap()).equal(&expected), "{name}");
        fs::rename(dir.path().join(name), &path).unwrap();
    }

    // Two shards with an index.
    let mut all = Tensor::read_safetensors(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let half = all.split_off(all.len() / 2);
    let mut map = serde_json::Map::new();
    for (shard, weights) in
        [("model-00001-of-00002.safetensors", all), ("model-00002-of-00002.safetensors", half)]
    {
        weights::write(&dir.path().join(shard), &weights, &[]).unwrap();
        map.extend(weights.iter().map(|(name, _)| (name.clone(), Value::from(shard))));
    }
    let index = dir.path().join("model.safetensors.index.json");
    let write = |map: &serde_json::Map<String, Value>| {
        fs::write(&index, json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    };
    write(&map);
    assert!(logits(&open(dir.path()).unwrap()).equal(&expected));

    let (name, _) = map.iter().next().map(|(name, shard)| (name.clone(), shard.clone())).unwrap();
    map[&name] = "../model-00001-of-00002.safetensors".into();
    write(&map);
    let error = open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("is not a file name in the same directory"), "{error}");
    map[&name] = "model-00003-of-00003.safetensors".into();
    write(&map);
    let error = open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("model-00003-of-00003.safetensors"), "{error}");
}

#[test]
fn checkpoints_of_wrapped_models_load() {
    let _guard = serialize_tests();
    let (showo, dir) = saved(ShowoConfig::default());
    let expected = logits(&showo);
    let original = fs::read(dir.path().join(WEIGHTS)).unwrap();
    for (part, wrapped) in [
        ("", "module."),
        ("", "_orig_mod.module."),
        ("showo.", "showo._orig_mod."),
        ("showo.model.layers.1.", "showo.model.layers.1._checkpoint_wrapped_module."),
    ] {
        edit(&dir.path().join(WEIGHTS), |weights| {
            for (name, _) in weights.iter_mut().filter(|(name, _)| name.starts_with(part)) {
                name.replace_range(..part.len(), wrapped);
            }
        });
        assert!(logits(&open(dir.path()).unwrap()).equal(&expected), "{wrapped}");
        fs::write(dir.path().join(WEIGHTS), &original).unwrap();
    }
}

#[test]
fn tokenizers_are_found_in_the_folder_next_to_it_or_by_option() {
    let _guard = serialize_tests();
    let (showo, dir) = saved(ShowoConfig::default());
    let expected = logits(&showo);
    let root = tempfile::tempdir().unwrap();
    let model = root.path().join("show-o");
    fs::create_dir(&model).unwrap();
    for file in ["config.json", WEIGHTS] {
        fs::copy(dir.path().join(file), model.join(file)).unwrap();
    }
    let error = open(&model).err().unwrap().to_string();
    assert!(error.contains("magvitv2") && error.contains("--image-tokenizer"), "{error}");

    let tokenizer = dir.path().join("magvitv2").display().to_string();
    let mut options = ShowoConfig { tokenizer: Some(tokenizer), ..ShowoConfig::default() };
    let error = open_with(&model, &options).err().unwrap().to_string();
    assert!(error.contains("text_tokenizer") && error.contains("phi-1_5"), "{error}");
    options.text_tokenizer = Some(dir.path().display().to_string());
    assert!(logits(&open_with(&model, &options).unwrap()).equal(&expected));

    let sibling = |name: &str| root.path().join(name);
    fs::create_dir(sibling("phi-1_5")).unwrap();
    fs::copy(dir.path().join("tokenizer.json"), sibling("phi-1_5").join("tokenizer.json")).unwrap();
    fs::rename(dir.path().join("magvitv2"), sibling("magvitv2")).unwrap();
    assert!(logits(&open(&model).unwrap()).equal(&expected));
    for part in ["phi-1_5", "magvitv2"] {
        fs::rename(sibling(part), model.join(part)).unwrap();
    }
    assert!(logits(&open(&model).unwrap()).equal(&expected));
}

/// Corrupts a valid checkpoint by `corrupt` and asserts that the error contains every text of `mentions`.
#[track_caller]
fn assert_refused(corrupt: impl FnOnce(&Path), mentions: &[&str]) {
    let (_, dir) = saved(ShowoConfig::default());
    assert!(open(dir.path()).is_ok());
    corrupt(dir.path());
    let error = open(dir.path()).err().expect("the folder is corrupt");
    assert!(!error.message().contains('\n'), "{error}");
    for mention in mentions {
        assert!(error.to_string().contains(mention), "`{mention}` is not in: {error}");
    }
    assert!(error.to_string().contains(&dir.path().display().to_string()), "{error}");
}

fn edit(path: &Path, change: impl FnOnce(&mut Vec<(String, Tensor)>)) {
    let mut weights = Tensor::read_safetensors(path).unwrap();
    change(&mut weights);
    weights::write(path, &weights, &[]).unwrap();
}

/// Replaces one weight.
fn replace(name: &'static str, with: impl FnOnce(&Tensor) -> Tensor) -> impl FnOnce(&Path) {
    move |dir| {
        edit(&dir.join(WEIGHTS), |weights| {
            let (_, weight) = weights.iter_mut().find(|(known, _)| known == name).unwrap();
            *weight = with(weight);
        });
    }
}

#[test]
fn corrupt_checkpoint_is_refused_by_file_and_key() {
    let _guard = serialize_tests();
    let key = "showo.model.layers.1.mlp.fc1.bias";
    let files = ["config.json", "tokenizer.json", "magvitv2/pytorch_model.safetensors", WEIGHTS];
    for file in files {
        assert_refused(|dir| fs::write(dir.join(file), "{\"broken").unwrap(), &[file]);
        if file == "magvitv2/pytorch_model.safetensors" {
            assert_refused(|dir| fs::remove_file(dir.join(file)).unwrap(), &["no weights in", "magvitv2"]);
        } else if file != WEIGHTS {
            assert_refused(|dir| fs::remove_file(dir.join(file)).unwrap(), &[file]);
        }
    }
    assert_refused(|dir| fs::remove_file(dir.join(WEIGHTS)).unwrap(), &["no weights in", "pytorch_model"]);
    assert_refused(
        |dir| fs::remove_dir_all(dir.join("magvitv2")).unwrap(),
        &["no image tokenizer", "--image-tokenizer"],
    );

    // Truncated in the length of the header, in the header, in the weights.
    for cut in [0, 5, 200, 20_000] {
        let cut = move |dir: &Path| {
            let bytes = fs::read(dir.join(WEIGHTS)).unwrap();
            fs::write(dir.join(WEIGHTS), &bytes[..cut]).unwrap();
        };
        assert_refused(cut, &[WEIGHTS]);
    }
    // A header length beyond the end of the file.
    assert_refused(
        |dir| {
            let mut bytes = fs::read(dir.join(WEIGHTS)).unwrap();
            bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
            fs::write(dir.join(WEIGHTS), bytes).unwrap();
        },
        &[WEIGHTS],
    );

    // One error lists every mismatch.
    assert_refused(
        |dir| {
            edit(&dir.join(WEIGHTS), |weights| {
                weights.retain(|(name, _)| name != key);
                weights.push(("showo.model.extra".into(), Tensor::zeros([1], (Kind::Float, Device::Cpu))));
                for (name, weight) in weights {
                    if name == "showo.lm_head.bias" {
                        *weight = Tensor::zeros([3], (Kind::Float, Device::Cpu));
                    }
                }
            });
        },
        &[
            WEIGHTS,
            "1 missing, 1 unexpected, 1 wrong shape",
            &format!("missing: `{key}`"),
            "unexpected: `showo.model.extra`",
            "`showo.lm_head.bias` expected [38], got [3]",
        ],
    );
    assert_refused(
        replace(key, |weight| weight.to_kind(Kind::Int64)),
        &[key, "expected f32, f16, bf16 or f64, got I64"],
    );
    let set = |file: &'static str, key: &'static str, value: Value| {
        move |dir: &Path| {
            let path = dir.join(file);
            let mut json: Value = read_json(&path).unwrap();
            json[key] = value;
            fs::write(path, json.to_string()).unwrap();
        }
    };
    assert_refused(set("config.json", "vocab_size", 7.into()), &["config.json", "`vocab_size`", "got 7"]);
    assert_refused(set("config.json", "num_vq_tokens", "many".into()), &["config.json", "many"]);
    assert_refused(
        set("config.json", "_class_name", "JanusFlow".into()),
        &["expected `Showo`, got `JanusFlow`"],
    );
    assert_refused(
        set("config.json", "w_clip_vit", true.into()),
        &["no CLIP vision encoder", "model.options.clip"],
    );
    assert_refused(set("magvitv2/config.json", "norm_groups", 3.into()), &["magvitv2/config.json", "groups"]);
}

#[test]
fn malicious_or_malformed_pickle_is_refused() {
    let _guard = serialize_tests();
    let fixtures = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/pickle"));
    let bad: Vec<_> = fs::read_dir(fixtures)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("bad_"))
        .collect();
    assert!(bad.len() > 10, "{bad:?}");
    for path in bad {
        assert_refused(
            |dir| {
                fs::remove_file(dir.join(WEIGHTS)).unwrap();
                fs::copy(&path, dir.join("pytorch_model.bin")).unwrap();
            },
            &["pytorch_model.bin"],
        );
    }
}

#[test]
fn tokenizer_with_another_vocabulary_is_refused() {
    let _guard = serialize_tests();
    assert_refused(
        |dir| {
            let path = dir.join("tokenizer.json");
            let mut json: Value = read_json(&path).unwrap();
            json["model"]["vocab"]["extra"] = 99.into();
            fs::write(path, json.to_string()).unwrap();
        },
        &["expected 11 tokens (`llm_vocab_size`), or 21", "got 12", "microsoft/phi-1_5"],
    );
    assert_refused(
        |dir| {
            let path = dir.join("tokenizer.json");
            let mut json: Value = read_json(&path).unwrap();
            let vocab = json["model"]["vocab"].as_object_mut().unwrap();
            vocab["a"] = 10.into();
            vocab["<|endoftext|>"] = 0.into();
            fs::write(path, json.to_string()).unwrap();
        },
        &["token `<|endoftext|>`: expected id 10, got 0"],
    );
}

#[test]
fn lora_adapters_start_at_zero_train_alone_and_round_trip() {
    let _guard = serialize_tests();
    let (plain, base) = saved(ShowoConfig::default());
    let lora = LoraConfig { rank: 3, alpha: 6.0, ..LoraConfig::default() };
    let options = ShowoConfig { lora: Some(lora.clone()), ..ShowoConfig::default() };
    let mut adapted = open_with(base.path(), &options).unwrap();
    assert!(logits(&adapted).equal(&logits(&plain)), "fresh adapters add nothing");

    let parameters = adapted.parameters().unwrap();
    assert_eq!(parameters.len(), 2 * 2 * 2, "A and B of two targets in two layers");
    let name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"; // PEFT's
    assert_eq!((parameters[0].name.as_str(), parameters[0].tensor.size()), (name, vec![3, 32]));
    adapted.freeze_reference().unwrap();
    tch::manual_seed(11);
    for mut parameter in parameters {
        tch::no_grad(|| parameter.tensor += parameter.tensor.randn_like() * 0.5);
    }
    let moved = logits(&adapted);
    assert!(!moved.equal(&logits(&plain)));
    let prompts = strings(["a red car", "what is the blue"]);
    let masking = Masking::remask(3, None);
    let reference =
        adapted.image_logits(&prompts, &images(&adapted, 2), Policy::Reference, &masking).unwrap();
    assert!(reference.logits.equal(&logits(&plain)), "the reference policy does not change");

    // Only the adapters are saved, with the path of their base model.
    let dir = tempfile::tempdir().unwrap();
    adapted.save(dir.path()).unwrap();
    let mut files: Vec<String> =
        fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    files.sort();
    assert_eq!(files, ["adapter_config.json", "adapter_model.safetensors"]);
    let peft: Value = read_json(&dir.path().join("adapter_config.json")).unwrap();
    assert_eq!(
        (&peft["r"], &peft["peft_type"], &peft["lora_alpha"]),
        (&json!(3), &json!("LORA"), &json!(6.0))
    );
    let again = open(dir.path()).unwrap();
    assert!(logits(&again).equal(&moved));
    assert_eq!(again.parameters().unwrap().len(), 8, "they stay trainable");

    // Merging changes only the rounding: W·x + B·A·x against (W + B·A)·x.
    let merging = ShowoConfig { lora: Some(LoraConfig { merge: true, ..lora }), ..ShowoConfig::default() };
    let merged = tempfile::tempdir().unwrap();
    open_with(dir.path(), &merging).unwrap().save(merged.path()).unwrap();
    close(&logits(&open(merged.path()).unwrap()), &moved, common::SAME);

    let other = LoraConfig { rank: 4, ..LoraConfig::default() };
    let other = ShowoConfig { lora: Some(other), ..ShowoConfig::default() };
    let error = open_with(dir.path(), &other).err().unwrap().to_string();
    assert!(error.contains("has rank 3"), "{error}");
    fs::remove_dir_all(base.path()).unwrap();
    let error = open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("no base model at"), "{error}");
}

#[test]
fn lora_unknown_targets_and_patterns_are_refused() {
    let options = |targets: &[&str]| ShowoConfig {
        lora: Some(LoraConfig {
            targets: Targets::Names(targets.iter().map(|t| (*t).into()).collect()),
            ..LoraConfig::default()
        }),
        ..ShowoConfig::default()
    };
    let error = |targets: &[&str]| {
        checkpoint::load(&options(targets), &source(Checkpoint::Builtin, 0)).err().unwrap().to_string()
    };
    assert!(error(&["q_prj"]).contains("did you mean `q_proj`"));
    assert!(error(&[]).contains("expected one or more of q_proj"));
    let pattern = LoraConfig {
        rank_pattern: serde_json::Map::from_iter([("fc1".to_string(), json!(4))]),
        ..LoraConfig::default()
    };
    let options = ShowoConfig { lora: Some(pattern), ..ShowoConfig::default() };
    let error = checkpoint::load(&options, &source(Checkpoint::Builtin, 0)).err().unwrap().to_string();
    assert!(error.contains("`model.options.lora.rank_pattern`") && error.contains("`fc1`"), "{error}");
}

/// Adapters of the small model as saved by PEFT: `config` overrides defaults; `modules` lists name, rank and scale of each adapted
/// module.
fn peft_adapters(base: &Path, config: &Value, modules: &[(&str, i64, f64)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut json = json!({
        "peft_type": "LORA", "base_model_name_or_path": base, "r": 4, "lora_alpha": 8, "lora_dropout": 0.1,
        "target_modules": ["q_proj"], "peft_version": "0.17.1", "inference_mode": true, "task_type": null,
    });
    json.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
    fs::write(dir.path().join("adapter_config.json"), json.to_string()).unwrap();
    let mut weights = Vec::new();
    tch::manual_seed(21);
    for (module, rank, _) in modules {
        let (inputs, outputs) = if module.ends_with("fc1") { (32, 64) } else { (32, 32) };
        for (part, shape) in [("lora_A", [*rank, inputs]), ("lora_B", [outputs, *rank])] {
            let name = format!("base_model.model.model.layers.{module}.{part}.weight");
            weights.push((name, Tensor::randn(shape, (Kind::Float, Device::Cpu)) * 0.3));
        }
    }
    weights::write(&dir.path().join("adapter_model.safetensors"), &weights, &[]).unwrap();
    dir
}

/// A full checkpoint with `W + s·B·A`, computed in f64 and rounded to f32.
fn merged_by_hand(base: &Path, adapters: &Path, modules: &[(&str, i64, f64)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    open(base).unwrap().save(dir.path()).unwrap();
    let parts = Weights::open(&adapters.join("adapter_model.safetensors")).unwrap();
    edit(&dir.path().join(WEIGHTS), |weights| {
        for (module, _, scale) in modules {
            let read = |part: &str| {
                let name = format!("base_model.model.model.layers.{module}.{part}.weight");
                parts.read(&name).unwrap().to_kind(Kind::Double)
            };
            let name = format!("showo.model.layers.{module}.weight");
            let (_, weight) = weights.iter_mut().find(|(known, _)| *known == name).unwrap();
            let sum = weight.to_kind(Kind::Double) + read("lora_B").matmul(&read("lora_A")) * *scale;
            *weight = sum.to_kind(Kind::Float);
        }
    });
    dir
}

#[test]
fn peft_adapters_apply_rank_alpha_and_patterns() {
    let _guard = serialize_tests();
    let (plain, base) = saved(ShowoConfig::default());
    let [q0, q1] = ["0.self_attn.q_proj", "1.self_attn.q_proj"];
    let [f0, f1] = ["0.mlp.fc1", "1.mlp.fc1"];
    let v1 = "1.self_attn.v_proj";
    for (config, modules) in [
        (json!({}), vec![(q0, 4, 8.0 / 4.0), (q1, 4, 8.0 / 4.0)]),
        (json!({"use_rslora": true}), vec![(q0, 4, 8.0 / 2.0), (q1, 4, 8.0 / 2.0)]),
        (
            json!({"use_rslora": true, "r": 3, "lora_alpha": 5.0}),
            vec![(q0, 3, 5.0 / 3f64.sqrt()), (q1, 3, 5.0 / 3f64.sqrt())],
        ),
        (
            json!({"rank_pattern": {"layers.1.self_attn.q_proj": 2}}),
            vec![(q0, 4, 8.0 / 4.0), (q1, 2, 8.0 / 2.0)],
        ),
        (
            json!({"alpha_pattern": {r"model\.layers\.0\..*": 1}, "target_modules": ["q_proj", "fc1"]}),
            vec![(q0, 4, 1.0 / 4.0), (q1, 4, 8.0 / 4.0), (f0, 4, 1.0 / 4.0), (f1, 4, 8.0 / 4.0)],
        ),
        (
            json!({
                "use_rslora": true, "rank_pattern": {"fc1": 9}, "alpha_pattern": {"1.mlp.fc1": 2.5},
                "target_modules": r"model\.layers\.\d+\.(mlp\.fc1|self_attn\.q_proj)",
            }),
            vec![(q0, 4, 8.0 / 2.0), (q1, 4, 8.0 / 2.0), (f0, 9, 8.0 / 3.0), (f1, 9, 2.5 / 3.0)],
        ),
        (
            json!({"target_modules": ["layers.1.self_attn.v_proj", "model.layers.0.mlp.fc1"]}),
            vec![(v1, 4, 2.0), (f0, 4, 2.0)],
        ),
    ] {
        let dir = peft_adapters(base.path(), &config, &modules);
        let adapted = open(dir.path()).unwrap();
        let by_hand = merged_by_hand(base.path(), dir.path(), &modules);
        let expected = logits(&open(by_hand.path()).unwrap());
        assert!(!logits(&plain).equal(&expected));
        close(&logits(&adapted), &expected, common::SAME);

        // Saving preserves the adapters.
        let again = tempfile::tempdir().unwrap();
        adapted.save(again.path()).unwrap();
        let json: Value = read_json(&again.path().join("adapter_config.json")).unwrap();
        for (key, value) in config.as_object().unwrap() {
            let same = json[key] == *value
                || json[key].as_f64().is_some_and(|number| Some(number) == value.as_f64());
            assert!(same, "{key}: {value} is saved as {}", json[key]);
        }
        assert!(logits(&open(again.path()).unwrap()).equal(&logits(&adapted)), "{config}");

        // With `merge` alone, the other options come from the checkpoint.
        let merging = LoraConfig { merge: true, ..LoraConfig::default() };
        let merging = ShowoConfig { lora: Some(merging), ..ShowoConfig::default() };
        let merged = tempfile::tempdir().unwrap();
        open_with(dir.path(), &merging).unwrap().save(merged.path()).unwrap();
        close(&logits(&open(merged.path()).unwrap()), &expected, common::SAME);
    }
}

#[test]
fn peft_adapters_with_unsupported_keys_are_refused() {
    let _guard = serialize_tests();
    let (_, base) = saved(ShowoConfig::default());
    let modules = [("0.self_attn.q_proj", 4, 2.0), ("1.self_attn.q_proj", 4, 2.0)];
    for (key, value) in [
        ("use_dora", json!(true)),
        ("init_lora_weights", json!("pissa")),
        ("modules_to_save", json!(["lm_head"])),
        ("bias", json!("all")),
    ] {
        let dir = peft_adapters(base.path(), &json!({key: value}), &modules);
        let error = open(dir.path()).err().unwrap().to_string();
        for mention in [&format!("`{key}`: expected"), "adapter_config.json", "merge_and_unload"] {
            assert!(error.contains(mention), "`{mention}` is not in: {error}");
        }
    }
    // A rank that differs from the weights.
    let dir = peft_adapters(base.path(), &json!({"rank_pattern": {"q_proj": 5}}), &modules);
    let error = open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("expected [5, 32], got [4, 32]"), "{error}");
}

#[test]
fn bf16_weights_give_nearly_the_same_logits() {
    let _guard = serialize_tests();
    let (plain, dir) = saved(ShowoConfig::default());
    let options = ShowoConfig { precision: Precision::Bf16, ..ShowoConfig::default() };
    let mut short = open_with(dir.path(), &options).unwrap();
    let weight = &short.parameters().unwrap()[0];
    assert_eq!(weight.tensor.kind(), Kind::BFloat16);
    let (expected, got) = (logits(&plain), logits(&short));
    assert_eq!(got.kind(), Kind::Float);
    // 8 bits of mantissa and about 20 roundings: a few percent of the spread of the logits.
    let spread = expected.std(false).double_value(&[]);
    close(&got, &expected, 0.2 * spread);
    let apart = (&got - &expected).square().mean(Kind::Float).sqrt().double_value(&[]);
    assert!(apart < 0.03 * spread, "{apart} of {spread}");

    // Every other call runs in bf16, including gradients.
    let generated = images(&short, 2);
    let questions = strings(["how many", "what is the red car"]);
    let answers = short.answer(&generated, &questions, &GREEDY).unwrap();
    let scored = short.answer_logp(&generated, &questions, &answers, Policy::Current).unwrap();
    assert_eq!(scored.logp.kind(), Kind::Float);
    scored.logp.sum(Kind::Float).backward();
    assert_eq!(short.parameters().unwrap()[0].tensor.grad().kind(), Kind::BFloat16);
    short.freeze_reference().unwrap();
    assert!(short.answer_logp(&generated, &questions, &answers, Policy::Reference).is_ok());

    // The saved weights have the same type.
    let again = tempfile::tempdir().unwrap();
    short.save(again.path()).unwrap();
    assert!(logits(&open_with(again.path(), &options).unwrap()).equal(&got));
}

#[test]
fn max_text_len_option_is_applied_and_saved() {
    let _guard = serialize_tests();
    let (_, dir) = saved(ShowoConfig::default());
    let options = ShowoConfig { max_text_len: Some(5), ..ShowoConfig::default() };
    let short = open_with(dir.path(), &options).unwrap();
    let again = tempfile::tempdir().unwrap();
    short.save(again.path()).unwrap();
    assert!(logits(&open(again.path()).unwrap()).equal(&logits(&short)));
    assert!(!logits(&open(dir.path()).unwrap()).equal(&logits(&short)), "image positions differ");
}

/// A small `w_clip_vit` checkpoint with the vision encoder of the fixtures.
fn with_vision_encoder() -> tempfile::TempDir {
    let (_, dir) = saved(ShowoConfig::default());
    let path = dir.path().join("config.json");
    let mut config: Value = read_json(&path).unwrap();
    config["w_clip_vit"] = true.into();
    config.as_object_mut().unwrap().remove("question_template");
    fs::write(&path, config.to_string()).unwrap();
    tch::manual_seed(12);
    edit(&dir.path().join(WEIGHTS), |weights| {
        for (name, shape) in [
            ("mm_projector.0.weight", vec![32, 32]),
            ("mm_projector.0.bias", vec![32]),
            ("mm_projector.2.weight", vec![32, 32]),
            ("mm_projector.2.bias", vec![32]),
        ] {
            weights.push((name.into(), Tensor::randn(shape, (Kind::Float, Device::Cpu)) * 0.3));
        }
    });
    let encoder = dir.path().join("clip-vit-large-patch14-336");
    fs::create_dir(&encoder).unwrap();
    for file in ["config.json", "model.safetensors"] {
        let fixture = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/clip")).join(file);
        fs::copy(fixture, encoder.join(file)).unwrap();
    }
    dir
}

#[test]
fn clip_checkpoint_uses_pixels_for_understanding() {
    let _guard = serialize_tests();
    let dir = with_vision_encoder();
    let mut showo = open(dir.path()).unwrap();
    let card = showo.card().clone();
    assert_eq!(
        (card.resolution, card.input_resolution),
        (8, Some(28)),
        "generated and understood at different sizes"
    );
    let questions = strings(["what is the red", "how many"]);

    // Understanding uses the pixels of an encoded image, not its decoded tokens.
    tch::manual_seed(3);
    let pixels = Tensor::rand([2, 3, 28, 28], (Kind::Float, Device::Cpu));
    let read = showo.encode(&pixels).unwrap();
    assert_eq!(read.tokens.size(), [2, card.image_tokens]);
    let generated = Images::from_tokens(read.tokens.shallow_clone());
    let answers = answered(&mut showo, &read, &questions);
    let seen = showo.answer_logp(&read, &questions, &answers, Policy::Current).unwrap();
    let other = showo.answer_logp(&generated, &questions, &answers, Policy::Current).unwrap();
    assert!(!seen.logp.equal(&other.logp));

    // The gradient of an answer reaches a relaxed image through decoder, vision encoder and projector.
    let relaxed = generated.tokens.one_hot(card.codebook_size).to_kind(Kind::Float).set_requires_grad(true);
    let images = Images {
        relaxed: Some(relaxed.shallow_clone()),
        ..Images::from_tokens(generated.tokens.shallow_clone())
    };
    let scored = showo.answer_logp(&images, &questions, &answers, Policy::Current).unwrap();
    close(&scored.logp, &other.logp, common::SAME);
    scored.logp.sum(Kind::Float).backward();
    let reached = relaxed.grad().abs().sum_dim_intlist([2i64].as_slice(), false, Kind::Float);
    assert!(reached.min().double_value(&[]) > 0.0);
    let parameters = showo.parameters().unwrap();
    let projector = parameters.iter().find(|p| p.name == "mm_projector.0.weight").unwrap();
    assert!(projector.tensor.grad().defined(), "the projector is trained");
    assert!(parameters.iter().all(|p| !p.name.starts_with("vision_model")), "the vision encoder is frozen");

    // Step-by-step decoding works, and a saved model gives the same answers.
    let mut decoding = showo.prefill(showo.phi(), &read, &[vec![4, 5, 3], vec![6, 7]], 1).unwrap();
    let (best, token) = decoding.logits().log_softmax(-1, Kind::Float).max_dim(-1, false);
    decoding.append(&token).unwrap();
    assert!(best.le(0.0).all() == Tensor::from(true));
    let again = tempfile::tempdir().unwrap();
    showo.save(again.path()).unwrap();
    let mut back = open(again.path()).unwrap();
    let same = answered(&mut back, &read, &questions);
    assert!(same.tokens.equal(&answers.tokens));

    let wrong = showo.encode(&Tensor::zeros([1, 3, 20, 20], (Kind::Float, Device::Cpu))).err().unwrap();
    assert!(wrong.message().contains("expected [B,3,28,28]"), "{wrong}");
}

fn answered(showo: &mut Showo, images: &Images, questions: &[String]) -> Answers {
    showo.answer(images, questions, &GREEDY).unwrap()
}

#[test]
fn clip_rows_have_the_order_and_mask_of_the_original() {
    let _guard = serialize_tests();
    let dir = with_vision_encoder();
    let showo = open(dir.path()).unwrap();
    let config: CheckpointConfig = read_json(&dir.path().join("config.json")).unwrap();
    let special = config.special();
    tch::manual_seed(3);
    let pixels = Tensor::rand([1, 3, 28, 28], (Kind::Float, Device::Cpu));
    let read = showo.encode(&pixels).unwrap();
    let question = vec![4, 5, 3];
    let asked = showo.prefill(showo.phi(), &read, std::slice::from_ref(&question), 0).unwrap().logits();

    // The full sequence by hand: <mmu> system <soi> 16 features <eoi> question, without an end token before the question.
    let words = "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, \
                 detailed, and polite answers to the user's questions.";
    let text = Text::open_folder(dir.path()).unwrap();
    let system = text.encode(words).unwrap();
    let before: Vec<i64> = [vec![special.mmu], system.clone(), vec![special.soi]].concat();
    let after: Vec<i64> = [vec![special.eoi], question].concat();
    let phi = showo.phi();
    let row = |ids: &[i64]| phi.language.embed(&Tensor::from_slice(ids).unsqueeze(0));
    let (sizes, mut store) = vision_encoder(dir.path());
    let vision_encoder = Clip::take(&mut store, sizes).unwrap();
    let features = phi.embed_features(&vision_encoder.features(&pixels)).unwrap();
    let x = Tensor::cat(&[row(&before), features, row(&after)], 1);
    let length = x.size()[1];
    assert_eq!(length, 2 + system.len() as i64 + 16 + 4);
    let columns = Tensor::arange(length, (Kind::Int64, Device::Cpu));
    let first = before.len() as i64;
    let image = columns.ge(first).logical_and(&columns.lt(first + 16)).unsqueeze(0);
    let visible = columns.unsqueeze(0).le_tensor(&columns.unsqueeze(1)).logical_or(&image).unsqueeze(0);
    let mask = attention::additive_mask(&visible);
    let positions = columns.unsqueeze(0);
    let rows =
        StackInput { x, positions: &positions, mask: AttnMask::Additive(&mask), past: None, outputs: None };
    let hidden = phi.language.hidden_states(rows).unwrap();
    close(&asked, &phi.language.logits(&hidden.select(1, -1)), common::SAME);
}

fn vision_encoder(dir: &Path) -> (ClipConfig, Store) {
    let folder = dir.join("clip-vit-large-patch14-336");
    let config = ClipConfig::read(&folder.join("config.json")).unwrap();
    (config, Store::open(Weights::find(&folder).unwrap(), Device::Cpu, Kind::Float))
}
