//! One slice: the protocol passes, and each mutant of it is found out.

use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};
use strangler::authority::{Intent, Side};

use super::invariants::{self, Memory};
use super::mutant::Mutant;
use super::world::{OPERATORS, Protocol, Scope};
use super::writers::Isolation;

const READ_COMMITTED: &[Isolation] = &[Isolation::ReadCommitted];
const BOTH: &[Isolation] = &[Isolation::ReadCommitted, Isolation::RepeatableRead];

type Commands = &'static [(Intent, Scope)];

const MOVES: Commands = &[(Intent::Flip, Scope::All), (Intent::FlipBack, Scope::All)];
const FLIP: Commands = &[(Intent::Flip, Scope::All)];
const OTHERS: Commands =
    &[(Intent::FlipBack, Scope::All), (Intent::Abort, Scope::All), (Intent::Resume, Scope::All)];
const BACK: Commands = &[(Intent::FlipBack, Scope::All)];
const BACK_OTHERS: Commands =
    &[(Intent::Flip, Scope::All), (Intent::Abort, Scope::All), (Intent::Resume, Scope::All)];
const RESCUES: Commands = &[(Intent::Abort, Scope::All), (Intent::Resume, Scope::All)];

pub fn protocol<const N: usize>(mutant: Mutant, commands: [Commands; OPERATORS]) -> Protocol<N> {
    Protocol {
        mutant,
        commands,
        first: Side::Monolith,
        writes: 2,
        starts: 2,
        epoch_max: 4,
        deaths: 0,
        crashes: 0,
        rogues: 0,
        failovers: 0,
        readers: 1,
        isolations: READ_COMMITTED,
        memory: Memory::default(),
    }
}

/// Checks every state and says how many there were.
pub fn passes<const N: usize>(name: &str, protocol: Protocol<N>) -> String {
    let begun = Instant::now();
    let memory = protocol.memory.clone();
    let checker = protocol.checker().threads(2).spawn_bfs().join();
    checker.assert_properties();
    format!(
        "{name}: {} states, {} steps, depth {}, {} recoveries, {:.1} s",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        memory.len(),
        begun.elapsed().as_secs_f64()
    )
}

/// Demands that the checker finds a state that breaks one of these, and says how.
pub fn fails<const N: usize>(protocol: Protocol<N>, broken: &[&'static str]) -> String {
    let begun = Instant::now();
    let mutant = protocol.mutant;
    let checker = protocol
        .checker()
        .threads(2)
        .finish_when(HasDiscoveries::AnyOf(broken.iter().copied().collect()))
        .spawn_bfs()
        .join();
    let found = checker.discoveries();
    let Some(name) = broken.iter().find(|name| found.contains_key(*name)) else {
        panic!("{mutant:?} broke {:?} and not {broken:?}", found.keys());
    };
    let actions = found[name].clone().into_actions();
    format!(
        "{mutant:?} breaks {name} in {} steps: {actions:?}; {} states, {:.1} s",
        actions.len(),
        checker.unique_state_count(),
        begun.elapsed().as_secs_f64()
    )
}

fn back_by_two_operators(mutant: Mutant) -> Protocol<1> {
    Protocol { first: Side::Service, deaths: 1, writes: 1, ..protocol(mutant, [BACK, BACK_OTHERS]) }
}

fn two_operators(mutant: Mutant) -> Protocol<1> {
    Protocol { deaths: 1, writes: 1, ..protocol(mutant, [FLIP, OTHERS]) }
}

fn there_and_back(mutant: Mutant) -> Protocol<1> {
    Protocol { starts: 3, ..protocol(mutant, [MOVES, &[]]) }
}

fn two_readers(mutant: Mutant) -> Protocol<1> {
    Protocol { readers: 2, starts: 3, ..protocol(mutant, [MOVES, &[]]) }
}

fn old_snapshots(mutant: Mutant) -> Protocol<1> {
    Protocol { isolations: BOTH, ..protocol(mutant, [MOVES, &[(Intent::Resume, Scope::All)]]) }
}

fn crashes(mutant: Mutant) -> Protocol<1> {
    Protocol { crashes: 1, ..protocol(mutant, [FLIP, &[]]) }
}

fn rogues(mutant: Mutant) -> Protocol<1> {
    Protocol { rogues: 2, writes: 1, ..protocol(mutant, [MOVES, &[]]) }
}

fn failovers(mutant: Mutant) -> Protocol<1> {
    Protocol { failovers: 1, starts: 3, writes: 0, readers: 0, ..protocol(mutant, [FLIP, RESCUES]) }
}

#[test]
fn protocol_holds_with_two_operators_that_look_die_and_wake_at_any_time() {
    println!("{}", passes("two operators", two_operators(Mutant::None)));
}

#[test]
fn protocol_holds_with_two_operators_on_the_way_back() {
    println!("{}", passes("two operators, back", back_by_two_operators(Mutant::None)));
}

#[test]
fn protocol_holds_there_and_back_and_there_again() {
    println!("{}", passes("there and back", there_and_back(Mutant::None)));
}

#[test]
fn protocol_holds_with_two_readers_of_one_stream() {
    println!("{}", passes("two readers", two_readers(Mutant::None)));
}

#[test]
fn protocol_holds_with_writers_that_have_old_snapshots() {
    println!("{}", passes("old snapshots", old_snapshots(Mutant::None)));
}

#[test]
fn protocol_holds_when_servers_lose_what_they_had_not_flushed() {
    println!("{}", passes("crashes", crashes(Mutant::None)));
}

#[test]
fn protocol_holds_with_writes_past_a_closed_gate() {
    println!("{}", passes("rogue writes", rogues(Mutant::None)));
}

#[test]
fn protocol_never_opens_both_sides_when_a_standby_lost_the_tail() {
    println!("{}", passes("failover", failovers(Mutant::None)));
}

#[test]
fn everything_that_should_be_possible_happens() {
    let moving = two_operators(Mutant::None);
    for property in invariants::examples::<1>() {
        let reached = moving.clone();
        let holds = property.condition;
        let name = property.name;
        let mut seen = false;
        let mut front = reached.init_states();
        let mut known: std::collections::HashSet<_> = front.iter().copied().collect();
        while let Some(world) = front.pop().filter(|_| !seen) {
            seen |= holds(&reached, &world);
            for next in reached.next_states(&world) {
                if reached.within_boundary(&next) && known.len() < 200_000 && known.insert(next) {
                    front.push(next);
                }
            }
        }
        assert!(seen, "{name}");
    }
}

#[test]
fn mutant_without_a_wait_for_writers_loses_a_write() {
    println!(
        "{}",
        fails(
            two_operators(Mutant::NoWaitForWriters),
            &[invariants::NO_WRITE_LOST, invariants::OWNER_HAS_ALL]
        )
    );
}

#[test]
fn mutant_without_a_drain_loses_a_write() {
    println!(
        "{}",
        fails(two_operators(Mutant::NoDrain), &[invariants::NO_WRITE_LOST, invariants::OWNER_HAS_ALL])
    );
}

#[test]
fn mutant_that_opens_whatever_its_own_row_says_opens_both_sides() {
    println!("{}", fails(two_operators(Mutant::OpenWithoutOwnRow), &[invariants::NEVER_BOTH_OPEN]));
}

#[test]
fn mutant_that_aborts_without_a_bump_opens_both_sides() {
    println!("{}", fails(two_operators(Mutant::AbortWithoutBump), &[invariants::NEVER_BOTH_OPEN]));
}

#[test]
fn mutant_whose_applier_has_no_fence_writes_twice_or_loses() {
    println!(
        "{}",
        fails(two_readers(Mutant::UnfencedApplier), &[invariants::NONE_TWICE, invariants::NO_WRITE_LOST])
    );
}

#[test]
fn mutant_whose_applier_asks_for_the_epoch_only_writes_twice() {
    println!("{}", fails(two_readers(Mutant::EpochOnlyApplier), &[invariants::NONE_TWICE]));
}

#[test]
fn mutant_whose_tripwire_passes_the_new_authoritys_first_write_is_found() {
    println!("{}", fails(two_operators(Mutant::TripwirePassesAuthority), &[invariants::TRIPWIRE_WAITS]));
}

#[test]
fn mutant_that_ignores_the_cause_gets_stuck_or_lost() {
    println!("{}", fails(two_operators(Mutant::CauseIgnored), &[invariants::COMES_HOME]));
}

#[test]
fn mutant_that_reads_the_gate_with_an_old_snapshot_loses_a_write() {
    println!(
        "{}",
        fails(
            old_snapshots(Mutant::OldSnapshotReadsGate),
            &[invariants::NO_WRITE_LOST, invariants::OWNER_HAS_ALL]
        )
    );
}

#[test]
fn mutant_that_moves_the_position_when_it_swaps_misses_a_rogue_write() {
    println!("{}", fails(rogues(Mutant::SwapMovesPosition), &[invariants::ROGUES_ARE_TOLD]));
}

#[test]
fn mutant_that_moves_the_position_when_it_swaps_cuts_itself_off_from_its_slot() {
    println!("{}", fails(there_and_back(Mutant::SwapMovesPosition), &[invariants::NO_GAP]));
}

#[test]
fn mutant_that_believes_one_look_calls_a_human_for_nothing() {
    println!("{}", fails(two_operators(Mutant::OneLook), &[invariants::JUST_ALARM]));
}

#[test]
fn mutant_that_confirms_before_the_flush_is_cut_off_by_a_crash() {
    println!("{}", fails(crashes(Mutant::ConfirmBeforeDurable), &[invariants::SLOT_BEHIND]));
}

#[test]
fn mutant_that_opens_before_the_standby_has_the_fence_opens_both_sides() {
    println!("{}", fails(failovers(Mutant::OpenBeforeStandby), &[invariants::NEVER_BOTH_OPEN]));
}

#[test]
fn mutant_that_reopens_before_the_standby_has_the_bump_opens_both_sides() {
    println!("{}", fails(failovers(Mutant::ReopenBeforeStandby), &[invariants::NEVER_BOTH_OPEN]));
}
