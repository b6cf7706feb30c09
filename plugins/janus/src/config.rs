//! Sizes of the network, from either form of `config.json`: the original's, with `model_type` `multi_modality`, or
//! transformers', with `janus`. Missing keys have the defaults of the corresponding classes or are inferred from weights.

use serde_json::{Value, json};
use unirl::{Error, Result};
use unirl_layers::checkpoint::{MAX_LAYERS, check_multiple, check_positive};

use crate::vq::VqConfig;

/// See [`MAX_LAYERS`].
const MAX_SIZE: i64 = 1 << 26;

const PUBLISHED: &str = "supported models are Janus-1.3B, Janus-Pro-1B and Janus-Pro-7B";

/// Sizes of the network.
#[derive(Debug, Clone, PartialEq)]
pub struct JanusConfig {
    /// The language model.
    pub language: LlamaConfig,
    /// The vision encoder.
    pub vision: SiglipConfig,
    /// The number of linear layers from image features to rows of the language model.
    pub aligner_depth: i64,
    /// The input and output path of image codes.
    pub generation: GenerationConfig,
    /// The image tokenizer.
    pub vq: VqConfig,
}

/// Sizes of the language model, with the names and defaults of transformers' `LlamaConfig`.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// Rows of the embedding, at least as many as the tokenizer has tokens.
    pub vocab_size: i64,
    /// `D`, the width.
    pub hidden_size: i64,
    /// The hidden width of the feed-forward networks.
    pub intermediate_size: i64,
    /// Layers.
    pub num_hidden_layers: i64,
    /// The number of attention heads.
    pub num_attention_heads: i64,
    /// The number of key and value heads, each shared by a group of query heads.
    pub num_key_value_heads: i64,
    /// The width of a head.
    pub head_dim: i64,
    /// The largest number of positions in training.
    pub max_position_embeddings: i64,
    /// Added to mean squares.
    pub rms_norm_eps: f64,
    /// The base of the rotary frequencies.
    pub rope_theta: f64,
}

impl Default for LlamaConfig {
    fn default() -> Self {
        Self {
            vocab_size: 32_000,
            hidden_size: 4096,
            intermediate_size: 11_008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: 32,
            head_dim: 128,
            max_position_embeddings: 2048,
            rms_norm_eps: 1e-6,
            rope_theta: 10_000.0,
        }
    }
}

/// Sizes of the vision encoder; the default is SigLIP-L/16 at 384 pixels.
#[derive(Debug, Clone, PartialEq)]
pub struct SiglipConfig {
    /// Width.
    pub hidden_size: i64,
    /// The hidden width of the feed-forward networks.
    pub intermediate_size: i64,
    /// The number of layers in use, given `select_layer`.
    pub num_hidden_layers: i64,
    /// The number of attention heads.
    pub num_attention_heads: i64,
    /// Pixels along the edge of an image.
    pub image_size: i64,
    /// Pixels along the edge of a patch.
    pub patch_size: i64,
    /// Added to variances.
    pub layer_norm_eps: f64,
    /// Mean and standard deviation of the channels, if the encoder normalizes pixels.
    pub normalisation: Option<[[f64; 3]; 2]>,
}

impl Default for SiglipConfig {
    fn default() -> Self {
        Self {
            hidden_size: 1024,
            intermediate_size: 4096,
            num_hidden_layers: 24,
            num_attention_heads: 16,
            image_size: 384,
            patch_size: 16,
            layer_norm_eps: 1e-6,
            normalisation: None,
        }
    }
}

impl SiglipConfig {
    /// The number of patches of an image; each gives one feature.
    pub fn patches(&self) -> i64 {
        (self.image_size / self.patch_size.max(1)).pow(2)
    }

    /// The number of layers in use out of `depth`: a negative `select_layer` counts from the end, −1 uses all.
    fn selected(depth: i64, select_layer: i64) -> i64 {
        if select_layer <= 0 { depth.min(depth + select_layer + 1) } else { depth.min(select_layer) }
    }
}

/// Sizes of the input and output path of image codes.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationConfig {
    /// `K`, the number of image codes.
    pub codebook_size: i64,
    /// The width of a code's embedding.
    pub embed_dim: i64,
    /// The number of linear layers from the embedding to a row of the language model.
    pub aligner_depth: i64,
    /// The width between the two layers of the head.
    pub head_size: i64,
}

impl JanusConfig {
    /// Parses the contents of a `config.json`. `shape` returns the shape of a weight by its transformers name, if it exists.
    pub fn read(json: &Value, file: &str, shape: &dyn Fn(&str) -> Option<Vec<i64>>) -> Result<Self> {
        let root = Section { path: format!("`{file}`"), json };
        let config = match root.text("model_type")? {
            Some("multi_modality") => Self::of_original(&root, shape)?,
            Some("janus") => Self::of_transformers(&root, shape)?,
            got => {
                let got = got.map_or("none".into(), |got| format!("`{got}`"));
                return Err(Error::failure(format!(
                    "`{file}`: `model_type`: expected `multi_modality` or `janus`, got {got}"
                ))
                .hint(PUBLISHED));
            }
        };
        config.check(file)?;
        Ok(config)
    }

    fn of_original(root: &Section, shape: &dyn Fn(&str) -> Option<Vec<i64>>) -> Result<Self> {
        let flow = ["vision_und_enc_config", "vision_gen_enc_config", "vision_gen_dec_config"];
        if let Some(key) = flow.into_iter().find(|key| root.get(key).is_some()) {
            return Err(root.wrong_model("JanusFlow, which has no image tokens", &format!("it has `{key}`")));
        }
        let generation = ["gen_vision_config", "gen_aligner_config", "gen_head_config"];
        if let Some(key) = generation.into_iter().find(|key| root.get(key).is_none()) {
            return Err(
                root.wrong_model("DeepSeek-VL, which does not generate images", &format!("no `{key}`"))
            );
        }
        let params = |name: &str| root.section(name)?.section("params");
        let language = LlamaConfig::read(&root.section("language_config")?)?;

        let vision_json = params("vision_config")?;
        let size = sizes_of(shape);
        let default = SiglipConfig::default();
        vision_json.only("select_feature", &json!("same"))?;
        // `model_name` determines the sizes of published encoders; test fixtures override them.
        let overrides = Section {
            path: format!("{}: `_fixture_overrides.vision`", root.path),
            json: &root.json["_fixture_overrides"]["vision"],
        };
        if overrides.json.is_null() {
            vision_json.only("model_name", &json!("siglip_large_patch16_384"))?;
        }
        let select = vision_json.size("select_layer")?.unwrap_or(-1);
        let stored_layers =
            count(|i| shape(&format!("model.vision_model.encoder.layers.{i}.layer_norm1.weight")).is_some());
        let layers = match (overrides.size("layers")?, stored_layers) {
            (None, 1..) => stored_layers, // the weights of unused layers are missing
            (depth, _) => SiglipConfig::selected(depth.unwrap_or(default.num_hidden_layers), select),
        };
        let width = overrides
            .size("width")?
            .or(size("model.vision_model.embeddings.patch_embedding.bias", 0))
            .unwrap_or(default.hidden_size);
        let inner = overrides
            .number("mlp_ratio")?
            .map(|ratio| (width as f64 * ratio) as i64)
            .or(size("model.vision_model.encoder.layers.0.mlp.fc1.bias", 0))
            .unwrap_or(default.intermediate_size);
        let patch = overrides
            .size("patch")?
            .or(size("model.vision_model.embeddings.patch_embedding.weight", 2))
            .unwrap_or(default.patch_size);
        let vision = SiglipConfig {
            hidden_size: width,
            intermediate_size: inner,
            num_hidden_layers: layers,
            num_attention_heads: overrides.size("heads")?.unwrap_or(default.num_attention_heads),
            image_size: vision_json.size("image_size")?.unwrap_or(default.image_size),
            patch_size: patch,
            normalisation: match (vision_json.channels("pixel_mean")?, vision_json.channels("pixel_std")?) {
                (Some(mean), Some(std)) => Some([mean, std]),
                _ => None,
            },
            ..default
        };

        let (aligner, gen_aligner) = (params("aligner_config")?, params("gen_aligner_config")?);
        let (codes, head) = (params("gen_vision_config")?, params("gen_head_config")?);
        for aligner in [&aligner, &gen_aligner] {
            aligner.only("projector_type", &json!("mlp_gelu"))?;
            aligner.only("n_embed", &json!(language.hidden_size))?;
        }
        let config = Self {
            aligner_depth: depth(&aligner, "depth", "model.aligner", shape)?,
            generation: GenerationConfig {
                codebook_size: codes
                    .size("image_token_size")?
                    .or(size("model.generation_embeddings.weight", 0))
                    .unwrap_or(16_384),
                embed_dim: codes
                    .size("n_embed")?
                    .or(size("model.generation_embeddings.weight", 1))
                    .unwrap_or(8),
                aligner_depth: depth(&gen_aligner, "depth", "model.generation_aligner", shape)?,
                head_size: head
                    .size("image_token_embed")?
                    .or(size("model.generation_head.proj_out.bias", 0))
                    .unwrap_or(language.hidden_size),
            },
            vq: VqConfig::of(shape),
            language,
            vision,
        };
        aligner.only("input_dim", &json!(config.vision.hidden_size))?;
        gen_aligner.only("input_dim", &json!(config.generation.embed_dim))?;
        head.only("n_embed", &json!(config.language.hidden_size))?;
        head.only("image_token_size", &json!(config.generation.codebook_size))?;
        Ok(config)
    }

    fn of_transformers(root: &Section, shape: &dyn Fn(&str) -> Option<Vec<i64>>) -> Result<Self> {
        let language = LlamaConfig::read(&root.section("text_config")?)?;
        let (vision_json, codes) = (root.section("vision_config")?, root.section("vq_config")?);
        let default = SiglipConfig::default();
        vision_json.only("hidden_act", &json!("gelu"))?;
        vision_json.only("attention_bias", &json!(true))?;
        vision_json.only("use_qk_norm", &json!(false))?;
        vision_json.only("num_channels", &json!(3))?;
        codes.only("hidden_act", &json!("gelu"))?;
        let width = vision_json.size("hidden_size")?.unwrap_or(default.hidden_size);
        let vision = SiglipConfig {
            hidden_size: width,
            intermediate_size: (width as f64 * vision_json.number("mlp_ratio")?.unwrap_or(4.0)) as i64,
            num_hidden_layers: vision_json.size("num_hidden_layers")?.unwrap_or(default.num_hidden_layers),
            num_attention_heads: vision_json
                .size("num_attention_heads")?
                .unwrap_or(default.num_attention_heads),
            image_size: vision_json.size("image_size")?.unwrap_or(default.image_size),
            patch_size: vision_json.size("patch_size")?.unwrap_or(default.patch_size),
            layer_norm_eps: vision_json.number("layer_norm_eps")?.unwrap_or(default.layer_norm_eps),
            normalisation: None,
        };
        vision_json.only("projection_dim", &json!(language.hidden_size))?;
        vision_json.only("num_image_tokens", &json!(vision.patches()))?;
        // Despite their names, both are the width of the language model, as in the original.
        codes.only("image_token_embed_dim", &json!(language.hidden_size))?;
        codes.only("projection_dim", &json!(language.hidden_size))?;
        Ok(Self {
            aligner_depth: depth(&vision_json, "depth", "model.aligner", shape)?,
            generation: GenerationConfig {
                codebook_size: codes.size("num_embeddings")?.unwrap_or(16_384),
                embed_dim: codes.size("embed_dim")?.unwrap_or(8),
                aligner_depth: depth(&codes, "num_hidden_layers", "model.generation_aligner", shape)?,
                head_size: language.hidden_size,
            },
            vq: VqConfig::of(shape).with_groups(codes.size("norm_groups")?),
            language,
            vision,
        })
    }

    /// The contents of a `config.json` in transformers' form; `image_token` is the id of `<image_placeholder>`.
    pub fn to_json(&self, image_token: i64) -> Value {
        let Self { language, vision, generation, vq, .. } = self;
        let mut json = json!({
            "architectures": ["JanusForConditionalGeneration"],
            "model_type": "janus",
            "tie_word_embeddings": false,
            "image_token_id": image_token,
            "text_config": {
                "model_type": "llama",
                "vocab_size": language.vocab_size,
                "hidden_size": language.hidden_size,
                "intermediate_size": language.intermediate_size,
                "num_hidden_layers": language.num_hidden_layers,
                "num_attention_heads": language.num_attention_heads,
                "num_key_value_heads": language.num_key_value_heads,
                "head_dim": language.head_dim,
                "max_position_embeddings": language.max_position_embeddings,
                "rms_norm_eps": language.rms_norm_eps,
                "rope_theta": language.rope_theta,
                "tie_word_embeddings": false,
            },
            "vision_config": {
                "model_type": "janus_vision_model",
                "hidden_size": vision.hidden_size,
                "num_hidden_layers": vision.num_hidden_layers,
                "num_attention_heads": vision.num_attention_heads,
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
                "mlp_ratio": vision.intermediate_size as f64 / vision.hidden_size as f64,
                "layer_norm_eps": vision.layer_norm_eps,
                "projection_dim": language.hidden_size,
                "depth": self.aligner_depth,
                "num_image_tokens": vision.patches(),
            },
        });
        let mut codes = json!(vq);
        codes["model_type"] = json!("janus_vqgan");
        codes["num_patches"] = json!(vision.image_size / vision.patch_size);
        codes["projection_dim"] = json!(language.hidden_size);
        codes["image_token_embed_dim"] = json!(language.hidden_size);
        codes["num_hidden_layers"] = json!(generation.aligner_depth);
        json["vq_config"] = codes;
        json
    }

    /// `N`, the number of image tokens: as many as patches.
    pub fn image_tokens(&self) -> i64 {
        self.vision.patches()
    }

    /// Errors if the sizes are inconsistent; `file` names the source.
    pub fn check(&self, file: &str) -> Result<()> {
        let (language, vision, generation) = (&self.language, &self.vision, &self.generation);
        check_positive(
            file,
            [
                ("vocab_size", language.vocab_size),
                ("hidden_size", language.hidden_size),
                ("intermediate_size", language.intermediate_size),
                ("num_hidden_layers", language.num_hidden_layers),
                ("num_attention_heads", language.num_attention_heads),
                ("num_key_value_heads", language.num_key_value_heads),
                ("head_dim", language.head_dim),
                ("max_position_embeddings", language.max_position_embeddings),
                ("vision: width", vision.hidden_size),
                ("vision: feed-forward width", vision.intermediate_size),
                ("vision: layers", vision.num_hidden_layers),
                ("vision: heads", vision.num_attention_heads),
                ("vision: image_size", vision.image_size),
                ("vision: patch size", vision.patch_size),
                ("aligner: depth", self.aligner_depth),
                ("generation: codes", generation.codebook_size),
                ("generation: width of a code", generation.embed_dim),
                ("generation: depth of the aligner", generation.aligner_depth),
                ("generation: width of the head", generation.head_size),
            ],
        )?;
        for (size, of) in [
            (
                ("num_attention_heads", language.num_attention_heads),
                (language.num_key_value_heads, "key and value heads"),
            ),
            (("head_dim", language.head_dim), (2, "halves")),
            (("vision: width", vision.hidden_size), (vision.num_attention_heads, "heads")),
            (("vision: image_size", vision.image_size), (vision.patch_size, "pixels, the edge of a patch")),
        ] {
            check_multiple(file, size, of)?;
        }
        self.vq.check().map_err(|error| error.context(format!("cannot use `{file}`")))?;
        for (name, expected, got) in [
            ("codebook size of the image tokenizer", generation.codebook_size, self.vq.num_embeddings),
            ("downsampling factor of the image tokenizer", vision.patch_size, self.vq.factor()),
        ] {
            if got != expected {
                return Err(Error::failure(format!("`{file}`: {name}: expected {expected}, got {got}")));
            }
        }
        Ok(())
    }
}

impl LlamaConfig {
    fn read(section: &Section) -> Result<Self> {
        section.only("model_type", &json!("llama"))?;
        section.only("hidden_act", &json!("silu"))?;
        section.only("attention_bias", &json!(false))?;
        section.only("mlp_bias", &json!(false))?;
        // Scaled frequencies are in `rope_scaling` or, with the base, in `rope_parameters`.
        let empty = Value::Null;
        let inner = |key: &str| Section {
            path: format!("{}: `{key}`", section.path),
            json: section.get(key).unwrap_or(&empty),
        };
        let rope = inner("rope_parameters");
        for rope in [&inner("rope_scaling"), &rope] {
            for key in ["rope_type", "type"] {
                rope.only(key, &json!("default"))
                    .map_err(|error| error.hint("scaled rotary positions are not supported"))?;
            }
        }
        let default = Self::default();
        let size = |key: &str, default: i64| Ok::<_, Error>(section.size(key)?.unwrap_or(default));
        let hidden_size = size("hidden_size", default.hidden_size)?;
        let heads = size("num_attention_heads", default.num_attention_heads)?;
        Ok(Self {
            vocab_size: size("vocab_size", default.vocab_size)?,
            hidden_size,
            intermediate_size: size("intermediate_size", default.intermediate_size)?,
            num_hidden_layers: size("num_hidden_layers", default.num_hidden_layers)?,
            num_attention_heads: heads,
            num_key_value_heads: size("num_key_value_heads", heads)?,
            head_dim: size("head_dim", hidden_size / heads.max(1))?,
            max_position_embeddings: size("max_position_embeddings", default.max_position_embeddings)?,
            rms_norm_eps: section.number("rms_norm_eps")?.unwrap_or(default.rms_norm_eps),
            rope_theta: match section.number("rope_theta")? {
                Some(theta) => theta,
                None => rope.number("rope_theta")?.unwrap_or(default.rope_theta),
            },
        })
    }
}

/// Looks up one dimension of a weight, if it exists.
fn sizes_of(shape: &dyn Fn(&str) -> Option<Vec<i64>>) -> impl Fn(&str, usize) -> Option<i64> {
    move |name, at| shape(name)?.get(at).copied()
}

/// The number of consecutive indices from 0 on that exist.
fn count(exists: impl Fn(i64) -> bool) -> i64 {
    (0..i64::MAX).take_while(|index| exists(*index)).count() as i64
}

/// The number of linear layers of a projector: the value of `key`, else as many as have weights, else 2.
fn depth(section: &Section, key: &str, name: &str, shape: &dyn Fn(&str) -> Option<Vec<i64>>) -> Result<i64> {
    if let Some(depth) = section.size(key)? {
        return Ok(depth);
    }
    let exists = |weight: String| shape(&format!("{name}.{weight}")).is_some();
    let hidden = count(|i| exists(format!("hidden_layers.{i}.bias")));
    Ok(if exists("fc1.bias".into()) { 1 + hidden } else { 2 })
}

/// An object of the file and its path in error messages. A null value counts as absent.
struct Section<'a> {
    path: String,
    json: &'a Value,
}

impl<'a> Section<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    fn section(&self, key: &str) -> Result<Section<'a>> {
        let path = format!("{}: `{key}`", self.path);
        match self.get(key) {
            Some(json) if json.is_object() => Ok(Section { path, json }),
            Some(other) => Err(Error::failure(format!("{path}: expected an object, got {other}"))),
            None => Err(Error::failure(format!("{path}: expected an object, got none"))),
        }
    }

    fn read<T>(&self, key: &str, what: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        self.get(key)
            .map(|value| {
                read(value).ok_or_else(|| {
                    Error::failure(format!("{}: `{key}`: expected {what}, got {value}", self.path))
                })
            })
            .transpose()
    }

    fn size(&self, key: &str) -> Result<Option<i64>> {
        let size = self.read(key, "a whole number", Value::as_i64)?;
        // The value determines how much memory is allocated before any weight is compared.
        let max = if key.ends_with("layers") || key == "depth" { MAX_LAYERS } else { MAX_SIZE };
        match size {
            Some(size) if size > max => {
                Err(Error::failure(format!("{}: `{key}`: expected at most {max}, got {size}", self.path)))
            }
            size => Ok(size),
        }
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.read(key, "a number", Value::as_f64)
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.read(key, "a string", Value::as_str)
    }

    fn channels(&self, key: &str) -> Result<Option<[f64; 3]>> {
        self.read(key, "three numbers", |value| {
            let numbers: Option<Vec<f64>> = value.as_array()?.iter().map(Value::as_f64).collect();
            numbers?.try_into().ok()
        })
    }

    /// Errors if the value is present and differs from `expected`.
    fn only(&self, key: &str, expected: &Value) -> Result<()> {
        match self.get(key) {
            Some(got) if got != expected => {
                Err(Error::failure(format!("{}: `{key}`: expected {expected}, got {got}", self.path)))
            }
            _ => Ok(()),
        }
    }

    fn wrong_model(&self, model: &str, cause: &str) -> Error {
        Error::failure(format!("{}: this is {model}", self.path)).cause(cause).hint(PUBLISHED)
    }
}
