//! Foreign keys whose two ends part ways.

use super::facts::Facts;
use crate::catalog::ForeignKey;
use crate::problem::{Problem, Severity};

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let Some(catalog) = &facts.monolith.catalog else { return Vec::new() };
    let crossing = catalog.foreign_keys.iter().filter(|key| !key.inherited && !key.cut).filter(|key| {
        (facts.moves(&key.table) || facts.moves(&key.references))
            && !facts.together(&key.table, &key.references)
    });
    crossing.map(|key| crossing_key(facts, key)).collect()
}

/// What the key does by itself when a referenced row goes.
fn acts(key: &ForeignKey) -> Option<&'static str> {
    match key.on_delete {
        'c' => Some("ON DELETE CASCADE"),
        'n' => Some("ON DELETE SET NULL"),
        'd' => Some("ON DELETE SET DEFAULT"),
        _ => None,
    }
}

fn crossing_key(facts: &Facts, key: &ForeignKey) -> Problem {
    let (from, to) = (&key.table, &key.references);
    let action = acts(key);
    let fact = format!(
        "{} ({}) references {to} ({}){}",
        key.name,
        key.columns.join(", "),
        key.referenced_columns.join(", "),
        action.map(|action| format!(", {action}")).unwrap_or_default()
    );
    let place = if facts.moves(from) && facts.moves(to) {
        "the two tables go into different slices"
    } else if facts.moves(from) {
        "the referenced table stays behind"
    } else {
        "the referencing table stays behind"
    };
    let (severity, consequence) = match (action, facts.moves(to)) {
        (None, _) => (
            Severity::Note,
            "the service keeps a soft reference, which nothing enforces; the monolith's constraint has to go before the flip".to_owned(),
        ),
        (Some(action), false) => (
            Severity::Warning,
            format!("as long as it is there, {action} of the staying {to} writes into the fenced {from} after its flip and fails with 25006; without it nobody does that work"),
        ),
        (Some(action), true) => (
            Severity::Warning,
            format!("after the flip of {to} its deletes no longer do {action} in {from}"),
        ),
    };
    let next = match action {
        None => {
            format!("nothing now; the application must no longer rely on it once {from} or {to} has flipped")
        }
        Some(_) => {
            "let the application do this work itself before the flip, for example on an event of the owner"
                .to_owned()
        }
    };
    Problem::new(severity, "cut-key", from)
        .fact(format!("{fact}, and {place}"))
        .consequence(consequence)
        .next(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::fixture::{clean, expect, with};
    use crate::mapping::fixture::{plan, retail, table_rule};

    fn moving(slices: Vec<(&str, Vec<&str>)>, on_delete: char) -> Vec<Problem> {
        let mut catalog = retail();
        catalog.foreign_keys.iter_mut().for_each(|key| key.on_delete = on_delete);
        let slices =
            slices.into_iter().map(|(name, tables)| (name, tables.into_iter().map(table_rule).collect()));
        rule(&with(plan(slices.collect()), catalog))
    }

    #[test]
    fn keys_that_cross_the_cut_are_named_in_both_directions() {
        expect(&rule(&clean()), Severity::Note, "cut-key", "the two tables go into different slices");
        expect(
            &moving(vec![("s", vec!["OrderLines", "Orders"])], 'a'),
            Severity::Note,
            "cut-key",
            "the referenced table stays behind",
        );
        expect(
            &moving(vec![("s", vec!["Products"])], 'a'),
            Severity::Note,
            "cut-key",
            "the referencing table stays behind",
        );
        assert_eq!(moving(vec![("s", vec!["Products", "OrderLines", "Orders"])], 'c'), []);
    }

    #[test]
    fn keys_that_act_by_themselves_are_warnings() {
        let out = moving(vec![("s", vec!["OrderLines", "Orders"])], 'c');
        expect(
            &out,
            Severity::Warning,
            "cut-key",
            "ON DELETE CASCADE of the staying Products writes into the fenced OrderLines",
        );
        let into = moving(vec![("s", vec!["Products"])], 'n');
        expect(&into, Severity::Warning, "cut-key", "deletes no longer do ON DELETE SET NULL in OrderLines");
    }
}
