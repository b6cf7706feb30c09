//! Prompt, question and truth from facts: the sentences of the paper's Table 1, in lower case.

use super::{Category, Facts, Object, Relation, Task};

const NUMBERS: [&str; 17] = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen",
];

/// Plurals that no rule gives, of nouns that the usual object lists have.
const IRREGULAR: [(&str, &str); 7] = [
    ("person", "people"),
    ("mouse", "mice"),
    ("knife", "knives"),
    ("scissors", "scissors"),
    ("skis", "skis"),
    ("sheep", "sheep"),
    ("broccoli", "broccoli"),
];

/// The plural of an English noun: `stars`, `crosses`, `wine glasses`, `knives`.
pub fn plural(noun: &str) -> String {
    for (one, many) in IRREGULAR {
        if let Some(start) = noun.strip_suffix(one)
            && (start.is_empty() || start.ends_with(' '))
        {
            return format!("{start}{many}");
        }
    }
    if let Some(stem) = noun.strip_suffix('y')
        && !stem.ends_with(['a', 'e', 'i', 'o', 'u'])
    {
        return format!("{stem}ies");
    }
    let hisses = ["s", "x", "z", "ch", "sh"].iter().any(|end| noun.ends_with(end));
    format!("{noun}{}", if hisses { "es" } else { "s" })
}

/// `a` or `an`, by the first letter of what follows.
pub fn article(next: &str) -> &'static str {
    if next.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

/// The number in words up to sixteen, in digits from there.
pub fn number_word(number: u32) -> String {
    NUMBERS.get(number as usize).map_or_else(|| number.to_string(), ToString::to_string)
}

/// The inverse of [`number_word`]; also reads digits.
pub(super) fn number(word: &str) -> Option<u32> {
    if word == "no" {
        return Some(0);
    }
    NUMBERS.iter().position(|known| *known == word).map(|n| n as u32).or_else(|| word.parse().ok())
}

impl Object {
    /// One object, its colour left open.
    pub fn one(noun: impl Into<String>) -> Self {
        Self { noun: noun.into(), count: 1, color: None }
    }

    /// `a circle`, `a green circle`, `three stars`.
    fn phrase(&self) -> String {
        if self.count != 1 {
            return format!("{} {}", number_word(self.count), plural(&self.noun));
        }
        let named = match &self.color {
            Some(color) => format!("{color} {}", self.noun),
            None => self.noun.clone(),
        };
        format!("{} {named}", article(&named))
    }

    /// `the circle is green`.
    fn colored(&self) -> String {
        format!("the {} is {}", self.noun, self.color.as_deref().unwrap_or_default())
    }
}

fn join(objects: &[Object], between: &str, phrase: impl Fn(&Object) -> String) -> String {
    objects.iter().map(phrase).collect::<Vec<_>>().join(between)
}

impl Category {
    /// What the model is asked about a drawing of this category.
    pub fn question(self) -> &'static str {
        match self {
            Category::SingleObject => "what is the main object of the image",
            Category::TwoObject => "what are two main objects of the image",
            Category::Counting => "how many items in this image",
            Category::Colors => "what is the color of the object",
            Category::Position => {
                "what are two objects and what is position relationship between two main items"
            }
            Category::ColorAttr => "what are two objects and the colors of two objects in the image",
        }
    }
}

impl Facts {
    /// What the model draws from.
    pub fn prompt(&self) -> String {
        let between = match self.relation {
            Some(relation) => format!(" {} ", relation.words()),
            None => " and ".into(),
        };
        format!("a photo of {}", join(&self.objects, &between, Object::phrase))
    }

    /// The right answer about a right drawing, in the order of the prompt.
    pub fn truth(&self) -> String {
        match self.category {
            Category::SingleObject | Category::TwoObject | Category::Counting => {
                join(&self.objects, " and ", Object::phrase)
            }
            Category::Colors | Category::ColorAttr => join(&self.objects, " and ", Object::colored),
            Category::Position => {
                let relation = self.relation.map_or("near", Relation::words);
                join(&self.objects, &format!(" is {relation} "), |object| format!("the {}", object.noun))
            }
        }
    }
}

impl Task {
    /// The facts with all texts made from them.
    pub fn new(facts: Facts) -> Self {
        let question = facts.category.question().into();
        Self { prompt: facts.prompt(), question, truth: facts.truth(), facts }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plurals() {
        let nouns = ["star", "cross", "wine glass", "knife", "bench", "toy", "cherry", "person"];
        let expected =
            ["stars", "crosses", "wine glasses", "knives", "benches", "toys", "cherries", "people"];
        assert_eq!(nouns.map(plural), expected);
    }

    #[test]
    fn articles_follow_the_next_word() {
        let mut object = Object::one("circle");
        object.color = Some("orange".into());
        let task = Task::new(Facts { category: Category::Colors, objects: vec![object], relation: None });
        assert_eq!(task.prompt, "a photo of an orange circle");
        assert_eq!(task.truth, "the circle is orange");
    }

    #[test]
    fn a_position_keeps_the_order_of_the_prompt() {
        let objects = vec![Object::one("star"), Object::one("ring")];
        let facts = Facts { category: Category::Position, objects, relation: Some(Relation::Below) };
        let task = Task::new(facts);
        assert_eq!(task.prompt, "a photo of a star below a ring");
        assert_eq!(task.truth, "the star is below the ring");
    }
}
