//! The checks that the first training step relies on.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};
use unirl::error::Result;
use unirl::model::{
    ImageDecoding, ImageSampling, ImageSpace, Images, Masking, Policy, Scoring, TextSampling,
};
use unirl_engine::algorithms::objective;
use unirl_torch::autograd::clear_gradient;

use super::{Check, Outcome, Subject, all, fails};

pub(super) const ALL: &[Check] = &[
    Check {
        name: "token ids are valid",
        hint: "`revealed_at` must be in `0..steps`. Sampled and encoded answers must be runs of tokens that end with the same \
               end token: look up special tokens by name, not by number",
        run: token_ids,
    },
    Check {
        name: "the seed determines the samples",
        hint: "all randomness of `generate` and `answer` must come from `sampling.seed`: seed libtorch with it before \
               sampling",
        run: seeds,
    },
    Check {
        name: "generation: scoring reproduces the sampling probabilities",
        hint: "`image_logits` must use the inputs of `generate`: the same prompt, the same guidance and every token in the \
               state in which it was sampled; the logits of a token must be at its own position",
        run: image_scores_match_sampling,
    },
    Check {
        name: "understanding: scoring reproduces the sampling probabilities",
        hint: "`answer_logp` processes the whole sequence, `answer` uses a KV cache: positions, masks and the position of \
               each token's logits must be the same",
        run: answer_scores_match_sampling,
    },
    Check {
        name: "the initial importance ratio is 1",
        hint: "right after `freeze_reference` both policies must be equal: copy every weight that scoring uses, and disable \
               dropout in `Mode::Eval`",
        run: ratio,
    },
    Check { name: "the initial KL is 0", hint: "the same as for the importance ratio", run: divergence },
    Check {
        name: "gradients reach the right parameter groups",
        hint: "`parameters` must return the leaves that scoring uses, in the right group: generation trains `Generation` and \
               `Shared`, understanding trains `Understanding` and `Shared`, and neither trains `Tokenizer`",
        run: gradients,
    },
    Check {
        name: "the gradient of an answer reaches the image",
        hint: "if `images.relaxed` is set, `answer_logp` must multiply it with the embedding table, without a detach (eqs. 7 \
               and 8)",
        run: straight_through,
    },
    Check {
        name: "a relaxed one-hot equals its token",
        hint: "`answer_logp` must return the same result for one-hot rows of `relaxed` and for `tokens`",
        run: relaxed_is_hard,
    },
];

/// Returns the largest difference where `mask` is true.
fn max_difference(one: &Tensor, other: &Tensor, mask: &Tensor) -> f64 {
    let differences = (one.detach().to_kind(Kind::Float) - other.detach().to_kind(Kind::Float)).abs();
    let counted = differences.masked_select(mask);
    if counted.numel() == 0 { 0.0 } else { counted.max().double_value(&[]) }
}

fn token_ids(subject: &mut Subject<'_>) -> Result<Outcome> {
    let (card, generated) = (subject.model.card().clone(), &subject.generated);
    if card.image_decoding == ImageDecoding::Masked {
        let Some(revealed_at) = &generated.revealed_at else {
            return Ok(fails("`generate` of a masked model must set `revealed_at`"));
        };
        let steps = subject.images.steps;
        let [first, last] = [revealed_at.min(), revealed_at.max()].map(|step| step.int64_value(&[]));
        if first < 0 || last >= steps {
            return Ok(fails(format!("`revealed_at`: expected 0..{steps}, got {first}..={last}")));
        }
    }
    let encoded = subject.model.encode_answers(&subject.reference_answers)?;
    if encoded.text != subject.reference_answers {
        let (got, expected) = (&encoded.text[0], &subject.reference_answers[0]);
        return Ok(fails(format!("`encode_answers` returns the text `{got}`, expected `{expected}`")));
    }
    let mut ends = Vec::new();
    for (what, answers, longest) in [
        ("an encoded answer", &encoded, i64::MAX),
        ("an answer", &subject.answers, subject.answers.tokens.size()[1]),
    ] {
        for row in 0..answers.tokens.size()[0] {
            let mask = Vec::<bool>::try_from(answers.mask.get(row))?;
            let length = mask.iter().take_while(|token| **token).count();
            if length == 0 || mask[length..].contains(&true) {
                return Ok(fails(format!("the mask of {what} is not a run of `true` followed by `false`")));
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
        return Ok(fails("the same seed generates different images"));
    }
    let other = ImageSampling { seed: subject.images.seed + 1, ..subject.images.clone() };
    let other = tch::no_grad(|| subject.model.generate(&subject.prompts, &other))?;
    if other.tokens.equal(&subject.generated.tokens) {
        return Ok(fails("another seed generates the same images"));
    }
    let (questions, sampling) = (&subject.questions, &subject.answering);
    let again = tch::no_grad(|| subject.model.answer(&subject.generated, questions, sampling))?;
    if again.text != subject.answers.text {
        return Ok(fails("the same seed samples different answers"));
    }
    let differs = (1..=8).any(|more| {
        let other = TextSampling { seed: sampling.seed + more, ..sampling.clone() };
        let other = tch::no_grad(|| subject.model.answer(&subject.generated, questions, &other));
        other.is_ok_and(|other| other.text != subject.answers.text)
    });
    Ok(Outcome::Holds(if differs {
        "another seed generates other images and answers".into()
    } else {
        "another seed generates other images; eight seeds give the same answers".into()
    }))
}

/// Scoring by the distribution from which the images were sampled.
fn as_sampled(images: &ImageSampling) -> Masking {
    let steps = (0..images.steps).collect();
    Masking::Reveal { steps, scoring: Scoring::Guided, guidance: images.guidance }
}

/// Returns the log-probabilities of the generated images, and the mask of the targets.
fn image_logp(subject: &Subject<'_>, policy: Policy) -> Result<(Tensor, Tensor)> {
    let masking = as_sampled(&subject.images);
    let scored = subject.model.image_logp(&subject.prompts, &subject.generated, policy, &masking)?;
    Ok((scored.logp, scored.mask))
}

fn image_scores_match_sampling(subject: &mut Subject<'_>) -> Result<Outcome> {
    let Some(sampled) = &subject.generated.logp else {
        return Ok(Outcome::Skipped("`generate` does not return `logp`".into()));
    };
    let (scored, targets) = tch::no_grad(|| image_logp(subject, Policy::Current))?;
    if !bool::try_from(targets.all())? {
        return Ok(fails("scoring all reveal steps leaves tokens out of `targets`"));
    }
    let outcome = subject.within_tolerance("nats per token", max_difference(&scored, sampled, &targets));
    if matches!(outcome, Outcome::Fails(_)) {
        return Ok(outcome);
    }
    let (prompts, generated) = (&subject.prompts, &subject.generated);
    let masking = as_sampled(&subject.images);
    let logits = tch::no_grad(|| subject.model.image_logits(prompts, generated, Policy::Current, &masking))?
        .logp(&generated.tokens);
    if !logits.mask.equal(&targets) {
        return Ok(fails("`image_logits` and `image_logp` have different targets"));
    }
    let difference = max_difference(&logits.logp, sampled, &targets);
    Ok(all([subject.within_tolerance("nats per token of `image_logits`", difference), outcome]))
}

fn answer_scores_match_sampling(subject: &mut Subject<'_>) -> Result<Outcome> {
    let Some(sampled) = &subject.answers.logp else {
        return Ok(Outcome::Skipped("`answer` does not return `logp`".into()));
    };
    let (generated, answers) = (&subject.generated, &subject.answers);
    let scored =
        tch::no_grad(|| subject.model.answer_logp(generated, &subject.questions, answers, Policy::Current))?;
    if !scored.mask.equal(&answers.mask) {
        return Ok(fails("the mask of `answer_logp` differs from that of the answers"));
    }
    let difference = max_difference(&scored.logp, sampled, &answers.mask);
    Ok(subject.within_tolerance("nats per token", difference))
}

/// Returns the log-probabilities under both policies and their mask, for answers and for images.
fn both_policies(subject: &Subject<'_>) -> Result<[(&'static str, [Tensor; 2], Tensor); 2]> {
    tch::no_grad(|| {
        let (generated, answers) = (&subject.generated, &subject.answers);
        let score = |policy| subject.model.answer_logp(generated, &subject.questions, answers, policy);
        let [current, reference] = [score(Policy::Current)?.logp, score(Policy::Reference)?.logp];
        let (image_current, targets) = image_logp(subject, Policy::Current)?;
        let (image_reference, _) = image_logp(subject, Policy::Reference)?;
        Ok([
            ("answers", [current, reference], answers.mask.shallow_clone()),
            ("images", [image_current, image_reference], targets),
        ])
    })
}

fn ratio(subject: &mut Subject<'_>) -> Result<Outcome> {
    let ratios = both_policies(subject)?.map(|(what, [current, reference], mask)| {
        let ratio = (current - reference).exp();
        let difference = max_difference(&ratio, &ratio.ones_like(), &mask);
        subject.within_tolerance(&format!("ratio of {what}"), difference)
    });
    Ok(all(ratios))
}

fn divergence(subject: &mut Subject<'_>) -> Result<Outcome> {
    let divergences = both_policies(subject)?.map(|(what, [current, reference], mask)| {
        let (k3, _) = objective::k3(&current, &reference);
        let kl = objective::mean_per_token(&k3, &mask).double_value(&[]).abs();
        subject.within_tolerance(&format!("KL of {what}"), kl)
    });
    Ok(all(divergences))
}

/// Returns, for each parameter group, whether any parameter gets a non-zero gradient from `objective`.
fn groups_with_gradient(
    subject: &Subject<'_>,
    objective: impl FnOnce(&Subject<'_>) -> Result<Tensor>,
) -> Result<BTreeMap<String, bool>> {
    let mut parameters = subject.model.parameters()?;
    for parameter in &mut parameters {
        clear_gradient(&mut parameter.tensor);
    }
    objective(subject)?.f_backward()?;
    let mut groups = BTreeMap::new();
    for parameter in &mut parameters {
        let gradient = parameter.tensor.grad();
        let reached = gradient.defined() && gradient.abs().max().double_value(&[]) > 0.0;
        *groups.entry(format!("{:?}", parameter.group)).or_insert(false) |= reached;
        clear_gradient(&mut parameter.tensor);
    }
    Ok(groups)
}

fn gradients(subject: &mut Subject<'_>) -> Result<Outcome> {
    let generation = groups_with_gradient(subject, |subject| {
        Ok(image_logp(subject, Policy::Current)?.0.mean(Kind::Float))
    })?;
    let understanding = groups_with_gradient(subject, |subject| {
        let (generated, answers) = (&subject.generated, &subject.answers);
        let scored = subject.model.answer_logp(generated, &subject.questions, answers, Policy::Current)?;
        Ok(objective::mean_per_token(&scored.logp, &scored.mask))
    })?;
    for (what, groups, own, other) in [
        ("generation", &generation, "Generation", "Understanding"),
        ("understanding", &understanding, "Understanding", "Generation"),
    ] {
        if !groups.contains_key(own) && !groups.contains_key("Shared") {
            return Ok(fails(format!("no parameter is in a group that {what} trains: `Shared` or `{own}`")));
        }
        for expected in ["Shared", own] {
            if groups.get(expected) == Some(&false) {
                return Ok(fails(format!("{what} leaves no gradient in `{expected}`")));
            }
        }
        for unexpected in ["Tokenizer", other] {
            if groups.get(unexpected) == Some(&true) {
                return Ok(fails(format!("{what} leaves a gradient in `{unexpected}`")));
            }
        }
    }
    let groups: Vec<String> = generation.into_keys().collect();
    Ok(Outcome::Holds(format!("groups: {}", groups.join(", "))))
}

fn decoupled(subject: &Subject<'_>) -> Option<Outcome> {
    let decoupled = subject.model.card().image_space == ImageSpace::Decoupled;
    decoupled.then(|| {
        Outcome::Skipped(
            "the model understands images through another representation than it generates".into(),
        )
    })
}

fn straight_through(subject: &mut Subject<'_>) -> Result<Outcome> {
    if let Some(skipped) = decoupled(subject) {
        return Ok(skipped);
    }
    let masking = Masking::remask(3, None);
    let scored =
        subject.model.image_logits(&subject.prompts, &subject.generated, Policy::Current, &masking)?;
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
        return Ok(Outcome::Holds(format!("largest gradient of an image logit: {largest:.1e}")));
    }
    Ok(fails(format!("largest gradient of an image logit: expected a finite number above 0, got {largest}")))
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
    let difference = max_difference(&score(&hard)?.logp, &score(&soft)?.logp, &subject.answers.mask);
    Ok(subject.within_tolerance("nats per token", difference))
}
