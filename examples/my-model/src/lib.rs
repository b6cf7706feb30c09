//! A small but complete unified model as a plugin. Replace it from the inside.
//!
//! It generates images of the tiles benchmark token by token and answers questions in words, with one network for both. A
//! token is predicted from the prompt or question, the tokens before it, and its position. Shapes: `B` batch, `N` image tokens,
//! `K` codes, `T` answer tokens, `L` any length, `D` width, `V` words. Sections and equations are those of arXiv 2505.23380.

use std::path::Path;

use schemars::JsonSchema;
use serde::Deserialize;
use unirl::prelude::*;
use unirl::sampling::{gather_logp, sample_tokens};
use unirl::weights::{self, Init, Store, Weights};
use unirl_benchmarks::tiles::{NAME, SIDE, TILES, codec, vocabulary};

/// The options of the model: `--set model.options.width=128`.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// `D`.
    width: i64,
}

impl Default for Config {
    fn default() -> Self {
        Self { width: 96 }
    }
}

/// All weights of the model. A copy is the reference policy.
struct Network {
    words: Tensor,     // [V,D], tied with the output layer of words
    codes: Tensor,     // [K,D], tied with the output layer of codes
    positions: Tensor, // [POSITIONS,D]
    mix: Tensor,       // [4,D,D]: projections of question, image, mean of the earlier tokens, last token
}

impl Network {
    /// Takes the weights, for `words` words in `width` dimensions, from a store.
    fn take(store: &mut Store, words: usize, width: i64) -> Result<Self> {
        Ok(Self {
            words: store.take("words", &[words as i64, width], Init::Fan(1))?,
            codes: store.take("codes", &[codec::CODES, width], Init::Fan(1))?,
            positions: store.take("positions", &[POSITIONS, width], Init::Fan(1))?,
            mix: store.take("mix", &[4, width, width], Init::Fan(width))?,
        })
    }

    /// The embedding `[B,D]` of a prompt or question `[B,L]`.
    fn question(&self, ids: &Tensor) -> Tensor {
        let mask = ids.ne(PAD).to_kind(Kind::Float).unsqueeze(1); // [B,1,L]
        let sum = mask.matmul(&Tensor::embedding(&self.words, ids, -1, false, false)).squeeze_dim(1);
        let count = mask.sum_dim_intlist([2i64].as_slice(), false, Kind::Float).clamp_min(1.0); // [B,1]
        (sum / count).matmul(&self.mix.get(0))
    }

    /// The embedding `[B,D]` of an image. Relaxed tokens carry the gradient to image generation (eqs. 7 and 8).
    fn image(&self, images: &Images) -> Tensor {
        let table = &self.codes;
        let hard = || Tensor::embedding(table, &images.tokens, -1, false, false);
        let codes = images.relaxed.as_ref().map_or_else(hard, |relaxed| relaxed.matmul(table)); // [B,N,D]
        let positioned = (codes + self.positions.narrow(0, 0, TILES as i64)).tanh(); // [B,N,D]
        positioned.mean_dim(1, false, Kind::Float).matmul(&self.mix.get(1))
    }

    /// Logits `[B,L,rows of table]` of tokens `[B,L]` from `context [B,D]`, position and earlier tokens: for sampling and scoring.
    fn logits(&self, context: &Tensor, table: &Tensor, ids: &Tensor) -> Tensor {
        let length = ids.size()[1];
        let shifted = Tensor::embedding(table, ids, -1, false, false).constant_pad_nd([0, 0, 1, -1]);
        let counts = Tensor::arange(length, (Kind::Float, ids.device())).clamp_min(1.0).view([-1, 1]);
        let before = shifted.cumsum(1, Kind::Float) / counts;
        let mixed = before.matmul(&self.mix.get(2)) + shifted.matmul(&self.mix.get(3));
        let hidden = context.unsqueeze(1) + mixed + self.positions.narrow(0, 0, length);
        hidden.tanh().matmul(&table.tr())
    }
}

const POSITIONS: i64 = 32; // the longest answer
const PAD: i64 = 0; // also unknown words
const END: i64 = 1; // ends an answer

struct MyModel {
    card: ModelCard,
    device: Device,
    words: Vec<String>,
    width: i64,
    network: Network,
    weights: Vec<(String, Tensor)>, // the tensors of `network` by name
    reference: ReferencePolicy<Network>,
}

impl MyModel {
    fn load(&Config { width }: &Config, source: &ModelSource) -> Result<Box<dyn UnifiedModel>> {
        if width < 1 {
            return Err(Error::usage(format!("`width`: expected at least 1, got {width}")));
        }
        let weights = match &source.checkpoint {
            Checkpoint::Folder(folder) => Some(Weights::find(folder)?),
            Checkpoint::Builtin | Checkpoint::Fresh => None, // without embedded weights
        };
        tch::manual_seed(source.seed as i64);
        let words: Vec<String> = ["", "."].map(String::from).into_iter().chain(vocabulary()).collect();
        let mut store = Store::of_source(source, weights, Kind::Float);
        let network = Network::take(&mut store, words.len(), width)?;
        let (space, decoding) = (ImageSpace::Shared, ImageDecoding::Autoregressive);
        let mut card = ModelCard::new("my-model", space, decoding, [TILES as i64, codec::CODES, SIDE as i64]);
        (card.sampling.guidance, card.benchmark) = (1.0, Some(NAME.into())); // no guidance
        let (device, weights) = (source.device, store.finish());
        let reference = ReferencePolicy::default();
        Ok(Box::new(Self { card, device, words, width, network, weights, reference }))
    }

    /// Texts as word ids `[B,L]`.
    fn ids(&self, texts: &[String]) -> Tensor {
        let id = |word: &str| self.words.iter().position(|known| known == word).unwrap_or(0) as i64;
        let rows: Vec<Vec<i64>> = texts.iter().map(|text| text.split(' ').map(id).collect()).collect();
        let length = rows.iter().map(Vec::len).max().unwrap_or(1);
        let padded = |row: Vec<i64>| row.into_iter().chain(std::iter::repeat(PAD)).take(length);
        let flat: Vec<i64> = rows.into_iter().flat_map(padded).collect();
        Tensor::from_slice(&flat).view([-1, length as i64]).to_device(self.device)
    }

    /// Samples tokens one after another. Returns tokens and their log-probabilities, both `[B,length]`.
    fn sample(&self, context: &Tensor, table: &Tensor, length: i64, how: Sampling) -> [Tensor; 2] {
        let size = [context.size()[0], length];
        let ids = Tensor::zeros(size, (Kind::Int64, self.device));
        let logps = Tensor::zeros(size, (Kind::Float, self.device));
        for at in 0..length {
            let logits = self.network.logits(context, table, &ids).select(1, at); // [B,rows of the table]
            let class = sample_tokens(&logits, how.0, how.1, how.2);
            logps.select(1, at).copy_(&gather_logp(&logits, &class));
            ids.select(1, at).copy_(&class);
        }
        [ids, logps]
    }
}

/// Temperature, top-k (0 means all tokens), and the rows of a larger batch that these are.
type Sampling = (f64, i64, Option<BatchSlice>);

impl UnifiedModel for MyModel {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    /// The trainable leaves, each with the task that it serves. An update changes them in place.
    fn parameters(&self) -> Result<Vec<Parameter>> {
        Ok(Parameter::list(&self.weights, |_| ParameterGroup::Shared))
    }

    /// Copies the current weights to the reference policy of the KL terms (eq. 5).
    fn freeze_reference(&mut self) -> Result<()> {
        self.reference.freeze(&self.weights, |store| Network::take(store, self.words.len(), self.width))
    }

    /// Generates one image per prompt, `[B,N]` (§3.3). All randomness comes from the seed.
    fn generate(&mut self, prompts: &[String], sampling: &ImageSampling) -> Result<Images> {
        sampling.check(prompts.len())?;
        tch::manual_seed(sampling.seed as i64);
        let context = self.network.question(&self.ids(prompts));
        let how = (sampling.temperature, 0, sampling.part);
        let [tokens, logp] = self.sample(&context, &self.network.codes, TILES as i64, how);
        Ok(Images { logp: Some(logp), ..Images::from_tokens(tokens) })
    }

    /// Samples one answer per question, `[B,T]` with its end token.
    fn answer(&mut self, images: &Images, questions: &[String], sampling: &TextSampling) -> Result<Answers> {
        images.check(&self.card, "questions", questions.len())?;
        sampling.check()?;
        tch::manual_seed(sampling.seed as i64);
        let context = self.network.question(&self.ids(questions)) + self.network.image(images);
        let how = (sampling.temperature, sampling.top_k, sampling.part);
        let [tokens, logp] =
            self.sample(&context, &self.network.words, sampling.max_tokens.min(POSITIONS), how);
        let ends = tokens.eq(END).to_kind(Kind::Int64);
        let mask = (ends.cumsum(1, Kind::Int64) - &ends).eq(0); // up to and including the first end token
        let text = |row| {
            let ids = Vec::<i64>::try_from(tokens.get(row))?;
            let words = ids.iter().take_while(|id| **id != END).map(|id| &*self.words[*id as usize]);
            Ok(words.collect::<Vec<&str>>().join(" ").trim().to_string())
        };
        let text = (0..questions.len() as i64).map(text).collect::<Result<_>>()?;
        Ok(Answers { logp: Some(logp * &mask), ..Answers::new(text, tokens * &mask, mask) })
    }

    /// Encodes texts as `answer` would generate them, for supervised training.
    fn encode_answers(&self, texts: &[String]) -> Result<Answers> {
        let ids = self.ids(&texts.iter().map(|text| format!("{text} .")).collect::<Vec<_>>());
        let mask = ids.ne(PAD);
        Ok(Answers::new(texts.to_vec(), ids, mask))
    }

    /// Logits `[B,N,K]` of generated images under a policy (A.3). The model is autoregressive, so that the masking has no effect.
    fn image_logits(
        &self,
        prompts: &[String],
        images: &Images,
        policy: Policy,
        _: &Masking,
    ) -> Result<ImageLogits> {
        images.check(&self.card, "prompts", prompts.len())?;
        self.reference.run(policy, &self.network, |network| {
            let context = network.question(&self.ids(prompts));
            let logits = network.logits(&context, &network.codes, &images.tokens);
            Ok(ImageLogits { logits, targets: images.tokens.ones_like().to_kind(Kind::Bool) })
        })
    }

    /// `log p(answer | image, question)` per token, `[B,T]` (eq. 5). The gradient reaches `images.relaxed`.
    fn answer_logp(
        &self,
        images: &Images,
        questions: &[String],
        answers: &Answers,
        policy: Policy,
    ) -> Result<TokenLogp> {
        images.check(&self.card, "questions", questions.len())?;
        self.reference.run(policy, &self.network, |network| {
            let context = network.question(&self.ids(questions)) + network.image(images);
            let logits = network.logits(&context, &network.words, &answers.tokens);
            let logp = logits.log_softmax(-1, Kind::Float).gather(-1, &answers.tokens.unsqueeze(-1), false);
            Ok(TokenLogp { logp: logp.squeeze_dim(-1) * &answers.mask, mask: answers.mask.shallow_clone() })
        })
    }

    /// Decodes tokens to pixels `[B,3,H,W]` in `0..=1`, with a fixed image tokenizer.
    fn pixels(&self, images: &Images) -> Result<Tensor> {
        Ok(codec::decode(&images.tokens))
    }

    /// Encodes pixels as tokens.
    fn encode(&self, pixels: &Tensor) -> Result<Images> {
        Ok(Images::from_tokens(codec::encode(&pixels.to_device(self.device))))
    }

    /// Writes a checkpoint that `load` reads.
    fn save(&self, dir: &Path) -> Result<()> {
        weights::write(&dir.join("model.safetensors"), &self.weights, &[])
    }
}

unirl::register_model!("my-model", Config, |config, source| MyModel::load(&config, source));
unirl::export_plugin!();

#[cfg(test)]
mod tests {
    unirl_testing::check_model!("my-model");
}
