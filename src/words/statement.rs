//! Statements of others as they may be shown: what they hold of rows is a secret of somebody. Who calls it: `arm` and `flip`,
//! which name whom they wait for, and the watch over who still uses old tables.

/// Longest statement that is shown, in characters: enough to tell the verb and the table.
const CHARS_MAX: usize = 60;

/// A statement on one line, without comments, with a question mark for each constant, and cut.
#[must_use]
pub fn shown(text: &str) -> String {
    shown_within(text, CHARS_MAX)
}

/// The same, cut to so many characters.
#[must_use]
pub fn shown_within(text: &str, chars_max: usize) -> String {
    let mut shown = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let (seen, after) = next(rest, c, shown.chars().next_back());
        rest = after;
        match seen {
            Seen::Plain => shown.push(c),
            Seen::Constant => shown.push('?'),
            Seen::Space if shown.is_empty() || shown.ends_with(' ') => {}
            Seen::Space => shown.push(' '),
        }
    }
    super::cut(shown.trim_end(), chars_max)
}

enum Seen {
    Plain,
    Constant,
    Space,
}

/// What the text begins with, and what comes after it. Whatever is not closed goes to the end, since the server cuts long
/// statements.
fn next(text: &str, first: char, before: Option<char>) -> (Seen, &str) {
    let tail = text.get(first.len_utf8()..).unwrap_or_default();
    let after_word = before.is_some_and(is_word);
    match first {
        // An escape string: its backslashes matter to where it ends.
        'e' | 'E' if !after_word && tail.starts_with('\'') => {
            (Seen::Constant, past_string(tail.get(1..).unwrap_or_default(), true))
        }
        '\'' => (Seen::Constant, past_string(tail, false)),
        '"' => (Seen::Plain, tail),
        '$' if !after_word => match dollar_tag(text) {
            Some(tag) => {
                let body = text.get(tag.len()..).unwrap_or_default();
                (Seen::Constant, body.split_once(tag).map_or("", |(_, after)| after))
            }
            None => (Seen::Plain, tail),
        },
        '-' if tail.starts_with('-') => (Seen::Space, text.split_once('\n').map_or("", |(_, after)| after)),
        '/' if tail.starts_with('*') => (Seen::Space, text.split_once("*/").map_or("", |(_, after)| after)),
        c if c.is_ascii_digit() && !after_word && before != Some('$') => {
            (Seen::Constant, tail.trim_start_matches(|c| is_word(c) || c == '.'))
        }
        c if c.is_whitespace() || c.is_control() => (Seen::Space, tail),
        _ => (Seen::Plain, tail),
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// What follows the closing quote. A doubled quote is part of the string.
fn past_string(text: &str, escapes: bool) -> &str {
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        if c == '\\' && escapes {
            chars.next();
        } else if c == '\'' {
            let after = text.get(at + 1..).unwrap_or_default();
            if !after.starts_with('\'') {
                return after;
            }
            chars.next();
        }
    }
    ""
}

/// `$$` or `$tag$` at the beginning. `$1` is a parameter.
fn dollar_tag(text: &str) -> Option<&str> {
    let end = text.get(1..)?.find('$')? + 1;
    let name = text.get(1..end)?;
    let good = name.chars().all(is_word) && !name.starts_with(|c: char| c.is_ascii_digit());
    if good { text.get(..=end) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_and_constants_are_not() {
        for (text, expected) in [
            (
                "UPDATE t1\n  SET a = 'it''s me', b=12.5 WHERE id IN (1, 2)",
                "UPDATE t1 SET a = ?, b=? WHERE id IN (?, ?)",
            ),
            ("SELECT $1, x2 FROM \"T\"", "SELECT $1, x2 FROM \"T\""),
            ("DO $x$ BEGIN secret; END $x$ -- why", "DO ?"),
            ("select $$secret$$, 3", "select ?, ?"),
            (r"select E'a\'secret', 'b\', c", "select ?, ?, c"),
            ("/* user secret */ insert into t values ('open", "insert into t values (?"),
            ("select 1e10, 0xFF", "select ?, ?"),
            ("", ""),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
        let cut = shown(&"word ".repeat(100));
        assert_eq!((cut.chars().count(), cut.ends_with('…')), (60, true));
    }

    proptest::proptest! {
        #[test]
        fn no_statement_can_panic(text in "[a-zE'$\"\\\\/*\\-0-9 \n\u{e9}]{0,60}") {
            let made = shown(&text);
            proptest::prop_assert!(made.chars().count() <= 60);
        }
    }
}
