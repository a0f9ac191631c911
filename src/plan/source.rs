//! The text of a plan as it may be shown, and where everything in it stands.

use std::fmt;
use std::sync::Arc;

use serde::ser::SerializeStruct;

use super::problem::{Place, PlanProblem, PlanProblems};
use super::tree::{Entry, Kind, Node};

/// A plan's file name, its text with passwords starred out, and the places of its keys and values. Cheap to clone.
///
/// Problems that only a database can tell (an unknown table, say) are given their place by [`PlanSource::find`] or
/// [`PlanSource::under`] and shown by [`PlanSource::problems`], in the same form as those of the parser.
#[derive(Clone)]
pub struct PlanSource(Arc<Inner>);

struct Inner {
    name: String,
    shown: String,
    root: Option<Node>,
}

impl PlanSource {
    /// A file whose text could not be had.
    pub(crate) fn nameless(name: &str) -> Self {
        Self(Arc::new(Inner { name: name.to_owned(), shown: String::new(), root: None }))
    }

    /// A file with its text, and its tree when it has one.
    pub(crate) fn new(name: &str, text: &str, root: Option<Node>) -> Self {
        Self(Arc::new(Inner { name: name.to_owned(), shown: harmless(text), root }))
    }

    /// File name, as the operator wrote it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The text with the same byte positions as the file, passwords and control characters replaced.
    #[must_use]
    pub fn shown_text(&self) -> String {
        self.0.shown.clone()
    }

    /// Place of the entry at the path of keys from the top; an item of a list is named by its number from 0.
    /// For example `["policy", "classify", "0", "column"]`. A short value is meant itself, a mapping or a list by
    /// its key.
    #[must_use]
    pub fn find(&self, path: &[&str]) -> Option<Place> {
        self.0.root.as_ref()?.place_of(path)
    }

    /// Place of an entry below another one, which is given by its line and column as [`super::TableRule::place`]
    /// holds it: `under(rule.place, &["columns", "ProductId"])`. With an empty path, the place of the key itself.
    #[must_use]
    pub fn under(&self, place: (u32, u32), path: &[&str]) -> Option<Place> {
        let entry = entry_at(self.0.root.as_ref()?, place)?;
        if path.is_empty() { Some(entry.key_place) } else { entry.value.place_of(path) }
    }

    /// Like [`PlanSource::under`], but the place of the last key rather than of its value.
    #[must_use]
    pub fn key_under(&self, place: (u32, u32), path: &[&str]) -> Option<Place> {
        let entry = entry_at(self.0.root.as_ref()?, place)?;
        if path.is_empty() { Some(entry.key_place) } else { entry.value.key_place_of(path) }
    }

    /// Problems of this file, ready to be shown.
    #[must_use]
    pub fn problems(&self, problems: Vec<PlanProblem>) -> PlanProblems {
        PlanProblems::new(self.clone(), problems)
    }

    /// The longest line of a snippet around the place, bytes.
    pub(crate) fn longest_line_near(&self, place: Place) -> usize {
        let first = usize::try_from(place.line).unwrap_or(usize::MAX).saturating_sub(2);
        self.0.shown.lines().skip(first).take(3).map(str::len).max().unwrap_or(0)
    }
}

/// Only the file's name: the text is the file's business.
impl fmt::Debug for PlanSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PlanSource").field(&self.0.name).finish()
    }
}

impl serde::Serialize for PlanSource {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("PlanSource", 1)?;
        fields.serialize_field("file", &self.0.name)?;
        fields.end()
    }
}

fn entry_at(node: &Node, place: (u32, u32)) -> Option<&Entry> {
    match &node.kind {
        Kind::Scalar { .. } => None,
        Kind::List(items) => items.iter().find_map(|item| entry_at(item, place)),
        Kind::Map(map) => map.entries.iter().find_map(|entry| {
            let here = (entry.key_place.line, entry.key_place.column) == place;
            if here { Some(entry) } else { entry_at(&entry.value, place) }
        }),
    }
}

/// The text with every byte in its place, but with passwords as stars and without control characters, which could
/// otherwise drive the operator's terminal. A password is searched in the bare text, so that it stays hidden in
/// a file that is not even YAML.
fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, secret, after)) = next_secret(rest) {
        push_printable(before, &mut shown);
        shown.extend(std::iter::repeat_n('*', secret.len()));
        rest = after;
    }
    push_printable(rest, &mut shown);
    shown
}

fn push_printable(text: &str, shown: &mut String) {
    for c in text.chars() {
        if c.is_control() && !matches!(c, '\n' | '\r' | '\t') {
            shown.extend(std::iter::repeat_n('?', c.len_utf8()));
        } else {
            shown.push(c);
        }
    }
}

/// Splits the text around the next password that is written in clear: `://user:HERE@`, `password=HERE` or
/// `password: HERE`. One that only names a variable, `${…}`, is no secret.
pub(crate) fn next_secret(text: &str) -> Option<(&str, &str, &str)> {
    let mut from = 0;
    while let Some((start, mark)) = next_mark(text, from) {
        let value = text.get(start..)?;
        let range = match mark {
            Mark::Authority => authority_secret(text.get(..start - "://".len())?, value),
            Mark::Password => assigned_secret(text.get(..start - "password".len())?, value),
        };
        match range {
            Some((skip, end)) if end > skip && !is_variable(value.get(skip..end).unwrap_or_default()) => {
                return Some((text.get(..start + skip)?, value.get(skip..end)?, value.get(end..)?));
            }
            _ => from = start,
        }
    }
    None
}

enum Mark {
    Authority,
    Password,
}

fn next_mark(text: &str, from: usize) -> Option<(usize, Mark)> {
    let rest = text.get(from..)?;
    let authority = rest.find("://").map(|at| (from + at + 3, Mark::Authority));
    let password = rest.find("password").map(|at| (from + at + 8, Mark::Password));
    match (authority, password) {
        (Some(a), Some(p)) => Some(if a.0 < p.0 { a } else { p }),
        (a, p) => a.or(p),
    }
}

/// Start and end of the password in `user:password@host`. It may itself hold `@`, `/` or quotes, so the last `@` of
/// the word counts, unless what follows the colon is a port. `before` is the text up to `://`: a link that stands in
/// quotes ends with them, others with a blank.
fn authority_secret(before: &str, value: &str) -> Option<(usize, usize)> {
    let scheme = before.trim_end_matches(|c: char| c.is_ascii_alphanumeric());
    let quote = scheme.chars().next_back().filter(|c| matches!(c, '"' | '\''));
    let line = value.lines().next().unwrap_or_default();
    let end = match quote {
        Some(quote) => line.find(quote),
        None => line.find(char::is_whitespace),
    };
    let word = line.get(..end.unwrap_or(line.len()))?;
    let colon = user_end(word)?;
    let after = word.get(colon + 1..)?;
    let port = after.split('/').next().unwrap_or_default();
    let address = after.split('?').next().unwrap_or_default();
    if after.contains('/') && port.chars().all(|c| c.is_ascii_digit()) && !address.contains('@') {
        return None;
    }
    let end = word.rfind('@').filter(|end| *end > colon)?;
    Some((colon + 1, end))
}

/// The colon after the user, outside of `${…}`, which may hold one itself.
fn user_end(word: &str) -> Option<usize> {
    let mut depth = 0_u32;
    for (at, c) in word.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ':' if depth == 0 => return Some(at),
            '@' | '/' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

/// Start and end of the value in what follows the word `password`: `=value`, `: value`, with or without quotes. Where it
/// can't be told for sure how far it goes, it goes too far.
fn assigned_secret(before: &str, value: &str) -> Option<(usize, usize)> {
    let line = value.lines().next().unwrap_or_default();
    let rest = line.trim_start_matches(['"', '\'', ' ']);
    let yaml = rest.starts_with(':');
    let rest = rest.strip_prefix(['=', ':'])?.trim_start_matches(' ');
    let skip = line.len() - rest.len();
    if rest.starts_with("${") {
        return rest.find('}').map(|end| (skip, skip + end + 1));
    }
    if let Some(quote) = rest.chars().next().filter(|c| matches!(c, '"' | '\'')) {
        // Inside single quotes of YAML each quote is written twice.
        let opening = rest.len() - rest.trim_start_matches(quote).len();
        let inside = rest.get(opening..)?;
        let closing = closing(inside, quote, opening);
        return if closing.is_none() && opening > 1 {
            None
        } else {
            Some((skip + opening, skip + opening + closing.unwrap_or(inside.len())))
        };
    }
    if yaml && rest.starts_with(['{', '[']) {
        return None;
    }
    let end = if yaml {
        // In `{ }` a value ends with a comma; in a line of its own it may hold blanks.
        let flow = before.lines().next_back().unwrap_or_default().contains('{');
        if flow { rest.find(|c: char| c.is_whitespace() || matches!(c, ',' | '}')) } else { rest.find(" #") }
    } else if before.ends_with(['?', '&']) {
        rest.find(|c: char| c.is_whitespace() || matches!(c, '&' | '"' | '\''))
    } else {
        // Only the quotes and brackets around the whole link are no part of it.
        let word = rest.split_whitespace().next().unwrap_or_default();
        Some(word.trim_end_matches(['"', '\'', ',', '}']).len())
    };
    Some((skip, skip + end.unwrap_or(rest.len())))
}

/// Where a run of `count` quotes closes a value. One behind a backslash does not, and one in the middle of a word
/// is taken for a part of it.
fn closing(inside: &str, quote: char, count: usize) -> Option<usize> {
    let run: String = std::iter::repeat_n(quote, count).collect();
    inside.match_indices(&run).map(|(at, _)| at).find(|at| {
        let (before, after) =
            (inside.get(..*at).unwrap_or_default(), inside.get(at + count..).unwrap_or_default());
        let ends = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ',' | '}' | '&');
        !before.ends_with('\\') && after.chars().next().is_none_or(ends)
    })
}

fn is_variable(value: &str) -> bool {
    value.strip_prefix("${").and_then(|rest| rest.find('}')).is_some_and(|end| end + 3 == value.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_starred_out_wherever_they_stand() {
        let cases = [
            ("url: postgres://app:s3cret@db/x", "url: postgres://app:******@db/x"),
            ("a: postgres://u:p@ss/w@db/x # note", "a: postgres://u:******@db/x # note"),
            (
                "postgres://u@db/x?password=abc&sslmode=require",
                "postgres://u@db/x?password=***&sslmode=require",
            ),
            ("host=db password=abc user=u", "host=db password=*** user=u"),
            ("postgres://u:${PW}@db and postgres://u:x@db", "postgres://u:${PW}@db and postgres://u:*@db"),
            ("postgres://${U}:${file:/run/pw}@db:5432/x", "postgres://${U}:${file:/run/pw}@db:5432/x"),
            ("postgres://db:5432/x", "postgres://db:5432/x"),
            ("postgres://db:5432/x?user=app@tenant", "postgres://db:5432/x?user=app@tenant"),
            ("{ password: \"abc\", host: h }", "{ password: \"***\", host: h }"),
            ("password: ${PW}", "password: ${PW}"),
            ("columns: { password: { drop: true } }", "columns: { password: { drop: true } }"),
            ("url: postgres://app:a'b\"c@db/x", "url: postgres://app:*****@db/x"),
            ("url: \"postgres://app:a b'c@db/x\" # me@x", "url: \"postgres://app:*****@db/x\" # me@x"),
            ("url: postgres://app:12/3@db/x", "url: postgres://app:****@db/x"),
            ("postgres://u:${A}b${C}@db/x", "postgres://u:*********@db/x"),
            ("url: \"password='two words' user=u\"", "url: \"password='*********' user=u\""),
            (r"url: password='it\'s me' user=u", r"url: password='********' user=u"),
            (r#"url: "password='it\\'s me' user=u""#, r#"url: "password='*********' user=u""#),
            ("url: 'password=''two words'' user=u'", "url: 'password=''*********'' user=u'"),
            ("url: password='' user=u", "url: password='' user=u"),
            ("url: password='never closed", "url: password='************"),
            ("{ url: \"host=db password=a,b}c&d'e\" }", "{ url: \"host=db password=*********\" }"),
            ("{ password: abc, host: h }", "{ password: ***, host: h }"),
            ("password: two words # note", "password: ********* # note"),
            ("\u{1b}[31m", "?[31m"),
        ];
        for (text, shown) in cases {
            assert_eq!(harmless(text), shown);
            assert_eq!(harmless(text).len(), text.len());
        }
    }
}
