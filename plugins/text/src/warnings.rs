//! Warnings about the text of prompts and questions, each logged once per process.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// The number of characters of a prompt that a warning shows.
const SHOWN_CHARS: usize = 60;

/// Warns once that a prompt has more than `limit` tokens; `effect` says what happens to it.
pub fn warn_too_long(text: &str, tokens: usize, limit: usize, effect: &str) {
    static WARNED: AtomicBool = AtomicBool::new(false);
    if tokens > limit && !WARNED.swap(true, Ordering::Relaxed) {
        let beginning: String = text.chars().take(SHOWN_CHARS).collect();
        let dots = if beginning.len() < text.len() { "…" } else { "" };
        tracing::warn!(
            "prompt `{beginning}{dots}` has {tokens} tokens, more than the model's {limit}: {effect} (further long \
             prompts are not reported)"
        );
    }
}

/// Warns once about each word that is not in the vocabulary.
pub(crate) fn warn_unknown<'a>(words: impl Iterator<Item = &'a str>) {
    static WARNED: Mutex<Option<HashSet<String>>> = Mutex::new(None);
    let Ok(mut warned) = WARNED.lock() else { return };
    let warned = warned.get_or_insert_default();
    let new: Vec<String> =
        words.filter(|word| warned.insert((*word).to_string())).map(|word| format!("`{word}`")).collect();
    if !new.is_empty() {
        tracing::warn!(
            "words that are not in the model's vocabulary are replaced by the unknown token: {}",
            new.join(", ")
        );
    }
}
