//! Mappings that are other ones since their mirror began: `mirror` refuses to go on with them.

use super::facts::Facts;
use crate::mapping::outline::COMPARED;
use crate::problem::{Problem, bring_back};

pub(super) fn rule(facts: &Facts) -> Vec<Problem> {
    let changed = facts.mappings.values().filter(|slice| {
        let place = facts.services.get(&slice.service).and_then(|service| service.whereabouts.as_ref());
        let hash = place.and_then(|place| place.begun.get(&slice.slice));
        hash.is_some_and(|hash| !slice.is_pinned_by(hash))
    });
    let problem = |slice: &crate::mapping::SliceMapping| {
        Problem::error("mapping-changed", format!("slice {}", slice.slice))
            .fact(format!(
                "its mapping is another one than when it was provisioned, and data was mirrored since; {COMPARED}"
            ))
            .consequence("rows mirrored so far went through the old mapping, so the mirror refuses to go on")
            .next(bring_back(&slice.slice))
    };
    changed.map(problem).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::fixture::{clean, expect};
    use crate::problem::Severity;

    #[test]
    fn a_mapping_is_another_one_only_for_a_slice_that_was_mirrored() {
        let mut facts = clean();
        assert_eq!(rule(&facts), []);
        let hash = facts.mappings["ordering"].hash.clone();
        let mut begun = |hash: &str| {
            let place = facts.service("ordering").whereabouts.as_mut().unwrap();
            place.begun = [("ordering".to_owned(), hash.to_owned())].into();
            rule(&facts)
        };
        assert_eq!(begun(&hash), []);
        expect(&begun("of another day"), Severity::Error, "mapping-changed", "start slice ordering anew");
    }
}
