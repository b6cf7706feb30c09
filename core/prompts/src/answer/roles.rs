//! The roles of words in answers. A word without a role names an object or modifies one.

use std::collections::HashMap;
use std::sync::LazyLock;

use unirl::prompt::Relation;

use super::Words;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Ignored.
    Filler,
    /// `a`, `an`: begins a phrase.
    Article,
    /// `the`: begins a phrase that can refer back to an object.
    Definite,
    /// Joins two phrases of a clause.
    And,
    /// Ends a clause and the scope of a negation.
    Clause,
    /// Ends a phrase; what follows is an attribute of the object before it.
    Is,
    /// Negates the rest of its clause.
    Negation,
    /// `isn't`: both.
    IsNot,
    /// Makes the whole answer a guess.
    Doubt,
    /// Makes the number after it inexact.
    About,
    /// More than one, without a number.
    Several,
    /// `other`, `else`: a negation of these negates no named object.
    Other,
    /// A colour.
    Color,
    /// `hue`, `shade`: the adjacent colour is a colour, never a fruit.
    Hue,
    /// A position; `None` if it is not one of the four relations.
    Place(Option<Relation>),
    /// Belongs to a position: `left side`, `left-hand`.
    Side,
    /// `of`.
    Of,
    /// `for`: the colour before it belongs to the object after it.
    For,
    /// `it`: after a position, an object mentioned before.
    Pronoun,
    /// A part of an object, never another object.
    Part,
    /// The surface of an object: its colour is that of the object.
    Cover,
    /// `respectively`.
    Respectively,
    /// `in`, `on`: what follows can be a setting.
    In,
    /// The setting of a scene after `in` or `on`; an object elsewhere.
    Setting,
    /// The image, its parts, and generic words for its content.
    Image,
    /// Two of what follows, or one object that is always a pair.
    Pair,
    /// A number in other words.
    Number(u32),
    /// A portion or group of what follows: `a slice of pizza`.
    Measure,
}

#[rustfmt::skip]
const ROLES: &[(Role, &[&str])] = &[
    (Role::Article, &["a", "an", "another"]),
    (Role::Definite, &["the", "this", "that", "these", "those", "its", "their"]),
    (Role::And, &["and", "with", "plus", "or", "as", "along", "alongside", "together"]),
    (Role::Clause, &["but", "while", "whereas", "except", "although", "though", "however", "instead"]),
    (Role::Is, &["is", "are", "was", "were", "has", "have", "having"]),
    (Role::IsNot, &["isn't", "aren't", "wasn't", "weren't", "isnt", "arent", "wasnt", "werent", "ain't"]),
    (Role::Negation, &[
        "no", "not", "without", "never", "neither", "nor", "none", "nothing", "nobody", "nowhere", "cannot", "cant",
        "dont", "doesnt", "didnt", "wont", "couldnt", "wouldnt", "shouldnt", "havent", "hasnt", "hardly", "barely",
        "scarcely", "rarely", "seldom", "lack", "lacks", "lacking", "missing", "absent", "absence", "fail", "fails",
        "failed", "unable", "deny", "denies", "false", "untrue", "incorrect", "wrong", "impossible", "unlikely",
        "devoid", "excluding", "minus", "sans", "unlike", "fake", "imaginary", "pretend", "invisible", "nonexistent", "nope",
    ]),
    (Role::Doubt, &[
        "maybe", "perhaps", "possibly", "probably", "presumably", "might", "may", "could", "would", "should", "must",
        "either", "unsure", "uncertain", "unclear", "unknown", "guess", "guessing", "if", "unless", "whether", "wish", "want",
        "hope", "imagine", "suppose", "supposedly", "doubt", "doubtful", "hypothetically", "arguably", "something",
        "someone", "somebody", "everything", "everybody", "etc", "whatever", "whichever", "potentially",
    ]),
    (Role::About, &["about", "almost", "nearly", "approximately", "roughly", "least", "most", "than", "circa", "upto"]),
    (Role::Several, &["several", "many", "multiple", "numerous", "various", "few", "lots", "countless"]),
    (Role::Other, &["other", "others", "else", "additional", "more", "further", "extra", "another"]),
    (Role::Color, &super::COLORS),
    (Role::Color, &[
        "gray", "grey", "silver", "gold", "golden", "cyan", "teal", "turquoise", "navy", "beige", "tan", "maroon", "violet",
        "magenta", "crimson", "scarlet", "lime", "indigo", "ivory", "cream", "bronze", "lavender", "khaki", "peach",
    ]),
    (Role::Hue, &[
        "color", "colour", "colors", "colours", "colored", "coloured", "hue", "hues", "shade", "shades", "tone", "tones", "tint",
        "tinted", "painted", "dyed", "coloring", "colouring", "coloration",
    ]),
    (Role::Place(Some(Relation::LeftOf)), &["left", "leftmost"]),
    (Role::Place(Some(Relation::RightOf)), &["right", "rightmost"]),
    (Role::Place(Some(Relation::Above)), &["above", "over", "top", "upper", "atop"]),
    (Role::Place(Some(Relation::Below)), &["below", "under", "beneath", "underneath", "bottom", "lower"]),
    (Role::Place(None), &[
        "diagonal", "diagonally", "next", "beside", "near", "behind", "front", "inside", "between", "around", "adjacent",
        "opposite",
    ]),
    (Role::Side, &["side", "sides", "hand", "half", "part", "portion", "corner", "edge", "end"]),
    (Role::Of, &["of"]),
    (Role::For, &["for"]),
    (Role::In, &["in", "on", "at", "against", "within", "onto", "into", "upon", "through", "across", "along", "by", "toward", "towards", "amid", "among"]),
    (Role::Setting, &[
        "wall", "floor", "ground", "surface", "sky", "grass", "field", "park", "street", "road", "beach", "room", "kitchen",
        "garden", "yard", "forest", "snow", "sand", "water", "desert", "city", "backyard", "studio", "environment", "space",
        "lawn", "sidewalk", "meadow", "savanna", "ocean", "sea", "lake", "river", "hill", "hills", "mountain", "mountains", "jungle", "town", "village",
        "countryside", "pavement", "driveway", "counter", "countertop", "bathroom", "bedroom", "office", "outdoors", "indoors", "air", "darkness", "sunlight", "shadow", "day", "night",
    ]),
    (Role::Image, &[
        "image", "images", "picture", "pictures", "photo", "photos", "photograph", "photography", "illustration", "drawing",
        "painting", "rendering", "render", "sketch", "artwork", "scene", "view", "shot", "frame", "closeup", "close-up",
        "snapshot", "depiction", "representation", "display", "composition", "background", "foreground", "center", "centre", "middle",
        "subject", "subjects", "focus", "focal", "point", "object", "objects", "item", "items", "thing", "things", "element",
        "elements", "content", "contents", "setting", "backdrop", "clipart", "cartoon", "icon", "screenshot", "portrait", "version",
    ]),
    (Role::Image, &[
        "animal", "animals", "vehicle", "vehicles", "fruit", "fruits", "furniture", "device", "devices", "appliance", "appliances",
        "utensil", "utensils", "food", "foods", "creature", "creatures", "toys", "shape", "shapes", "figure", "figures",
    ]),
    (Role::Pronoun, &["it", "them"]),
    (Role::Respectively, &["respectively"]),
    (Role::Cover, &[
        "fur", "finish", "coat", "feathers", "body", "fabric", "upholstery", "exterior", "skin", "paint", "texture", "plumage",
        "wool", "petals", "casing", "rind", "peel",
    ]),
    (Role::Part, &[
        "mane", "tail", "wheel", "wheels", "leg", "legs", "armrest", "armrests", "handle", "handles", "hair", "eye", "eyes", "screen",
        "lid", "stripes", "spots", "pattern", "seat", "seats", "back", "backrest", "wings", "horns", "ears", "nose", "face", "head",
        "frame", "cushions", "stem", "blade", "keys", "buttons", "door", "doors", "windows", "straps", "collar", "slats", "engine",
        "sails", "roof", "hands", "trunk", "paws", "beak", "hooves", "spout", "zipper", "sleeves", "tires", "headlights", "pedals",
        "drawers", "crust", "toppings", "bristles", "numerals", "dial", "strap", "lens", "basket", "tusks", "whiskers",
    ]),
    (Role::Pair, &["pair", "pairs"]),
    (Role::Number(2), &["couple"]),
    (Role::Number(12), &["dozen"]),
    (Role::Number(30), &["thirty"]),
    (Role::Number(40), &["forty"]),
    (Role::Number(50), &["fifty"]),
    (Role::Number(100), &["hundred", "hundreds"]),
    (Role::Measure, &[
        "set", "group", "bunch", "row", "stack", "pile", "collection", "cluster", "slice", "piece", "pieces", "slices",
        "kind", "type", "sort", "form", "example", "series", "lot", "assortment", "arrangement", "plate", "trio", "duo", "herd",
        "flock", "head", "loaf", "carton", "bouquet", "portion", "serving", "bit", "chunk", "bit", "sheet",
    ]),
    // Function words, words of questions, politeness, labels.
    (Role::Filler, &[
        "there", "they", "he", "she", "him", "her", "his", "to", "from", "which", "who", "what", "where", "s", "t",
        "i", "we", "you", "me", "my", "your", "be", "been", "being", "do", "does", "did", "can", "will", "here", "very",
        "so", "too", "also", "just", "only", "quite", "really", "then", "both", "each", "all", "well", "up", "out", "off",
        "down", "how", "when", "some", "such", "same", "own", "itself", "themselves", "because", "since", "x", "ok", "okay", "yes",
        "yeah", "yep", "sure", "certainly", "certain", "indeed", "course", "absolutely", "correct", "true", "please", "thanks", "hello",
        "hi", "answer", "answers", "final", "response", "output", "result", "assistant", "question", "caption", "description",
        "name", "count", "first", "second", "third", "fourth", "firstly", "secondly", "lastly", "finally", "counting", "main", "central", "primary",
        "principal", "boxed", "text", "think", "believe", "based", "given", "according", "like", "im", "ive", "m", "ve", "re",
        "d", "ll", "let", "us", "now", "still", "even", "always", "again", "up", "per", "via",
        "following", "after", "before", "number", "amount", "total", "sum", "any", "anything", "far", "rather",
        "close",
    ]),
    // Verbs of showing, appearing and being in a place.
    (Role::Filler, &[
        "show", "shows", "showing", "shown", "display", "displays", "displaying", "displayed", "feature", "features", "featuring",
        "featured", "contain", "contains", "containing", "contained", "depict", "depicts", "depicting", "depicted", "capture",
        "captures", "capturing", "captured", "showcase", "showcases", "showcasing", "showcased", "include", "includes",
        "including", "included", "present", "presents", "presenting", "presented", "illustrate", "illustrates", "illustrated",
        "portray", "portrays", "portraying", "portrayed", "look", "looks", "looking", "appear", "appears", "appearing", "seem",
        "seems", "see", "seen", "sees", "saw", "visible", "observe", "observed", "consist", "consists", "consisting", "comprise",
        "comprises", "represent", "represents", "representing", "exist", "exists", "find", "found", "spot", "spotted", "notice",
        "identify", "identified", "recognize", "recognized", "detect", "detected", "describe", "described", "called", "known",
        "named", "labeled", "available", "located", "situated", "placed", "positioned", "set", "made", "designed", "shaped",
        "sit", "sits", "sitting", "stand", "stands", "standing", "lie", "lies", "lying", "lay", "lays", "laying", "rest",
        "rests", "resting", "hang", "hangs", "hanging", "parked", "floating", "arranged", "separated", "centered", "centred",
        "surrounded", "running", "runs", "walking", "playing", "eating", "flying", "grazing", "posing", "facing", "taken",
        "highlighting", "dominates", "occupies", "stands", "remains", "read", "reads", "say", "says", "tell", "refers", "counted",
    ]),
    // Size, age, material, appearance.
    (Role::Filler, &[
        "small", "large", "big", "little", "tiny", "huge", "tall", "short", "long", "round", "old", "new", "young", "vintage",
        "modern", "single", "wooden", "wood", "metal", "metallic", "plastic", "ceramic", "leather", "woolen", "shiny",
        "bright", "dark", "light", "colorful", "colourful", "beautiful", "pretty", "cute", "lovely", "nice", "plain",
        "simple", "realistic", "open", "closed", "upright", "alone", "blank", "pale", "deep", "vibrant", "vivid", "rich", "solid", "clear", "prominent", "standard", "typical",
        "detailed", "distinct", "different", "separate", "identical", "similar",
    ]),
];

/// Several words with one role.
const JOINT_ROLES: [(&str, Role); 21] = [
    ("anything but", Role::Negation),
    ("anything except", Role::Negation),
    ("everything but", Role::Negation),
    ("everything except", Role::Negation),
    ("far from", Role::Negation),
    ("instead of", Role::Negation),
    ("rather than", Role::Negation),
    ("nothing but", Role::Filler),
    ("nothing other than", Role::Filler),
    ("no doubt", Role::Filler),
    ("without a doubt", Role::Filler),
    ("without doubt", Role::Filler),
    ("from left to right", Role::Filler),
    ("side by side", Role::Filler),
    ("next to each other", Role::Filler),
    ("higher than", Role::Place(Some(Relation::Above))),
    ("lower than", Role::Place(Some(Relation::Below))),
    ("in front of", Role::Place(None)),
    ("made of", Role::Filler),
    ("not sure", Role::Doubt),
    ("not certain", Role::Doubt),
];

/// Returns the role of several words that begin at `index`, and their number.
pub(super) fn joint_role(words: &Words, index: usize) -> Option<(Role, usize)> {
    static JOINT: LazyLock<Vec<(Words, Role)>> =
        LazyLock::new(|| JOINT_ROLES.iter().map(|(text, role)| (Words::of(text), *role)).collect());
    let found = JOINT.iter().find(|(phrase, _)| words.starts_with(index, phrase));
    found.map(|(phrase, role)| (*role, phrase.len()))
}

/// Nouns that look like a verb or an adverb.
#[rustfmt::skip]
const NOT_VERBS: [&str; 32] = [
    "building", "ceiling", "wing", "king", "string", "clothing", "pudding", "railing", "awning", "earring", "swing", "thing",
    "bed", "shed", "sled", "seed", "weed", "reed", "bread", "fly", "butterfly", "dragonfly", "family", "lily", "jelly", "belly",
    "bully", "assembly", "ally", "holly", "trolley", "duckling",
];

/// Returns the role of a word; `None` if it names or modifies an object.
pub(super) fn role(word: &str) -> Option<Role> {
    static ROLE_OF: LazyLock<HashMap<&str, Role>> = LazyLock::new(|| {
        // If a word is listed twice, the first role wins.
        ROLES.iter().rev().flat_map(|(role, words)| words.iter().map(|word| (*word, *role))).collect()
    });
    match ROLE_OF.get(word) {
        Some(role) => Some(*role),
        None if word.ends_with("n't") => Some(Role::Negation),
        None if word.ends_with("ly") && !NOT_VERBS.contains(&word) => Some(Role::Filler),
        None => None,
    }
}

/// Whether a word looks like a participle, which after a noun says what the object does.
pub(super) fn is_participle(word: &str) -> bool {
    (word.ends_with("ing") || word.ends_with("ed")) && word.len() > 4 && !NOT_VERBS.contains(&word)
}

pub(super) fn negates(word: &str) -> bool {
    matches!(role(word), Some(Role::Negation | Role::IsNot))
}

pub(super) fn ends_clause(word: &str) -> bool {
    word == "," || role(word) == Some(Role::Clause)
}
