//! Carries an expression from the monolith's column names to the service's.
//!
//! `pg_depend` says exactly which columns an expression uses. With them renamed, the printed expression is changed
//! word by word, and given up when it can't be done for certain; what is wrong all the same fails when it is created.

use super::anatomy::Reference;
use crate::catalog::Table;
use crate::mapping::TableMapping;
use crate::mapping::expression::{Token, tokens};
use crate::name::quote_ident;

/// Why an expression can't go along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stuck {
    /// It uses columns that stay behind.
    Dropped(Vec<String>),
    /// It uses renamed columns in a way that can't be changed for certain.
    Unreadable,
    /// The service's server is too old for it.
    TooNew {
        /// What it uses.
        what: &'static str,
        /// The major version that brought it.
        since: u32,
        /// The service's.
        service: u32,
    },
}

impl Stuck {
    /// As the fact of a problem.
    pub(super) fn fact(&self) -> String {
        match self {
            Self::Dropped(columns) => format!("it uses {}, which the plan drops", columns.join(", ")),
            Self::Unreadable => {
                "it uses renamed columns in a way that can't be rewritten for certain".to_owned()
            }
            Self::TooNew { what, since, service } => format!(
                "it is {what}, which came with PostgreSQL {since}, and the service's server is PostgreSQL {service}"
            ),
        }
    }
}

/// Refuses what the service's server, of major version `service`, does not know yet.
pub(super) fn since(what: &'static str, since: u32, service: u32) -> Result<(), Stuck> {
    if service < since { Err(Stuck::TooNew { what, since, service }) } else { Ok(()) }
}

/// Name of a monolith column in the service; `None` when it stays behind. Generated columns keep theirs.
pub(super) fn target_of<'a>(mapping: &'a TableMapping, source: &'a Table, column: &str) -> Option<&'a str> {
    if let Some(mapped) = mapping.column(column) {
        return Some(&mapped.target);
    }
    let generated = source.column(column).filter(|column| column.generated_sql.is_some())?;
    if mapping.dropped.contains(&generated.name) { None } else { Some(&generated.name) }
}

/// The expression with the service's names.
pub(super) fn carry(
    mapping: &TableMapping,
    source: &Table,
    needs: &[Reference],
    sql: &str,
) -> Result<String, Stuck> {
    let mut dropped = Vec::new();
    let mut renamed = Vec::new();
    for need in needs {
        let Reference::Column(column) = need else { continue };
        match target_of(mapping, source, column) {
            None => dropped.push(column.clone()),
            Some(target) if target != column => renamed.push((column.as_str(), target)),
            Some(_) => {}
        }
    }
    if !dropped.is_empty() {
        return Err(Stuck::Dropped(dropped));
    }
    rename(sql, &renamed).ok_or(Stuck::Unreadable)
}

/// Replaces the named columns; `None` when one of them can't be found where a column can stand.
fn rename(sql: &str, renamed: &[(&str, &str)]) -> Option<String> {
    if renamed.is_empty() {
        return Some(sql.to_owned());
    }
    let tokens = tokens(sql)?;
    let solid: Vec<usize> = (0..tokens.len())
        .filter(|at| tokens.get(*at).is_some_and(|(token, _)| *token != Token::Space))
        .collect();
    let token = |place: usize| solid.get(place).and_then(|at| tokens.get(*at)).map(|(token, _)| token);
    let sign = |place: Option<usize>, text: &str| {
        place.and_then(token).is_some_and(|token| matches!(token, Token::Sign(sign) if sign == text))
    };
    let mut pieces: Vec<String> = tokens.iter().map(|(_, text)| (*text).to_owned()).collect();
    let mut found = vec![false; renamed.len()];
    let mut in_type = false;
    for place in 0..solid.len() {
        let before = place.checked_sub(1);
        let after = Some(place + 1);
        in_type = match token(place) {
            Some(Token::Sign(text)) if text == "::" => true,
            Some(Token::Name(_)) => in_type,
            Some(Token::Sign(text)) if text == "." => in_type,
            _ => false,
        };
        let Some(Token::Name(name)) = token(place) else { continue };
        let collation = before
            .and_then(token)
            .is_some_and(|token| matches!(token, Token::Keyword(word) if word == "COLLATE"));
        // EXTRACT(year FROM …): the field is printed like a column.
        let field = sign(before, "(")
            && place
                .checked_sub(2)
                .and_then(token)
                .is_some_and(|token| matches!(token, Token::Keyword(word) if word == "EXTRACT"));
        if in_type || collation || field || sign(before, ".") || sign(after, ".") || sign(after, "(") {
            continue;
        }
        let Some(which) = renamed.iter().position(|(from, _)| from == name) else { continue };
        let target = renamed.get(which).map(|(_, to)| quote_ident(to))?;
        let piece = solid.get(place).and_then(|at| pieces.get_mut(*at))?;
        *piece = target;
        *found.get_mut(which)? = true;
    }
    found.iter().all(|found| *found).then(|| pieces.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_renamed_wherever_they_stand() {
        for (sql, expected) in [
            ("(\"Qty\" > 0)", "(\"quantity\" > 0)"),
            (
                "((\"Qty\" >= 0) AND (\"Qty\" <= \"Max\"))",
                "((\"quantity\" >= 0) AND (\"quantity\" <= \"Max\"))",
            ),
            ("(\"a\"\"b\" < \"Qty\")", "(\"a\"\"b\" < \"quantity\")"),
            ("lower((\"Qty\")::text)", "lower((\"quantity\")::text)"),
            ("('Qty \"Qty\"'::text || \"Qty\")", "('Qty \"Qty\"'::text || \"quantity\")"),
            ("(E'\\\\\\'Qty' = \"Qty\")", "(E'\\\\\\'Qty' = \"quantity\")"),
            ("(\"Qty\" = ANY (ARRAY[1, 2]))", "(\"quantity\" = ANY (ARRAY[1, 2]))"),
        ] {
            assert_eq!(rename(sql, &[("Qty", "quantity")]).as_deref(), Some(expected), "{sql}");
        }
    }

    #[test]
    fn words_that_only_look_like_the_column_stay() {
        for (column, sql, expected) in [
            ("year", "(EXTRACT(year FROM at) > year)", "(EXTRACT(year FROM at) > \"x\")"),
            ("lower", "(lower(lower) = 'a')", "(lower(\"x\") = 'a')"),
            ("time", "((at)::timestamp with time zone > time)", "((at)::timestamp with time zone > \"x\")"),
            ("C", "(\"C\" COLLATE \"C\" > 'a')", "(\"x\" COLLATE \"C\" > 'a')"),
            ("city", "((addr).city <> city)", "((addr).city <> \"x\")"),
            ("money", "((a)::public.money > money)", "((a)::public.money > \"x\")"),
            ("precision", "((a)::double precision + precision)", "((a)::double precision + \"x\")"),
        ] {
            assert_eq!(rename(sql, &[(column, "x")]).as_deref(), Some(expected), "{sql}");
        }
    }

    #[test]
    fn swapped_names_do_not_run_into_each_other() {
        assert_eq!(rename("(a < b)", &[("a", "b"), ("b", "a")]).as_deref(), Some("(\"b\" < \"a\")"));
    }

    #[test]
    fn what_cannot_be_found_or_read_is_given_up() {
        assert_eq!(rename("(\"T\".* IS NOT NULL)", &[("a", "b")]), None);
        for broken in ["\"a", "'a", "E'a\\'", "a \"b"] {
            assert_eq!(rename(broken, &[("a", "b")]), None, "{broken}");
        }
        assert_eq!(rename("'a", &[]).as_deref(), Some("'a"), "nothing to do is always possible");
    }
}
