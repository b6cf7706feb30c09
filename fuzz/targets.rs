//! The readers of foreign bytes, as fuzz targets: `fuzz/` runs them under libFuzzer, `tests/tests/fuzz.rs` on seeded mutations.
//!
//! Each function takes any bytes and returns whether they were accepted. It panics only if the reader breaks its contract.

use std::path::Path;

use tch::{Device, Kind, Tensor};
use unirl::abi::component::FfiRecord;
use unirl::abi::wire::{self, Message, op};
use unirl::prompt::Category;
use unirl::reward::Sample;
use unirl::weights;
use unirl_base::input;
use unirl_engine::plugin::stamp;
use unirl_keywords::RuleFile;
use unirl_prompts::answer::match_answer;
use unirl_prompts::{PromptTemplates, Task, parse_prompt};

/// A checkpoint of `torch.save`. Every tensor lies within the file; an error is one short line.
pub(crate) fn pickle(data: &[u8]) -> bool {
    match torch_pickle::read(data) {
        Ok(entries) => {
            for entry in entries {
                let size = entry.shape.iter().product::<usize>() * entry.dtype.bitsize() / 8;
                assert_eq!(data.get(entry.data.clone()).map(<[u8]>::len), Some(size), "{entry:?}");
            }
            true
        }
        Err(error) => {
            assert!(!error.contains('\n') && error.len() < 1500, "{error}");
            false
        }
    }
}

/// A safetensors file. Every tensor lies within the file.
pub(crate) fn safetensors(data: &[u8]) -> bool {
    let Ok((table, _)) = weights::read_table(data) else { return false };
    for (name, dtype, shape, range) in table {
        let size = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        assert_eq!(data.get(range).map(<[u8]>::len), Some(size), "{name:?}");
    }
    true
}

/// A plugin file, as it is read before it is opened as a library.
pub(crate) fn stamp(data: &[u8]) -> bool {
    let path = Path::new("fuzzed.so");
    stamp::read_bytes(path, data).and_then(|stamp| stamp.check(path)).is_ok()
}

/// A message between host and plugin, in the form of `wire.golden.txt`: direction, operation, JSON, names of tensors.
pub(crate) fn wire(data: &[u8]) -> bool {
    read_message(data).is_some()
}

fn read_message(data: &[u8]) -> Option<()> {
    let mut words = std::str::from_utf8(data).ok()?.trim_end().splitn(3, ' ');
    let (direction, operation, rest) = (words.next()?, words.next()?, words.next()?);
    if (direction, operation) == (">", "make") {
        return wire::read_make(rest).ok().map(drop);
    }
    let (json, names) = rest.rsplit_once(" [")?;
    let names: Vec<String> = serde_json::from_str(&format!("[{names}")).ok()?;
    let tensor = || Tensor::zeros([1, 2], (Kind::Int64, Device::Cpu)).into();
    let tensors = names.into_iter().map(|name| (name.into(), tensor()).into()).collect();
    let message = Message::unpack(FfiRecord { json: json.into(), tensors }).ok()?;
    let read = match (direction, operation) {
        (">", op::SET_MODE) => wire::read_set_mode(message).map(drop),
        (">", op::GENERATE) => wire::read_generate(message).map(drop),
        (">", op::ANSWER) => wire::read_answer(message).map(drop),
        (">", op::ENCODE_ANSWERS) => wire::read_encode_answers(message).map(drop),
        (">", op::IMAGE_LOGITS | op::IMAGE_LOGP) => wire::read_image_logits(message).map(drop),
        (">", op::ANSWER_LOGP) => wire::read_answer_logp(message).map(drop),
        (">", op::PIXELS) | ("<", op::GENERATE | op::ENCODE) => wire::read_images(message).map(drop),
        (">", op::ENCODE) | ("<", op::PIXELS) => wire::read_pixels(message).map(drop),
        (">", op::TOKENIZER_LOSS) => wire::read_tokenizer_loss(message).map(drop),
        (">", op::FOOTPRINT) => wire::read_footprint(message).map(drop),
        (">", op::SAVE) => wire::read_save(message).map(drop),
        (">", op::SCORE) => wire::read_score(message).map(drop),
        (">", op::DETECT) => wire::read_detect(message).map(drop),
        ("<", op::CARD) => wire::read_card(message).map(drop),
        ("<", op::PARAMETERS) => wire::read_parameters(message).map(drop),
        ("<", op::ANSWER | op::ENCODE_ANSWERS) => wire::read_answers(message).map(drop),
        ("<", op::IMAGE_LOGITS) => wire::read_logits(message).map(drop),
        ("<", op::IMAGE_LOGP | op::ANSWER_LOGP) => wire::read_logp(message).map(drop),
        ("<", op::TOKENIZER_LOSS) => wire::read_loss(message).map(drop),
        ("<", op::FOOTPRINT) => wire::read_memory(message).map(drop),
        ("<", op::WANTS_PIXELS) => wire::read_wants_pixels(message).map(drop),
        ("<", op::SCORE) => wire::read_rewards(message).map(drop),
        ("<", op::DETECT) => wire::read_detections(message).map(drop),
        _ => return None,
    };
    read.ok()
}

/// A rule file, and what it makes of the reference answer in each category. A reward is in `0..=max`.
pub(crate) fn rules(data: &[u8]) -> bool {
    let file = input::text("fuzzed.toml", data.to_vec()).and_then(|text| RuleFile::parse(&text));
    let Ok(rules) = file.and_then(RuleFile::build) else { return false };
    let prompts = [
        (Category::SingleObject, "a photo of a bench"),
        (Category::TwoObject, "a photo of a bench and a fork"),
        (Category::Counting, "a photo of three vases"),
        (Category::Colors, "a photo of a green fork"),
        (Category::Position, "a photo of a dog right of a teddy bear"),
        (Category::ColorAttr, "a photo of a red cup and a blue book"),
    ];
    let tasks = prompts.into_iter().filter_map(|(category, prompt)| task(category, prompt));
    let samples: Vec<Sample> = tasks.map(|task| task.sample(task.reference_answer.clone())).collect();
    assert_eq!(samples.len(), prompts.len());
    for reward in rules.score(&samples, None).expect("rules score every sample") {
        assert!((0.0..=reward.max).contains(&reward.score), "{reward:?}");
    }
    true
}

fn task(category: Category, prompt: &str) -> Option<Task> {
    parse_prompt(category, prompt).ok().map(|spec| PromptTemplates::paper().task(spec))
}

/// `CATEGORY: PROMPT`, a line break, and an answer; accepted if the answer is correct.
pub(crate) fn answers(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let Some((head, answer)) = text.split_once('\n') else { return false };
    let Some((name, prompt)) = head.split_once(": ") else { return false };
    let spec = Category::from_name(name).and_then(|category| parse_prompt(category, prompt).ok());
    spec.is_some_and(|spec| match_answer(&spec, answer).is_correct(spec.category))
}
