//! Rewards defined by keywords: a rule file ([`RuleFile`]) says which words of the prompt an answer must contain, how they are
//! matched, and how many points each earns.

mod file;
mod matching;
mod rules;
#[cfg(test)]
mod tests;

pub use file::{
    Example, Keyword, LongAnswer, Loss, Match, MatchOptions, Normalize, Pay, Penalties, RuleFile,
    ShippedOptions,
};
