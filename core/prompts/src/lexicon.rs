//! Everyday objects with their synonyms, colours, and the words between objects.

use unirl::prompt::Relation;

/// The ten colours of `GenEval`.
pub(super) const COLORS: [&str; 10] =
    ["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"];

/// The words between two objects in a prompt. The longest match at a position wins.
pub(super) const RELATIONS: [(&str, Relation); 12] = [
    ("to the left of", Relation::LeftOf),
    ("on the left side of", Relation::LeftOf),
    ("on the left of", Relation::LeftOf),
    ("left of", Relation::LeftOf),
    ("to the right of", Relation::RightOf),
    ("on the right side of", Relation::RightOf),
    ("on the right of", Relation::RightOf),
    ("right of", Relation::RightOf),
    ("above of", Relation::Above),
    ("above", Relation::Above),
    ("below of", Relation::Below),
    ("below", Relation::Below),
];

/// Returns the first separator of objects in a noun or colour.
pub(super) fn joint(word: &str) -> Option<&'static str> {
    let padded = format!(" {word} ");
    let joints = RELATIONS.iter().map(|(words, _)| *words).chain(["and"]);
    joints.into_iter().find(|joint| padded.contains(&format!(" {joint} ")))
}

/// The 80 classes of COCO in the spelling and order of `GenEval`, and 80 more everyday objects: 160, as in the paper (§3.2). Each
/// has its synonyms in answers. No synonym names another object of the list.
#[rustfmt::skip]
pub(super) const EVERYDAY: [(&str, &[&str]); 160] = [
    ("person", &["man", "woman", "human", "child", "kid", "boy", "girl", "baby", "lady", "guy", "adult", "toddler"]), ("bicycle", &["bike"]), ("car", &["automobile"]),
    ("motorcycle", &["motorbike"]), ("airplane", &["plane", "aeroplane", "jet", "aircraft"]), ("bus", &[]), ("train", &[]),
    ("truck", &["lorry", "pickup"]), ("boat", &["ship", "sailboat"]), ("traffic light", &["stoplight", "traffic signal"]),
    ("fire hydrant", &["hydrant"]), ("stop sign", &[]), ("parking meter", &[]), ("bench", &[]), ("bird", &[]),
    ("cat", &["kitten"]), ("dog", &["puppy"]), ("horse", &[]), ("sheep", &[]), ("cow", &[]), ("elephant", &[]),
    ("bear", &[]), ("zebra", &[]), ("giraffe", &[]), ("backpack", &["rucksack"]), ("umbrella", &["parasol"]),
    ("handbag", &["purse", "bag"]), ("tie", &["necktie"]), ("suitcase", &["luggage"]), ("frisbee", &["flying disc"]),
    ("skis", &["ski"]), ("snowboard", &[]), ("sports ball", &["ball", "soccer ball", "football", "basketball", "volleyball", "tennis ball", "baseball", "beach ball"]), ("kite", &[]), ("baseball bat", &["bat"]),
    ("baseball glove", &["baseball mitt", "glove"]), ("skateboard", &[]), ("surfboard", &[]),
    ("tennis racket", &["racket", "tennis racquet", "racquet"]), ("bottle", &[]), ("wine glass", &["wineglass", "glass of wine", "goblet"]),
    ("cup", &["mug", "coffee cup", "teacup"]), ("fork", &[]), ("knife", &[]), ("spoon", &[]), ("bowl", &[]), ("banana", &[]),
    ("apple", &[]), ("sandwich", &[]), ("orange", &[]), ("broccoli", &[]), ("carrot", &[]),
    ("hot dog", &["hotdog"]), ("pizza", &[]), ("donut", &["doughnut"]), ("cake", &[]), ("chair", &[]),
    ("couch", &["sofa", "settee"]), ("potted plant", &["plant", "houseplant", "plant in a pot", "pot plant"]), ("bed", &[]),
    ("dining table", &["table"]), ("toilet", &[]), ("tv", &["television", "television set", "tv set", "tv screen", "television screen", "flat screen tv"]),
    ("laptop", &["laptop computer", "notebook computer", "notebook pc"]), ("computer mouse", &["mouse"]),
    ("tv remote", &["remote", "remote control"]), ("computer keyboard", &["keyboard"]),
    ("cell phone", &["cellphone", "mobile phone", "phone", "smartphone"]), ("microwave", &["microwave oven"]),
    ("oven", &[]), ("toaster", &[]), ("sink", &["washbasin"]), ("refrigerator", &["fridge"]), ("book", &[]),
    ("clock", &[]), ("vase", &[]), ("scissors", &["pair of scissors"]), ("teddy bear", &["teddy"]),
    ("hair drier", &["hair dryer", "hairdryer", "blow dryer"]), ("toothbrush", &[]),

    ("lamp", &[]), ("candle", &[]), ("pillow", &["cushion"]), ("blanket", &[]), ("curtain", &[]), ("mirror", &[]),
    ("ladder", &[]), ("bucket", &["pail"]), ("broom", &[]), ("basket", &[]), ("towel", &[]), ("sponge", &[]),
    ("comb", &[]), ("hairbrush", &[]), ("key", &[]), ("padlock", &[]), ("wallet", &[]), ("watch", &["wristwatch"]),
    ("ring", &[]), ("necklace", &[]), ("hat", &[]), ("scarf", &[]), ("sock", &[]), ("shoe", &[]), ("boot", &[]),
    ("shirt", &[]), ("jacket", &[]), ("dress", &[]), ("belt", &[]), ("crown", &[]), ("pencil", &[]), ("pen", &[]),
    ("crayon", &[]), ("paintbrush", &[]), ("ruler", &[]), ("stapler", &[]), ("envelope", &[]), ("notebook", &[]),
    ("newspaper", &[]), ("globe", &[]), ("hammer", &[]), ("screwdriver", &[]), ("wrench", &["spanner"]),
    ("saw", &[]), ("shovel", &["spade"]), ("axe", &["ax"]), ("wheelbarrow", &[]), ("tent", &[]),
    ("flashlight", &["torch"]), ("compass", &[]), ("guitar", &[]), ("violin", &["fiddle"]), ("piano", &[]),
    ("drum", &[]), ("trumpet", &[]), ("flute", &[]), ("camera", &[]), ("telescope", &[]), ("microscope", &[]),
    ("calculator", &[]), ("kettle", &[]), ("teapot", &[]), ("frying pan", &["skillet"]), ("ladle", &[]),
    ("jar", &[]), ("strawberry", &[]), ("lemon", &[]), ("pineapple", &[]), ("watermelon", &[]), ("pumpkin", &[]),
    ("mushroom", &[]), ("egg", &[]), ("croissant", &[]), ("sunflower", &[]), ("butterfly", &[]),
    ("rabbit", &["bunny"]), ("penguin", &[]), ("turtle", &["tortoise"]), ("fish", &[]), ("windmill", &[]),
];

/// Words that are objects if the prompt asks for shapes, and modifiers otherwise (`a square table`).
pub(super) const SHAPES: [&str; 16] = [
    "circle",
    "ring",
    "square",
    "triangle",
    "cross",
    "star",
    "diamond",
    "heart",
    "rectangle",
    "oval",
    "pentagon",
    "hexagon",
    "arrow",
    "moon",
    "bar",
    "stripe",
];

/// Returns the synonyms of a noun, such as `sofa` for `couch`.
pub fn synonyms(noun: &str) -> &'static [&'static str] {
    EVERYDAY.iter().find(|(name, _)| *name == noun).map_or(&[], |(_, others)| others)
}

/// Returns the name in the list for a noun or a synonym; another noun in lower case.
pub(super) fn canonical(noun: &str) -> String {
    let noun = noun.to_lowercase();
    let known = EVERYDAY.iter().find(|(_, others)| others.contains(&noun.as_str()));
    known.map_or(noun, |(name, _)| (*name).into())
}

/// Returns the spellings of a colour: `gray` and `grey` are equivalent.
pub(crate) fn color_spellings(color: &str) -> Vec<String> {
    let mut spellings = vec![color.to_lowercase()];
    for (one, other) in [("gray", "grey"), ("grey", "gray")] {
        if spellings[0].contains(one) {
            spellings.push(spellings[0].replace(one, other));
        }
    }
    spellings
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::Plurals;
    use super::*;

    /// No two objects share a name, a synonym or a plural.
    #[test]
    fn names_of_objects_are_unique() {
        let mut owner = std::collections::HashMap::new();
        for (noun, others) in EVERYDAY {
            let words: HashSet<String> = others
                .iter()
                .chain([&noun])
                .flat_map(|word| [(*word).to_string(), Plurals::English.of(word), Plurals::Geneval.of(word)])
                .collect();
            for word in words {
                if let Some(other) = owner.insert(word.clone(), noun) {
                    panic!("`{word}` is both `{other}` and `{noun}`");
                }
            }
        }
    }

    #[test]
    fn gray_and_grey_are_equivalent() {
        assert_eq!(color_spellings("dark gray"), ["dark gray", "dark grey"]);
        assert_eq!(color_spellings("Grey"), ["grey", "gray"]);
        assert_eq!(color_spellings("green"), ["green"]);
    }
}
