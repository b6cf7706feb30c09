//! Batches of every size, updates, checkpoints, wrong input, and many calls.

use std::fs;

use tch::{Kind, Tensor};

use super::{Check, Outcome, Subject, all, fails};
use crate::error::{Code, Result};
use crate::model::{Answers, BatchSlice, ImageSampling, Images, Mode, ParameterGroup, Policy, TextSampling};

pub(super) const ALL: &[Check] = &[
    Check {
        name: "pictures go in and out",
        hint: "`pixels` gives `[B,3,H,W]` f32 in `0..=1`, `resolution` an edge, and `encode` takes that back to tokens `[B,N]`",
        run: pictures,
    },
    Check {
        name: "a batch is its rows, in any order",
        hint: "no row may see another: mind padding, masks and means; and with `sampling.part` the random numbers are those of the \
               whole batch (`Part::rows`)",
        run: batches,
    },
    Check {
        name: "the reference stays where it was",
        hint: "`freeze_reference` copies weights (`detach().copy()`): a handle of the same storage moves with every update",
        run: reference_stays,
    },
    Check {
        name: "what is saved is what is loaded",
        hint: "`save` writes everything that the constructor reads, and nothing that it does not",
        run: saved_and_loaded,
    },
    Check {
        name: "wrong input is an error",
        hint: "check what you are given (`Images::check`, `TextSampling::check`) and answer `Error::usage`; a panic tells nobody what \
               was wrong",
        run: wrong_input,
    },
    Check {
        name: "200 calls hold no more memory than 20",
        hint: "something keeps tensors: a cache that grows, a graph that is remembered outside of `no_grad`",
        run: leaks,
    },
];

fn pictures(subject: &mut Subject<'_>) -> Result<Outcome> {
    let (edge, batch) = (subject.model.card().resolution, subject.generated.len());
    let pixels = tch::no_grad(|| subject.model.pixels(&subject.generated))?;
    if pixels.size() != [batch, 3, edge, edge] {
        return Ok(fails(format!("`pixels`: expected [{batch},3,{edge},{edge}], got {:?}", pixels.size())));
    }
    let [least, most] = [pixels.min(), pixels.max()].map(|value| value.double_value(&[]));
    if least < 0.0 || most > 1.0 {
        return Ok(fails(format!("`pixels`: expected values in 0..=1, got {least}..={most}")));
    }
    let read = tch::no_grad(|| subject.model.encode(&pixels))?;
    let same = read.tokens.eq_tensor(&subject.generated.tokens).to_kind(Kind::Float).mean(Kind::Float);
    Ok(Outcome::Holds(format!(
        "{:.0} % of the tokens survive `pixels` and `encode`",
        100.0 * same.double_value(&[])
    )))
}

fn batches(subject: &mut Subject<'_>) -> Result<Outcome> {
    let batch = subject.generated.len();
    let whole = answer_logp(subject, &subject.generated, &subject.questions, &subject.answers)?;
    let mut off = 0.0f64;
    for row in (0..batch).rev() {
        let at = row as usize;
        let (images, answers) = (subject.generated.narrow(row, 1), subject.answers.narrow(row, 1));
        let alone = answer_logp(subject, &images, &subject.questions[at..=at], &answers)?;
        off = off.max((alone - whole.narrow(0, row, 1)).abs().max().double_value(&[]));
    }
    let mut different = 0;
    for row in 0..batch {
        let at = row as usize;
        let part = Some(BatchSlice { first: row, of: batch });
        let sampling = ImageSampling { part, ..subject.images.clone() };
        let alone = tch::no_grad(|| subject.model.generate(&subject.prompts[at..=at], &sampling))?;
        different += i64::from(!alone.tokens.equal(&subject.generated.tokens.narrow(0, row, 1)));
    }
    // Where the arithmetic of another batch size rounds otherwise, a draw may fall on the other side.
    if different * 4 > batch {
        return Ok(fails(format!("{different} of {batch} images are others when they are drawn alone")));
    }
    Ok(subject.same("nats a token of rows alone", off))
}

fn answer_logp(
    subject: &Subject<'_>,
    images: &Images,
    questions: &[String],
    answers: &Answers,
) -> Result<Tensor> {
    Ok(tch::no_grad(|| subject.model.answer_logp(images, questions, answers, Policy::Current))?.logp)
}

fn reference_stays(subject: &mut Subject<'_>) -> Result<Outcome> {
    let score = |subject: &Subject<'_>, policy| {
        tch::no_grad(|| {
            subject.model.answer_logp(&subject.generated, &subject.questions, &subject.answers, policy)
        })
        .map(|scored| scored.logp)
    };
    let before = [score(subject, Policy::Reference)?, score(subject, Policy::Current)?];
    let mut learning = subject.model.parameters()?;
    learning.retain(|parameter| parameter.group != ParameterGroup::Tokenizer);
    let kept: Vec<Tensor> = learning.iter().map(|parameter| parameter.tensor.detach().copy()).collect();
    tch::no_grad(|| {
        for parameter in &mut learning {
            parameter.tensor *= 1.1;
        }
    });
    let after = score(subject, Policy::Reference)
        .and_then(|reference| Ok([reference, score(subject, Policy::Current)?]));
    tch::no_grad(|| {
        for (parameter, kept) in learning.iter_mut().zip(&kept) {
            parameter.tensor.copy_(kept);
        }
    });
    let [reference, current] = after?;
    let moved = |one: &Tensor, other: &Tensor| (one - other).abs().max().double_value(&[]);
    if moved(&current, &before[1]) == 0.0 {
        return Ok(fails("weights that change do not change the score of the current policy"));
    }
    Ok(subject.same("nats a token of the reference, after an update", moved(&reference, &before[0])))
}

fn saved_and_loaded(subject: &mut Subject<'_>) -> Result<Outcome> {
    let Some(load) = &mut subject.load else {
        return Ok(Outcome::Skipped("nobody says how to load it again".into()));
    };
    let folder =
        tempfile::tempdir().map_err(|error| crate::Error::failure("no temporary folder").cause(error))?;
    subject.model.save(folder.path())?;
    let again = load(folder.path())?;
    let score = |model: &dyn crate::model::UnifiedModel| {
        tch::no_grad(|| {
            model.answer_logp(&subject.generated, &subject.questions, &subject.answers, Policy::Current)
        })
    };
    let off = (score(&*again)?.logp - score(subject.model)?.logp).abs().max().double_value(&[]);
    Ok(subject.same("nats a token of the loaded model", off))
}

fn wrong_input(subject: &mut Subject<'_>) -> Result<Outcome> {
    let (images, answering) = (subject.images.clone(), subject.answering.clone());
    let (prompt, question) = (vec![subject.prompts[0].clone()], vec![subject.questions[0].clone()]);
    let one = || subject.generated.narrow(0, 1);
    let codes = subject.model.card().codebook_size;
    let beyond = Images::from_tokens(one().tokens.full_like(codes));
    let floats = Images::from_tokens(one().tokens.to_kind(Kind::Float));
    let long = vec!["a ".repeat(20_000)];
    let model = &mut *subject.model;
    model.set_mode(Mode::Eval)?;
    let mut tried: Vec<(&str, bool, Result<()>)> = Vec::new(); // what, whether it is wrong, what came of it
    tried.push(("no prompt", false, model.generate(&[], &images).map(drop)));
    tried.push(("an empty prompt", false, model.generate(&[String::new()], &images).map(drop)));
    tried.push(("a prompt of 20,000 words", false, model.generate(&long, &images).map(drop)));
    tried.push(("an empty question", false, model.answer(&one(), &[String::new()], &answering).map(drop)));
    tried.push((
        "two images and a question",
        true,
        model.answer(&subject.generated.narrow(0, 2), &question, &answering).map(drop),
    ));
    tried.push(("two images and a prompt to score", true, {
        let replay = crate::model::Masking::remask(1, None);
        model.image_logits(&prompt, &subject.generated.narrow(0, 2), Policy::Current, &replay).map(drop)
    }));
    tried.push((
        "image tokens beyond the codebook",
        true,
        model.answer(&beyond, &question, &answering).map(drop),
    ));
    tried.push((
        "image tokens that are no integers",
        true,
        model.answer(&floats, &question, &answering).map(drop),
    ));
    let none = TextSampling { max_tokens: 0, ..answering.clone() };
    tried.push(("answers of no token", true, model.answer(&one(), &question, &none).map(drop)));
    let told = tried.iter().filter(|(_, _, outcome)| outcome.is_err()).count();
    let outcomes = tried.into_iter().map(|(what, wrong, outcome)| match outcome {
        Err(error) if error.code() == Code::Panic => {
            fails(format!("{what}: {}", error.causes().first().map_or(error.message(), |cause| cause)))
        }
        Ok(()) if wrong => fails(format!("{what}: taken as if nothing were wrong")),
        _ => Outcome::Holds(format!("{told} kinds of input are refused")),
    });
    Ok(all(outcomes))
}

fn leaks(subject: &mut Subject<'_>) -> Result<Outcome> {
    /// What the heap keeps for itself.
    const SLACK: i64 = 8 << 20;
    let prompts = &subject.prompts[..1];
    let questions = &subject.questions[..1];
    let mut call = || -> Result<()> {
        let generated = tch::no_grad(|| subject.model.generate(prompts, &subject.images))?;
        let answers = tch::no_grad(|| subject.model.answer(&generated, questions, &subject.answering))?;
        subject.model.answer_logp(&generated, questions, &answers, Policy::Current).map(drop)
    };
    (0..20).try_for_each(|_| call())?;
    let Some(before) = resident() else { return Ok(Outcome::Skipped("this system does not tell".into())) };
    (0..200).try_for_each(|_| call())?;
    let grown = resident().unwrap_or(before) - before;
    let text = format!("{} kB more after 200 calls", grown / 1000);
    Ok(if grown > SLACK { fails(text) } else { Outcome::Holds(text) })
}

/// Bytes that the process holds.
fn resident() -> Option<i64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<i64>().ok().map(|kilobytes| kilobytes * 1024)
}
