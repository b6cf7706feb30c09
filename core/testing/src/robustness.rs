//! Checks of pixels, batch splits, the reference policy, checkpoints, invalid input and memory.

use std::fs;

use tch::{Kind, Tensor};
use unirl::error::{Code, Result};
use unirl::model::{Answers, BatchSlice, ImageSampling, Images, Mode, ParameterGroup, Policy, TextSampling};

use super::{Check, Outcome, Subject, all, fails};

pub(super) const ALL: &[Check] = &[
    Check {
        name: "`pixels` and `encode` are valid",
        hint: "`pixels` must return `[B,3,H,W]` f32 in `0..=1` with `H` = `W` = `resolution`, and `encode` must turn it into \
               tokens `[B,N]`",
        run: pixels_and_encode,
    },
    Check {
        name: "the rows of a batch are independent",
        hint: "no row may depend on another: check padding, masks and means. With `sampling.part`, take the random numbers of \
               the whole batch (`BatchSlice::rows`)",
        run: rows_are_independent,
    },
    Check {
        name: "the reference policy does not change",
        hint: "`freeze_reference` must copy the weights (`detach().copy()`): a handle shares storage and changes with every \
               update",
        run: reference_is_frozen,
    },
    Check {
        name: "a saved model loads with the same weights",
        hint: "`save` must write everything that the constructor reads",
        run: save_and_load,
    },
    Check {
        name: "invalid input is an error",
        hint: "validate the arguments (`Images::check`, `TextSampling::check`) and return `Error::usage`; never panic",
        run: invalid_input,
    },
    Check {
        name: "200 calls use no more memory than 20",
        hint: "something keeps tensors alive: a growing cache, or a graph recorded outside of `no_grad`",
        run: leaks,
    },
];

fn pixels_and_encode(subject: &mut Subject<'_>) -> Result<Outcome> {
    let (edge, batch) = (subject.model.card().resolution, subject.generated.len());
    let pixels = tch::no_grad(|| subject.model.pixels(&subject.generated))?;
    if pixels.size() != [batch, 3, edge, edge] {
        return Ok(fails(format!("`pixels`: expected [{batch},3,{edge},{edge}], got {:?}", pixels.size())));
    }
    let [min, max] = [pixels.min(), pixels.max()].map(|value| value.double_value(&[]));
    if min < 0.0 || max > 1.0 {
        return Ok(fails(format!("`pixels`: expected values in 0..=1, got {min}..={max}")));
    }
    let encoded = tch::no_grad(|| subject.model.encode(&pixels))?;
    let same = encoded.tokens.eq_tensor(&subject.generated.tokens).to_kind(Kind::Float).mean(Kind::Float);
    Ok(Outcome::Holds(format!(
        "`encode` recovers {:.0} % of the tokens from `pixels`",
        100.0 * same.double_value(&[])
    )))
}

fn rows_are_independent(subject: &mut Subject<'_>) -> Result<Outcome> {
    let batch = subject.generated.len();
    let whole = answer_logp(subject, &subject.generated, &subject.questions, &subject.answers)?;
    let mut difference = 0.0f64;
    for row in (0..batch).rev() {
        let at = row as usize;
        let (images, answers) = (subject.generated.narrow(row, 1), subject.answers.narrow(row, 1));
        let alone = answer_logp(subject, &images, &subject.questions[at..=at], &answers)?;
        difference = difference.max((alone - whole.narrow(0, row, 1)).abs().max().double_value(&[]));
    }
    let mut different = 0;
    for row in 0..batch {
        let at = row as usize;
        let part = Some(BatchSlice { first: row, of: batch });
        let sampling = ImageSampling { part, ..subject.images.clone() };
        let alone = tch::no_grad(|| subject.model.generate(&subject.prompts[at..=at], &sampling))?;
        different += i64::from(!alone.tokens.equal(&subject.generated.tokens.narrow(0, row, 1)));
    }
    // Another batch size rounds differently, which can change a sample.
    if different * 4 > batch {
        return Ok(fails(format!("{different} of {batch} images differ when generated alone")));
    }
    Ok(subject.within_tolerance("nats per token of single rows", difference))
}

fn answer_logp(
    subject: &Subject<'_>,
    images: &Images,
    questions: &[String],
    answers: &Answers,
) -> Result<Tensor> {
    Ok(tch::no_grad(|| subject.model.answer_logp(images, questions, answers, Policy::Current))?.logp)
}

fn reference_is_frozen(subject: &mut Subject<'_>) -> Result<Outcome> {
    let score = |subject: &Subject<'_>, policy| {
        tch::no_grad(|| {
            subject.model.answer_logp(&subject.generated, &subject.questions, &subject.answers, policy)
        })
        .map(|scored| scored.logp)
    };
    let before = [score(subject, Policy::Reference)?, score(subject, Policy::Current)?];
    let mut trained = subject.model.parameters()?;
    trained.retain(|parameter| parameter.group != ParameterGroup::Tokenizer);
    let saved: Vec<Tensor> = trained.iter().map(|parameter| parameter.tensor.detach().copy()).collect();
    tch::no_grad(|| {
        for parameter in &mut trained {
            parameter.tensor *= 1.1;
        }
    });
    let after = score(subject, Policy::Reference)
        .and_then(|reference| Ok([reference, score(subject, Policy::Current)?]));
    tch::no_grad(|| {
        for (parameter, saved) in trained.iter_mut().zip(&saved) {
            parameter.tensor.copy_(saved);
        }
    });
    let [reference, current] = after?;
    let change = |one: &Tensor, other: &Tensor| (one - other).abs().max().double_value(&[]);
    if change(&current, &before[1]) == 0.0 {
        return Ok(fails("changing the weights does not change the scores of the current policy"));
    }
    let difference = change(&reference, &before[0]);
    Ok(subject.within_tolerance("nats per token of the reference policy after an update", difference))
}

fn save_and_load(subject: &mut Subject<'_>) -> Result<Outcome> {
    let Some(load) = &mut subject.load else {
        return Ok(Outcome::Skipped("no loader was given".into()));
    };
    let dir = tempfile::tempdir()
        .map_err(|error| unirl::Error::failure("cannot create a temporary directory").cause(error))?;
    subject.model.save(dir.path())?;
    let loaded = load(dir.path())?;
    let score = |model: &dyn unirl::model::UnifiedModel| {
        tch::no_grad(|| {
            model.answer_logp(&subject.generated, &subject.questions, &subject.answers, Policy::Current)
        })
    };
    let difference = (score(&*loaded)?.logp - score(subject.model)?.logp).abs().max().double_value(&[]);
    Ok(subject.within_tolerance("nats per token of the loaded model", difference))
}

fn invalid_input(subject: &mut Subject<'_>) -> Result<Outcome> {
    let (images, answering) = (subject.images.clone(), subject.answering.clone());
    let (prompt, question) = (vec![subject.prompts[0].clone()], vec![subject.questions[0].clone()]);
    let one = || subject.generated.narrow(0, 1);
    let codes = subject.model.card().codebook_size;
    let beyond = Images::from_tokens(one().tokens.full_like(codes));
    let floats = Images::from_tokens(one().tokens.to_kind(Kind::Float));
    let long = vec!["a ".repeat(20_000)];
    let model = &mut *subject.model;
    model.set_mode(Mode::Eval)?;
    let mut tried: Vec<(&str, bool, Result<()>)> = Vec::new(); // input, whether it is invalid, result
    tried.push(("no prompt", false, model.generate(&[], &images).map(drop)));
    tried.push(("an empty prompt", false, model.generate(&[String::new()], &images).map(drop)));
    tried.push(("a prompt of 20,000 words", false, model.generate(&long, &images).map(drop)));
    tried.push(("an empty question", false, model.answer(&one(), &[String::new()], &answering).map(drop)));
    tried.push((
        "two images and one question",
        true,
        model.answer(&subject.generated.narrow(0, 2), &question, &answering).map(drop),
    ));
    tried.push(("two images and one prompt to score", true, {
        let masking = unirl::model::Masking::remask(1, None);
        model.image_logits(&prompt, &subject.generated.narrow(0, 2), Policy::Current, &masking).map(drop)
    }));
    tried.push((
        "image tokens outside the codebook",
        true,
        model.answer(&beyond, &question, &answering).map(drop),
    ));
    tried.push((
        "image tokens that are not integers",
        true,
        model.answer(&floats, &question, &answering).map(drop),
    ));
    let none = TextSampling { max_tokens: 0, ..answering.clone() };
    tried.push(("answers without a token", true, model.answer(&one(), &question, &none).map(drop)));
    let refused = tried.iter().filter(|(_, _, result)| result.is_err()).count();
    let outcomes = tried.into_iter().map(|(what, invalid, result)| match result {
        Err(error) if error.code() == Code::Panic => {
            fails(format!("{what}: {}", error.causes().first().map_or(error.message(), |cause| cause)))
        }
        Ok(()) if invalid => fails(format!("{what}: expected an error, got none")),
        _ => Outcome::Holds(format!("{refused} kinds of input are refused")),
    });
    Ok(all(outcomes))
}

fn leaks(subject: &mut Subject<'_>) -> Result<Outcome> {
    /// Memory that the allocator may keep.
    const SLACK: i64 = 8 << 20;
    let prompts = &subject.prompts[..1];
    let questions = &subject.questions[..1];
    let mut call = || -> Result<()> {
        let generated = tch::no_grad(|| subject.model.generate(prompts, &subject.images))?;
        let answers = tch::no_grad(|| subject.model.answer(&generated, questions, &subject.answering))?;
        subject.model.answer_logp(&generated, questions, &answers, Policy::Current).map(drop)
    };
    (0..20).try_for_each(|_| call())?;
    let Some(before) = resident() else {
        return Ok(Outcome::Skipped("this system does not report the resident memory".into()));
    };
    (0..200).try_for_each(|_| call())?;
    let grown = resident().unwrap_or(before) - before;
    let text = format!("{} kB more after 200 calls", grown / 1000);
    Ok(if grown > SLACK { fails(text) } else { Outcome::Holds(text) })
}

/// Returns the resident memory of the process in bytes.
fn resident() -> Option<i64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<i64>().ok().map(|kilobytes| kilobytes * 1024)
}
