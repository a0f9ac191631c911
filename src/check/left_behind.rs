//! Rows of filtered tables that no filter of the plan takes: a warning, since the mirror does not mind them and a flip does.

use super::facts::Facts;
use crate::dualwrite::readiness::left_behind::{CONSEQUENCE, NEXT, outside};
use crate::problem::Problem;

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let problem = |(table, filters): (&_, &Vec<String>)| {
        let outside: Vec<String> = filters.iter().map(|filter| outside(filter)).collect();
        Problem::warning("rows-stay-behind", format!("table {table}"))
            .fact(format!(
                "it has rows that no filter of the plan takes, and a flip is refused as long as it has: {}",
                outside.join(" AND ")
            ))
            .consequence(CONSEQUENCE)
            .next(NEXT)
    };
    facts.left_behind.iter().map(problem).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::fixture::{clean, expect};
    use crate::mapping::fixture::name;
    use crate::problem::Severity;

    #[test]
    fn rows_that_no_filter_takes_are_told_before_a_flip_is_refused_over_them() {
        let mut facts = clean();
        assert_eq!(rule(&facts), []);
        facts.left_behind.insert(name("Orders"), vec!["\"Region\" = 'EU'".to_owned()]);
        expect(&rule(&facts), Severity::Warning, "rows-stay-behind", "leave `where` out of the plan");
    }
}
