//! The reward function of a rule file.

use tch::Tensor;
use unirl::error::{Error, Result};
use unirl::prompt::{Category, PromptSpec};
use unirl::reward::{Reward, RewardFunction, Sample};
use unirl_prompts::PromptTemplates;
use unirl_prompts::answer::{AnswerMatch, AnswerParser, Vocabulary, Words};

use super::file::{Loss, Normalize, Pay, RuleFile, ShippedOptions};
use super::matching::{Compiled, Target};

impl RuleFile {
    /// Builds the reward function. Errors if a keyword is not valid for its category, or an example has another reward.
    pub fn build(self) -> Result<Box<dyn RewardFunction>> {
        let normalize = self.normalize;
        self.build_with(ShippedOptions { normalize })
    }

    /// Builds the reward function with options that override those of the file. Examples are checked without the override.
    pub fn build_with(self, options: ShippedOptions) -> Result<Box<dyn RewardFunction>> {
        let mut keywords = Vec::new();
        for category in Category::ALL {
            let compiled = self.keywords(category).iter().enumerate().map(|(index, keyword)| {
                let place = || format!("`{}[{index}]`", category.name());
                Compiled::new(keyword, category).map_err(|error| error.context(place()))
            });
            keywords.push(compiled.collect::<Result<Vec<_>>>()?);
        }
        if keywords.iter().all(Vec::is_empty) {
            return Err(Error::usage("the rule file has no keywords")
                .hint("add a keyword to a category: `[[counting]]` with `word = \"{count}\"`"));
        }
        let vocabulary = self.reading.vocabulary();
        let mut rules = Rules { file: self, vocabulary, keywords };
        rules.check_examples()?;
        rules.file.normalize = options.normalize;
        Ok(Box::new(rules))
    }
}

/// The reward function of a rule file.
struct Rules {
    file: RuleFile,
    vocabulary: Vocabulary,
    /// By category.
    keywords: Vec<Vec<Compiled>>,
}

/// The keywords for a spec, shared by consecutive samples of a group.
struct Prepared<'r> {
    spec: PromptSpec,
    reference_answer: Words,
    targets: Vec<(Target, &'r Compiled)>,
    max: f64,
    /// Set if any rule needs the parsed answer.
    parser: Option<AnswerParser>,
}

impl Rules {
    fn check_examples(&self) -> Result<()> {
        for (index, example) in self.file.example.iter().enumerate() {
            let place = || format!("`example[{index}]`");
            let spec = unirl_prompts::parse_prompt(example.category, &example.prompt)
                .map_err(|error| error.context(place()))?;
            let task = PromptTemplates::paper().task(spec);
            let sample = task.sample(&example.answer);
            let reward = self.score_one(&self.prepare(&sample), &sample);
            if (reward.score - example.reward).abs() > 1e-9 {
                return Err(Error::usage(format!(
                    "{}: answer `{}` to `{}`: expected a reward of {}, got {}",
                    place(),
                    example.answer,
                    example.prompt,
                    example.reward,
                    reward.score
                ))
                .cause(reward.why)
                .hint("change the keywords or the example"));
            }
        }
        Ok(())
    }

    fn prepare(&self, sample: &Sample) -> Prepared<'_> {
        let spec = &sample.spec;
        let mut targets = Vec::new();
        for keyword in &self.keywords[spec.category as usize] {
            let objects = if keyword.for_each { spec.objects.len() } else { 1 };
            for object in 0..objects {
                let target = Target::new(keyword, object, spec, &self.file.reading, &self.vocabulary);
                targets.push((target, keyword));
            }
        }
        let needs_parser =
            self.file.penalties.extra.is_some() || targets.iter().any(|(target, _)| target.is_bound());
        Prepared {
            spec: spec.clone(),
            reference_answer: Words::of(&sample.reference_answer),
            max: targets.iter().map(|(_, keyword)| keyword.points).sum(),
            parser: needs_parser.then(|| AnswerParser::new(spec, &self.vocabulary)),
            targets,
        }
    }

    fn score_one(&self, prepared: &Prepared<'_>, sample: &Sample) -> Reward {
        if prepared.targets.is_empty() {
            return Reward::abstain(format!("no rules for `{}`", sample.spec.category.name()));
        }
        let answer = Words::of_answer(&sample.answer);
        let parsed = match &prepared.parser {
            Some(parser) => AnswerMatch::of(&prepared.spec, &parser.parse(&answer)),
            None => AnswerMatch::default(),
        };
        let mut reward = Reward { max: prepared.max, ..Reward::default() };
        let (mut has, mut lacks) = (String::with_capacity(64), String::with_capacity(64));
        let mut from = 0;
        for (target, keyword) in &prepared.targets {
            let found = target.matches(&answer, &parsed, self.file.reading.negation, &mut from);
            let points = if found { keyword.points } else { 0.0 };
            reward.score += points;
            match reward.parts.get_mut(&keyword.part) {
                Some(part) => *part += points,
                None => drop(reward.parts.insert(keyword.part.clone(), points)),
            }
            let list = if found { &mut has } else { &mut lacks };
            list.push_str(if list.is_empty() { "" } else { ", " });
            list.push_str(&target.label);
        }
        let complete = lacks.is_empty();
        let mut lost = String::new();
        for (loss, reason) in self.penalties(prepared, &answer, parsed.more) {
            match loss {
                Loss::All(_) => reward.score = 0.0,
                Loss::Points(points) => reward.score = (reward.score - points).max(0.0),
            }
            lost.push_str(&match loss {
                Loss::All(_) => format!("; loses all points: {reason}"),
                Loss::Points(points) => format!("; loses {points}: {reason}"),
            });
        }
        match (self.file.pay, self.file.normalize) {
            (Pay::All, _) => {
                reward.score = f64::from(u8::from(complete && lost.is_empty()));
                reward.max = 1.0;
            }
            (Pay::Points, Normalize::Max) => {
                reward.score /= prepared.max;
                reward.max = 1.0;
                reward.parts.values_mut().for_each(|points| *points /= prepared.max);
            }
            (Pay::Points, Normalize::None) => {}
        }
        let list =
            |title: &str, list: &str| if list.is_empty() { String::new() } else { format!("{title}{list}") };
        let has = list(" has ", &has);
        let lacks = list(if has.is_empty() { " lacks " } else { "; lacks " }, &lacks);
        reward.why = format!("{} of {}:{has}{lacks}{lost}", round(reward.score), round(reward.max));
        reward
    }

    /// Returns the penalties of an answer with their reasons.
    fn penalties(
        &self,
        prepared: &Prepared<'_>,
        answer: &Words,
        more: Option<String>,
    ) -> Vec<(Loss, String)> {
        let penalties = &self.file.penalties;
        let mut losses = Vec::new();
        losses.extend(penalties.extra.zip(more));
        if let Some(long) = penalties.long {
            let words = answer.iter().filter(|word| *word != ",").count();
            if words > long.words {
                losses.push((long.lose, format!("has {words} words, more than {}", long.words)));
            }
        }
        if let Some(repeat) = penalties.repeat {
            let times =
                (0..answer.len()).filter(|at| answer.starts_with(*at, &prepared.reference_answer)).count();
            if times > 1 {
                losses.push((repeat, format!("states the reference answer {times} times")));
            }
        }
        losses
    }
}

/// Rounds to four decimal places, for display.
fn round(points: f64) -> f64 {
    (points * 1e4).round() / 1e4
}

impl RewardFunction for Rules {
    fn score(&self, samples: &[Sample], _pixels: Option<&Tensor>) -> Result<Vec<Reward>> {
        let mut rewards = Vec::with_capacity(samples.len());
        for group in samples
            .chunk_by(|one, next| one.spec == next.spec && one.reference_answer == next.reference_answer)
        {
            let prepared = self.prepare(&group[0]);
            rewards.extend(group.iter().map(|sample| self.score_one(&prepared, sample)));
        }
        Ok(rewards)
    }
}
