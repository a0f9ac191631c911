//! Serde over the YAML tree, made so that it finds every structural mistake and not only the first.
//!
//! Serde stops at an error, so the entry that caused it is left out and the reading starts again, until it succeeds.
//! All fields of [`super::file`] are optional for that reason: an entry that is left out never causes another error.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{
    self, Deserialize, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor,
    value::StrDeserializer,
};
use serde::forward_to_deserialize_any;

use super::file::{NOT_YET, example};
use super::problem::{Place, PlanProblem, closest, listed, named};
use super::tree::{Entry, Kind, Node};

/// Structural mistakes that are looked for; every one costs a reading of the plan.
const MISTAKES_MAX: usize = 50;

/// What a tree was read as.
pub(crate) struct Decoded<T> {
    /// The value, without what is wrong. `None` when nothing could be made of the tree.
    pub(crate) value: Option<T>,
    /// All mistakes.
    pub(crate) problems: Vec<PlanProblem>,
    /// The nodes that the value lacks.
    pub(crate) left_out: BTreeSet<usize>,
}

/// Reads the tree as `T`.
pub(crate) fn decode<'de, T: Deserialize<'de>>(root: &'de Node) -> Decoded<T> {
    let mut left_out = BTreeSet::new();
    let mut problems = Vec::new();
    while problems.len() < MISTAKES_MAX {
        match T::deserialize(Reader { node: root, place: root.place, left_out: &left_out }) {
            Ok(value) => return Decoded { value: Some(value), problems, left_out },
            Err(mistake) => {
                let node = mistake.node;
                problems.push(mistake.into_problem());
                // A mistake of the whole file has nothing around it that could be read without it.
                match node {
                    Some(node) if node != root.id && left_out.insert(node) => {}
                    _ => break,
                }
            }
        }
    }
    if problems.len() >= MISTAKES_MAX {
        let message = format!("there are more than {MISTAKES_MAX} such mistakes, and the rest is not listed");
        problems.push(
            PlanProblem::error("plan.too-large", message).help("correct these, then check the plan again"),
        );
    }
    Decoded { value: None, problems, left_out }
}

/// A structural mistake on its way out of serde. It gathers its place and path while it passes the nodes.
#[derive(Debug)]
struct Mistake {
    what: What,
    place: Option<Place>,
    node: Option<usize>,
    /// Keys from the inside to the outside.
    path: Vec<String>,
}

#[derive(Debug)]
enum What {
    WrongType { wanted: String, found: &'static str },
    UnknownKey { key: String, known: &'static [&'static str] },
    UnknownWord { word: String, known: &'static [&'static str] },
    Said(String),
}

impl Mistake {
    fn new(what: What) -> Self {
        Self { what, place: None, node: None, path: Vec::new() }
    }

    /// The innermost node that an error passes is the one it is about.
    fn at(mut self, node: usize, place: Place) -> Self {
        self.node.get_or_insert(node);
        self.place.get_or_insert(place);
        self
    }

    fn into_problem(self) -> PlanProblem {
        let path = dotted(&self.path);
        let shape = self
            .path
            .iter()
            .find_map(|key| example(key))
            .map(|example| format!("write for example `{example}`"));
        let problem = match self.what {
            What::WrongType { wanted, found } => {
                let problem = PlanProblem::error(
                    "plan.wrong-type",
                    format!("{path} has to be {wanted}, and this is {found}"),
                );
                let quotes = (found == "a mapping" && wanted == "text")
                    .then(|| "text with braces such as ${NAME} needs double quotes inside { }".to_owned());
                let start = "write `version: 1` and `plan: NAME` at the start of the file, and `plans/minimal.yaml` goes on";
                problem.help(shape.or(quotes).unwrap_or_else(|| start.to_owned()))
            }
            What::UnknownKey { key, known } => unknown_key(&key, known, &self.path),
            What::UnknownWord { word, known } => {
                let choice = known.iter().map(|word| named(word)).collect::<Vec<_>>().join(" or ");
                let problem = PlanProblem::error("plan.wrong-value", format!("{path} has to be {choice}"));
                match closest(&word, known.iter().copied()) {
                    Some(meant) => problem.help(format!("did you mean `{meant}`?")),
                    None => problem.help(format!("write {choice}")),
                }
            }
            What::Said(words) => {
                let problem = PlanProblem::error("plan.wrong-value", format!("{path} {words}"));
                match shape {
                    Some(help) => problem.help(help),
                    None => problem,
                }
            }
        };
        problem.at(self.place)
    }
}

/// `slices.ordering.tables`, in backquotes.
fn dotted(inside_out: &[String]) -> String {
    match inside_out {
        [] => "the plan".to_owned(),
        [number, list @ ..] if number.parse::<usize>().is_ok() && !list.is_empty() => {
            format!("an item of {}", dotted(list))
        }
        path => named(&path.iter().rev().map(String::as_str).collect::<Vec<_>>().join(".")),
    }
}

fn unknown_key(key: &str, known: &[&'static str], path: &[String]) -> PlanProblem {
    let offered: Vec<&str> = known.iter().copied().filter(|known| !NOT_YET.contains(known)).collect();
    let place =
        if path.is_empty() { "at the top of the plan".to_owned() } else { format!("in {}", dotted(path)) };
    let all = format!("the keys here are {}", listed(offered.iter().copied()));
    let help = match closest(key, offered) {
        Some(meant) => format!("did you mean `{meant}`? {all}"),
        None => all,
    };
    PlanProblem::error("plan.unknown-key", format!("unknown key {} {place}", named(key))).help(help)
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the plan is not of the expected form")
    }
}

impl std::error::Error for Mistake {}

impl de::Error for Mistake {
    fn custom<T: fmt::Display>(words: T) -> Self {
        Self::new(What::Said(words.to_string()))
    }

    fn invalid_type(found: de::Unexpected<'_>, wanted: &dyn de::Expected) -> Self {
        let found = match found {
            de::Unexpected::Seq => "a list",
            de::Unexpected::Map => "a mapping",
            de::Unexpected::Unit | de::Unexpected::Option => "nothing",
            de::Unexpected::Bool(_) => "true or false",
            de::Unexpected::Unsigned(_) | de::Unexpected::Signed(_) | de::Unexpected::Float(_) => "a number",
            de::Unexpected::Char(_)
            | de::Unexpected::Str(_)
            | de::Unexpected::Bytes(_)
            | de::Unexpected::NewtypeStruct
            | de::Unexpected::Enum
            | de::Unexpected::UnitVariant
            | de::Unexpected::NewtypeVariant
            | de::Unexpected::TupleVariant
            | de::Unexpected::StructVariant
            | de::Unexpected::Other(_) => "text",
        };
        Self::new(What::WrongType { wanted: wanted.to_string(), found })
    }

    fn unknown_variant(word: &str, known: &'static [&'static str]) -> Self {
        Self::new(What::UnknownWord { word: word.to_owned(), known })
    }

    fn unknown_field(key: &str, known: &'static [&'static str]) -> Self {
        Self::new(What::UnknownKey { key: key.to_owned(), known })
    }
}

/// One node as a serde deserializer.
#[derive(Clone, Copy)]
struct Reader<'de, 'r> {
    node: &'de Node,
    /// Place to show for this node: its key's when the node itself is big or empty.
    place: Place,
    left_out: &'r BTreeSet<usize>,
}

impl<'de, 'r> Reader<'de, 'r> {
    fn mistake(&self, mistake: Mistake) -> Mistake {
        mistake.at(self.node.id, self.place)
    }

    fn wrong(&self, wanted: &str) -> Mistake {
        self.mistake(Mistake::new(What::WrongType {
            wanted: wanted.to_owned(),
            found: self.node.described(),
        }))
    }

    /// Text without interpretation.
    fn text(&self, wanted: &str) -> Result<&'de str, Mistake> {
        match &self.node.kind {
            Kind::Scalar { text, .. } if !self.node.is_null() => Ok(text),
            Kind::Scalar { .. } | Kind::List(_) | Kind::Map(_) => Err(self.wrong(wanted)),
        }
    }

    /// Entries of a mapping; nothing written counts as an empty one.
    fn entries(&self) -> Result<Entries<'de, 'r>, Mistake> {
        let entries: &[Entry] = match &self.node.kind {
            Kind::Map(map) => &map.entries,
            Kind::Scalar { .. } if self.node.is_null() => &[],
            Kind::Scalar { .. } | Kind::List(_) => return Err(self.wrong("a mapping of `key: value`")),
        };
        Ok(Entries { rest: entries.iter(), value: None, left_out: self.left_out })
    }

    fn items(&self) -> Result<Items<'de, 'r>, Mistake> {
        match &self.node.kind {
            Kind::List(items) => {
                Ok(Items { rest: items.iter().enumerate(), left_out: self.left_out, place: self.place })
            }
            Kind::Scalar { .. } | Kind::Map(_) => Err(self.wrong("a list")),
        }
    }
}

impl<'de> Deserializer<'de> for Reader<'de, '_> {
    type Error = Mistake;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        let outcome = match &self.node.kind {
            _ if self.node.is_null() => visitor.visit_unit(),
            Kind::Scalar { text, .. } => visitor.visit_borrowed_str(text),
            Kind::List(_) => visitor.visit_seq(self.items()?),
            Kind::Map(_) => visitor.visit_map(self.entries()?),
        };
        outcome.map_err(|mistake| self.mistake(mistake))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match self.text("true or false")? {
            "true" => visitor.visit_bool(true),
            "false" => visitor.visit_bool(false),
            _ => Err(self.wrong("`true` or `false`")),
        }
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        const WANTED: &str = "a whole number, 0 or more";
        let number = self.text(WANTED)?.parse().map_err(|_| self.wrong(WANTED))?;
        visitor.visit_u32(number)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        visitor.visit_borrowed_str(self.text("text")?).map_err(|mistake: Mistake| self.mistake(mistake))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        if self.node.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        visitor.visit_newtype_struct(self).map_err(|mistake| self.mistake(mistake))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        visitor.visit_seq(self.items()?).map_err(|mistake| self.mistake(mistake))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        visitor.visit_map(self.entries()?).map_err(|mistake| self.mistake(mistake))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        let entries = self.entries()?;
        for entry in entries.rest.clone() {
            if !known.contains(&entry.key.as_str()) && !self.left_out.contains(&entry.value.id) {
                let unknown: Mistake = de::Error::unknown_field(&entry.key, known);
                return Err(unknown.at(entry.value.id, entry.key_place));
            }
        }
        visitor.visit_map(entries).map_err(|mistake| self.mistake(mistake))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        let wanted = known.iter().map(|word| named(word)).collect::<Vec<_>>().join(" or ");
        let word = self.text(&wanted)?;
        let word: StrDeserializer<'_, Mistake> = word.into_deserializer();
        visitor.visit_enum(word).map_err(|mistake| self.mistake(mistake))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u64 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct identifier
    }
}

/// Entries of a mapping that were not left out.
struct Entries<'de, 'r> {
    rest: std::slice::Iter<'de, Entry>,
    value: Option<&'de Entry>,
    left_out: &'r BTreeSet<usize>,
}

impl<'de> MapAccess<'de> for Entries<'de, '_> {
    type Error = Mistake;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Mistake> {
        self.value = self.rest.find(|entry| !self.left_out.contains(&entry.value.id));
        match self.value {
            None => Ok(None),
            Some(entry) => {
                let key: StrDeserializer<'_, Mistake> = entry.key.as_str().into_deserializer();
                seed.deserialize(key).map(Some).map_err(|mistake| mistake.at(entry.value.id, entry.key_place))
            }
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Mistake> {
        let Some(entry) = self.value.take() else {
            return Err(de::Error::custom("has a value without a key"));
        };
        let reader = Reader { node: &entry.value, place: entry.place(), left_out: self.left_out };
        seed.deserialize(reader).map_err(|mistake| {
            let mut mistake = mistake.at(entry.value.id, entry.place());
            mistake.path.push(entry.key.clone());
            mistake
        })
    }
}

/// Items of a list that were not left out.
struct Items<'de, 'r> {
    rest: std::iter::Enumerate<std::slice::Iter<'de, Node>>,
    left_out: &'r BTreeSet<usize>,
    /// Shown for an item that is itself empty.
    place: Place,
}

impl<'de> SeqAccess<'de> for Items<'de, '_> {
    type Error = Mistake;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Mistake> {
        let Some((number, node)) = self.rest.find(|(_, node)| !self.left_out.contains(&node.id)) else {
            return Ok(None);
        };
        let place = if node.place.length > 0 { node.place } else { self.place };
        let reader = Reader { node, place, left_out: self.left_out };
        seed.deserialize(reader).map(Some).map_err(|mistake| {
            let mut mistake = mistake.at(node.id, place);
            mistake.path.push(number.to_string());
            mistake
        })
    }
}
