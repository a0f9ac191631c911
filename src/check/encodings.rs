//! Text must mean the same on both sides.

use super::facts::Facts;
use crate::problem::Problem;
use crate::provision::{BYTES, unfit};

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let Some(monolith) = &facts.monolith.catalog else { return Vec::new() };
    let mut problems = Vec::new();
    for (name, database) in &facts.services {
        let Some(catalog) = &database.catalog else { continue };
        let object = format!("service {name}");
        let (there, here) = (catalog.encoding.as_str(), monolith.encoding.as_str());
        if let Some(problem) = unfit(name, (there, here)) {
            problems.push(problem);
        } else if here == BYTES {
            problems.push(bytes(object, there));
        } else if there != here {
            problems.push(
                Problem::warning("encoding", object)
                    .fact(format!("its encoding is {there}, the monolith's is {here}"))
                    .consequence(
                        "the service takes every text of the monolith; after a flip the way back stops at the first text with a \
                         character that the monolith's encoding lacks",
                    )
                    .next(format!(
                        "nothing, if the service writes no other characters; else create its database anew: CREATE DATABASE … \
                         ENCODING {} TEMPLATE template0;",
                        crate::name::quote_literal(here)
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

/// Of a monolith in SQL_ASCII, whose texts may be no texts.
fn bytes(object: String, service: &str) -> Problem {
    if service == BYTES {
        return Problem::warning("sql-ascii", object)
            .fact(format!(
                "its encoding and the monolith's are {BYTES}: neither verifies what bytes a text is made of"
            ))
            .consequence("the mirror stops at the first text that is not valid UTF-8")
            .next("look for such rows in the monolith, and correct them, before the table is copied");
    }
    Problem::error("sql-ascii", object)
        .fact(format!("its encoding is {service}, the monolith's is {BYTES}"))
        .consequence(format!(
            "{BYTES} takes any bytes and converts none, so a text may be refused, or read otherwise, on the other side"
        ))
        .next(format!(
            "convert the monolith to {service} first: dump it, correct what is not valid, and restore it into a database of \
             that encoding"
        ))
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
        let mut facts = clean();
        facts.services.remove("catalog");
        facts.monolith_catalog().encoding = "LATIN1".into();
        expect(&rule(&facts), Severity::Warning, "encoding", "the monolith's is LATIN1");
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
