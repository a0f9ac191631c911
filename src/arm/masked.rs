//! Queries of others as they may be shown: without the values in them.

/// Longest text that is shown, in characters. Enough to tell which program and which tables.
const SHOWN_CHARS: usize = 90;

/// A query on one line, shortened, with every constant replaced, since constants are rows of somebody.
#[must_use]
pub(super) fn query(text: &str) -> String {
    let mut shown = String::new();
    let mut chars = text.chars().peekable();
    let mut before = ' ';
    while let Some(c) = chars.next() {
        match c {
            '\'' => {
                // A doubled quote is a string right behind a string, which comes to the same.
                while chars.next_if(|c| *c != '\'').is_some() {}
                chars.next();
                if !shown.ends_with("'…'") {
                    shown.push_str("'…'");
                }
            }
            // Whatever stands in dollar quotes is a text of unknown kind.
            '$' if !is_word(before) && chars.peek().is_some_and(|next| !next.is_ascii_digit()) => {
                shown.push('…');
                break;
            }
            c if c.is_ascii_digit() && !is_word(before) && before != '$' => {
                while chars.next_if(|c| is_word(*c) || *c == '.').is_some() {}
                shown.push('?');
            }
            c if c.is_whitespace() => {
                if !shown.ends_with(' ') && !shown.is_empty() {
                    shown.push(' ');
                }
            }
            c => shown.push(c),
        }
        before = c;
    }
    let shown = shown.trim_end();
    if shown.chars().count() <= SHOWN_CHARS {
        return shown.to_owned();
    }
    shown.chars().take(SHOWN_CHARS).chain(std::iter::once('…')).collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_not_shown_and_names_are() {
        let all = [
            (
                "UPDATE t1\n   SET a = 'it''s me', b=12.5 WHERE id IN (1,2)",
                "UPDATE t1 SET a = '…', b=? WHERE id IN (?,?)",
            ),
            ("SELECT $1, x2 FROM \"T 3\"", "SELECT $1, x2 FROM \"T ?\""),
            ("DO $x$ secret $x$", "DO …"),
            ("select 'open", "select '…'"),
            ("", ""),
        ];
        for (text, shown) in all {
            assert_eq!(query(text), shown, "{text}");
        }
        assert_eq!(query(&"word ".repeat(100)).chars().count(), 91);
    }
}
