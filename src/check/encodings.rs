//! Text must mean the same on both sides.

use super::facts::Facts;
use crate::problem::Problem;

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let Some(monolith) = &facts.monolith.catalog else { return Vec::new() };
    let mut problems = Vec::new();
    for (name, database) in &facts.services {
        let Some(catalog) = &database.catalog else { continue };
        let object = format!("service {name}");
        if catalog.encoding == BYTES || monolith.encoding == BYTES {
            problems.push(bytes(object, &catalog.encoding, &monolith.encoding));
        } else if catalog.encoding != monolith.encoding {
            problems.push(
                Problem::error("encoding", object)
                    .fact(format!(
                        "its encoding is {}, the monolith's is {}",
                        catalog.encoding, monolith.encoding
                    ))
                    .consequence("text that one side can hold the other may not, or may read otherwise")
                    .next(format!(
                        "create the database anew: CREATE DATABASE … ENCODING {} TEMPLATE template0;",
                        crate::name::quote_literal(&monolith.encoding)
                    )),
            );
        } else if catalog.collation != monolith.collation {
            problems.push(
                Problem::note("collation", object)
                    .fact(format!("its collation is {}, the monolith's is {}", catalog.collation, monolith.collation))
                    .consequence("text sorts in another order there; the mirror does not depend on it, the application might")
                    .next("create the database anew with the monolith's collation, if the order matters"),
            );
        }
    }
    problems
}

/// PostgreSQL neither verifies nor converts text in a database of this encoding (documentation, section 24.3.4).
const BYTES: &str = "SQL_ASCII";

fn bytes(object: String, service: &str, monolith: &str) -> Problem {
    if service == monolith {
        return Problem::warning("sql-ascii", object)
            .fact(format!(
                "its encoding and the monolith's are {BYTES}: neither verifies what bytes a text is made of"
            ))
            .consequence("the mirror stops at the first text that is not valid UTF-8")
            .next("look for such rows in the monolith, and correct them, before the table is copied");
    }
    let next = if monolith == BYTES {
        format!(
            "convert the monolith to {service} first: dump it, correct what is not valid, and restore it into a database of \
             that encoding"
        )
    } else {
        format!(
            "create the database anew: CREATE DATABASE … ENCODING {} TEMPLATE template0;",
            crate::name::quote_literal(monolith)
        )
    };
    Problem::error("sql-ascii", object)
        .fact(format!("its encoding is {service}, the monolith's is {monolith}"))
        .consequence(format!("{BYTES} takes any bytes and converts none, so a text may be refused, or read otherwise, on the other side"))
        .next(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::fixture::{clean, expect};
    use crate::problem::Severity;

    #[test]
    fn another_encoding_is_refused_and_another_collation_noted() {
        assert_eq!(rule(&clean()), []);
        let mut facts = clean();
        facts.service_catalog("ordering").encoding = "LATIN1".into();
        expect(&rule(&facts), Severity::Error, "encoding", "LATIN1");
        let ascii = |monolith: bool| {
            let mut facts = clean();
            facts.service_catalog("ordering").encoding = "SQL_ASCII".into();
            if monolith {
                facts.monolith_catalog().encoding = "SQL_ASCII".into();
                facts.service_catalog("catalog").encoding = "SQL_ASCII".into();
            }
            facts
        };
        expect(&rule(&ascii(false)), Severity::Error, "sql-ascii", "ENCODING 'UTF8' TEMPLATE template0");
        let both = rule(&ascii(true));
        assert_eq!(both.len(), 2, "{both:?}");
        expect(&both[..1], Severity::Warning, "sql-ascii", "neither verifies");
        let mut source = ascii(true);
        source.services.remove("catalog");
        source.service_catalog("ordering").encoding = "UTF8".into();
        expect(&rule(&source), Severity::Error, "sql-ascii", "convert the monolith to UTF8 first");
        let mut facts = clean();
        facts.service_catalog("ordering").collation = "icu:de".into();
        expect(&rule(&facts), Severity::Note, "collation", "icu:de");
    }
}
