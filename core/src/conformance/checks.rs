//! The promises, one by one.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use super::{Check, Outcome, Subject, all, fails};
use crate::algorithms::objective;
use crate::autograd::forget_gradient;
use crate::error::Result;
use crate::model::{
    ImageDecoding, ImageSampling, ImageSpace, Images, Masking, Policy, Scoring, TextSampling,
};

pub(super) const ALL: &[Check] = &[
    Check {
        name: "token ids are sane",
        hint: "`revealed_at` lies in `0..steps`, and an answer is a run of tokens that \
               ends with the same end token whether it was said or encoded: special tokens are found by name, not by number",
        run: token_ids,
    },
    Check {
        name: "the seed decides",
        hint: "all randomness of `generate` and `answer` comes from `sampling.seed`: seed libtorch with it, and draw nothing \
               before",
        run: seeds,
    },
    Check {
        name: "drawing: scoring finds the probabilities of sampling",
        hint: "`image_logits` has to see what `generate` saw: the same prompt, the same guidance, every token in the state in \
               which it was drawn, and the logits that predict a token at its own place",
        run: drawing_is_scored_as_sampled,
    },
    Check {
        name: "answering: scoring finds the probabilities of sampling",
        hint: "`answer_logp` reads the sequence at once, `answer` with a cache: positions, masks and the place of a token's \
               logits have to be the same",
        run: answering_is_scored_as_sampled,
    },
    Check {
        name: "before the first update the ratio is 1",
        hint: "right after `freeze_reference` both policies are one: copy every weight that scoring uses, and drop nothing out \
               in `Mode::Eval`",
        run: ratio,
    },
    Check {
        name: "before the first update the KL is 0",
        hint: "as for the ratio; a KL that begins above 0 pulls the model away from itself",
        run: divergence,
    },
    Check {
        name: "gradients reach what learns, and nothing else",
        hint: "`parameters` are the leaves that scoring uses, in the group that they serve: drawing moves `Generation` and \
               `Shared`, answering `Understanding` and `Shared`, and neither the `Tokenizer`",
        run: gradients,
    },
    Check {
        name: "an answer's gradient reaches the image",
        hint: "`answer_logp` has to read `images.relaxed` where it is set, by a product with the embedding table and without a \
               detach (eqs. 7 and 8)",
        run: straight_through,
    },
    Check {
        name: "a relaxed one-hot is its token",
        hint: "`answer_logp` of `relaxed` rows that are one-hot has to be that of `tokens`",
        run: relaxed_is_hard,
    },
];

/// The largest difference where `mask` is true.
fn off(one: &Tensor, other: &Tensor, mask: &Tensor) -> f64 {
    let differences = (one.detach().to_kind(Kind::Float) - other.detach().to_kind(Kind::Float)).abs();
    let counted = differences.masked_select(mask);
    if counted.numel() == 0 { 0.0 } else { counted.max().double_value(&[]) }
}

fn token_ids(subject: &mut Subject<'_>) -> Result<Outcome> {
    let (card, generated) = (subject.model.card().clone(), &subject.generated);
    if card.image_decoding == ImageDecoding::Masked {
        let Some(revealed_at) = &generated.revealed_at else {
            return Ok(fails("a masked model has to say in `revealed_at` when it settled each token"));
        };
        let steps = subject.images.steps;
        let [first, last] = [revealed_at.min(), revealed_at.max()].map(|step| step.int64_value(&[]));
        if first < 0 || last >= steps {
            return Ok(fails(format!("`revealed_at` from {first} to {last}, expected 0..{steps}")));
        }
    }
    let encoded = subject.model.encode_answers(&subject.reference_answers)?;
    if encoded.text != subject.reference_answers {
        let (got, expected) = (&encoded.text[0], &subject.reference_answers[0]);
        return Ok(fails(format!("`encode_answers` gives back the text `{got}`, expected `{expected}`")));
    }
    let mut ends = Vec::new();
    for (what, answers, longest) in [
        ("an encoded answer", &encoded, i64::MAX),
        ("an answer", &subject.answers, subject.answers.tokens.size()[1]),
    ] {
        for row in 0..answers.tokens.size()[0] {
            let mask = Vec::<bool>::try_from(answers.mask.get(row))?;
            let length = mask.iter().take_while(|there| **there).count();
            if length == 0 || mask[length..].contains(&true) {
                return Ok(fails(format!("the mask of {what} is no run of true from its beginning")));
            }
            if (length as i64) < longest {
                ends.push((what, answers.tokens.int64_value(&[row, length as i64 - 1])));
            }
        }
    }
    match ends.iter().find(|(_, end)| *end != ends[0].1) {
        Some((what, end)) => {
            Ok(fails(format!("{what} ends with token {end}, {} with {}", ends[0].0, ends[0].1)))
        }
        None => Ok(Outcome::Holds(format!("end token {}", ends[0].1))),
    }
}

fn seeds(subject: &mut Subject<'_>) -> Result<Outcome> {
    let again = tch::no_grad(|| subject.model.generate(&subject.prompts, &subject.images))?;
    if !again.tokens.equal(&subject.generated.tokens) {
        return Ok(fails("the same seed draws other images"));
    }
    let other = ImageSampling { seed: subject.images.seed + 1, ..subject.images.clone() };
    let other = tch::no_grad(|| subject.model.generate(&subject.prompts, &other))?;
    if other.tokens.equal(&subject.generated.tokens) {
        return Ok(fails("another seed draws the same images"));
    }
    let (questions, sampling) = (&subject.questions, &subject.answering);
    let again = tch::no_grad(|| subject.model.answer(&subject.generated, questions, sampling))?;
    if again.text != subject.answers.text {
        return Ok(fails("the same seed answers otherwise"));
    }
    let differs = (1..=8).any(|more| {
        let other = TextSampling { seed: sampling.seed + more, ..sampling.clone() };
        let other = tch::no_grad(|| subject.model.answer(&subject.generated, questions, &other));
        other.is_ok_and(|other| other.text != subject.answers.text)
    });
    Ok(Outcome::Holds(if differs {
        "another seed draws and answers otherwise".into()
    } else {
        "another seed draws otherwise; eight answer the same, as sure as the model is".into()
    }))
}

/// How the drawings are scored by the distribution that drew them.
fn as_drawn(images: &ImageSampling) -> Masking {
    let steps = (0..images.steps).collect();
    Masking::Reveal { steps, scoring: Scoring::Guided, guidance: images.guidance }
}

/// Log-probabilities of the drawings, and which of them count.
fn image_logp(subject: &Subject<'_>, policy: Policy) -> Result<(Tensor, Tensor)> {
    let replay = as_drawn(&subject.images);
    let scored = subject.model.image_logp(&subject.prompts, &subject.generated, policy, &replay)?;
    Ok((scored.logp, scored.mask))
}

fn drawing_is_scored_as_sampled(subject: &mut Subject<'_>) -> Result<Outcome> {
    let Some(sampled) = &subject.generated.logp else {
        return Ok(Outcome::Skipped("`generate` does not say `logp`".into()));
    };
    let (scored, targets) = tch::no_grad(|| image_logp(subject, Policy::Current))?;
    if !bool::try_from(targets.all())? {
        return Ok(fails("a replay of all reveal steps leaves tokens out of `targets`"));
    }
    let same = subject.same("nats a token", off(&scored, sampled, &targets));
    if matches!(same, Outcome::Fails(_)) {
        return Ok(same);
    }
    let (prompts, generated) = (&subject.prompts, &subject.generated);
    let replay = as_drawn(&subject.images);
    let logits = tch::no_grad(|| subject.model.image_logits(prompts, generated, Policy::Current, &replay))?
        .logp(&generated.tokens);
    if !logits.mask.equal(&targets) {
        return Ok(fails("`image_logits` and `image_logp` have other targets"));
    }
    Ok(all([subject.same("nats a token by `image_logits`", off(&logits.logp, sampled, &targets)), same]))
}

fn answering_is_scored_as_sampled(subject: &mut Subject<'_>) -> Result<Outcome> {
    let Some(sampled) = &subject.answers.logp else {
        return Ok(Outcome::Skipped("`answer` does not say `logp`".into()));
    };
    let (generated, answers) = (&subject.generated, &subject.answers);
    let scored =
        tch::no_grad(|| subject.model.answer_logp(generated, &subject.questions, answers, Policy::Current))?;
    if !scored.mask.equal(&answers.mask) {
        return Ok(fails("the mask of `answer_logp` is not that of the answers"));
    }
    Ok(subject.same("nats a token", off(&scored.logp, sampled, &answers.mask)))
}

/// Log-probabilities by both policies, and which count: of answers, and of drawings.
fn both_policies(subject: &Subject<'_>) -> Result<[(&'static str, [Tensor; 2], Tensor); 2]> {
    tch::no_grad(|| {
        let (generated, answers) = (&subject.generated, &subject.answers);
        let score = |policy| subject.model.answer_logp(generated, &subject.questions, answers, policy);
        let [current, reference] = [score(Policy::Current)?.logp, score(Policy::Reference)?.logp];
        let (drawing, targets) = image_logp(subject, Policy::Current)?;
        let (before, _) = image_logp(subject, Policy::Reference)?;
        Ok([
            ("answers", [current, reference], answers.mask.shallow_clone()),
            ("drawings", [drawing, before], targets),
        ])
    })
}

fn ratio(subject: &mut Subject<'_>) -> Result<Outcome> {
    let ratios = both_policies(subject)?.map(|(what, [current, reference], mask)| {
        let ratio = (current - reference).exp();
        subject.same(&format!("ratio of {what}"), off(&ratio, &ratio.ones_like(), &mask))
    });
    Ok(all(ratios))
}

fn divergence(subject: &mut Subject<'_>) -> Result<Outcome> {
    let divergences = both_policies(subject)?.map(|(what, [current, reference], mask)| {
        let (k3, _) = objective::k3(&current, &reference);
        subject.same(&format!("KL of {what}"), objective::mean_per_token(&k3, &mask).double_value(&[]).abs())
    });
    Ok(all(divergences))
}

/// The groups of which some parameter gets a gradient that is not 0, by `objective`.
fn moved(
    subject: &Subject<'_>,
    objective: impl FnOnce(&Subject<'_>) -> Result<Tensor>,
) -> Result<BTreeMap<String, bool>> {
    let mut parameters = subject.model.parameters()?;
    for parameter in &mut parameters {
        forget_gradient(&mut parameter.tensor);
    }
    objective(subject)?.f_backward()?;
    let mut groups = BTreeMap::new();
    for parameter in &mut parameters {
        let gradient = parameter.tensor.grad();
        let reached = gradient.defined() && gradient.abs().max().double_value(&[]) > 0.0;
        *groups.entry(format!("{:?}", parameter.group)).or_insert(false) |= reached;
        forget_gradient(&mut parameter.tensor);
    }
    Ok(groups)
}

fn gradients(subject: &mut Subject<'_>) -> Result<Outcome> {
    let drawing = moved(subject, |subject| Ok(image_logp(subject, Policy::Current)?.0.mean(Kind::Float)))?;
    let answering = moved(subject, |subject| {
        let (generated, answers) = (&subject.generated, &subject.answers);
        let scored = subject.model.answer_logp(generated, &subject.questions, answers, Policy::Current)?;
        Ok(objective::mean_per_token(&scored.logp, &scored.mask))
    })?;
    for (what, groups, own, other) in [
        ("drawing", &drawing, "Generation", "Understanding"),
        ("answering", &answering, "Understanding", "Generation"),
    ] {
        if !groups.contains_key(own) && !groups.contains_key("Shared") {
            return Ok(fails(format!("no parameter is of a group that {what} serves: `Shared` or `{own}`")));
        }
        for wanted in ["Shared", own] {
            if groups.get(wanted) == Some(&false) {
                return Ok(fails(format!("{what} leaves no gradient in `{wanted}`")));
            }
        }
        for unwanted in ["Tokenizer", other] {
            if groups.get(unwanted) == Some(&true) {
                return Ok(fails(format!("{what} leaves a gradient in `{unwanted}`")));
            }
        }
    }
    let groups: Vec<String> = drawing.into_keys().collect();
    Ok(Outcome::Holds(format!("groups: {}", groups.join(", "))))
}

fn decoupled(subject: &Subject<'_>) -> Option<Outcome> {
    let decoupled = subject.model.card().image_space == ImageSpace::Decoupled;
    decoupled.then(|| Outcome::Skipped("the model reads images in another space than it draws them".into()))
}

fn straight_through(subject: &mut Subject<'_>) -> Result<Outcome> {
    if let Some(skipped) = decoupled(subject) {
        return Ok(skipped);
    }
    let replay = Masking::remask(3, None);
    let scored =
        subject.model.image_logits(&subject.prompts, &subject.generated, Policy::Current, &replay)?;
    let leaf = scored.logits.detach().set_requires_grad(true); // [B,N,K]
    let sampled = objective::straight_through(&leaf, &leaf.zeros_like(), 1.0);
    let (relaxed, tokens) = objective::fill_masked(&sampled, &subject.generated.tokens, &scored.targets);
    let images = Images { relaxed: Some(relaxed), ..Images::from_tokens(tokens) };
    let answers =
        subject.model.answer_logp(&images, &subject.questions, &subject.answers, Policy::Current)?;
    objective::mean_per_token(&answers.logp, &answers.mask).f_backward()?;
    let gradient = leaf.grad();
    if !gradient.defined() {
        return Ok(fails("the logits of the image get no gradient"));
    }
    let largest = gradient.abs().max().double_value(&[]);
    if largest > 0.0 && largest.is_finite() {
        return Ok(Outcome::Holds(format!("the largest gradient of an image logit is {largest:.1e}")));
    }
    Ok(fails(format!("the largest gradient of an image logit is {largest}")))
}

fn relaxed_is_hard(subject: &mut Subject<'_>) -> Result<Outcome> {
    if let Some(skipped) = decoupled(subject) {
        return Ok(skipped);
    }
    let (tokens, codes) = (&subject.generated.tokens, subject.model.card().codebook_size);
    let relaxed = tokens.one_hot(codes).to_kind(Kind::Float);
    let hard = Images::from_tokens(tokens.shallow_clone());
    let soft = Images { relaxed: Some(relaxed), ..Images::from_tokens(tokens.shallow_clone()) };
    let score = |images: &Images| {
        tch::no_grad(|| {
            subject.model.answer_logp(images, &subject.questions, &subject.answers, Policy::Current)
        })
    };
    Ok(subject.same("nats a token", off(&score(&hard)?.logp, &score(&soft)?.logp, &subject.answers.mask)))
}
