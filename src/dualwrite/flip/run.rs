//! One command from its first look to its last: what is to be done, hooks around it, the move, and what came of it.
//!
//! A move that begins is judged first, and `before` hooks run for it. One that is under way is finished without either: both
//! were done when it began. One of several slices whose members are not all closed is no such move: what was judged of those that
//! are open is as old as the operator's death, so the others are given back, and it begins anew. What came of it is read off the gates at the end, whatever the driver met: it may have died in the
//! middle of what another one then finished.

use std::time::Duration;

use tokio_postgres::Client;

use super::conduct::{Conduct, ConductError, Tell, Told};
use super::course::{self, Course, Found, Left};
use super::effects::failed;
use super::moves::{self, Member, MoveError, Moved, Order};
use super::timeline::Timeline;
use super::{APPLICATION, FlipError, Judged, approval, record, standings};
use crate::authority::{Intent, Side, Standing};
use crate::dualwrite::exclusion;
use crate::dualwrite::hooks::{Executor, Moving, Occasion, Outcome, Report};
use crate::dualwrite::readiness::Purpose;
use crate::journal::operators::Operator;
use crate::journal::readiness::{self, Mirror};
use crate::postgres::connect::Session;
use crate::postgres::sqlstate;
use crate::problem::{Problem, Severity};

/// How long one attempt waits for a mirror that gives no sign of life; one that comes back then is soon enough.
const WITHOUT_MIRROR: Duration = Duration::from_secs(4);

/// The fences of a move of several slices are a millisecond apart; what stands between two of them for longer is nobody's.
const BETWEEN_FENCES: Duration = Duration::from_millis(300);

/// One command at work.
pub(super) struct Command<'a> {
    pub(super) conduct: Conduct<'a>,
    pub(super) members: &'a [Member],
    pub(super) hooks: Executor,
    pub(super) who: Operator,
}

impl Command<'_> {
    /// Does it. `found` is how the members stood when the command began.
    pub(super) async fn run(
        &self,
        order: Order,
        mut found: Vec<Found>,
        tell: Tell<'_>,
    ) -> Result<Vec<Moved>, ConductError> {
        let to = match order.intent {
            Intent::Flip => Side::Service,
            Intent::FlipBack => Side::Monolith,
            Intent::Abort | Intent::Resume => return self.finish(order, &found, tell).await,
        };
        let mut course = self.course(&found, to)?;
        if let Course::GiveBack(_) = &course {
            tokio::time::sleep(BETWEEN_FENCES).await;
            found = standings::look(self.members).await?;
            course = self.course(&found, to)?;
        }
        if let Course::Undo(places) | Course::GiveBack(places) = &course {
            let undone = self.undo(&order, places, to).await?;
            if let Course::GiveBack(_) = &course {
                self.given_back((&order, &found), undone, to, tell).await?;
            } else {
                tell(Told::Problems(&undone.iter().map(abort_finished).collect::<Vec<_>>()));
            }
            found = standings::look(self.members).await?;
            course = self.course(&found, to)?;
        }
        match course {
            Course::Begin(places) => self.begin(order, (&found, &places), tell).await,
            // Where something is half undone again, somebody else is at work. A driver that has judged nothing closes no gate.
            Course::Finish | Course::Undo(_) | Course::GiveBack(_) => self.finish(order, &found, tell).await,
        }
    }

    fn course(&self, found: &[Found], to: Side) -> Result<Course, ConductError> {
        let course = course::of(found, to);
        course.map_err(|(slice, source)| ConductError::Move {
            left: course::left(Some(found), to),
            source: MoveError { slice, source },
        })
    }

    /// Takes these moves back, or finishes that. Nothing begins by it.
    async fn undo(&self, order: &Order, places: &[usize], to: Side) -> Result<Vec<Moved>, ConductError> {
        let members = self.at(places);
        let order = Order { intent: Intent::Resume, ..order.clone() };
        match Box::pin(moves::carry_out(&members, &order)).await {
            Ok(undone) => Ok(undone),
            Err(source) => Err(ConductError::Move { left: self.left(to).await, source }),
        }
    }

    /// Says that a move of several slices was taken back, and lets go of what its `before` hooks held back. Another driver may have
    /// been quicker and have finished it: then nothing is left to begin either.
    async fn given_back(
        &self,
        (order, found): (&Order, &[Found]),
        undone: Vec<Moved>,
        to: Side,
        tell: Tell<'_>,
    ) -> Result<(), ConductError> {
        let back: Vec<Problem> = undone.iter().filter(|moved| moved.owner != to).map(given_back).collect();
        if back.is_empty() {
            return Ok(());
        }
        tell(Told::Problems(&back));
        let of_move = |member: &&Member| course::is_under_way(found, &member.mapping.slice);
        let members: Vec<Member> = self.members.iter().filter(of_move).cloned().collect();
        let occasion = self.occasion(order, to, found, &members);
        self.over((occasion, to), Ok(undone), tell).await.map(drop)
    }

    /// Judges the members at these places, runs `before`, and moves them. The others are there already.
    async fn begin(
        &self,
        mut order: Order,
        (found, places): (&[Found], &[usize]),
        tell: Tell<'_>,
    ) -> Result<Vec<Moved>, ConductError> {
        let members = self.at(places);
        let already: Vec<Moved> =
            found.iter().filter_map(there).filter(|moved| !is_of(&members, moved)).collect();
        if !already.is_empty() {
            tell(Told::Problems(&already.iter().map(left_out).collect::<Vec<_>>()));
        }
        let to = if order.intent == Intent::FlipBack { Side::Monolith } else { Side::Service };
        let stopped = self.conduct.stop.cancelled();
        // Held until this command ends, so that no gate is hung or taken off around the move.
        let _kept = tokio::select! {
            ready = self.ready((&members, found), &mut order, tell) => ready?,
            () = stopped => return Err(ConductError::Stopped),
        };
        let occasion = self.occasion(&order, to, found, &members);
        if self.before(&occasion, tell).await? > 0
            && let Err(error) = self.still_ready((&members, found), &mut order).await
        {
            self.after(&occasion, Outcome::NotMoved, tell).await;
            return Err(error);
        }
        let moved = Box::pin(moves::carry_out(&members, &order)).await;
        let mut moved = self.over((occasion, to), moved, tell).await?;
        moved.extend(already);
        moved.sort_by_key(|one| self.members.iter().position(|member| member.mapping.slice == one.slice));
        Ok(moved)
    }

    /// Runs `before`, and returns how many hooks ran. Whatever keeps the move from beginning after that, `after` has let go of what
    /// was held back.
    async fn before(&self, occasion: &Occasion, tell: Tell<'_>) -> Result<usize, ConductError> {
        let stopped = self.conduct.stop.cancelled();
        let mut ran = 0;
        let before = {
            let mut told = |report: &Report| {
                ran += 1;
                tell(Told::Hook(report));
            };
            tokio::select! {
                before = self.hooks.before(occasion, &mut told) => Some(before),
                () = stopped => None,
            }
        };
        match before {
            // A hook that fails has had `after` run already.
            Some(Err(problems)) => Err(ConductError::Refused(problems)),
            Some(Ok(())) if !self.conduct.stop.is_cancelled() => Ok(ran),
            Some(Ok(())) | None => {
                self.after(occasion, Outcome::NotMoved, tell).await;
                Err(ConductError::Stopped)
            }
        }
    }

    /// Everything that speaks against it, that nobody may change gates meanwhile, and a note that it begins.
    async fn ready(
        &self,
        (members, found): (&[Member], &[Found]),
        order: &mut Order,
        tell: Tell<'_>,
    ) -> Result<Vec<Session>, ConductError> {
        let kept = self.keep_gates(members).await?;
        let problems = self.judge(members, order).await?;
        for member in members {
            let one = found.iter().find(|one| one.slice == member.mapping.slice);
            let epoch = one.and_then(|one| course::epoch(one.standing)).map_or(0, |epoch| epoch.0 + 1);
            record::note_plan(member, order).await?;
            record::begin(member, order, epoch).await?;
        }
        if !problems.is_empty() {
            tell(Told::Problems(&problems));
        }
        Ok(kept)
    }

    /// Judges once more what hooks, which may take minutes, left time to change.
    async fn still_ready(
        &self,
        (members, found): (&[Member], &[Found]),
        order: &mut Order,
    ) -> Result<(), ConductError> {
        let now = standings::look(members).await?;
        let stands = |one: &Found| found.iter().any(|before| before == one);
        if !now.iter().all(stands) {
            // Another one was quicker; the driver sees to that.
            return Ok(());
        }
        self.judge(members, order).await.map(drop)
    }

    /// Everything that speaks against it. What the sides rest on is read before, so that nothing comes between.
    async fn judge(&self, members: &[Member], order: &mut Order) -> Result<Vec<Problem>, ConductError> {
        for member in members {
            let slice = &member.mapping.slice;
            let of = |source| ConductError::from(MoveError { slice: slice.clone(), source });
            let mut links = member.links.take();
            let (_, monolith, service) = links.three(Side::Monolith).await.map_err(of)?;
            let judged = Judged::read((monolith, service), slice).await;
            let judged = judged.map_err(|error| of(failed("reading what a move rests on", &error)))?;
            member.links.keep(links).await;
            if let Some(judged) = judged {
                order.judged.insert(slice.clone(), judged);
            }
        }
        let (mut problems, accepted) =
            self.conduct.judge(members, (order.intent, Purpose::Move), &self.who).await?;
        let asked: Vec<&str> = members.iter().map(|member| member.mapping.slice.as_str()).collect();
        problems.extend(approval::lacking(self.conduct.plan, self.conduct.path, &asked, order));
        problems.sort();
        if problems.iter().any(|problem| problem.severity == Severity::Error) {
            return Err(ConductError::Refused(problems));
        }
        order.remark = accepted;
        Ok(problems)
    }

    /// Goes on with what is under way, or finds that nothing is left to do. `after` is run where a move has come to its end by
    /// that: `before` ran when it began.
    async fn finish(
        &self,
        order: Order,
        found: &[Found],
        tell: Tell<'_>,
    ) -> Result<Vec<Moved>, ConductError> {
        let mut members = self.members.to_vec();
        if let Some(to) = course::under_way(found).filter(|_| order.intent != Intent::Abort) {
            let away = self.without_mirror(found, to).await;
            if !away.is_empty() {
                tell(Told::Problems(&away));
                members.iter_mut().for_each(|member| member.limits.position = WITHOUT_MIRROR);
            }
        }
        let mut moved = Box::pin(moves::carry_out(&members, &order)).await;
        for one in moved.iter_mut().flatten() {
            // Another driver may have been quicker, which does not mean that it was there before.
            one.changed |= course::is_under_way(found, &one.slice);
        }
        let Some(to) = course::under_way(found) else {
            let to = if order.intent == Intent::FlipBack { Side::Monolith } else { Side::Service };
            return match moved {
                Ok(moved) => Ok(moved),
                Err(source) => Err(ConductError::Move { left: self.left(to).await, source }),
            };
        };
        let occasion = self.occasion(&order, to, found, self.members);
        if moved.is_err() && standings::look(self.members).await.is_ok_and(|now| now == found) {
            // Nothing came of it, neither by this command nor by another.
            let left = course::left(Some(found), to);
            return moved.map_err(|source| ConductError::Move { left, source });
        }
        self.over((occasion, to), moved, tell).await
    }

    /// Slices under way to a side whose mirror gives no sign of life: what they still wait for, nobody brings.
    async fn without_mirror(&self, found: &[Found], to: Side) -> Vec<Problem> {
        let mut away = Vec::new();
        for member in self.members {
            let slice = member.mapping.slice.as_str();
            if !course::is_under_way(found, slice) {
                continue;
            }
            let mut links = member.links.take();
            // A side that does not answer is the move's to tell.
            let Ok(client) = links.looking(to).await else { continue };
            let Ok(told) = readiness::read(client, slice, to.incoming()).await else { continue };
            member.links.keep(links).await;
            if !told.mirror.as_ref().is_some_and(Mirror::is_alive) {
                away.push(self.waits_in_vain(slice, to));
            }
        }
        away
    }

    fn waits_in_vain(&self, slice: &str, to: Side) -> Problem {
        Problem::warning("mirror-away", format!("slice {slice}"))
            .fact(format!(
                "no mirror of it gives a sign of life, and whatever the {to} still lacks only a mirror brings"
            ))
            .consequence("it is waited for, less than a minute; meanwhile nobody has authority")
            .next(format!("strangler mirror {} --slice {slice}, beside this command", self.conduct.path))
    }

    /// Finds out what came of a move, and runs `after`.
    async fn over(
        &self,
        (mut occasion, to): (Occasion, Side),
        moved: Result<Vec<Moved>, MoveError>,
        tell: Tell<'_>,
    ) -> Result<Vec<Moved>, ConductError> {
        let found = standings::look(self.members).await.ok();
        for one in found.iter().flatten() {
            let slice = occasion.slices.iter_mut().find(|moving| moving.slice == one.slice);
            if let (Some(moving), Some(epoch)) = (slice, course::epoch(one.standing)) {
                moving.epoch = epoch.0;
            }
        }
        let of_move = |one: &Found| occasion.slices.iter().any(|moving| moving.slice == one.slice);
        let found = found.map(|found| found.into_iter().filter(of_move).collect::<Vec<_>>());
        let left = course::left(found.as_deref(), to);
        let pauses = moved.iter().flatten().filter_map(|one| one.timeline.pause());
        let outcome = match left {
            Left::Moved => Outcome::Moved { pause: pauses.max() },
            Left::Stayed => Outcome::NotMoved,
            Left::Between | Left::Unknown => Outcome::Unfinished,
        };
        self.after(&occasion, outcome, tell).await;
        moved.map_err(|source| ConductError::Move { left, source })
    }

    async fn after(&self, occasion: &Occasion, outcome: Outcome, tell: Tell<'_>) {
        let warnings = self.hooks.after(occasion, outcome, &mut |report| tell(Told::Hook(report))).await;
        if !warnings.is_empty() {
            tell(Told::Problems(&warnings));
        }
    }

    async fn left(&self, to: Side) -> Left {
        course::left(standings::look(self.members).await.ok().as_deref(), to)
    }

    fn at(&self, places: &[usize]) -> Vec<Member> {
        places.iter().filter_map(|place| self.members.get(*place)).cloned().collect()
    }

    /// What hooks are told of a move of these members.
    fn occasion(&self, order: &Order, to: Side, found: &[Found], members: &[Member]) -> Occasion {
        let moving = |member: &Member| {
            let slice = member.mapping.slice.clone();
            let standing = found.iter().find(|one| one.slice == slice).map(|one| one.standing);
            let epoch = match standing {
                Some(Standing::Owned { epoch, .. }) => epoch.0 + 1,
                Some(standing) => course::epoch(standing).map_or(0, |epoch| epoch.0),
                None => 0,
            };
            Moving { slice, service: member.mapping.service.clone(), epoch }
        };
        Occasion { plan: order.plan.clone(), to, slices: members.iter().map(moving).collect() }
    }

    /// Keeps `provision`, `arm` and `disarm` away from both sides for as long as these sessions last.
    async fn keep_gates(&self, members: &[Member]) -> Result<Vec<Session>, ConductError> {
        let mut kept = Vec::new();
        let mut known: Vec<&str> = Vec::new();
        for member in members {
            let slice = &member.mapping.slice;
            let service = member.mapping.service.as_str();
            for (name, side) in [("monolith", Side::Monolith), (service, Side::Service)] {
                if known.contains(&name) {
                    continue;
                }
                known.push(name);
                let failed = |source| ConductError::from(MoveError { slice: slice.clone(), source });
                let session = member.links.server(side).connect(APPLICATION).await;
                let session = session.map_err(|error| failed(Box::new(error).into()))?;
                let shared = exclusion::try_share(&session).await;
                let what = "keeping the gates";
                let refused = |error| FlipError::Failed { what, words: sqlstate::words(&error) };
                if !shared.map_err(|error| failed(refused(error)))? {
                    let problem = self.gates_at_work(slice, name, &session).await;
                    return Err(ConductError::Refused(vec![problem]));
                }
                kept.push(session);
            }
        }
        Ok(kept)
    }

    async fn gates_at_work(&self, slice: &str, database: &str, client: &Client) -> Problem {
        let who = exclusion::holder(client).await;
        let gone = who.as_ref().map_or_else(String::new, |who| {
            format!(" (where whoever typed it is gone, in that database: {})", who.end())
        });
        let verbs = || "`strangler provision`, `arm`, `disarm`, `retire` or `unretire`".to_owned();
        let who = who.map_or_else(verbs, |who| who.to_string());
        let all: String =
            self.members.iter().map(|member| format!(" --slice {}", member.mapping.slice)).collect();
        Problem::error("gates-at-work", format!("slice {slice}"))
            .fact(format!("{who} is changing what guards tables in database {database}"))
            .consequence("a gate could be gone when authority has moved, so nothing was begun")
            .next(format!(
                "wait until it has ended{gone}; then strangler {} {}{all}",
                self.who.verb, self.conduct.path
            ))
    }
}

/// A slice that is with one side, as a move that changed nothing.
fn there(found: &Found) -> Option<Moved> {
    let Standing::Owned { owner, epoch } = found.standing else { return None };
    let (slice, timeline) = (found.slice.clone(), Timeline::default());
    Some(Moved { slice, owner, epoch, changed: false, timeline })
}

/// Somebody's abort was brought to its end.
fn abort_finished(moved: &Moved) -> Problem {
    Problem::note("abort-finished", format!("slice {}", moved.slice))
        .fact(format!(
            "a move of it was taken back and not to the end; the {} has authority, epoch {}",
            moved.owner, moved.epoch
        ))
        .consequence(
            "that is finished now, and what was typed begins anew, with everything that is asked before",
        )
        .next("nothing, unless it is refused below")
}

/// A slice was closed for a move whose other slices were not.
fn given_back(moved: &Moved) -> Problem {
    Problem::note("move-given-back", format!("slice {}", moved.slice))
        .fact(format!(
            "it was closed for a move together with others that were not all closed; the {} has authority again, epoch {}",
            moved.owner, moved.epoch
        ))
        .consequence("what was typed begins anew for all of them, with everything that is asked before")
        .next("nothing, unless it is refused below")
}

fn is_of(members: &[Member], moved: &Moved) -> bool {
    members.iter().any(|member| member.mapping.slice == moved.slice)
}

fn left_out(moved: &Moved) -> Problem {
    Problem::note("already-moved", format!("slice {}", moved.slice))
        .fact(format!("the {} has had authority since epoch {}", moved.owner, moved.epoch))
        .consequence("it is left out, and only the others move")
        .next("nothing")
}
