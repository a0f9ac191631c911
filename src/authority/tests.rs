//! Every row of the recovery table, and the pairs of state and event.

use super::facts::GateState;
use super::*;
use crate::journal::streams::{Direction, StreamState};
use crate::lsn::Lsn;

fn gate(state: GateState, epoch: i64, cause: Cause) -> Gate {
    Gate { state, epoch: Epoch(epoch), cause, fence_lsn: None, cut_lsn: None, group: None }
}

fn open(epoch: i64, cut: u64) -> Gate {
    Gate { cut_lsn: Some(Lsn(cut)), ..gate(GateState::Open, epoch, Cause::Open) }
}

fn fenced(epoch: i64, fence: u64) -> Gate {
    Gate { fence_lsn: Some(Lsn(fence)), ..gate(GateState::Fenced, epoch, Cause::Fence) }
}

fn bumped(epoch: i64) -> Gate {
    gate(GateState::Fenced, epoch, Cause::Bump)
}

fn closed(epoch: i64) -> Gate {
    gate(GateState::Fenced, epoch, Cause::Fence)
}

fn stream(mode: Mode, applied: u64) -> Stream {
    Stream { mode, epoch: Epoch(1), applied: Lsn(applied), state: StreamState::Running }
}

/// Both sides' gates, with the forward stream (in the service) and the reverse stream (in the monolith).
fn facts(monolith: Gate, service: Gate, forward: Stream, reverse: Stream) -> Facts {
    Facts {
        monolith: Sight::Seen(Rows { gate: monolith, incoming: Some(reverse) }),
        service: Sight::Seen(Rows { gate: service, incoming: Some(forward) }),
        group: None,
    }
}

/// What a fresh driver does about facts that do not change.
fn decide(intent: Intent, facts: Facts) -> Result<Step, Refusal> {
    let first = step(State::begin(intent), Event::Observed(facts))?;
    match first.state {
        State::Looking { .. } => step(first.state, Event::Observed(facts)),
        State::Acting { .. } | State::Settled { .. } => Ok(first),
    }
}

fn effect(intent: Intent, facts: Facts) -> Effect {
    decide(intent, facts).unwrap().effect.unwrap()
}

fn settled(intent: Intent, facts: Facts) -> (Side, Epoch) {
    match decide(intent, facts).unwrap().state {
        State::Settled { owner, epoch } => (owner, epoch),
        other @ (State::Looking { .. } | State::Acting { .. }) => panic!("{other:?}"),
    }
}

const APPLY: Mode = Mode::Apply;
const TRIPWIRE: Mode = Mode::Tripwire;

fn flip_fenced() -> Facts {
    facts(fenced(2, 50), closed(1), stream(APPLY, 50), stream(TRIPWIRE, 9))
}

fn back_fenced() -> Facts {
    facts(closed(2), fenced(3, 70), stream(TRIPWIRE, 60), stream(APPLY, 70))
}

#[test]
fn monolith_open_and_service_closed_is_left_alone_by_resume() {
    let quiet =
        facts(gate(GateState::Open, 1, Cause::Open), closed(1), stream(APPLY, 5), stream(TRIPWIRE, 5));
    assert_eq!(settled(Intent::Resume, quiet), (Side::Monolith, Epoch(1)));
    assert_eq!(settled(Intent::Abort, quiet), (Side::Monolith, Epoch(1)));
    assert_eq!(settled(Intent::FlipBack, quiet), (Side::Monolith, Epoch(1)));
    let fence = effect(Intent::Flip, quiet);
    assert!(
        matches!(
            fence,
            Effect::Fence { side: Side::Monolith, epoch: Epoch(2), drain: Direction::Forward, .. }
        ),
        "{fence:?}"
    );
}

#[test]
fn fenced_flip_is_rolled_forward_by_resume_and_by_the_same_command() {
    for intent in [Intent::Resume, Intent::Flip] {
        let open = effect(intent, flip_fenced());
        let Effect::Open { side, expects, peer, epoch, applied_at_least, .. } = open else {
            panic!("{open:?}")
        };
        assert_eq!((side, epoch, applied_at_least), (Side::Service, Epoch(2), Lsn(50)));
        assert_eq!((expects, peer), (closed(1), fenced(2, 50)));
    }
}

#[test]
fn fenced_flip_is_not_opened_before_the_fence_position_is_applied() {
    let behind = facts(fenced(2, 50), closed(1), stream(APPLY, 49), stream(TRIPWIRE, 9));
    let expected = Effect::Await(Awaited::Position { direction: Direction::Forward, at_least: Lsn(50) });
    assert_eq!(effect(Intent::Resume, behind), expected);
}

#[test]
fn abort_of_a_fenced_flip_bumps_the_service_before_the_monolith_opens() {
    let bump = effect(Intent::Abort, flip_fenced());
    assert!(matches!(bump, Effect::Bump { side: Side::Service, epoch: Epoch(3), .. }), "{bump:?}");
}

#[test]
fn aborted_flip_reopens_the_monolith_without_a_drain_for_every_intent() {
    let rows = facts(fenced(2, 50), bumped(3), stream(APPLY, 0), stream(TRIPWIRE, 0));
    for intent in [Intent::Resume, Intent::Abort, Intent::Flip, Intent::FlipBack] {
        let reopen = effect(intent, rows);
        assert!(matches!(reopen, Effect::Reopen { side: Side::Monolith, epoch: Epoch(3), .. }), "{reopen:?}");
    }
}

#[test]
fn opened_flip_is_finished_by_swapping_the_reverse_stream_once_it_has_reached_the_cut() {
    let service = open(2, 80);
    let behind = facts(fenced(2, 50), service, stream(TRIPWIRE, 50), stream(TRIPWIRE, 79));
    let awaited = Effect::Await(Awaited::Position { direction: Direction::Reverse, at_least: Lsn(80) });
    assert_eq!(effect(Intent::Resume, behind), awaited);
    let there = facts(fenced(2, 50), service, stream(TRIPWIRE, 50), stream(TRIPWIRE, 80));
    let swap = Effect::Swap { direction: Direction::Reverse, epoch: Epoch(2), applied_at_least: Lsn(80) };
    for intent in [Intent::Resume, Intent::Flip, Intent::FlipBack, Intent::Abort] {
        assert_eq!(effect(intent, there), swap);
    }
    let done = facts(fenced(2, 50), service, stream(TRIPWIRE, 50), stream(APPLY, 95));
    assert_eq!(settled(Intent::Resume, done), (Side::Service, Epoch(2)));
}

#[test]
fn fenced_flip_back_opens_the_monolith_once_the_reverse_stream_is_drained() {
    let open = effect(Intent::Resume, back_fenced());
    let Effect::Open { side, epoch, incoming, applied_at_least, .. } = open else { panic!("{open:?}") };
    assert_eq!((side, epoch), (Side::Monolith, Epoch(3)));
    assert_eq!((incoming, applied_at_least), (Direction::Reverse, Lsn(70)));
}

#[test]
fn abort_of_a_fenced_flip_back_bumps_the_monolith() {
    let bump = effect(Intent::Abort, back_fenced());
    assert!(matches!(bump, Effect::Bump { side: Side::Monolith, epoch: Epoch(4), .. }), "{bump:?}");
}

#[test]
fn aborted_flip_back_reopens_the_service_and_leaves_the_streams() {
    let rows = facts(bumped(4), fenced(3, 70), stream(TRIPWIRE, 60), stream(APPLY, 0));
    let reopen = effect(Intent::Resume, rows);
    assert!(matches!(reopen, Effect::Reopen { side: Side::Service, epoch: Epoch(4), .. }), "{reopen:?}");
}

#[test]
fn two_open_gates_stop_everything_for_every_intent() {
    let rows = facts(open(3, 1), open(2, 1), stream(APPLY, 0), stream(APPLY, 0));
    for intent in [Intent::Flip, Intent::FlipBack, Intent::Abort, Intent::Resume] {
        let refusal = decide(intent, rows).unwrap_err();
        assert!(matches!(refusal, Refusal::BothOpen { .. }), "{refusal:?}");
        assert!(refusal.problem("plan", "orders").next.starts_with("stop the application"));
    }
}

#[test]
fn two_open_gates_in_a_single_look_are_looked_at_again() {
    let torn = facts(open(1, 1), open(2, 1), stream(APPLY, 0), stream(TRIPWIRE, 1));
    let first = step(State::begin(Intent::Resume), Event::Observed(torn)).unwrap();
    assert_eq!(first.effect, Some(Effect::Look));
    let true_rows = facts(fenced(2, 50), open(2, 1), stream(TRIPWIRE, 50), stream(APPLY, 1));
    let second = step(first.state, Event::Observed(true_rows)).unwrap();
    assert_eq!(second.state, State::Settled { owner: Side::Service, epoch: Epoch(2) });
}

#[test]
fn rows_that_no_surviving_commits_lead_to_open_nothing() {
    let apply = stream(APPLY, 99);
    for (monolith, service) in [
        (open(2, 1), fenced(3, 9)),
        (open(2, 1), bumped(3)),
        (fenced(2, 9), fenced(2, 9)),
        (bumped(3), bumped(3)),
        (fenced(4, 9), closed(1)),
        (closed(2), closed(1)),
    ] {
        let refusal = decide(Intent::Resume, facts(monolith, service, apply, apply)).unwrap_err();
        assert!(matches!(refusal, Refusal::Broken { .. }), "{refusal:?}");
    }
}

#[test]
fn peer_that_lost_a_bump_is_raised_before_anything_else() {
    let rows = facts(open(4, 1), closed(1), stream(APPLY, 9), stream(TRIPWIRE, 9));
    let bump = effect(Intent::Flip, rows);
    assert!(matches!(bump, Effect::Bump { side: Side::Service, epoch: Epoch(4), .. }), "{bump:?}");
}

#[test]
fn silent_service_leaves_a_fenced_monolith_fenced() {
    let rows = Facts { service: Sight::Unreachable, ..flip_fenced() };
    for intent in [Intent::Abort, Intent::Resume] {
        let refusal = decide(intent, rows).unwrap_err();
        assert_eq!(
            refusal,
            Refusal::Unreachable { side: Side::Service, other: Some(fenced(2, 50).posture()) }
        );
        assert!(refusal.problem("plan", "orders").consequence.contains("stays closed"));
    }
}

#[test]
fn clone_of_a_database_is_never_acted_on() {
    let rows = Facts { monolith: Sight::Stranger, ..flip_fenced() };
    assert_eq!(decide(Intent::Resume, rows), Err(Refusal::Stranger { side: Side::Monolith }));
}

#[test]
fn flip_needs_both_streams_running_in_their_modes() {
    let monolith = gate(GateState::Open, 1, Cause::Open);
    let gap = Stream { state: StreamState::Gap, ..stream(APPLY, 5) };
    let rows = facts(monolith, closed(1), gap, stream(TRIPWIRE, 5));
    let down = Refusal::StreamDown { direction: Direction::Forward, state: StreamState::Gap };
    assert_eq!(decide(Intent::Flip, rows), Err(down));
    let unarmed = Facts {
        monolith: Sight::Seen(Rows { gate: monolith, incoming: None }),
        ..facts(monolith, closed(1), stream(APPLY, 5), stream(TRIPWIRE, 5))
    };
    assert_eq!(decide(Intent::Flip, unarmed), Err(Refusal::NoStream { direction: Direction::Reverse }));
    assert_eq!(settled(Intent::Resume, unarmed), (Side::Monolith, Epoch(1)));
}

#[test]
fn command_for_the_other_way_touches_nothing() {
    let refused = decide(Intent::FlipBack, flip_fenced());
    assert_eq!(
        refused,
        Err(Refusal::OtherWay { from: Side::Monolith, epoch: Epoch(2), alone: true, settled: false })
    );
}

#[test]
fn flip_that_somebody_aborted_does_not_begin_again_by_itself() {
    let acting = decide(Intent::Flip, flip_fenced()).unwrap();
    let looking = step(acting.state, Event::Missed).unwrap();
    let rows = facts(open(3, 1), bumped(3), stream(APPLY, 60), stream(TRIPWIRE, 9));
    let doubting = step(looking.state, Event::Observed(rows)).unwrap();
    let refused = step(doubting.state, Event::Observed(rows));
    assert_eq!(refused, Err(Refusal::Superseded { owner: Side::Monolith, epoch: Epoch(2) }));
}

#[test]
fn abort_that_finds_the_service_open_says_that_it_is_too_late() {
    let acting = decide(Intent::Abort, flip_fenced()).unwrap();
    let looking = step(acting.state, Event::Missed).unwrap();
    let rows = facts(fenced(2, 50), open(2, 1), stream(TRIPWIRE, 50), stream(APPLY, 9));
    let doubting = step(looking.state, Event::Observed(rows)).unwrap();
    let refused = step(doubting.state, Event::Observed(rows));
    assert_eq!(refused, Err(Refusal::TooLate { owner: Side::Service, epoch: Epoch(2) }));
}

#[test]
fn lost_answer_to_a_commit_is_a_new_look_and_never_a_guess() {
    let acting = decide(Intent::Resume, flip_fenced()).unwrap();
    for event in [Event::Unclear, Event::Hit, Event::Missed] {
        assert_eq!(step(acting.state, event).unwrap().effect, Some(Effect::Look));
    }
}

#[test]
fn attempts_that_run_out_of_time_are_counted_and_end() {
    let quiet =
        facts(gate(GateState::Open, 1, Cause::Open), closed(1), stream(APPLY, 5), stream(TRIPWIRE, 5));
    let mut state = State::begin(Intent::Flip);
    for _ in 1..ATTEMPTS_MAX {
        state = step(state, Event::Observed(quiet)).unwrap().state;
        state = step(state, Event::OutOfTime).unwrap().state;
    }
    state = step(state, Event::Observed(quiet)).unwrap().state;
    assert_eq!(
        step(state, Event::OutOfTime),
        Err(Refusal::OutOfTime { attempts: ATTEMPTS_MAX, from: Side::Monolith })
    );
}

#[test]
fn event_that_was_not_asked_for_is_refused() {
    let acting = decide(Intent::Resume, flip_fenced()).unwrap().state;
    let looking = State::begin(Intent::Flip);
    let settled = State::Settled { owner: Side::Service, epoch: Epoch(2) };
    for (state, event) in [
        (acting, Event::Observed(flip_fenced())),
        (looking, Event::Hit),
        (looking, Event::Missed),
        (settled, Event::Observed(flip_fenced())),
        (settled, Event::Hit),
        (settled, Event::Missed),
        (settled, Event::Unclear),
        (settled, Event::OutOfTime),
    ] {
        assert_eq!(step(state, event), Err(Refusal::OutOfStep));
    }
}

/// A slice whose monolith gate is `gate`, moving under group 7 that stands as given.
fn grouped(rows: Facts, state: GroupState, complete: bool) -> Facts {
    let id = GroupId(7);
    let named = |sight| match sight {
        Sight::Seen(rows @ Rows { gate, .. }) if gate.fence_lsn.is_some() => {
            Sight::Seen(Rows { gate: Gate { group: Some(id), ..gate }, ..rows })
        }
        other @ (Sight::Seen(_) | Sight::Unreachable | Sight::Stranger) => other,
    };
    Facts {
        monolith: named(rows.monolith),
        service: named(rows.service),
        group: Some(Group { id, state, complete }),
    }
}

#[test]
fn group_row_is_written_before_the_first_member_is_fenced() {
    let quiet =
        facts(gate(GateState::Open, 1, Cause::Open), closed(1), stream(APPLY, 5), stream(TRIPWIRE, 5));
    let proposed = effect(Intent::Flip, grouped(quiet, GroupState::Absent, false));
    assert_eq!(proposed, Effect::Propose(GroupId(7)));
    let fence = effect(Intent::Flip, grouped(quiet, GroupState::Pending, false));
    assert!(matches!(fence, Effect::Fence { group: Some(GroupId(7)), .. }), "{fence:?}");
    let refused = decide(Intent::Flip, grouped(quiet, GroupState::Aborted, false));
    assert_eq!(refused, Err(Refusal::GroupAborted { id: GroupId(7) }));
}

#[test]
fn member_opens_only_after_the_group_was_settled_open() {
    let id = GroupId(7);
    for (state, complete, expected) in [
        (GroupState::Pending, false, Effect::Await(Awaited::Members(id))),
        (GroupState::Pending, true, Effect::SettleOpen(id)),
    ] {
        assert_eq!(effect(Intent::Flip, grouped(flip_fenced(), state, complete)), expected);
    }
    let open = effect(Intent::Flip, grouped(flip_fenced(), GroupState::Open, true));
    assert!(matches!(open, Effect::Open { group: Some(GroupId(7)), .. }), "{open:?}");
}

#[test]
fn group_that_nobody_completes_goes_back() {
    let id = GroupId(7);
    assert_eq!(
        effect(Intent::Resume, grouped(back_fenced(), GroupState::Pending, false)),
        Effect::SettleAborted(id)
    );
    let bump = effect(Intent::Resume, grouped(back_fenced(), GroupState::Aborted, false));
    assert!(matches!(bump, Effect::Bump { side: Side::Monolith, group: Some(GroupId(7)), .. }), "{bump:?}");
}

#[test]
fn group_that_was_settled_open_can_not_be_aborted() {
    let refused = decide(Intent::Abort, grouped(flip_fenced(), GroupState::Open, true));
    assert_eq!(refused, Err(Refusal::GroupOpen { id: GroupId(7), from: Side::Monolith }));
    assert_eq!(
        effect(Intent::Abort, grouped(flip_fenced(), GroupState::Pending, true)),
        Effect::SettleAborted(GroupId(7))
    );
}

#[test]
fn member_whose_group_row_was_not_found_is_not_touched() {
    let rows = Facts { group: None, ..grouped(flip_fenced(), GroupState::Open, true) };
    for intent in [Intent::Resume, Intent::Abort, Intent::Flip] {
        assert_eq!(decide(intent, rows), Err(Refusal::GroupUnread { id: GroupId(7) }));
    }
}

#[test]
fn slice_that_moves_alone_is_not_drawn_into_a_group() {
    let group = Some(Group { id: GroupId(7), state: GroupState::Absent, complete: false });
    let rows = Facts { group, ..flip_fenced() };
    let refused = decide(Intent::Flip, rows);
    assert_eq!(refused, Err(Refusal::FencedAlone { from: Side::Monolith, epoch: Epoch(2) }));
}

fn broken(stream: Stream, state: StreamState) -> Stream {
    Stream { state, ..stream }
}

#[test]
fn what_was_brought_before_a_stream_was_lost_lets_the_other_side_open() {
    for intent in [Intent::Flip, Intent::Resume] {
        let lost = |applied, state| {
            facts(fenced(2, 50), closed(1), broken(stream(APPLY, applied), state), stream(TRIPWIRE, 9))
        };
        let open = effect(intent, lost(50, StreamState::Gap));
        assert!(
            matches!(open, Effect::Open { side: Side::Service, applied_at_least: Lsn(50), .. }),
            "{open:?}"
        );
        for (applied, state) in
            [(49, StreamState::Gap), (90, StreamState::Diverged), (90, StreamState::Creating)]
        {
            let refused = decide(intent, lost(applied, state));
            assert_eq!(refused, Err(Refusal::StreamDown { direction: Direction::Forward, state }));
        }
    }
    let home =
        facts(closed(2), fenced(3, 70), stream(TRIPWIRE, 60), broken(stream(APPLY, 70), StreamState::Gap));
    let open = effect(Intent::FlipBack, home);
    assert!(matches!(open, Effect::Open { side: Side::Monolith, .. }), "{open:?}");
}

#[test]
fn an_abort_is_over_when_authority_is_back_whatever_became_of_the_stream() {
    let lost = broken(stream(APPLY, 40), StreamState::Gap);
    let back = facts(bumped(4), open(4, 30), stream(TRIPWIRE, 60), lost);
    assert_eq!(settled(Intent::Abort, back), (Side::Service, Epoch(4)));
    let refused = decide(Intent::FlipBack, back);
    assert!(matches!(refused, Err(Refusal::StreamDown { direction: Direction::Reverse, .. })), "{refused:?}");
}
