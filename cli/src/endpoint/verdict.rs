//! The one verdict in a reply of a language model, whatever it is wrapped in.

use serde_json::Value;

/// What ends the thinking of a reasoning model; its answer comes after the last of these.
const THINKING_ENDS: [&str; 6] =
    ["</think>", "</thinking>", "</thought>", "</reasoning>", "[/think]", "<|message|>"];
/// What begins it. Without an end everything after it is thinking.
const THINKING_BEGINS: [&str; 5] = ["<think>", "<thinking>", "<thought>", "<reasoning>", "[think]"];

/// Keys of a JSON object that hold a verdict rather than a reason or another finding.
const KEYS: [&str; 19] = [
    "answer",
    "conclusion",
    "correct",
    "decision",
    "equivalent",
    "evaluation",
    "final",
    "judgement",
    "judgment",
    "label",
    "match",
    "matched",
    "matches",
    "output",
    "reply",
    "response",
    "result",
    "right",
    "verdict",
];

/// Words after `yes` or `no` with which a sentence about the answer goes on: `no the answer is wrong`, but not `no bench`.
const CONTINUATIONS: [&str; 10] =
    ["as", "because", "both", "it", "its", "since", "that", "the", "they", "this"];

/// The text of a message: a string, or the text parts of a list.
pub(super) fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().map(text_of).collect(),
        Value::Object(part) => part.get("text").map(text_of).unwrap_or_default(),
        _ => String::new(),
    }
}

/// Whether a reply says yes or no; `None` if it says neither or both.
pub(super) fn verdict(reply: &str) -> Option<bool> {
    // ASCII letters alone, so that positions stay.
    let lower = reply.to_ascii_lowercase();
    let after = |end: &&str| lower.rfind(*end).map(|at| at + end.len());
    let lower = &lower[THINKING_ENDS.iter().filter_map(after).max().unwrap_or(0)..];
    let open = THINKING_BEGINS.iter().filter_map(|begin| lower.find(begin)).min();
    let said = lower[..open.unwrap_or(lower.len())].trim();
    if let Some(json) = json_of(said) {
        let mut verdicts = Vec::new();
        collect(&json, matches!(json, Value::Bool(_) | Value::String(_)), &mut verdicts);
        return agreed(&verdicts);
    }
    in_words(said)
}

/// The JSON in a reply: the whole of it, or what stands between its first and last brace, as in a fence.
fn json_of(said: &str) -> Option<Value> {
    let inner = || Some(&said[said.find('{')?..=said.rfind('}')?]);
    let parse = |text: &str| serde_json::from_str(text).ok();
    parse(said).or_else(|| parse(inner()?))
}

/// The verdicts in a JSON value, those below a key of [`KEYS`].
fn collect(value: &Value, counts: bool, verdicts: &mut Vec<bool>) {
    match value {
        Value::Bool(verdict) if counts => verdicts.push(*verdict),
        Value::String(text) if counts => match text.trim() {
            "true" => verdicts.push(true),
            "false" => verdicts.push(false),
            text => verdicts.extend(in_words(text)),
        },
        Value::Array(values) => values.iter().for_each(|value| collect(value, counts, verdicts)),
        Value::Object(fields) => {
            for (key, value) in fields {
                let key = key.strip_prefix("is_").or(key.strip_prefix("final_")).unwrap_or(key);
                collect(value, KEYS.contains(&key), verdicts);
            }
        }
        _ => {}
    }
}

fn agreed(verdicts: &[bool]) -> Option<bool> {
    let first = verdicts.first()?;
    verdicts.iter().all(|verdict| verdict == first).then_some(*first)
}

/// The verdict in plain text. With both words anywhere there is none; a single one must stand for itself, so that the `no`
/// of `no picture was given` is none.
fn in_words(said: &str) -> Option<bool> {
    let plain = said.replace("\\boxed", " ").replace("\\text", " ");
    let mut words = words(&plain).peekable();
    let (mut named, mut verdicts) = (Vec::new(), Vec::new());
    while let Some((word, ends)) = words.next() {
        let verdict = match word {
            "yes" => true,
            "no" => false,
            _ => continue,
        };
        named.push(verdict);
        if ends || words.peek().is_none_or(|(next, _)| CONTINUATIONS.contains(next)) {
            verdicts.push(verdict);
        }
    }
    agreed(&named).and(agreed(&verdicts))
}

/// The words of a text, each with whether a clause ends after it. Marks around words, such as `**` and quotes, are skipped.
fn words(text: &str) -> impl Iterator<Item = (&str, bool)> {
    let is_word = |letter: char| letter.is_alphanumeric() || letter == '\'' || letter == '’';
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = &rest[rest.find(is_word)?..];
        let end = rest.find(|letter| !is_word(letter)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        rest = after;
        let gap = &after[..after.find(is_word).unwrap_or(after.len())];
        let ends =
            gap.contains([',', '.', ';', ':', '!', '?', '\n', '(', '<', '–', '—']) || gap.contains(" - ");
        Some((word.trim_matches(['\'', '’']), ends))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(expected: Option<bool>, replies: &[&str]) {
        for reply in replies {
            assert_eq!(verdict(reply), expected, "{reply}");
        }
    }

    #[test]
    fn a_yes_is_found_in_any_wrapper() {
        all(
            Some(true),
            &[
                "yes",
                "Yes.",
                "YES!",
                " \n Yes\n",
                "**Yes**",
                "__yes__.",
                "\"Yes\"",
                "'yes'",
                "`yes`",
                "“Yes”",
                "(yes)",
                "[Yes]",
                "Answer: yes",
                "**Answer:** Yes",
                "The answer is yes.",
                "Final answer: **YES**",
                "# Verdict\n\nYes",
                "<answer>Yes</answer>",
                "\\boxed{yes}",
                "$\\boxed{\\text{Yes}}$",
                "Yes, the answer names the bench.",
                "Yes - both are there",
                "Yes — a dog and a cat.",
                "Yes the answer given is right",
                "ASSISTANT: Yes",
                "1. Yes",
                "Both name one red bench.\n\nYes",
                "<think>There is no cat. No?</think> Yes",
                "no cat, so wrong? wait, it is right.\n</think>\n\n**Yes**",
                "<thinking>no</thinking>Answer: yes",
                "[THINK]no[/THINK]yes",
                "<|channel|>analysis<|message|>No?<|end|><|start|>assistant<|channel|>final<|message|>Yes",
            ],
        );
    }

    #[test]
    fn a_no_is_found_in_any_wrapper() {
        all(
            Some(false),
            &[
                "no",
                "No.",
                "no, it is not",
                "No it is not",
                "No because the colour differs",
                "*No*",
                "The answer is: No",
                "No\nThe colour is wrong.",
                "No (the dog is on the right)",
                "<think>Yes. No. Yes?</think>No",
                "There is no cat in the answer, so no.",
                "I would say no",
            ],
        );
    }

    #[test]
    fn json_is_read_by_its_keys() {
        all(
            Some(true),
            &[
                r#"{"answer": "yes"}"#,
                "```json\n{\"answer\": \"Yes\"}\n```",
                "Here is my verdict:\n```\n{\"Verdict\": \"Yes.\"}\n```\nDone.",
                r#"{"is_correct": true}"#,
                r#"{"reasoning": "no object is missing, no?", "final_answer": "yes"}"#,
                r#"{"answer": "yes", "hallucination": "no"}"#,
                r#"{"result": {"match": true, "missing": false}}"#,
                r#"{"verdict": "true"}"#,
                r#"<think>{"answer": "no"}</think>{"answer": "yes"}"#,
                "\"yes\"",
                "true",
                r#"[{"answer": "yes"}]"#,
            ],
        );
        all(Some(false), &[r#"{"answer": "no"}"#, r#"{"correct": false, "why": "yes"}"#, "false"]);
        all(
            None,
            &[r#"{"wrong": "no"}"#, r#"{"answer": "yes", "verdict": "no"}"#, "{}", r#"{"answer": null}"#],
        );
    }

    #[test]
    fn what_says_both_or_neither_is_no_verdict() {
        all(
            None,
            &[
                "",
                "perhaps",
                "Yes and no",
                "yes or no",
                "No. Yes.",
                "Yes, there is no bench missing",
                "No picture was given.",
                "I have no way to tell",
                "Norway",
                "yesterday",
                "nope",
                "know",
                "<think>Yes",
                "Yes</think>",
                "<think>yes</think>",
                "3",
                "The answer cannot be judged",
            ],
        );
    }

    #[test]
    fn the_text_of_parts_is_joined_without_thinking() {
        let parts = serde_json::json!([
            { "type": "thinking", "thinking": [{ "type": "text", "text": "No?" }] },
            { "type": "text", "text": "Ye" },
            { "type": "text", "text": "s" },
        ]);
        assert_eq!(text_of(&parts), "Yes");
        assert_eq!(text_of(&serde_json::json!({ "type": "output_text", "text": "No" })), "No");
        assert_eq!(text_of(&Value::Null), "");
    }
}
