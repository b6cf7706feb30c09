//! What a user should know about the text of a prompt or question, said once.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Letters of a prompt that a warning shows.
const SHOWN: usize = 60;

/// Warns, once in a process, of a text that has more tokens than the model reads; `effect` is what becomes of it.
pub fn warn_too_long(text: &str, tokens: usize, limit: usize, effect: &str) {
    static WARNED: AtomicBool = AtomicBool::new(false);
    if tokens > limit && !WARNED.swap(true, Ordering::Relaxed) {
        let beginning: String = text.chars().take(SHOWN).collect();
        let dots = if beginning.len() < text.len() { "…" } else { "" };
        tracing::warn!(
            "the prompt `{beginning}{dots}` has {tokens} tokens, the model reads {limit}: {effect} (further ones are \
             not reported)"
        );
    }
}

/// Warns of words that the model does not know, of each once in a process.
pub(crate) fn warn_unknown<'a>(words: impl Iterator<Item = &'a str>) {
    static WARNED: Mutex<Option<HashSet<String>>> = Mutex::new(None);
    let Ok(mut warned) = WARNED.lock() else { return };
    let warned = warned.get_or_insert_default();
    let new: Vec<String> =
        words.filter(|word| warned.insert((*word).to_string())).map(|word| format!("`{word}`")).collect();
    if !new.is_empty() {
        tracing::warn!(
            "words that the model does not know and reads as one unknown word: {}",
            new.join(", ")
        );
    }
}
