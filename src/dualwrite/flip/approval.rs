//! Whether somebody who has to approve a move is named. Asked where one begins: what is under way was approved then, and taking
//! it back, or bringing it to its end, needs nobody's word.

use super::moves::Order;
use crate::authority::Intent;
use crate::plan::{Approval, Plan};
use crate::problem::Problem;

/// The slices whose policy wants an approval that is not there, a problem each.
pub(super) fn lacking(plan: &Plan, path: &str, slices: &[&str], order: &Order) -> Vec<Problem> {
    let verb = match order.intent {
        Intent::Flip => "flip",
        Intent::FlipBack => "flip --back",
        Intent::Abort | Intent::Resume => return Vec::new(),
    };
    if order.approved_by.is_some() {
        return Vec::new();
    }
    let all: String = slices.iter().map(|slice| format!(" --slice {slice}")).collect();
    let wants = |slice: &&str| {
        let policy = plan.slices.get(*slice).map_or(&plan.policy, |slice| &slice.policy);
        policy.approval == Approval::Required
    };
    let said = |slice: &str| {
        Problem::error("not-approved", format!("slice {slice}"))
            .fact("the plan says approval: required, and nobody is named who approved this move")
            .consequence("nothing was begun")
            .next(format!("strangler {verb} {path}{all} --approved-by NAME, once somebody has"))
    };
    slices.iter().copied().filter(wants).map(said).collect()
}
