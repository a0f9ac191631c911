//! YAML as a tree in which every key and value knows its place.
//!
//! The tree is read before anything is expected of it, so that a plan with many mistakes can be looked at as a whole.
//! Text is kept as written: `no`, `1.10` and `0042` stay what the operator typed.

use std::collections::{BTreeMap, BTreeSet};

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError, Span, options};

use super::problem::{Place, PlanProblem, named};

/// Nodes that a plan may hold after its aliases are written out. The largest sensible plan, thousands of tables with
/// dozens of columns, stays below; an alias bomb does not.
const NODES_MAX: usize = 200_000;

/// How deep mappings and lists may stand in each other. A plan needs seven levels.
const DEPTH_MAX: usize = 32;

/// A value with its place.
#[derive(Clone)]
pub(crate) struct Node {
    /// Tells nodes of one tree apart. Copies that an alias makes share it.
    pub(crate) id: usize,
    /// Where the value starts; for text, all of it.
    pub(crate) place: Place,
    /// What it is.
    pub(crate) kind: Kind,
}

/// What a value is.
#[derive(Clone)]
pub(crate) enum Kind {
    /// Text, a number, true, false or nothing.
    Scalar {
        /// As written, after escapes.
        text: String,
        /// Without quotes.
        plain: bool,
    },
    /// `- a` or `[a]`.
    List(Vec<Node>),
    /// `key: value` or `{key: value}`.
    Map(Map),
}

/// A mapping.
#[derive(Clone, Default)]
pub(crate) struct Map {
    /// In the order of the file.
    pub(crate) entries: Vec<Entry>,
    /// Where each key is in `entries`: a plan may hold thousands of tables.
    index: BTreeMap<String, usize>,
}

impl Map {
    fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(*self.index.get(key)?)
    }

    fn push(&mut self, entry: Entry) {
        self.index.insert(entry.key.clone(), self.entries.len());
        self.entries.push(entry);
    }
}

/// One line of a mapping.
#[derive(Clone)]
pub(crate) struct Entry {
    /// The key.
    pub(crate) key: String,
    /// Where the key stands.
    pub(crate) key_place: Place,
    /// Its value.
    pub(crate) value: Node,
}

impl Entry {
    /// The place that a reader should look at: short text itself, anything bigger by its key.
    pub(crate) fn place(&self) -> Place {
        match &self.value.kind {
            Kind::Scalar { .. } if self.value.place.length > 0 => self.value.place,
            Kind::Scalar { .. } | Kind::List(_) | Kind::Map(_) => self.key_place,
        }
    }
}

impl Node {
    /// Nothing is written, or `null` or `~`.
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.kind, Kind::Scalar { text, plain: true }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// What kind of thing it is, for a message. Never the value: it may be a secret.
    pub(crate) fn described(&self) -> &'static str {
        match &self.kind {
            Kind::Scalar { .. } if self.is_null() => "nothing",
            Kind::Scalar { text, plain: true } if matches!(text.as_str(), "true" | "false") => {
                "true or false"
            }
            Kind::Scalar { text, plain: true } if text.parse::<u64>().is_ok() => "a number",
            Kind::Scalar { text, plain: true } if text.parse::<i64>().is_ok() => "a number below 0",
            Kind::Scalar { text, plain: true } if text.parse::<f64>().is_ok() => "a number that is not whole",
            Kind::Scalar { .. } => "text",
            Kind::List(_) => "a list",
            Kind::Map(_) => "a mapping",
        }
    }

    /// The entry or item with this key or number.
    fn child(&self, step: &str) -> Option<(Place, Option<Place>, &Node)> {
        match &self.kind {
            Kind::Scalar { .. } => None,
            Kind::List(items) => items.get(step.parse::<usize>().ok()?).map(|item| (item.place, None, item)),
            Kind::Map(map) => {
                let entry = map.get(step)?;
                Some((entry.place(), Some(entry.key_place), &entry.value))
            }
        }
    }

    /// The node at a path.
    pub(crate) fn find(&self, path: &[&str]) -> Option<&Node> {
        path.iter().try_fold(self, |node, step| node.child(step).map(|(_, _, child)| child))
    }

    /// The place to look at for a path; the node's own for an empty one.
    pub(crate) fn place_of(&self, path: &[&str]) -> Option<Place> {
        let Some((last, parents)) = path.split_last() else { return Some(self.place) };
        self.find(parents)?.child(last).map(|(place, _, _)| place)
    }

    /// The place of the last key of a path.
    pub(crate) fn key_place_of(&self, path: &[&str]) -> Option<Place> {
        let Some((last, parents)) = path.split_last() else { return Some(self.place) };
        self.find(parents)?.child(last).map(|(place, key, _)| key.unwrap_or(place))
    }

    /// The keys of the mapping at a path.
    pub(crate) fn keys_of(&self, path: &[&str]) -> Vec<&str> {
        match self.find(path).map(|node| &node.kind) {
            Some(Kind::Map(map)) => map.entries.iter().map(|entry| entry.key.as_str()).collect(),
            _ => Vec::new(),
        }
    }

    /// The text of a scalar.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Scalar { text, .. } => Some(text),
            Kind::List(_) | Kind::Map(_) => None,
        }
    }

    /// The tree without some items of its lists, so that numbers of items mean what they mean to the reader that
    /// left them out. Mappings keep their entries: a key that could not be read was still written.
    pub(crate) fn without_items(mut self, left_out: &BTreeSet<usize>) -> Self {
        self.drop_items(left_out);
        self
    }

    fn drop_items(&mut self, left_out: &BTreeSet<usize>) {
        match &mut self.kind {
            Kind::Scalar { .. } => {}
            Kind::List(items) => {
                items.retain(|item| !left_out.contains(&item.id));
                items.iter_mut().for_each(|item| item.drop_items(left_out));
            }
            Kind::Map(map) => map.entries.iter_mut().for_each(|entry| entry.value.drop_items(left_out)),
        }
    }

    fn size(&self) -> usize {
        match &self.kind {
            Kind::Scalar { .. } => 1,
            Kind::List(items) => 1 + items.iter().map(Node::size).sum::<usize>(),
            Kind::Map(map) => 1 + map.entries.iter().map(|entry| entry.value.size()).sum::<usize>(),
        }
    }
}

/// Reads YAML. The tree is there when the text is YAML at all; problems such as a key written twice do not stop
/// the reading.
pub(crate) fn read(text: &str) -> (Option<Node>, Vec<PlanProblem>) {
    let mut builder = Builder::default();
    let settings = options! {
        emit_comments: false,
        emit_unresolved_aliases: true,
        flow_nesting_limit: DEPTH_MAX,
        block_nesting_limit: DEPTH_MAX,
    };
    for next in Parser::new_from_str_with_options(text, settings) {
        let outcome = match next {
            Ok((event, span)) => builder.take(event, span),
            Err(error) => Err(Box::new(not_yaml(&error, text))),
        };
        if let Err(problem) = outcome {
            builder.problems.push(*problem);
            return (None, builder.problems);
        }
    }
    (builder.root, builder.problems)
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    root: Option<Node>,
    anchors: BTreeMap<usize, Node>,
    problems: Vec<PlanProblem>,
    nodes: usize,
    documents: usize,
}

/// A list or mapping that is not closed yet.
struct Open {
    anchor: usize,
    node: Node,
    /// A mapping's key that waits for its value. `None` inside: the key is to be left out.
    key: Option<(Option<String>, Place)>,
    /// Places of a mapping's keys so far.
    keys: BTreeMap<String, Place>,
}

impl Builder {
    /// Only a problem that ends the reading is an error; boxed, because it is big and rare.
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Box<PlanProblem>> {
        let place = place(span);
        if event.tag().is_some() {
            let problem = PlanProblem::error("plan.yaml", "a plan needs no YAML tags, and this is one")
                .at(span.tag_span().map_or(place, self::place))
                .help("remove the word that starts with !, or put text that starts with ! in quotes");
            self.problems.push(problem);
        }
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    let problem = PlanProblem::error(
                        "plan.yaml",
                        "a file holds one plan, and a second document starts here",
                    )
                    .at(place)
                    .help("remove the line `---`, or put the second plan into a file of its own");
                    return Err(Box::new(problem));
                }
            }
            Event::Scalar(text, style, anchor, _) => {
                let plain = style == ScalarStyle::Plain;
                let kind = Kind::Scalar { text: text.into_owned(), plain };
                let node = self.node(kind, place)?;
                self.close(node, anchor)?;
            }
            Event::SequenceStart(_, anchor, _) => self.open(Kind::List(Vec::new()), place, anchor)?,
            Event::MappingStart(_, anchor, _) => self.open(Kind::Map(Map::default()), place, anchor)?,
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(Open { anchor, node, .. }) = self.open.pop() {
                    self.close(node, anchor)?;
                }
            }
            Event::Alias(anchor) => self.alias(anchor, place)?,
            Event::UnresolvedAlias(name) => {
                let problem = PlanProblem::error("plan.yaml", format!("no anchor is called {}", named(&name)))
                    .at(place)
                    .help(format!("mark the value to repeat with `&{name}` above this line, or put text that starts with * in quotes"));
                self.problems.push(problem);
                let node = self.node(Kind::Scalar { text: String::new(), plain: true }, place)?;
                self.close(node, 0)?;
            }
            // Starts and ends of streams and documents, and what the settings keep away.
            Event::StreamStart | Event::StreamEnd | Event::DocumentEnd | Event::Anchor(..) | _ => {}
        }
        Ok(())
    }

    fn node(&mut self, kind: Kind, place: Place) -> Result<Node, Box<PlanProblem>> {
        self.count(1, place)?;
        Ok(Node { id: self.nodes, place, kind })
    }

    fn count(&mut self, nodes: usize, place: Place) -> Result<(), Box<PlanProblem>> {
        self.nodes += nodes;
        if self.nodes <= NODES_MAX {
            return Ok(());
        }
        let problem = PlanProblem::error(
            "plan.too-large",
            format!("the plan grows to more than {NODES_MAX} keys and values here"),
        )
        .at(place)
        .help("aliases (*name) that repeat other aliases multiply; write the values out once instead");
        Err(Box::new(problem))
    }

    fn open(&mut self, kind: Kind, place: Place, anchor: usize) -> Result<(), Box<PlanProblem>> {
        let node = self.node(kind, Place { length: place.length.min(1), ..place })?;
        self.open.push(Open { anchor, node, key: None, keys: BTreeMap::new() });
        Ok(())
    }

    fn alias(&mut self, anchor: usize, place: Place) -> Result<(), Box<PlanProblem>> {
        if let Some(node) = self.anchors.get(&anchor).cloned() {
            self.count(node.size(), place)?;
            self.close(node, 0)?;
            return Ok(());
        }
        let problem = PlanProblem::error("plan.yaml", "this alias stands inside the value that it repeats")
            .at(place)
            .help("write the value out");
        Err(Box::new(problem))
    }

    /// A value is complete: remember it under its anchor and hang it where it belongs.
    fn close(&mut self, node: Node, anchor: usize) -> Result<(), Box<PlanProblem>> {
        if anchor != 0 {
            self.count(node.size(), node.place)?;
            self.anchors.insert(anchor, node.clone());
        }
        let Some(parent) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match &mut parent.node.kind {
            Kind::Scalar { .. } => {}
            Kind::List(items) => items.push(node),
            Kind::Map(map) => match parent.key.take() {
                Some((Some(key), key_place)) => map.push(Entry { key, key_place, value: node }),
                Some((None, _)) => {}
                None => parent.key = Some((key_of(&node, &mut parent.keys, &mut self.problems), node.place)),
            },
        }
        Ok(())
    }
}

/// The text of a key, or `None` and a problem when the entry is to be left out.
fn key_of(
    node: &Node,
    keys: &mut BTreeMap<String, Place>,
    problems: &mut Vec<PlanProblem>,
) -> Option<String> {
    let Kind::Scalar { text, .. } = &node.kind else {
        let problem = PlanProblem::error(
            "plan.yaml",
            "a key has to be plain text, and this one is a list or a mapping",
        )
        .at(node.place)
        .help("inside { } and [ ], put ${…} and other text with braces in double quotes: \"${NAME}\"");
        problems.push(problem);
        return None;
    };
    if text == "<<" {
        let problem = PlanProblem::error("plan.yaml", "merge keys (<<) are not part of a plan")
            .at(node.place)
            .help("write the keys out, or repeat a whole value with an alias: `policy: *name`");
        problems.push(problem);
        return None;
    }
    if let Some(first) = keys.get(text) {
        let problem =
            PlanProblem::error("plan.duplicate-key", format!("the key {} is written twice", named(text)))
                .at(node.place)
                .also(*first, "first written here")
                .help("keep one of them");
        problems.push(problem);
        return None;
    }
    keys.insert(text.clone(), node.place);
    Some(text.clone())
}

fn place(span: Span) -> Place {
    let range = span.byte_range().unwrap_or_default();
    Place {
        line: u32::try_from(span.start.line()).unwrap_or(u32::MAX),
        column: u32::try_from(span.start.col() + 1).unwrap_or(u32::MAX),
        offset: range.start,
        length: range.len(),
    }
}

/// The text is not YAML. Only the first such mistake can be told: after it, nothing has a sure meaning.
fn not_yaml(error: &ScanError, text: &str) -> PlanProblem {
    let marker = error.marker();
    let offset = marker.byte_offset().unwrap_or(0).min(text.len());
    let rest = text.get(offset..).unwrap_or_default();
    let place = Place {
        line: u32::try_from(marker.line()).unwrap_or(u32::MAX),
        column: u32::try_from(marker.col() + 1).unwrap_or(u32::MAX),
        offset,
        length: rest.chars().next().map_or(0, char::len_utf8),
    };
    let line = text.lines().nth(marker.line().saturating_sub(1)).unwrap_or_default();
    let (message, help) = explain(error.kind(), line);
    PlanProblem::error("plan.yaml", message).at(place).help(help)
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the parser knows some hundred mistakes, and these need other words"
)]
fn explain(kind: &ErrorKind, line: &str) -> (String, String) {
    let indent_has_tab = line.chars().take_while(|c| c.is_whitespace()).any(|c| c == '\t');
    let (message, help) = match kind {
        _ if indent_has_tab => (
            "this line is indented with a tab, and YAML allows only spaces",
            "replace each tab by two spaces (in vi: `:set expandtab tabstop=2`, then `:retab`)",
        ),
        ErrorKind::UnexpectedEofFlowSequence | ErrorKind::ExpectedFlowSequenceSeparator => (
            "a list that [ opens is not closed, or lacks a comma",
            "close it with ], and put commas between the items: [EU, UK]",
        ),
        ErrorKind::UnexpectedEofFlowMapping
        | ErrorKind::UnexpectedEofImplicitFlowMapping
        | ErrorKind::ExpectedFlowMappingSeparator
        | ErrorKind::UnclosedFlowCollection { .. }
        | ErrorKind::MismatchedFlowCollectionEnd { .. }
        | ErrorKind::MisplacedFlowCollectionEnd => (
            "the { } or [ ] here do not match, or lack a comma",
            "close what is open, put commas between the entries, and put ${…} inside them in double quotes: \
             { url: \"${ORDERS_URL}\" }",
        ),
        ErrorKind::UnclosedQuotedScalar | ErrorKind::InvalidQuotedScalarIndent => (
            "a quote that is opened here or on a line above is not closed",
            "add the closing quote at the end of the text",
        ),
        ErrorKind::MappingValueNotAllowed | ErrorKind::InvalidColonPlacement => (
            "there is a second `: ` where only a value can stand",
            "put the entry on a line of its own, use { } for a mapping in one line, or put text that holds `: ` in quotes",
        ),
        ErrorKind::ExpectedBlockMappingKey => (
            "this line does not fit: it is indented differently from its neighbours, or its `key:` is missing",
            "start the keys of one level in the same column, two spaces to the right of the key above",
        ),
        ErrorKind::RecursionLimitExceeded => (
            "mappings and lists stand too deep in each other",
            "a plan needs seven levels; look for brackets that are opened again and again",
        ),
        other => {
            return (
                format!("this is not YAML: {other}"),
                "look at the indentation and the quotes of this line and the one before: every line is `key: value`, and \
                 the keys of one level start in the same column"
                    .to_owned(),
            );
        }
    };
    (message.to_owned(), help.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_kept_as_written() {
        let (root, problems) = read("a: [no, 1.10, 0042, 'x', ~]\n");
        assert!(problems.is_empty());
        let root = root.unwrap();
        let Kind::List(items) = &root.find(&["a"]).unwrap().kind else { panic!("not a list") };
        let texts: Vec<&str> = items.iter().filter_map(Node::text).collect();
        assert_eq!(texts, ["no", "1.10", "0042", "x", "~"]);
        assert!(items[4].is_null());
    }

    #[test]
    fn places_count_lines_and_columns_from_one_and_bytes_from_zero() {
        let (root, _) = read("# é\na:\n  Größe: klein\n");
        let place = root.unwrap().place_of(&["a", "Größe"]).unwrap();
        assert_eq!(place, Place { line: 3, column: 10, offset: 19, length: 5 });
    }

    #[test]
    fn every_key_that_is_written_twice_is_told() {
        let (_, problems) = read("a: 1\na: 2\nb: {c: 1, c: 2}\n");
        assert_eq!(problems.len(), 2);
    }
}
