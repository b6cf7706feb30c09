//! An answer as a list of words and punctuation marks.

/// Tags of reasoning, whose content is not part of the answer.
const REASONING: [&str; 4] = ["think", "thinking", "reasoning", "reason"];

/// The words of a text in lower case. Punctuation that can end a clause appears as `,`.
#[derive(Debug, Default)]
pub struct Words {
    text: String,
    /// Byte ranges; an empty one is at a punctuation mark.
    spans: Vec<(u32, u32)>,
}

impl Words {
    /// Splits a text into words. Text beyond 4 GiB is ignored.
    pub fn of(text: &str) -> Self {
        let mut words =
            Self { text: text.to_lowercase().replace('’', "'"), spans: Vec::with_capacity(text.len() / 4) };
        let mut start = None;
        let mut letters = words.text.char_indices().peekable();
        let mut previous = ' ';
        while let Some((at, letter)) = letters.next() {
            let next = letters.peek().map_or(' ', |(_, next)| *next);
            let byte = u32::try_from(at).unwrap_or(u32::MAX);
            let continues = match letter {
                // `isn't` and `3.5` are one word each.
                '\'' => previous == 'n' && next == 't',
                '.' | ',' => previous.is_ascii_digit() && next.is_ascii_digit(),
                _ => letter.is_alphanumeric(),
            };
            if continues {
                start.get_or_insert(byte);
            } else {
                words.spans.extend(start.take().map(|start| (start, byte)));
                let is_mark = match letter {
                    '-' => previous == ' ' && next == ' ',
                    _ => matches!(
                        letter,
                        ',' | '.' | ';' | ':' | '\n' | '&' | '!' | '?' | '/' | '|' | '+' | '=' | '–' | '—'
                    ),
                };
                if is_mark {
                    words.spans.push((byte, byte));
                }
            }
            previous = letter;
        }
        let end = u32::try_from(words.text.len()).unwrap_or(u32::MAX);
        words.spans.extend(start.map(|start| (start, end)));
        words
    }

    /// Splits the answer of a model into words, after removing reasoning in `<think>`, the wrappers `<answer>` and `\boxed{}`,
    /// markup and list numbers.
    pub fn of_answer(answer: &str) -> Self {
        Self::of(&unwrap(answer))
    }

    /// Returns the number of words and marks.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there are no words and no marks.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Returns the word at an index; `,` for a mark.
    pub fn get(&self, index: usize) -> Option<&str> {
        let (start, end) = *self.spans.get(index)?;
        if start == end { Some(",") } else { self.text.get(start as usize..end as usize) }
    }

    /// Returns the mark at an index, if there is one.
    pub(super) fn mark(&self, index: usize) -> Option<char> {
        let (start, end) = *self.spans.get(index)?;
        (start == end).then(|| self.text.get(start as usize..)?.chars().next()).flatten()
    }

    /// Returns all words and marks.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.len()).filter_map(|index| self.get(index))
    }

    /// Whether `phrase` begins at `index`.
    pub fn starts_with(&self, index: usize, phrase: &Words) -> bool {
        !phrase.is_empty() && (0..phrase.len()).all(|at| self.get(index + at) == phrase.get(at))
    }

    /// Whether an earlier word of the clause negates the word at `index`: `I cannot find a ...`.
    pub fn is_negated(&self, index: usize) -> bool {
        let clause =
            (0..index).rev().map_while(|at| self.get(at).filter(|word| !super::roles::ends_clause(word)));
        clause.into_iter().any(super::roles::negates)
    }

    /// Returns the text in lower case.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// Removes the wrappers of an answer.
fn unwrap(answer: &str) -> String {
    let mut text = answer.to_string();
    for tag in REASONING {
        text = without_element(&text, tag);
    }
    if let Some(inner) = contents(&text, "<answer>", |rest| find(rest, "</answer>")) {
        text = inner;
    }
    if let Some(inner) = contents(&text, "\\boxed{", closing_brace) {
        text = inner;
    }
    without_list_numbers(&joined_acronyms(&without_markup(&text)))
}

/// Returns the position of `needle`, ignoring ASCII case.
fn find(text: &str, needle: &str) -> Option<usize> {
    text.to_ascii_lowercase().find(needle)
}

/// Removes every `<tag>...</tag>`. An unclosed tag extends to the end, an unopened one from the beginning.
fn without_element(text: &str, tag: &str) -> String {
    let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
    let mut rest = text;
    let mut kept = String::new();
    loop {
        let (start, end) = (find(rest, &open), find(rest, &close));
        match (start, end) {
            (Some(start), Some(end)) if start < end => {
                kept.push_str(&rest[..start]);
                rest = &rest[end + close.len()..];
            }
            (_, Some(end)) => {
                kept.clear();
                rest = &rest[end + close.len()..];
            }
            (Some(start), None) => return kept + &rest[..start],
            (None, None) => return kept + rest,
        }
    }
}

/// Returns the contents after every `open`, up to the position that `end` finds, as sentences; `None` if there is none.
fn contents(text: &str, open: &str, end: impl Fn(&str) -> Option<usize>) -> Option<String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = find(rest, open) {
        rest = &rest[start + open.len()..];
        let (inner, after) = rest.split_at(end(rest).unwrap_or(rest.len()));
        found.push(inner);
        rest = after;
    }
    (!found.is_empty()).then(|| found.join(". "))
}

/// Returns the position of the brace that closes one opened before `text`.
fn closing_brace(text: &str) -> Option<usize> {
    let mut depth = 1;
    text.find(|letter| {
        depth += i32::from(letter == '{');
        depth -= i32::from(letter == '}');
        depth == 0
    })
}

/// Removes tags such as `<b>` and `<|im_end|>`, and commands such as `\text`.
fn without_markup(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['<', '\\']) {
        plain.push_str(&rest[..at]);
        plain.push(' ');
        let inner = &rest[at + 1..];
        let skipped = if rest[at..].starts_with('<') {
            inner.find('>').filter(|end| *end <= 40).map_or(0, |end| end + 1)
        } else {
            inner.find(|letter: char| !letter.is_ascii_alphabetic()).unwrap_or(inner.len())
        };
        rest = &inner[skipped..];
    }
    plain + rest
}

/// Joins acronyms: `T.V.` becomes `TV`.
fn joined_acronyms(text: &str) -> String {
    let letters: Vec<char> = text.chars().collect();
    let is_letter = |at: usize| letters.get(at).is_some_and(|letter| letter.is_alphabetic());
    let is_dot = |at: usize| letters.get(at) == Some(&'.');
    let mut joined = String::with_capacity(text.len());
    let mut at = 0;
    while at < letters.len() {
        let starts = is_letter(at) && (at == 0 || !letters[at - 1].is_alphanumeric());
        let mut end = at;
        while starts && is_letter(end) && is_dot(end + 1) {
            end += 2;
        }
        if end - at >= 4 {
            joined.extend(letters[at..end].iter().step_by(2));
            at = end;
        } else {
            joined.push(letters[at]);
            at += 1;
        }
    }
    joined
}

/// Removes the numbers of a list that counts from 1: `1. a couch 2. a phone`. Other numbers stay.
fn without_list_numbers(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut next = 1_u32;
    let mut rest = text;
    let mut at_start = true;
    while !rest.is_empty() {
        let number = next.to_string();
        let item =
            rest.strip_prefix(&number).filter(|_| at_start).and_then(|after| after.strip_prefix(['.', ')']));
        if let Some(after) = item
            && after.trim_start().starts_with(|letter: char| letter.is_alphabetic() || letter == '*')
            && after.starts_with(char::is_whitespace)
        {
            plain.push(',');
            rest = after;
            next += 1;
        }
        let mut letters = rest.chars();
        let Some(letter) = letters.next() else { break };
        plain.push(letter);
        at_start = letter.is_whitespace() || letter == '(';
        rest = letters.as_str();
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(answer: &str) -> String {
        Words::of_answer(answer).iter().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn of_answer_removes_wrappers() {
        for (answer, expected) in [
            ("<think>a dog? a cat?</think>\nA bench", ", a bench"),
            ("a dog? no.</think> A bench", "a bench"),
            ("<think>a bench, I would say", ""),
            ("<THINK>x</THINK><answer>A <b>bench</b></answer>", "a bench"),
            ("<answer>bench</answer> or <answer>dog</answer>", "bench , dog"),
            ("So it is \\boxed{\\text{a bench}}.", "a bench"),
            ("$\\boxed{3}$", "3"),
            ("a T.V. and a U.F.O.", "a tv and a ufo"),
            ("bench</s><|im_end|>", "bench"),
            ("1. A couch\n2. A phone", ", a couch , , a phone"),
            ("1) a couch 2) a phone", ", a couch , a phone"),
            ("there are 3. Yes", "there are 3 , yes"),
            ("3. vases", "3 , vases"),
            ("it isn’t a 3.5 cm bench", "it isn't a 3.5 cm bench"),
            ("Chair - blue; well-known", "chair , blue , well known"),
        ] {
            assert_eq!(words(answer), expected, "{answer}");
        }
    }

    #[test]
    fn is_negated_until_the_end_of_the_clause() {
        let negated = |text: &str, word: &str| {
            let words = Words::of(text);
            words.is_negated(words.iter().position(|other| other == word).unwrap())
        };
        for text in [
            "there is no sign of a bench",
            "I can't really find the old bench",
            "without any of the usual bench",
        ] {
            assert!(negated(text, "bench"), "{text}");
        }
        for text in ["no, a bench", "not a chair but a bench", "bench", "no dog while the bench is there"] {
            assert!(!negated(text, "bench"), "{text}");
        }
    }
}
