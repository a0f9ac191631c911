//! Expressions as PostgreSQL prints them, cut into pieces and compared.

use super::TableMapping;

/// Whether a generated column of the service is computed as the monolith's is: the same pieces, with the service's names
/// for the monolith's columns. White space and redundant outer parentheses, which versions print differently, don't count.
#[must_use]
pub fn same(mapping: &TableMapping, source: &str, target: &str) -> bool {
    let (Some(source), Some(target)) = (solid(source), solid(target)) else { return source == target };
    source.len() == target.len() && source.iter().zip(&target).all(|(one, other)| alike(mapping, one, other))
}

fn alike(mapping: &TableMapping, (one, text): &(Token, &str), (other, other_text): &(Token, &str)) -> bool {
    match (one, other) {
        (Token::Constant, Token::Constant) => text == other_text,
        (Token::Name(source), Token::Name(target)) => {
            mapping.column(source).map_or(source, |column| &column.target) == target
        }
        _ => one == other,
    }
}

fn solid(sql: &str) -> Option<Vec<(Token, &str)>> {
    let mut pieces = tokens(sql)?;
    pieces.retain(|(token, _)| *token != Token::Space);
    while is_wrapped(&pieces) {
        pieces.pop();
        pieces.remove(0);
    }
    Some(pieces)
}

/// The first parenthesis closes at the very end.
fn is_wrapped(pieces: &[(Token, &str)]) -> bool {
    let mut depth = 0usize;
    for (place, (token, text)) in pieces.iter().enumerate() {
        match (token, *text) {
            (Token::Sign(_), "(") => depth += 1,
            (Token::Sign(_), ")") => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return place > 0 && place + 1 == pieces.len();
        }
    }
    false
}

/// A piece of an expression as PostgreSQL prints it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// An identifier or a lower-case word, without its quotes.
    Name(String),
    /// A keyword: PostgreSQL prints those of its syntax in upper case and quotes identifiers with capitals.
    Keyword(String),
    /// A string constant or a number.
    Constant,
    /// White space.
    Space,
    /// `::` or any other single character.
    Sign(String),
}

/// Cuts an expression into tokens with their text. `None` for what PostgreSQL never prints.
pub(crate) fn tokens(sql: &str) -> Option<Vec<(Token, &str)>> {
    let mut found = Vec::new();
    let mut rest = sql;
    while let Some(first) = rest.chars().next() {
        let word = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
        let (token, length) = if first.is_whitespace() {
            (Token::Space, rest.find(|c: char| !c.is_whitespace()).unwrap_or(rest.len()))
        } else if first == '"' {
            let length = closing(rest, 1, '"', false)?;
            (Token::Name(unquoted(rest.get(1..length - 1)?)), length)
        } else if first == '\'' {
            (Token::Constant, closing(rest, 1, '\'', false)?)
        } else if rest.starts_with("E'") {
            (Token::Constant, closing(rest, 2, '\'', true)?)
        } else if rest.starts_with("B'") || rest.starts_with("X'") {
            (Token::Constant, closing(rest, 2, '\'', false)?)
        } else if first.is_ascii_digit() {
            let number = |c: char| c.is_ascii_alphanumeric() || c == '.';
            (Token::Constant, rest.find(|c| !number(c)).unwrap_or(rest.len()))
        } else if first.is_alphabetic() || first == '_' {
            let length = rest.find(|c| !word(c)).unwrap_or(rest.len());
            let text = rest.get(..length)?;
            let keyword = text.chars().any(char::is_uppercase);
            (if keyword { Token::Keyword(text.to_owned()) } else { Token::Name(text.to_owned()) }, length)
        } else if rest.starts_with("::") {
            (Token::Sign("::".to_owned()), 2)
        } else {
            (Token::Sign(first.to_string()), first.len_utf8())
        };
        found.push((token, rest.get(..length)?));
        rest = rest.get(length..)?;
    }
    Some(found)
}

/// What an identifier's double quotes hold: a doubled one stands for one.
fn unquoted(body: &str) -> String {
    let mut name = String::new();
    let mut chars = body.chars();
    while let Some(c) = chars.next() {
        name.push(c);
        if c == '"' {
            chars.next();
        }
    }
    name
}

/// Length up to and with the closing quote; a doubled quote does not close, nor does one after a backslash where
/// those count.
fn closing(text: &str, start: usize, quote: char, backslashes: bool) -> Option<usize> {
    let mut chars = text.char_indices().skip_while(|(at, _)| *at < start).peekable();
    while let Some((at, c)) = chars.next() {
        if backslashes && c == '\\' {
            chars.next();
        } else if c == quote {
            if chars.peek().is_some_and(|(_, next)| *next == quote) {
                chars.next();
            } else {
                return Some(at + quote.len_utf8());
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use tokio_postgres::types::Type;

    use super::*;
    use crate::mapping::compile;
    use crate::mapping::fixture::{catalog, column, plan, renamed, table, table_rule};

    #[test]
    fn expressions_are_equal_under_the_services_names_and_in_no_other_way() {
        let columns = vec![column("Id", &Type::INT4), column("Number", &Type::INT4)];
        let mut rule = table_rule("Orders");
        rule.columns.insert("Number".to_owned(), renamed("number"));
        let plan = plan(vec![("ordering", vec![rule])]);
        let (mappings, _) = compile(&plan, &catalog(vec![table("Orders", columns)]));
        let mapping = mappings["ordering"].tables[0].clone();
        for (source, target, equal) in [
            ("(\"Number\" * 2)", "(number * 2)", true),
            ("(\"Number\" * 2)", "number*2", true),
            ("(\"Number\" * 2)", "(number * 3)", false),
            ("((\"Number\" + tax) * 2)", "(number + (tax * 2))", false),
            ("((a) + (b))", "((a) + (b))", true),
            ("lower('A'::text)", "lower('a'::text)", false),
        ] {
            assert_eq!(same(&mapping, source, target), equal, "{source} and {target}");
        }
    }
}
