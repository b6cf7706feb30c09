//! The messages of the ABI: a function that writes and one that reads each message.
//!
//! A new option is a new JSON key with a default for the reader. `serde_json` writes NaN and infinities as `null`; therefore no
//! message contains `null`, and writing one is an error.

use std::collections::BTreeMap;
use std::path::Path;

use abi_stable::std_types::Tuple2;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use tch::{Device, Tensor};

use super::component::FfiRecord;
use crate::detector::Detection;
use crate::error::{Code, Context, Error, Result};
use crate::model::{
    Answers, Checkpoint, Footprint, ImageLogits, ImageSampling, Images, Masking, Mode, ModelCard,
    ModelSource, Parameter, ParameterGroup, Policy, TextSampling, TokenLogp, Workload,
};
use crate::reward::{Reward, Sample};

/// An unpacked message.
#[derive(Debug, Default)]
pub struct Message {
    /// Serialized JSON values by key.
    json: Vec<(String, Box<RawValue>)>,
    tensors: Vec<(String, Tensor)>,
}

impl Message {
    pub fn with(mut self, key: &str, value: &(impl Serialize + ?Sized)) -> Result<Self> {
        let place = || format!("cannot write `{key}` as JSON");
        let json = serde_json::value::to_raw_value(value).context(place)?;
        // Parse only if the text may contain a `null`.
        if json.get().contains("null") {
            let value: Value = serde_json::from_str(json.get()).context(place)?;
            if let Some(place) = find_null(&value) {
                let message = format!("`{key}{place}`: expected a finite number, got NaN or infinity");
                return Err(Error::new(Code::NonFinite, message));
            }
        }
        self.json.push((key.into(), json));
        Ok(self)
    }

    fn tensor(mut self, key: &str, tensor: &Tensor) -> Self {
        self.tensors.push((key.into(), tensor.shallow_clone()));
        self
    }

    fn images(self, images: &Images) -> Self {
        let mut message = self.tensor("images.tokens", &images.tokens);
        for (key, tensor) in [
            ("images.relaxed", &images.relaxed),
            ("images.revealed_at", &images.revealed_at),
            ("images.pixels", &images.pixels),
            ("images.logp", &images.logp),
        ] {
            if let Some(tensor) = tensor {
                message = message.tensor(key, tensor);
            }
        }
        message
    }

    fn answers(self, answers: &Answers) -> Result<Self> {
        let message = self.with("text", &answers.text)?;
        let message = message.tensor("answers.tokens", &answers.tokens).tensor("answers.mask", &answers.mask);
        Ok(match &answers.logp {
            Some(logp) => message.tensor("answers.logp", logp),
            None => message,
        })
    }

    pub fn get<T: DeserializeOwned>(&mut self, key: &str) -> Result<T> {
        let found = self.json.iter().position(|(known, _)| known == key);
        let found = found.ok_or_else(|| Error::failure(format!("`{key}` is missing")))?;
        let (_, json) = self.json.swap_remove(found);
        serde_json::from_str(json.get()).context(|| format!("cannot read `{key}`"))
    }

    /// Returns the JSON as one object.
    fn text(&self) -> String {
        let length: usize = self.json.iter().map(|(key, json)| key.len() + json.get().len() + 4).sum();
        let mut text = String::with_capacity(length + 2);
        for (key, json) in &self.json {
            text.push(if text.is_empty() { '{' } else { ',' });
            text.push_str(&Value::from(key.as_str()).to_string());
            text.push(':');
            text.push_str(json.get());
        }
        text.push_str(if text.is_empty() { "{}" } else { "}" });
        text
    }

    fn take_optional(&mut self, key: &str) -> Option<Tensor> {
        let index = self.tensors.iter().position(|(name, _)| name == key)?;
        Some(self.tensors.swap_remove(index).1)
    }

    fn take(&mut self, key: &str) -> Result<Tensor> {
        self.take_optional(key).ok_or_else(|| Error::failure(format!("tensor `{key}` is missing")))
    }

    fn take_images(&mut self) -> Result<Images> {
        Ok(Images {
            tokens: self.take("images.tokens")?,
            relaxed: self.take_optional("images.relaxed"),
            revealed_at: self.take_optional("images.revealed_at"),
            pixels: self.take_optional("images.pixels"),
            logp: self.take_optional("images.logp"),
        })
    }

    fn take_answers(&mut self) -> Result<Answers> {
        let text = self.get("text")?;
        Ok(Answers {
            text,
            tokens: self.take("answers.tokens")?,
            mask: self.take("answers.mask")?,
            logp: self.take_optional("answers.logp"),
        })
    }

    pub fn pack(self) -> FfiRecord {
        let json = self.text();
        let tensors = self.tensors.into_iter().map(|(name, tensor)| Tuple2(name.into(), tensor.into()));
        FfiRecord { json: json.into(), tensors: tensors.collect() }
    }

    pub fn unpack(record: FfiRecord) -> Result<Self> {
        let json: BTreeMap<String, Box<RawValue>> =
            serde_json::from_str(&record.json).context(|| "the message is not a JSON object")?;
        let mut tensors = Vec::with_capacity(record.tensors.len());
        for Tuple2(name, handle) in record.tensors {
            let tensor = Tensor::from(handle);
            if !tensor.defined() {
                return Err(Error::failure(format!("tensor `{name}` is undefined")));
            }
            tensors.push((name.into(), tensor));
        }
        Ok(Self { json: json.into_iter().collect(), tensors })
    }
}

/// Returns the path of the first `null`.
fn find_null(value: &Value) -> Option<String> {
    match value {
        Value::Null => Some(String::new()),
        Value::Array(list) => {
            list.iter().enumerate().find_map(|(i, v)| Some(format!("[{i}]{}", find_null(v)?)))
        }
        Value::Object(map) => map.iter().find_map(|(key, v)| Some(format!(".{key}{}", find_null(v)?))),
        _ => None,
    }
}

/// The names of the operations.
pub mod op {
    pub const CARD: &str = "card";
    pub const PARAMETERS: &str = "parameters";
    pub const SET_MODE: &str = "set_mode";
    pub const FREEZE_REFERENCE: &str = "freeze_reference";
    pub const GENERATE: &str = "generate";
    pub const ANSWER: &str = "answer";
    pub const ENCODE_ANSWERS: &str = "encode_answers";
    pub const IMAGE_LOGITS: &str = "image_logits";
    pub const IMAGE_LOGP: &str = "image_logp";
    pub const ANSWER_LOGP: &str = "answer_logp";
    pub const PIXELS: &str = "pixels";
    pub const ENCODE: &str = "encode";
    pub const TOKENIZER_LOSS: &str = "tokenizer_loss";
    pub const SAVE: &str = "save";
    pub const FOOTPRINT: &str = "footprint";
    pub const WANTS_PIXELS: &str = "wants_pixels";
    pub const SCORE: &str = "score";
    pub const DETECT: &str = "detect";
}

// ---- requests ----

pub fn set_mode(mode: Mode) -> Result<Message> {
    Message::default().with("mode", &mode)
}

pub fn read_set_mode(mut message: Message) -> Result<Mode> {
    message.get("mode")
}

pub fn generate(prompts: &[String], sampling: &ImageSampling) -> Result<Message> {
    Message::default().with("prompts", prompts)?.with("sampling", sampling)
}

pub fn read_generate(mut message: Message) -> Result<(Vec<String>, ImageSampling)> {
    Ok((message.get("prompts")?, message.get("sampling")?))
}

pub fn answer(images: &Images, questions: &[String], sampling: &TextSampling) -> Result<Message> {
    Ok(Message::default().with("questions", questions)?.with("sampling", sampling)?.images(images))
}

pub fn read_answer(mut message: Message) -> Result<(Images, Vec<String>, TextSampling)> {
    Ok((message.take_images()?, message.get("questions")?, message.get("sampling")?))
}

pub fn encode_answers(texts: &[String]) -> Result<Message> {
    Message::default().with("texts", texts)
}

pub fn read_encode_answers(mut message: Message) -> Result<Vec<String>> {
    message.get("texts")
}

pub fn image_logits(
    prompts: &[String],
    images: &Images,
    policy: Policy,
    replay: &Masking,
) -> Result<Message> {
    let message =
        Message::default().with("prompts", prompts)?.with("policy", &policy)?.with("replay", replay)?;
    Ok(message.images(images))
}

pub fn read_image_logits(mut message: Message) -> Result<(Vec<String>, Images, Policy, Masking)> {
    Ok((message.get("prompts")?, message.take_images()?, message.get("policy")?, message.get("replay")?))
}

pub fn answer_logp(
    images: &Images,
    questions: &[String],
    answers: &Answers,
    policy: Policy,
) -> Result<Message> {
    let message = Message::default().with("questions", questions)?.with("policy", &policy)?;
    message.images(images).answers(answers)
}

pub fn read_answer_logp(mut message: Message) -> Result<(Images, Vec<String>, Answers, Policy)> {
    Ok((message.take_images()?, message.get("questions")?, message.take_answers()?, message.get("policy")?))
}

pub fn save(dir: &Path) -> Result<Message> {
    Message::default().with("dir", utf8(dir)?)
}

pub fn read_save(mut message: Message) -> Result<String> {
    message.get("dir")
}

pub fn score(samples: &[Sample], pixels: Option<&Tensor>) -> Result<Message> {
    let message = Message::default().with("samples", samples)?;
    Ok(match pixels {
        Some(pixels) => message.tensor("pixels", pixels),
        None => message,
    })
}

pub fn read_score(mut message: Message) -> Result<(Vec<Sample>, Option<Tensor>)> {
    Ok((message.get("samples")?, message.take_optional("pixels")))
}

pub fn detect(pixels: &Tensor, classes: &[String], colors: &[String]) -> Result<Message> {
    Ok(Message::default().with("classes", classes)?.with("colors", colors)?.tensor("pixels", pixels))
}

pub fn read_detect(mut message: Message) -> Result<(Tensor, Vec<String>, Vec<String>)> {
    Ok((message.take("pixels")?, message.get("classes")?, message.get("colors")?))
}

// ---- requests and replies ----

pub fn images(images: &Images) -> Message {
    Message::default().images(images)
}

pub fn read_images(mut message: Message) -> Result<Images> {
    message.take_images()
}

pub fn pixels(pixels: &Tensor) -> Message {
    Message::default().tensor("pixels", pixels)
}

pub fn read_pixels(mut message: Message) -> Result<Tensor> {
    message.take("pixels")
}

pub fn tokenizer_loss(pixels: &Tensor, progress: f64) -> Result<Message> {
    Message::default().tensor("pixels", pixels).with("progress", &progress)
}

pub fn read_tokenizer_loss(mut message: Message) -> Result<(Tensor, f64)> {
    Ok((message.take("pixels")?, message.get("progress")?))
}

pub fn footprint(workload: &Workload) -> Result<Message> {
    Message::default().with("workload", workload)
}

pub fn read_footprint(mut message: Message) -> Result<Workload> {
    message.get("workload")
}

// ---- replies ----

pub fn memory(footprint: &Footprint) -> Result<Message> {
    Message::default().with("footprint", footprint)
}

pub fn read_memory(mut message: Message) -> Result<Footprint> {
    message.get("footprint")
}

pub fn card(card: &ModelCard) -> Result<Message> {
    Message::default().with("card", card)
}

pub fn read_card(mut message: Message) -> Result<ModelCard> {
    message.get("card")
}

#[derive(Serialize, Deserialize)]
struct ParameterName {
    name: String,
    group: ParameterGroup,
}

pub fn parameters(parameters: &[Parameter]) -> Result<Message> {
    let name = |p: &Parameter| ParameterName { name: p.name.clone(), group: p.group };
    let message = Message::default().with("parameters", &parameters.iter().map(name).collect::<Vec<_>>())?;
    Ok(parameters.iter().fold(message, |message, p| message.tensor(&p.name, &p.tensor)))
}

pub fn read_parameters(mut message: Message) -> Result<Vec<Parameter>> {
    let names: Vec<ParameterName> = message.get("parameters")?;
    if names.len() != message.tensors.len() {
        let (names, tensors) = (names.len(), message.tensors.len());
        return Err(Error::failure(format!("`parameters`: expected {names} tensors, got {tensors}")));
    }
    // By position instead of name, because a model has thousands.
    let pairs = names.into_iter().zip(message.tensors);
    Ok(pairs.map(|(p, (_, tensor))| Parameter { name: p.name, tensor, group: p.group }).collect())
}

pub fn answers(answers: &Answers) -> Result<Message> {
    Message::default().answers(answers)
}

pub fn read_answers(mut message: Message) -> Result<Answers> {
    message.take_answers()
}

pub fn logits(logits: &ImageLogits) -> Message {
    Message::default().tensor("logits", &logits.logits).tensor("targets", &logits.targets)
}

pub fn read_logits(mut message: Message) -> Result<ImageLogits> {
    Ok(ImageLogits { logits: message.take("logits")?, targets: message.take("targets")? })
}

pub fn logp(logp: &TokenLogp) -> Message {
    Message::default().tensor("logp", &logp.logp).tensor("mask", &logp.mask)
}

pub fn read_logp(mut message: Message) -> Result<TokenLogp> {
    Ok(TokenLogp { logp: message.take("logp")?, mask: message.take("mask")? })
}

pub fn loss(loss: &Tensor) -> Message {
    Message::default().tensor("loss", loss)
}

pub fn read_loss(mut message: Message) -> Result<Tensor> {
    message.take("loss")
}

pub fn wants_pixels(wants: bool) -> Result<Message> {
    Message::default().with("wants_pixels", &wants)
}

pub fn read_wants_pixels(mut message: Message) -> Result<bool> {
    message.get("wants_pixels")
}

pub fn rewards(rewards: &[Reward]) -> Result<Message> {
    Message::default().with("rewards", rewards)
}

pub fn read_rewards(mut message: Message) -> Result<Vec<Reward>> {
    message.get("rewards")
}

pub fn detections(images: &[Vec<Detection>]) -> Result<Message> {
    Message::default().with("detections", images)
}

pub fn read_detections(mut message: Message) -> Result<Vec<Vec<Detection>>> {
    message.get("detections")
}

// ---- construction ----

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WireCheckpoint {
    Builtin,
    Fresh,
    Folder(String),
}

#[derive(Serialize, Deserialize)]
struct WireSource {
    checkpoint: WireCheckpoint,
    device: String,
    seed: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    dry: bool,
}

/// Writes the argument of `make`. The configuration is JSON of the user, in which `null` is an absent option.
pub fn make(config: &Value, source: Option<&ModelSource>) -> Result<String> {
    let config = serde_json::value::to_raw_value(&config).context(|| "the configuration")?;
    let mut message = Message { json: vec![("config".into(), config)], tensors: Vec::new() };
    if let Some(source) = source {
        let checkpoint = match &source.checkpoint {
            Checkpoint::Builtin => WireCheckpoint::Builtin,
            Checkpoint::Fresh => WireCheckpoint::Fresh,
            Checkpoint::Folder(dir) => WireCheckpoint::Folder(utf8(dir)?.into()),
        };
        let device = match source.device {
            Device::Cpu => "cpu".into(),
            Device::Cuda(index) => format!("cuda:{index}"),
            other => return Err(Error::usage(format!("device {other:?} is not supported"))),
        };
        message =
            message.with("source", &WireSource { checkpoint, device, seed: source.seed, dry: source.dry })?;
    }
    Ok(message.text())
}

/// Reads the argument of `make`: the configuration and, for a model, its source.
pub fn read_make(json: &str) -> Result<(Value, Option<ModelSource>)> {
    let mut json: Map<String, Value> =
        serde_json::from_str(json).context(|| "the argument of `make` is not a JSON object")?;
    let config = json.remove("config").unwrap_or_default();
    let Some(source) = json.remove("source") else { return Ok((config, None)) };
    let source: WireSource = serde_json::from_value(source).context(|| "cannot read `source`")?;
    let checkpoint = match source.checkpoint {
        WireCheckpoint::Builtin => Checkpoint::Builtin,
        WireCheckpoint::Fresh => Checkpoint::Fresh,
        WireCheckpoint::Folder(dir) => Checkpoint::Folder(dir.into()),
    };
    let device = match source.device.strip_prefix("cuda:").map(str::parse) {
        Some(Ok(index)) => Device::Cuda(index),
        None if source.device == "cpu" => Device::Cpu,
        _ => return Err(Error::failure(format!("unknown device `{}`", source.device))),
    };
    Ok((config, Some(ModelSource { checkpoint, device, seed: source.seed, dry: source.dry })))
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| Error::usage(format!("path `{}` is not valid UTF-8", path.display())))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt::Write;

    use tch::Kind;

    use super::*;
    use crate::model::{ImageDecoding, ImageSpace, Scoring};
    use crate::prompt::{Category, Object, PromptSpec};

    const GOLDEN: &str = include_str!("wire.golden.txt");

    fn sample() -> Sample {
        let object = Object { noun: "cat".into(), count: 2, color: None };
        Sample {
            spec: PromptSpec { category: Category::Counting, objects: vec![object], relation: None },
            prompt: "two cats".into(),
            question: "how many?".into(),
            reference_answer: "two".into(),
            answer: "2".into(),
        }
    }

    #[test]
    fn messages_match_the_golden_file() -> Result<()> {
        let tokens = || Tensor::zeros([1, 2], (Kind::Int64, Device::Cpu));
        let some =
            Images { relaxed: Some(tokens()), revealed_at: Some(tokens()), ..Images::from_tokens(tokens()) };
        let bare = Images::from_tokens(tokens());
        let reply = Answers::new(vec!["two".into()], tokens(), tokens());
        let texts = ["a \"cat\"".to_owned()];
        let part = Some(crate::model::BatchSlice { first: 2, of: 4 });
        let workload = Workload {
            images: ImageSampling { part, ..ImageSampling::default() },
            answers: TextSampling { part, ..TextSampling::default() },
            states: 1,
        };
        let the_card = ModelCard {
            name: "echo".into(),
            image_space: ImageSpace::Shared,
            image_decoding: ImageDecoding::Masked,
            image_tokens: 2,
            codebook_size: 3,
            resolution: 4,
            input_resolution: None,
            pad_value: None,
            benchmark: None,
            sampling: ImageSampling::default(),
        };
        let leaf = Parameter { name: "w".into(), tensor: tokens(), group: ParameterGroup::Shared };
        let reward = Reward { parts: BTreeMap::from([("noun".into(), 1.0)]), ..Reward::new(0.1 + 0.2, 1.0) };
        let explained = Reward { why: "has `cat`".into(), ..reward.clone() };
        let plain =
            Detection { class: "cat".into(), score: 0.97, bounds: [0.0, 1.5, 20.0, 30.0], color: None };
        let colored = Detection { color: Some("red".into()), ..plain.clone() };
        let seeded = ImageSampling { seed: u64::MAX, ..ImageSampling::default() };
        let reveal = Masking::Reveal { steps: vec![0, 3], scoring: Scoring::GuidedDetached, guidance: 1.5 };
        let messages = [
            ("> set_mode", set_mode(Mode::Train)?),
            ("> generate", generate(&texts, &seeded)?),
            ("> answer", answer(&some, &texts, &TextSampling::default())?),
            ("> encode_answers", encode_answers(&texts)?),
            ("> image_logits", image_logits(&texts, &bare, Policy::Current, &Masking::remask(1, None))?),
            ("> image_logits", image_logits(&texts, &some, Policy::Reference, &reveal)?),
            ("> image_logits", image_logits(&texts, &bare, Policy::Current, &Masking::Pretrain { seed: 2 })?),
            ("> answer_logp", answer_logp(&some, &texts, &reply, Policy::Current)?),
            ("> pixels", images(&bare)),
            ("> encode", pixels(&tokens())),
            ("> tokenizer_loss", tokenizer_loss(&tokens(), 0.25)?),
            ("> footprint", footprint(&workload)?),
            ("> save", save(Path::new("out/dir"))?),
            ("> score", score(&[sample()], None)?),
            ("> score", score(&[sample()], Some(&tokens()))?),
            ("> detect", detect(&tokens(), &texts, &["red".to_owned()])?),
            ("< card", card(&the_card)?),
            ("< parameters", parameters(&[leaf])?),
            ("< generate", images(&some)),
            ("< answer", answers(&reply)?),
            ("< image_logits", logits(&ImageLogits { logits: tokens(), targets: tokens() })),
            ("< answer_logp", logp(&TokenLogp { logp: tokens(), mask: tokens() })),
            ("< pixels", pixels(&tokens())),
            ("< tokenizer_loss", loss(&tokens())),
            ("< footprint", memory(&Footprint::default())?),
            ("< wants_pixels", wants_pixels(true)?),
            ("< score", rewards(&[reward])?),
            ("< score", rewards(&[explained, Reward::abstain("")])?),
            ("< detect", detections(&[vec![plain, colored], Vec::new()])?),
        ];
        let mut text = String::new();
        for (title, message) in messages {
            let record = message.pack();
            let names: Vec<&str> = record.tensors.iter().map(|Tuple2(name, _)| name.as_str()).collect();
            writeln!(text, "{title} {} {names:?}", record.json).expect("writing to a String cannot fail");
        }
        let folder = Checkpoint::Folder("w".into());
        let source = ModelSource { checkpoint: folder, device: Device::Cuda(1), seed: 3, dry: false };
        let made = make(&serde_json::json!({"width": 8}), Some(&source))?;
        writeln!(text, "> make {made}").expect("writing to a String cannot fail");
        assert_eq!(text, GOLDEN, "the wire format changed, which breaks existing plugins");
        assert_eq!(read_make(&made)?.1, Some(source));
        Ok(())
    }

    /// A received message with the given JSON and tensors.
    fn message(json: &str, tensors: &[&str]) -> Message {
        let tensor =
            |name: &&str| Tuple2((*name).into(), Tensor::zeros([1, 2], (Kind::Int64, Device::Cpu)).into());
        let record = FfiRecord { json: json.into(), tensors: tensors.iter().map(tensor).collect() };
        Message::unpack(record).expect("an object")
    }

    type Read = fn(Message) -> Result<()>;

    /// Every message with only the keys and tensors of the first release, and its reader. Later additions are optional.
    const FIRST: [(&str, &[&str], Read); 22] = [
        (r#"{"mode":"train"}"#, &[], |m| read_set_mode(m).map(drop)),
        (
            r#"{"prompts":["a"],"sampling":{"guidance":2.0,"steps":16,"temperature":1.0,"seed":7}}"#,
            &[],
            |m| read_generate(m).map(drop),
        ),
        (
            r#"{"questions":["a"],"sampling":{"temperature":0.0,"max_tokens":32,"seed":7}}"#,
            &["images.tokens"],
            |m| read_answer(m).map(drop),
        ),
        (r#"{"texts":["a"]}"#, &[], |m| read_encode_answers(m).map(drop)),
        (r#"{"prompts":["a"],"policy":"current","replay":{"remask":{"seed":1}}}"#, &["images.tokens"], |m| {
            read_image_logits(m).map(drop)
        }),
        (
            r#"{"prompts":["a"],"policy":"reference","replay":{"reveal":{"steps":[0],"guidance":1.5}}}"#,
            &["images.tokens", "images.revealed_at"],
            |m| read_image_logits(m).map(drop),
        ),
        (
            r#"{"prompts":["a"],"policy":"current","replay":{"pretrain":{"seed":2}}}"#,
            &["images.tokens"],
            |m| read_image_logits(m).map(drop),
        ),
        (
            r#"{"questions":["a"],"policy":"current","text":["two"]}"#,
            &["images.tokens", "answers.tokens", "answers.mask"],
            |m| read_answer_logp(m).map(drop),
        ),
        ("{}", &["images.tokens"], |m| read_images(m).map(drop)),
        ("{}", &["pixels"], |m| read_pixels(m).map(drop)),
        (r#"{"progress":0.25}"#, &["pixels"], |m| read_tokenizer_loss(m).map(drop)),
        (r#"{"dir":"out"}"#, &[], |m| read_save(m).map(drop)),
        (
            r#"{"samples":[{"facts":{"category":"counting","objects":[{"noun":"cat","count":2}]},"prompt":"p","question":"q","truth":"t","answer":"a"}]}"#,
            &[],
            |m| read_score(m).map(drop),
        ),
        (
            r#"{"card":{"name":"x","image_space":"shared","image_decoding":"masked","image_tokens":2,"codebook_size":3,"resolution":4}}"#,
            &[],
            |m| read_card(m).map(drop),
        ),
        (r#"{"parameters":[{"name":"w","group":"shared"}]}"#, &["w"], |m| read_parameters(m).map(drop)),
        (r#"{"text":["two"]}"#, &["answers.tokens", "answers.mask"], |m| read_answers(m).map(drop)),
        ("{}", &["logits", "targets"], |m| read_logits(m).map(drop)),
        ("{}", &["logp", "mask"], |m| read_logp(m).map(drop)),
        ("{}", &["loss"], |m| read_loss(m).map(drop)),
        (r#"{"rewards":[{"score":1.0,"max":1.0}]}"#, &[], |m| read_rewards(m).map(drop)),
        (r#"{"classes":["a"],"colors":["red"]}"#, &["pixels"], |m| read_detect(m).map(drop)),
        (r#"{"detections":[[{"class":"a","score":0.9,"box":[0.0,1.0,2.0,3.0]}]]}"#, &[], |m| {
            read_detections(m).map(drop)
        }),
    ];

    #[test]
    fn messages_of_the_first_release_are_read() {
        for (json, tensors, read) in FIRST {
            read(message(json, tensors)).unwrap_or_else(|error| panic!("{json}: {error}"));
        }
    }

    /// Except for tensors of `parameters`, whose number must match.
    #[test]
    fn keys_and_tensors_of_later_releases_are_ignored() {
        for (json, tensors, read) in FIRST {
            let comma = if json == "{}" { "" } else { "," };
            let later = format!("{{\"of_a_later_release\":[1]{comma}{}", &json[1..]);
            let added = (!json.contains("\"parameters\"")).then_some("images.of_a_later_release");
            let more: Vec<&str> = tensors.iter().copied().chain(added).collect();
            read(message(&later, &more)).unwrap_or_else(|error| panic!("{later}: {error}"));
        }
    }

    /// A plugin must not ignore a sampling option that it does not know. A host sends a newer key only if it is set.
    #[test]
    fn unknown_sampling_option_is_refused() {
        let json = r#"{"prompts":["a"],"sampling":{"guidance":2.0,"steps":16,"temperature":1.0,"seed":7,"top_p":0.9}}"#;
        let error = read_generate(message(json, &[])).expect_err("unknown option");
        assert!(error.to_string().contains("unknown field `top_p`"), "{error}");
    }

    #[test]
    fn non_finite_number_is_refused_with_its_path() {
        let bad = Reward { why: "null".into(), ..Reward::new(f64::NAN, 1.0) };
        let error = rewards(&[bad]).expect_err("NaN");
        assert_eq!(error.code(), Code::NonFinite);
        assert!(error.message().contains("`rewards[0].score`"), "{error}");
    }

    #[test]
    fn rewards_and_samples_round_trip_bit_equal() -> Result<()> {
        let there = vec![Reward { why: "null and \"void\"".into(), ..Reward::new(0.1 + 0.2, 1.0 / 3.0) }];
        assert_eq!(read_rewards(Message::unpack(rewards(&there)?.pack())?)?, there);
        assert_eq!(read_score(Message::unpack(score(&[sample()], None)?.pack())?)?.0, [sample()]);
        Ok(())
    }
}
