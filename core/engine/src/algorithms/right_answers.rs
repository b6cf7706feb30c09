//! The right answers about images, in every right form, and their log-likelihood.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use unirl::error::Result;
use unirl::model::{Answers, Images, Policy, TokenLogp, UnifiedModel};
use unirl_prompts::Task;

/// The right answer that a loss is taken of. Two objects can be named in either order, and an image fixes which one the model was
/// taught, for example the reading order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RightAnswer {
    /// The reference answer, in the order of the prompt, as in the paper.
    Reference,
    /// The right answer that the model finds most likely.
    Likeliest,
    /// Any of them: the logarithm of the sum of their probabilities.
    #[default]
    Any,
}

/// The right answers about a batch of images, one row per answer.
pub(super) struct RightAnswers {
    /// The image of each answer.
    images: Tensor, // [R]
    questions: Vec<String>,
    pub(super) answers: Answers, // [R,T]
    /// The place of each answer in a table of one row per image and one column per form.
    places: Tensor, // [R]
    size: [i64; 2],
    /// The number of tokens of the reference answer about each image, `[b]`.
    pub(super) lengths: Tensor,
}

impl RightAnswers {
    /// The right answers to the question of each task.
    pub(super) fn new(model: &dyn UnifiedModel, tasks: &[Task]) -> Result<Self> {
        let (mut texts, mut rows, mut forms) = (Vec::new(), Vec::new(), Vec::new());
        for (row, task) in tasks.iter().enumerate() {
            for (form, answer) in task.right_answers().into_iter().enumerate() {
                texts.push(answer);
                rows.push(row);
                forms.push(form);
            }
        }
        let answers = model.encode_answers(&texts)?;
        let width = forms.iter().max().map_or(1, |form| form + 1);
        let place = |(row, form): (&usize, &usize)| (row * width + form) as i64;
        let places: Vec<i64> = rows.iter().zip(&forms).map(place).collect();
        let index = |values: &[i64]| Tensor::from_slice(values).to_device(answers.tokens.device());
        let images: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
        let (places, images) = (index(&places), index(&images));
        let lengths =
            answers.mask.to_kind(Kind::Float).sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
        let references = places.remainder(width as i64).eq(0).nonzero().view([-1]);
        Ok(Self {
            questions: rows.iter().map(|row| tasks[*row].question.clone()).collect(),
            lengths: lengths.index_select(0, &references),
            size: [tasks.len() as i64, width as i64],
            images,
            answers,
            places,
        })
    }

    /// Scores every answer about its image.
    pub(super) fn score(
        &self,
        model: &dyn UnifiedModel,
        images: &Images,
        policy: Policy,
    ) -> Result<TokenLogp> {
        model.answer_logp(&images.index_select(&self.images), &self.questions, &self.answers, policy)
    }

    /// Returns the log-likelihood of the right answer about each image, `[b]`, from the scores of all of them.
    pub(super) fn logp(&self, scored: &TokenLogp, right: RightAnswer) -> Tensor {
        let logp = (&scored.logp * &scored.mask).sum_dim_intlist([1i64].as_slice(), false, Kind::Float); // [R]
        let missing =
            Tensor::full(self.size.iter().product::<i64>(), f64::NEG_INFINITY, (Kind::Float, logp.device()));
        let forms = missing.index_copy(0, &self.places, &logp).view(self.size); // [b,F]
        match right {
            RightAnswer::Reference => forms.select(1, 0),
            RightAnswer::Likeliest => forms.amax([1i64].as_slice(), false),
            RightAnswer::Any => forms.logsumexp([1i64].as_slice(), false),
        }
    }
}
