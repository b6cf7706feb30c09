//! Parses a yes-or-no verdict from a reply of a language model.

use serde_json::Value;

/// End markers of reasoning; the answer follows the last one.
const REASONING_ENDS: [&str; 6] =
    ["</think>", "</thinking>", "</thought>", "</reasoning>", "[/think]", "<|message|>"];
/// Start markers of reasoning. Without an end marker, everything after a start marker is reasoning.
const REASONING_STARTS: [&str; 5] = ["<think>", "<thinking>", "<thought>", "<reasoning>", "[think]"];

/// Keys of a JSON object that hold the verdict.
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

/// Words that may follow a verdict without punctuation: `no the answer is wrong`, but not `no bench`.
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

/// The verdict of a reply; `None` if it contains neither yes nor no, or both.
pub(super) fn verdict(reply: &str) -> Option<bool> {
    // Only ASCII letters change, so that byte positions stay valid.
    let lower = reply.to_ascii_lowercase();
    let after = |end: &&str| lower.rfind(*end).map(|at| at + end.len());
    let lower = &lower[REASONING_ENDS.iter().filter_map(after).max().unwrap_or(0)..];
    let start = REASONING_STARTS.iter().filter_map(|marker| lower.find(marker)).min();
    let answer = lower[..start.unwrap_or(lower.len())].trim();
    if let Some(json) = parse_json(answer) {
        let mut verdicts = Vec::new();
        collect(&json, matches!(json, Value::Bool(_) | Value::String(_)), &mut verdicts);
        return unanimous(&verdicts);
    }
    verdict_in_text(answer)
}

/// Parses a reply as JSON: all of it, or the text from the first to the last brace, as in a fenced block.
fn parse_json(reply: &str) -> Option<Value> {
    let inner = || Some(&reply[reply.find('{')?..=reply.rfind('}')?]);
    let parse = |text: &str| serde_json::from_str(text).ok();
    parse(reply).or_else(|| parse(inner()?))
}

/// Collects the verdicts below keys of [`KEYS`]; `counts`: whether `value` is below one of them.
fn collect(value: &Value, counts: bool, verdicts: &mut Vec<bool>) {
    match value {
        Value::Bool(verdict) if counts => verdicts.push(*verdict),
        Value::String(text) if counts => match text.trim() {
            "true" => verdicts.push(true),
            "false" => verdicts.push(false),
            text => verdicts.extend(verdict_in_text(text)),
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

fn unanimous(verdicts: &[bool]) -> Option<bool> {
    let first = verdicts.first()?;
    verdicts.iter().all(|verdict| verdict == first).then_some(*first)
}

/// The verdict in plain text; `None` if both words occur. A word counts only at the end of a clause or before one of
/// [`CONTINUATIONS`], so that the `no` of `no picture was given` is not a verdict.
fn verdict_in_text(text: &str) -> Option<bool> {
    let plain = text.replace("\\boxed", " ").replace("\\text", " ");
    let mut words = words(&plain).peekable();
    let (mut mentioned, mut verdicts) = (Vec::new(), Vec::new());
    while let Some((word, ends)) = words.next() {
        let verdict = match word {
            "yes" => true,
            "no" => false,
            _ => continue,
        };
        mentioned.push(verdict);
        if ends || words.peek().is_none_or(|(next, _)| CONTINUATIONS.contains(next)) {
            verdicts.push(verdict);
        }
    }
    unanimous(&mentioned).and(unanimous(&verdicts))
}

/// The words of a text, each with whether a clause ends after it. Markup such as `**` and quotes is ignored.
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

    fn assert_verdict(expected: Option<bool>, replies: &[&str]) {
        for reply in replies {
            assert_eq!(verdict(reply), expected, "{reply}");
        }
    }

    #[test]
    fn yes_is_parsed_in_any_markup() {
        assert_verdict(
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
    fn no_is_parsed_in_any_markup() {
        assert_verdict(
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
    fn json_verdicts_are_read_from_known_keys() {
        assert_verdict(
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
        assert_verdict(Some(false), &[r#"{"answer": "no"}"#, r#"{"correct": false, "why": "yes"}"#, "false"]);
        assert_verdict(
            None,
            &[r#"{"wrong": "no"}"#, r#"{"answer": "yes", "verdict": "no"}"#, "{}", r#"{"answer": null}"#],
        );
    }

    #[test]
    fn ambiguous_replies_have_no_verdict() {
        assert_verdict(
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
    fn text_parts_are_joined_without_reasoning() {
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
