//! Text must mean the same on both sides.

use super::facts::Facts;
use crate::problem::Problem;

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let Some(monolith) = &facts.monolith.catalog else { return Vec::new() };
    let mut problems = Vec::new();
    for (name, database) in &facts.services {
        let Some(catalog) = &database.catalog else { continue };
        let object = format!("service {name}");
        if catalog.encoding != monolith.encoding {
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
        facts.service_catalog("ordering").collation = "icu:de".into();
        expect(&rule(&facts), Severity::Note, "collation", "icu:de");
    }
}
