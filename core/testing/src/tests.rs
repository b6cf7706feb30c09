//! A small model that passes every check, and bugs planted in it, each of which a check must find.

use std::path::Path;

use tch::{Device, Kind, Tensor};
use unirl::error::{Error, Result};
use unirl::model::{
    Answers, ImageDecoding, ImageLogits, ImageSampling, ImageSpace, Images, Masking, ModelCard, Parameter,
    ParameterGroup, Policy, Scoring, TextSampling, TokenLogp, UnifiedModel,
};
use unirl::prompt::Category;
use unirl_benchmarks::tiles;
use unirl_engine::config::Rollout;
use unirl_prompts::rng::Rng;
use unirl_prompts::{Split, Task};

use super::{Extent, Finding, Outcome, examine};

/// Image tokens, codes, width, and words, of which the last is the end token.
const N: i64 = 6;
const K: i64 = 5;
const D: i64 = 8;
const WORDS: i64 = 7;
const END: i64 = WORDS - 1;

#[derive(Clone, Copy, PartialEq, Debug)]
enum Bug {
    None,
    TokensFromOne,
    RevealedAfterTheEnd,
    TwoEndTokens,
    SeedIgnored,
    SeedOfAnswersIgnored,
    ScoredWithoutGuidance,
    ScoredOnePositionOff,
    PromptIgnored,
    CacheOnePositionOff,
    ReferenceOfOtherWeights,
    DropoutInEvaluation,
    WeightLeftOut,
    TokenizerHasGradient,
    DetachedImage,
    RelaxedScaled,
    EncodesAnotherText,
    GenerationFails,
}

struct Toy {
    card: ModelCard,
    bug: Bug,
    codes: Tensor,         // [K,D], shared
    words: Tensor,         // [WORDS,D], shared
    generation: Tensor,    // [D,D]
    understanding: Tensor, // [D,D]
    tokenizer: Tensor,     // [D]
    reference: Option<Box<[Tensor; 4]>>,
}

impl Toy {
    fn new(bug: Bug) -> Self {
        let weight = |rows: i64, columns: i64, phase: f64| {
            let ramp = Tensor::arange(rows * columns, (Kind::Float, Device::Cpu));
            (ramp * 1.7 + phase).sin().view([rows, columns]).set_requires_grad(true)
        };
        Self {
            card: ModelCard {
                name: "toy".into(),
                image_space: ImageSpace::Shared,
                image_decoding: ImageDecoding::Masked,
                image_tokens: N,
                codebook_size: K,
                resolution: 2,
                input_resolution: None,
                pad_value: None,
                benchmark: None,
                sampling: ImageSampling::default(),
            },
            bug,
            codes: weight(K, D, 0.0),
            words: weight(WORDS, D, 1.0),
            generation: weight(D, D, 2.0),
            understanding: weight(D, D, 3.0),
            tokenizer: weight(1, D, 4.0),
            reference: None,
        }
    }

    fn weights(&self, policy: Policy) -> Result<[Tensor; 4]> {
        let current =
            [&self.codes, &self.words, &self.generation, &self.understanding].map(Tensor::shallow_clone);
        match policy {
            Policy::Current => Ok(current),
            Policy::Reference => {
                let reference = self.reference.as_ref().ok_or_else(|| Error::failure("no reference"))?;
                Ok([0, 1, 2, 3].map(|at| reference[at].shallow_clone()))
            }
        }
    }

    /// Logits of each position on its own: `[B,N,K]`.
    fn image_logits_of(&self, policy: Policy, prompts: &[String], guidance: f64) -> Result<Tensor> {
        let [codes, _, generation, _] = self.weights(policy)?;
        let letters = |prompt: &String| prompt.bytes().map(f64::from).sum::<f64>() % 7.0;
        let starts: Vec<f32> = prompts.iter().map(|prompt| letters(prompt) as f32).collect();
        let places = (Tensor::arange(N * D, (Kind::Float, Device::Cpu)) * 0.3).cos().view([1, N, D]);
        let input = (Tensor::from_slice(&starts).view([-1, 1, 1]) + &places * 2.0).sin();
        let mut hidden = input.matmul(&generation);
        if self.bug == Bug::TokenizerHasGradient {
            hidden += &self.tokenizer;
        }
        let logits = |hidden: Tensor| hidden.matmul(&codes.tr());
        let empty = logits(places.expand_as(&hidden).matmul(&generation));
        Ok(logits(hidden) * (1.0 + guidance) - empty * guidance)
    }

    /// Logits `[B,T,WORDS]` of the words after `previous [B,T]`, which begins at position `at`.
    fn word_logits(&self, policy: Policy, images: &Images, previous: &Tensor, at: i64) -> Result<Tensor> {
        let [codes, words, _, understanding] = self.weights(policy)?;
        let embedded = match &images.relaxed {
            Some(relaxed) => {
                let relaxed =
                    if self.bug == Bug::DetachedImage { relaxed.detach() } else { relaxed.shallow_clone() };
                relaxed.matmul(&codes) * if self.bug == Bug::RelaxedScaled { 1.1 } else { 1.0 }
            }
            None => codes.index_select(0, &images.tokens.view([-1])).view([-1, N, D]),
        };
        let image = embedded.mean_dim(1, true, Kind::Float); // [B,1,D]
        let places = Tensor::arange(previous.size()[1], (Kind::Float, Device::Cpu)) + at as f64;
        let before = words.index_select(0, &previous.reshape([-1])).view([previous.size()[0], -1, D]);
        let mut hidden = (image + before + (places.view([1, -1, 1]) * 0.9).sin()).matmul(&understanding);
        if self.bug == Bug::DropoutInEvaluation {
            hidden = hidden.dropout(0.1, true);
        }
        Ok(hidden.matmul(&words.tr()))
    }
}

/// Samples classes `[..]` from `logits [..,C]`; returns them with their log-probabilities.
fn sample(logits: &Tensor) -> (Tensor, Tensor) {
    let size = logits.size();
    let classes = size[size.len() - 1];
    let logp = logits.log_softmax(-1, Kind::Float);
    let sampled = logp.exp().view([-1, classes]).multinomial(1, true).view(&size[..size.len() - 1]);
    let sampled_logp = logp.gather(-1, &sampled.unsqueeze(-1), false).squeeze_dim(-1);
    (sampled, sampled_logp)
}

impl UnifiedModel for Toy {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn parameters(&self) -> Result<Vec<Parameter>> {
        let parameter = |name: &str, tensor: &Tensor, group| Parameter {
            name: name.into(),
            tensor: tensor.shallow_clone(),
            group,
        };
        let mut parameters = vec![
            parameter("codes", &self.codes, ParameterGroup::Shared),
            parameter("generation", &self.generation, ParameterGroup::Generation),
            parameter("understanding", &self.understanding, ParameterGroup::Understanding),
            parameter("tokenizer", &self.tokenizer, ParameterGroup::Tokenizer),
        ];
        if self.bug == Bug::WeightLeftOut {
            parameters[2].tensor = self.understanding.copy().detach().set_requires_grad(true);
        }
        Ok(parameters)
    }

    fn freeze_reference(&mut self) -> Result<()> {
        let mut weights = self.weights(Policy::Current)?.map(|weight| weight.detach().copy());
        if self.bug == Bug::ReferenceOfOtherWeights {
            weights[1] = &weights[1] * 0.9;
        }
        self.reference = Some(Box::new(weights));
        Ok(())
    }

    fn generate(&mut self, prompts: &[String], sampling: &ImageSampling) -> Result<Images> {
        if self.bug == Bug::GenerationFails {
            return Err(Error::failure("out of paint"));
        }
        tch::manual_seed(if self.bug == Bug::SeedIgnored { 1 } else { sampling.seed as i64 });
        let (mut tokens, logp) =
            sample(&self.image_logits_of(Policy::Current, prompts, sampling.guidance)?);
        if self.bug == Bug::TokensFromOne {
            tokens += 1;
        }
        let late = i64::from(self.bug == Bug::RevealedAfterTheEnd);
        let revealed_at = Tensor::arange(N, (Kind::Int64, Device::Cpu)).remainder(sampling.steps) + late;
        let revealed_at = revealed_at.expand_as(&tokens).contiguous();
        Ok(Images { revealed_at: Some(revealed_at), logp: Some(logp), ..Images::from_tokens(tokens) })
    }

    fn answer(&mut self, images: &Images, questions: &[String], sampling: &TextSampling) -> Result<Answers> {
        let ignored = self.bug == Bug::SeedOfAnswersIgnored;
        if !ignored {
            tch::manual_seed(sampling.seed as i64);
        }
        let batch = questions.len() as i64;
        let mut previous = Tensor::zeros([batch, 1], (Kind::Int64, Device::Cpu));
        let mut open = Tensor::ones([batch, 1], (Kind::Bool, Device::Cpu));
        let (mut words, mut logps, mut masks) = (Vec::new(), Vec::new(), Vec::new());
        for at in 0..sampling.max_tokens {
            let off = i64::from(self.bug == Bug::CacheOnePositionOff && at > 1);
            let logits = self.word_logits(Policy::Current, images, &previous, at + off)?;
            let (word, logp) = sample(&logits);
            masks.push(open.shallow_clone());
            words.push(word.where_self(&open, &word.zeros_like()));
            logps.push(logp * &open);
            open = open.logical_and(&word.ne(END));
            previous = word;
        }
        let [tokens, mask, logp] = [words, masks, logps].map(|all| Tensor::cat(&all, 1));
        let text = (0..batch).map(|row| format!("{}", tokens.get(row))).collect();
        Ok(Answers { logp: Some(logp), ..Answers::new(text, tokens, mask) })
    }

    fn encode_answers(&self, texts: &[String]) -> Result<Answers> {
        let end = if self.bug == Bug::TwoEndTokens { END - 1 } else { END };
        let rows: Vec<i64> = texts.iter().flat_map(|text| [text.len() as i64 % END, end]).collect();
        let tokens = Tensor::from_slice(&rows).view([-1, 2]);
        let mask = tokens.ones_like().to_kind(Kind::Bool);
        let trimmed = |text: &String| {
            if self.bug == Bug::EncodesAnotherText { text.to_uppercase() } else { text.clone() }
        };
        Ok(Answers::new(texts.iter().map(trimmed).collect(), tokens, mask))
    }

    fn image_logits(
        &self,
        prompts: &[String],
        images: &Images,
        policy: Policy,
        masking: &Masking,
    ) -> Result<ImageLogits> {
        let guidance = match masking {
            Masking::Reveal { scoring: Scoring::Guided, guidance, .. }
                if self.bug != Bug::ScoredWithoutGuidance =>
            {
                *guidance
            }
            _ => 0.0,
        };
        let empty = vec![String::new(); prompts.len()];
        let prompts = if self.bug == Bug::PromptIgnored { &empty } else { prompts };
        let mut logits = self.image_logits_of(policy, prompts, guidance)?;
        if self.bug == Bug::ScoredOnePositionOff {
            logits = logits.roll([1], [1]);
        }
        Ok(ImageLogits { logits, targets: images.tokens.ones_like().to_kind(Kind::Bool) })
    }

    fn answer_logp(
        &self,
        images: &Images,
        _: &[String],
        answers: &Answers,
        policy: Policy,
    ) -> Result<TokenLogp> {
        let length = answers.tokens.size()[1];
        let begin = answers.tokens.narrow(1, 0, 1).zeros_like();
        let previous = Tensor::cat(&[begin, answers.tokens.narrow(1, 0, length - 1)], 1);
        let logits = self.word_logits(policy, images, &previous, 0)?;
        let logp = logits.log_softmax(-1, Kind::Float).gather(-1, &answers.tokens.unsqueeze(-1), false);
        Ok(TokenLogp { logp: logp.squeeze_dim(-1) * &answers.mask, mask: answers.mask.shallow_clone() })
    }

    fn pixels(&self, images: &Images) -> Result<Tensor> {
        Ok(Tensor::zeros([images.len(), 3, 2, 2], (Kind::Float, Device::Cpu)))
    }

    fn encode(&self, pixels: &Tensor) -> Result<Images> {
        Ok(Images::from_tokens(Tensor::zeros([pixels.size()[0], N], (Kind::Int64, Device::Cpu))))
    }

    fn save(&self, _: &Path) -> Result<()> {
        Ok(())
    }
}

fn findings(bug: Bug) -> Vec<Finding> {
    let mut rng = Rng::new(1);
    let tasks: Vec<Task> = Category::ALL
        .iter()
        .map(|category| tiles::sample(*category, Split::Train, &mut rng).unwrap())
        .collect();
    let mut rollout = Rollout::default();
    (rollout.images.steps, rollout.answers.max_tokens) = (3, 5);
    examine(&mut Toy::new(bug), &tasks, &rollout, Extent::Training, None)
}

#[test]
fn examine_conforming_model_passes() {
    for finding in findings(Bug::None) {
        assert!(matches!(finding.outcome, Outcome::Holds(_)), "{finding:?}");
    }
}

/// Each bug with the check that finds it and its message.
#[test]
fn examine_finds_every_planted_bug() {
    let (generation, understanding) = (
        "generation: scoring reproduces the sampling probabilities",
        "understanding: scoring reproduces the sampling probabilities",
    );
    let (ratio, gradients) =
        ("the initial importance ratio is 1", "gradients reach the right parameter groups");
    let (tokens, seed) = ("token ids are valid", "the seed determines the samples");
    for (bug, check, text) in [
        (Bug::GenerationFails, "the model generates and answers", "out of paint"),
        (Bug::TokensFromOne, "the model generates and answers", "image tokens: expected 0..5, got 1..=5"),
        (Bug::RevealedAfterTheEnd, tokens, "`revealed_at`: expected 0..3, got 1..=3"),
        (Bug::TwoEndTokens, tokens, "ends with token 6, an encoded answer with 5"),
        (Bug::EncodesAnotherText, tokens, "`encode_answers` returns the text"),
        (Bug::SeedIgnored, seed, "another seed generates the same images"),
        (Bug::SeedOfAnswersIgnored, seed, "the same seed samples different answers"),
        (Bug::ScoredWithoutGuidance, generation, "nats per token: off by"),
        (Bug::ScoredOnePositionOff, generation, "nats per token: off by"),
        (Bug::PromptIgnored, generation, "nats per token: off by"),
        (Bug::CacheOnePositionOff, understanding, "nats per token: off by"),
        (Bug::ReferenceOfOtherWeights, ratio, "ratio of answers: off by"),
        (Bug::ReferenceOfOtherWeights, "the initial KL is 0", "KL of answers: off by"),
        (Bug::DropoutInEvaluation, ratio, "ratio of answers: off by"),
        (Bug::WeightLeftOut, gradients, "understanding leaves no gradient in `Understanding`"),
        (Bug::TokenizerHasGradient, gradients, "generation leaves a gradient in `Tokenizer`"),
        (Bug::DetachedImage, "the gradient of an answer reaches the image", "get no gradient"),
        (Bug::RelaxedScaled, "a relaxed one-hot equals its token", "nats per token: off by"),
    ] {
        let findings = findings(bug);
        let finding = findings.iter().find(|finding| finding.name == check);
        let Some(Finding { outcome: Outcome::Fails(message), .. }) = finding else {
            panic!("{bug:?} was not found by `{check}`: {findings:#?}");
        };
        assert!(message.contains(text), "{bug:?}: {message}");
    }
}
