//! Times generation, answers, scoring and a training step at the sizes of the published models, with random weights. `./x race`
//! alternates it with Python implementations (`peers/`) and prints both side by side.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use serde_json::{Value, json};
use tch::{Cuda, Device, Kind, Tensor};
use unirl::error::{Code, Context};
use unirl::model::{
    Answers, Checkpoint, ImageLogits, ImageSampling, Images, Masking, ModelCard, ModelSource, Parameter,
    ParameterGroup, Policy, Scoring, TextSampling, TokenLogp, UnifiedModel,
};
use unirl::prompt::{Category, Object, PromptSpec};
use unirl::reward::{Reward, RewardFunction, Sample};
use unirl::{Error, Result};
use unirl_engine::algorithms::grpo::Grpo;
use unirl_engine::algorithms::{Algorithm, Iteration, Phases, ReaderWeights};
use unirl_engine::config::Rollout;
use unirl_engine::optim::{AdamW, UpdateOptions};
use unirl_engine::rewards::{RewardOptions, RewardSet, WeightedReward};
use unirl_plugin_janus::model::Janus;
use unirl_plugin_showo::model::Showo;
use unirl_prompts::Task;
use unirl_torch::autograd::clear_gradient;
use unirl_torch::libtorch::{has_cuda_driver, load_cuda, mapped_version};
use unirl_torch::{cuda_graph, ops};

/// Time the models, after a check that scoring reproduces the log-probabilities of sampling.
#[derive(Parser)]
struct Args {
    /// The model family.
    #[arg(long)]
    family: Family,
    /// The model sizes. Default: `real` on a GPU, else `tiny`.
    #[arg(long)]
    size: Option<Size>,
    /// The device.
    #[arg(long, default_value = "auto")]
    device: DeviceArg,
    /// Also write every row to FILE, one JSON object per line.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Passed by cargo to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Family {
    Janus,
    Showo,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Size {
    Real,
    Tiny,
}

#[derive(Clone, Copy, ValueEnum)]
enum DeviceArg {
    Auto,
    Cpu,
    Cuda,
}

/// The largest allowed error of log-probabilities: mean and maximum over tokens.
type Tolerance = [f64; 2];
const F32: Tolerance = [1e-4, 1e-3]; // 100 roundings of 2⁻²⁴ of logits near 10, amplified by guidance
/// 2⁻⁹ of logits near 1 per rounding in 24 layers, amplified by √(5² + 4²) for a guidance of 5. Observed on a CPU: 0.05 and 0.15.
/// A wrong computation differs by the spread of log-probabilities, 1 to 3.
const BF16: Tolerance = [0.1, 1.0];

/// Timed runs per row, after one warm-up run.
const RUNS: usize = 3;
const ANSWER: i64 = 16;

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(if error.code() == Code::Usage { 2 } else { 1 })
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let device = device(args.device)?;
    let size = args.size.unwrap_or(if device.is_cuda() { Size::Real } else { Size::Tiny });
    let file = match &args.json {
        None => None,
        Some(path) => Some(File::create(path).context(|| format!("cannot write `{}`", path.display()))?),
    };
    let bench = Bench { device, file };
    match args.family {
        Family::Janus => janus(bench, size),
        Family::Showo => showo(bench, size),
    }
}

fn device(device: DeviceArg) -> Result<Device> {
    let wanted = match device {
        DeviceArg::Cpu => false,
        DeviceArg::Auto | DeviceArg::Cuda => has_cuda_driver(),
    };
    if wanted {
        load_cuda()?;
    }
    match device {
        _ if wanted && Cuda::is_available() => Ok(Device::Cuda(0)),
        DeviceArg::Cuda => Err(Error::usage("no GPU was found").hint("use `--device cpu`")),
        DeviceArg::Auto | DeviceArg::Cpu => Ok(Device::Cpu),
    }
}

// --- the harness ---

/// The minimal work of a row, where known: arithmetic, and memory to read.
#[derive(Clone, Copy, Default)]
struct Work {
    flop: i64,
    bytes: i64,
    /// Sequential steps.
    steps: i64,
}

struct Bench {
    device: Device,
    file: Option<File>,
}

impl Bench {
    fn kind(&self) -> Kind {
        if self.device.is_cuda() { Kind::BFloat16 } else { Kind::Float }
    }

    fn write(&mut self, line: &Value) -> Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        writeln!(file, "{line}").context(|| "cannot write the rows")
    }

    fn about(&mut self, size: Size, work: &str) -> Result<()> {
        let precision = if self.kind() == Kind::Float { "f32" } else { "bf16" };
        let graphs = cuda_graph::support().map_or_else(|why| format!("no, {why}"), |()| "yes".into());
        let libtorch = mapped_version().unwrap_or_default();
        println!("{work}; {precision} on {:?}; libtorch {libtorch}; CUDA graphs: {graphs}", self.device);
        self.write(&json!({
            "about": work,
            "size": if size == Size::Real { "real" } else { "tiny" },
            "gpu": self.device.is_cuda(),
            "precision": precision,
            "libtorch": libtorch,
            "graphs": graphs,
        }))
    }

    /// Times `run`, which returns the total seconds followed by those of its parts.
    fn time_parts<const N: usize>(
        &mut self,
        rows: [(&str, Work); N],
        mut run: impl FnMut() -> Result<[f64; N]>,
    ) -> Result<()> {
        run()?;
        ops::peak_memory(self.device);
        let mut all = [const { Vec::new() }; N];
        for _ in 0..RUNS {
            for (seconds, of) in run()?.into_iter().zip(&mut all) {
                of.push(seconds);
            }
        }
        let peak = ops::peak_memory(self.device);
        for ((row, Work { flop, bytes, steps }), mut seconds) in rows.into_iter().zip(all) {
            seconds.sort_by(f64::total_cmp);
            let [least, median, most] = [seconds[0], seconds[RUNS / 2], seconds[RUNS - 1]];
            println!("{row:<32} {median:9.4} s   ({least:.4} to {most:.4})");
            self.write(&json!({
                "row": row, "median": median, "min": least, "max": most, "peak": peak,
                "flop": flop, "bytes": bytes, "steps": steps,
            }))?;
        }
        Ok(())
    }

    fn time(&mut self, row: &str, work: Work, mut run: impl FnMut() -> Result<()>) -> Result<()> {
        let device = self.device;
        self.time_parts([(row, work)], || {
            wait(device);
            let started = Instant::now();
            run()?;
            wait(device);
            Ok([started.elapsed().as_secs_f64()])
        })
    }

    /// Measures the rates for lower bounds: memory copies and matrix products of the GPU.
    fn card(&mut self) -> Result<()> {
        if !self.device.is_cuda() {
            return Ok(());
        }
        let bytes = 1 << 31;
        let from = Tensor::zeros([bytes], (Kind::Uint8, self.device));
        let mut to = from.zeros_like();
        self.time("copy", Work { bytes: 2 * bytes, ..Work::default() }, || {
            to.copy_(&from);
            Ok(())
        })?;
        let (edge, times) = (8192, 10);
        let x = Tensor::randn([edge, edge], (Kind::BFloat16, self.device));
        self.time("product", Work { flop: times * 2 * edge.pow(3), ..Work::default() }, || {
            (0..times).for_each(|_| drop(x.matmul(&x)));
            Ok(())
        })
    }

    /// Errors if scoring does not reproduce the log-probabilities of sampling.
    fn compare(&mut self, what: &str, sampled: Option<&Tensor>, scored: &TokenLogp) -> Result<()> {
        let sampled =
            sampled.ok_or_else(|| Error::failure(format!("{what}: no log-probabilities of sampling")))?;
        let off = (sampled - &scored.logp).abs().masked_select(&scored.mask).to_kind(Kind::Double);
        let [mean, most] = [off.mean(Kind::Double), off.max()].map(|value| value.double_value(&[]));
        let [mean_allowed, most_allowed] = if self.kind() == Kind::Float { F32 } else { BF16 };
        let tokens = off.numel();
        println!(
            "{what}: scored as sampled; error over {tokens} tokens: mean {mean:.1e}, maximum {most:.1e}"
        );
        self.write(&json!({
            "check": what, "tokens": tokens, "mean": mean, "max": most,
            "tolerance": [mean_allowed, most_allowed],
        }))?;
        if mean <= mean_allowed && most <= most_allowed {
            return Ok(());
        }
        Err(Error::failure(format!(
            "{what}: log-probabilities of sampling and scoring differ by {mean:.1e} in the mean and {most:.1e} at \
             most, expected at most {mean_allowed:.1e} and {most_allowed:.1e}; nothing is timed"
        ))
        .hint("run `unirl doctor`; on a GPU, compare with `--device cpu`"))
    }

    fn count(&mut self, what: &str, operations: i64, steps: i64) -> Result<()> {
        let each = operations as f64 / steps as f64;
        println!("{what}: {each:.0} operations");
        self.write(&json!({"count": what, "operations": each}))
    }
}

fn wait(device: Device) {
    if let Device::Cuda(index) = device {
        Cuda::synchronize(index as i64);
    }
}

// --- inputs of the models ---

/// A vocabulary of `tokens` words, so that a fresh tokenizer has as many entries as the published one.
fn vocabulary(tokens: usize) -> Vec<String> {
    let words = (1..tokens).map(|at| format!("w{at}"));
    std::iter::once(":".into()).chain(words).collect()
}

/// Words of one token each.
fn words(first: usize, words: usize) -> String {
    (first..first + words).map(|at| format!("w{}", at + 1)).collect::<Vec<_>>().join(" ")
}

fn source(device: Device) -> ModelSource {
    ModelSource { checkpoint: Checkpoint::Fresh, device, seed: 1, dry: false }
}

/// The number of parameters in the language model's layers, which every token passes through.
fn layers(parameters: &[Parameter], prefix: &str) -> i64 {
    let of = parameters.iter().filter(|parameter| parameter.name.starts_with(prefix));
    of.map(|parameter| parameter.tensor.numel() as i64).sum()
}

fn answer_sampling(max_tokens: i64) -> TextSampling {
    TextSampling { temperature: 1.0, max_tokens, ..TextSampling::default() }
}

/// Checks that answers are scored as sampled, and counts the operations per token.
fn check_answers(
    bench: &mut Bench,
    model: &mut dyn UnifiedModel,
    images: &Images,
    questions: &[String],
) -> Result<()> {
    let (answers, full) = ops::count(|| model.answer(images, questions, &answer_sampling(ANSWER)));
    let answers = answers?;
    let scored = tch::no_grad(|| model.answer_logp(images, questions, &answers, Policy::Current))?;
    bench.compare("answers", answers.logp.as_ref(), &scored)?;
    let (_, half) = ops::count(|| model.answer(images, questions, &answer_sampling(ANSWER / 2)));
    bench.count("a token step of answers", full - half, ANSWER - ANSWER / 2)
}

// --- Janus ---

fn janus(mut bench: Bench, size: Size) -> Result<()> {
    let real = size == Size::Real;
    let (batch, prompt, guidance) = (8, 32, 5.0);
    let vocabulary = vocabulary(102_400 - 9); // plus the unknown token and eight special tokens
    let device = bench.device;
    let architecture = if real {
        json!({
            "hidden_size": 2048, "intermediate_size": 5632, "layers": 24, "heads": 16, "key_value_heads": 16,
            "grid": 24, "words": vocabulary, "vq": {},
            "vision": {"hidden_size": 1024, "intermediate_size": 4096, "layers": 24, "heads": 16},
        })
    } else {
        json!({
            "hidden_size": 64, "intermediate_size": 128, "layers": 2, "heads": 4, "key_value_heads": 4,
            "grid": 8, "words": vocabulary,
            "vq": {
                "base_channels": 32, "channel_multiplier": [1, 1, 1, 1, 1], "num_res_blocks": 1,
                "latent_channels": 32,
            },
            "vision": {"hidden_size": 32, "intermediate_size": 128, "layers": 1, "heads": 2},
        })
    };
    let options = serde_json::from_value(json!({ "architecture": architecture }));
    let options = options.context(|| "the sizes of Janus")?;
    let parts = unirl_plugin_janus::checkpoint::load(&options, &source(device))?;
    let mut model = Janus::from_parts(parts, device)?;
    let ModelCard { image_tokens: tokens, resolution: edge, .. } = *model.card();
    let name = if real { "Janus-Pro-1B" } else { "a tiny Janus" };
    let work = format!("{name}, {batch} images, guidance {guidance}, {tokens} tokens after {prompt}");
    bench.about(size, &work)?;

    // Six tokens of a prompt belong to the template.
    let prompts = vec![words(0, prompt - 6); batch];
    let questions = vec![words(100, 20); batch];
    assert_eq!(model.prompting().generation_ids(&prompts[0])?.len(), prompt, "tokens of the prompt");
    let sampling = ImageSampling { guidance, ..ImageSampling::default() };

    let (images, generated) = ops::count(|| model.generate(&prompts, &sampling));
    let images = images?;
    let scored = tch::no_grad(|| {
        let masking = Masking::Remask { seed: 0, part: None, scoring: Scoring::Guided, guidance };
        model.image_logp(&prompts, &images, Policy::Current, &masking)
    })?;
    bench.compare("images", images.logp.as_ref(), &scored)?;
    let (_, decoded) = ops::count(|| model.pixels(&images));
    bench.count("a token step of generation", generated - decoded, tokens)?;
    check_answers(&mut bench, &mut model, &images, &questions)?;

    bench.card()?;
    let mut parameters = model.parameters()?;
    let weights = layers(&parameters, "model.language_model.layers.");
    let bytes = weights * bench.kind().elt_size_in_bytes() as i64;
    let flop = 2 * weights * batch as i64 * (prompt as i64 + tokens - 1);
    let ids =
        prompts.iter().map(|prompt| model.prompting().generation_ids(prompt)).collect::<Result<Vec<_>>>()?;
    bench.time("generation", Work { flop: 0, bytes: tokens * bytes, steps: tokens }, || {
        tch::no_grad(|| model.generate_tokens(&ids, &sampling)).map(drop)
    })?;
    let masking = Masking::remask(0, None);
    let score = |model: &Janus| model.image_logp(&prompts, &images, Policy::Current, &masking);
    bench.time("log-probability forward", Work { flop, ..Work::default() }, || {
        tch::no_grad(|| score(&model)).map(drop)
    })?;
    bench.time("log-probability and gradient", Work { flop: 3 * flop, ..Work::default() }, || {
        (-score(&model)?.logp.mean(Kind::Float)).f_backward()?;
        for parameter in &mut parameters {
            clear_gradient(&mut parameter.tensor);
        }
        Ok(())
    })?;
    let pixels = Tensor::randn([batch as i64, 3, edge, edge], (bench.kind(), device));
    bench.time("siglip", Work::default(), || tch::no_grad(|| model.network().align(&pixels)).map(drop))?;
    bench.time("vq decode", Work::default(), || model.pixels(&images).map(drop))
}

// --- Show-o ---

fn showo(mut bench: Bench, size: Size) -> Result<()> {
    let real = size == Size::Real;
    let (prompts, group, prompt, question) = (2, 3, 128, 32);
    let batch = prompts * group;
    let vocabulary = vocabulary(50_295 - 2); // plus the unknown token and the end token
    let device = bench.device;
    let architecture = if real {
        json!({
            "hidden_size": 2048, "intermediate_size": 8192, "layers": 24, "heads": 32, "max_text_len": prompt,
            "grid": 32, "words": vocabulary, "magvit": {},
        })
    } else {
        let half = json!({"ch": 16, "ch_mult": [1, 2, 2, 2], "num_res_blocks": [1, 1, 1, 1]});
        json!({
            "hidden_size": 64, "intermediate_size": 128, "layers": 2, "heads": 4, "max_text_len": prompt,
            "grid": 8, "words": vocabulary, "magvit": {"norm_groups": 8, "encoder": half, "decoder": half},
        })
    };
    let options = serde_json::from_value(json!({ "architecture": architecture }));
    let options = options.context(|| "the sizes of Show-o")?;
    let parts = unirl_plugin_showo::checkpoint::load(&options, &source(device))?;
    let mut model = Showo::from_parts(parts, device)?;
    let sampling = ImageSampling::default();
    let ImageSampling { guidance, steps, .. } = sampling;
    let tokens = model.card().image_tokens;
    let name = if real { "Show-o 512" } else { "a tiny Show-o" };
    let work =
        format!("{name}, {batch} images, guidance {guidance}, {steps} steps, {tokens} tokens after {prompt}");
    bench.about(size, &work)?;

    // Of maximal length, to which the Python peer pads its prompts: the layout adds two tokens to a prompt, one to a question.
    let tasks: Vec<Task> = (0..batch)
        .map(|at| Task {
            spec: PromptSpec {
                category: Category::SingleObject,
                objects: vec![Object::one("w1")],
                relation: None,
            },
            prompt: words(1000 * (at / group), prompt - 2),
            question: words(500, question - 1),
            reference_answer: "w1".into(),
            keywords: vec!["w1".into()],
        })
        .collect();
    let texts: Vec<String> = tasks.iter().map(|task| task.prompt.clone()).collect();
    let questions: Vec<String> = tasks.iter().map(|task| task.question.clone()).collect();

    let (images, full) = ops::count(|| model.generate(&texts, &sampling));
    let images = images?;
    let scored = tch::no_grad(|| {
        // Two images only: every state of all six needs more memory than any timed call.
        let masking = Masking::Reveal { steps: (0..steps).collect(), scoring: Scoring::Guided, guidance };
        model.image_logp(&texts[..2], &images.narrow(0, 2), Policy::Current, &masking)
    })?;
    bench.compare("images", images.narrow(0, 2).logp.as_ref(), &scored)?;
    let fewer = ImageSampling { steps: steps / 2, ..sampling.clone() };
    let (_, half) = ops::count(|| model.generate(&texts, &fewer));
    bench.count("a step of generation", full - half, steps - steps / 2)?;
    check_answers(&mut bench, &mut model, &images, &questions)?;

    bench.card()?;
    let weights = layers(&model.parameters()?, "showo.model.layers.");
    let bytes = weights * bench.kind().elt_size_in_bytes() as i64;
    let rows = batch as i64 * (tokens + 2);
    let flop = 2 * weights * 2 * rows * steps;
    bench.time("generation", Work { flop, ..Work::default() }, || {
        model.generate(&texts, &sampling).map(drop)
    })?;
    let flop = 2 * weights * batch as i64 * (tokens + 3 + question as i64);
    bench.time("answers", Work { flop, bytes: (ANSWER - 1) * bytes, steps: 0 }, || {
        model.answer(&images, &questions, &answer_sampling(ANSWER)).map(drop)
    })?;

    let rollout = Rollout {
        prompts_per_step: prompts,
        group_size: group,
        micro_batch: 0,
        images: sampling,
        answers: answer_sampling(ANSWER),
    };
    train(&mut bench, Box::new(model), &tasks, &rollout)
}

/// GRPO steps as in training: the algorithm, then the update.
fn train(
    bench: &mut Bench,
    mut model: Box<dyn UnifiedModel>,
    tasks: &[Task],
    rollout: &Rollout,
) -> Result<()> {
    model.freeze_reference()?;
    let of_tokenizer = |parameter: &Parameter| parameter.group == ParameterGroup::Tokenizer;
    let (tokenizer, weights): (Vec<_>, Vec<_>) = model.parameters()?.into_iter().partition(of_tokenizer);
    for parameter in &tokenizer {
        let _ = parameter.tensor.set_requires_grad(false);
    }
    let reward = RewardOptions::default();
    let mut reader = ReaderWeights::new(&weights, &reward);
    let mut update = AdamW::new(weights, UpdateOptions::default(), 1000);
    let rules = RewardSet::new(vec![(WeightedReward::named("cyclic"), Box::new(CyclicReward))])?;
    let mut model = TimedModel { model, device: bench.device, generation: 0.0, answering: 0.0 };
    let mut step = 0;
    let rows = ["step", "step: generation", "step: answers", "update"].map(|row| (row, Work::default()));
    bench.time_parts(rows, || {
        step += 1;
        [model.generation, model.answering] = [0.0; 2];
        wait(model.device);
        let started = Instant::now();
        update.zero_grad();
        Grpo::default().accumulate(&mut Iteration {
            model: &mut model,
            tasks,
            rules: &rules,
            answer_rules: None,
            reward: &reward,
            reader: &mut reader,
            rollout,
            step,
            seed: step,
            shuffle_rewards: false,
            phases: Phases::default(),
        })?;
        update.apply()?;
        wait(model.device);
        let full = started.elapsed().as_secs_f64();
        Ok([full, model.generation, model.answering, full - model.generation - model.answering])
    })
}

/// A reward that ignores the answers; only different values matter for the timing.
struct CyclicReward;

impl RewardFunction for CyclicReward {
    fn score(&self, samples: &[Sample], _: Option<&Tensor>) -> Result<Vec<Reward>> {
        Ok((0..samples.len()).map(|at| Reward::new((at % 3) as f64, 2.0)).collect())
    }
}

/// A model whose generation and answers are timed, each until the GPU has finished.
struct TimedModel {
    model: Box<dyn UnifiedModel>,
    device: Device,
    generation: f64,
    answering: f64,
}

impl UnifiedModel for TimedModel {
    fn generate(&mut self, prompts: &[String], sampling: &ImageSampling) -> Result<Images> {
        wait(self.device);
        let started = Instant::now();
        let images = self.model.generate(prompts, sampling)?;
        wait(self.device);
        self.generation += started.elapsed().as_secs_f64();
        Ok(images)
    }

    fn answer(&mut self, images: &Images, questions: &[String], sampling: &TextSampling) -> Result<Answers> {
        wait(self.device);
        let started = Instant::now();
        let answers = self.model.answer(images, questions, sampling)?;
        wait(self.device);
        self.answering += started.elapsed().as_secs_f64();
        Ok(answers)
    }

    fn card(&self) -> &ModelCard {
        self.model.card()
    }

    fn parameters(&self) -> Result<Vec<Parameter>> {
        self.model.parameters()
    }

    fn freeze_reference(&mut self) -> Result<()> {
        self.model.freeze_reference()
    }

    fn encode_answers(&self, texts: &[String]) -> Result<Answers> {
        self.model.encode_answers(texts)
    }

    fn image_logits(
        &self,
        prompts: &[String],
        images: &Images,
        policy: Policy,
        masking: &Masking,
    ) -> Result<ImageLogits> {
        self.model.image_logits(prompts, images, policy, masking)
    }

    fn image_logp(
        &self,
        prompts: &[String],
        images: &Images,
        policy: Policy,
        masking: &Masking,
    ) -> Result<TokenLogp> {
        self.model.image_logp(prompts, images, policy, masking)
    }

    fn answer_logp(
        &self,
        images: &Images,
        questions: &[String],
        answers: &Answers,
        policy: Policy,
    ) -> Result<TokenLogp> {
        self.model.answer_logp(images, questions, answers, policy)
    }

    fn pixels(&self, images: &Images) -> Result<Tensor> {
        self.model.pixels(images)
    }

    fn encode(&self, pixels: &Tensor) -> Result<Images> {
        self.model.encode(pixels)
    }

    fn save(&self, dir: &Path) -> Result<()> {
        self.model.save(dir)
    }
}
