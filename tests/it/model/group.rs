//! Two slices, in different services, that move all or none.

use strangler::authority::{Intent, Side};

use super::checks::{fails, passes, protocol};
use super::invariants;
use super::mutant::Mutant;
use super::world::{Protocol, Scope};

/// Nothing is written: that each slice by itself loses nothing is checked for one slice, and here it is about who moves.
fn two_slices(mutant: Mutant, first: Side) -> Protocol<2> {
    let [flip, back]: [&[_]; 2] = [&[(Intent::Flip, Scope::All)], &[(Intent::FlipBack, Scope::All)]];
    let moves = if first == Side::Monolith { flip } else { back };
    let rescues: &[_] =
        &[(Intent::Abort, Scope::All), (Intent::Resume, Scope::All), (Intent::Resume, Scope::First)];
    Protocol { first, writes: 0, readers: 0, starts: 3, ..protocol(mutant, [moves, rescues]) }
}

/// The first slice is moved by itself while a command moves both.
fn one_of_two(mutant: Mutant) -> Protocol<2> {
    let alone: &[_] = &[(Intent::Flip, Scope::First)];
    Protocol { commands: [&[(Intent::Flip, Scope::All)], alone], ..two_slices(mutant, Side::Monolith) }
}

#[test]
fn protocol_moves_all_members_of_a_group_or_none() {
    println!("{}", passes("two slices", two_slices(Mutant::None, Side::Monolith)));
}

#[test]
fn protocol_moves_all_members_of_a_group_back_or_none() {
    println!("{}", passes("two slices, back", two_slices(Mutant::None, Side::Service)));
}

#[test]
fn protocol_holds_when_a_member_of_a_group_is_moved_alone() {
    println!("{}", passes("one of two slices", one_of_two(Mutant::None)));
}

#[test]
fn mutant_that_opens_without_the_group_row_moves_some() {
    println!("{}", fails(two_slices(Mutant::OpenWithoutGroup, Side::Monolith), &[invariants::ALL_OR_NONE]));
}

#[test]
fn mutant_that_aborts_a_group_that_was_settled_open_moves_some() {
    println!(
        "{}",
        fails(two_slices(Mutant::AbortAfterGroupOpen, Side::Monolith), &[invariants::ALL_OR_NONE])
    );
}
