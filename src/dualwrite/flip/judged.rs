//! What a move was judged by, asked again where it counts: while the writers are held.
//!
//! Between the judgement and the fence lie hooks, waits for writers and attempts that ran out of time. A table may diverge then, be
//! copied again, be rewritten or lose a partition's rows to TRUNCATE, and the stream that is drained knows of none of it.

use tokio_postgres::Client;

use crate::authority::Side;
use crate::journal::grounds::{self, Ground};
use crate::journal::{JournalError, copies, retirement, verdicts};
use crate::postgres::connect::Session;
use crate::reconcile::evidence::{Void, voids};

/// What both sides' tables rested on, and the last verdict about them.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    ground: Ground,
    verdict: i64,
}

impl Judged {
    /// Reads it, before anything is judged. `None` where the slice is not provisioned.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn read(
        (monolith, service): (&Client, &Client),
        slice: &str,
    ) -> Result<Option<Self>, JournalError> {
        // The verdict is read first: one that comes meanwhile is later then.
        let verdict = verdicts::last_number(service, slice).await?;
        let (ground, shapes) =
            tokio::try_join!(grounds::service(service, slice), grounds::monolith(monolith, slice))?;
        Ok(ground.map(|ground| Self { ground: ground.with_monolith(&shapes), verdict }))
    }

    /// The statements of [`Self::changed`] that go to one side, for their plans and catalogs.
    ///
    /// # Errors
    /// [`JournalError`].
    pub(super) async fn warm(&self, session: &Session, side: Side, slice: &str) -> Result<(), JournalError> {
        match side {
            Side::Monolith => {
                grounds::monolith(session, slice).await?;
                retirement::read(session, slice).await.map(drop)
            }
            Side::Service => {
                grounds::service(session, slice).await?;
                copies::not_live(session, slice).await?;
                verdicts::differs_after(session, slice, self.verdict).await.map(drop)
            }
        }
    }

    /// What is not as it was, in words; nothing when the judgement still holds.
    ///
    /// # Errors
    /// [`JournalError`].
    pub async fn changed(
        &self,
        (monolith, service): (&Session, &Session),
        slice: &str,
    ) -> Result<Vec<String>, JournalError> {
        let (ground, shapes, differs) = tokio::try_join!(
            grounds::service(service, slice),
            grounds::monolith(monolith, slice),
            verdicts::differs_after(service, slice, self.verdict)
        )?;
        let now = ground.map(|ground| ground.with_monolith(&shapes));
        let mut changed = since(&self.ground, now.as_ref());
        if differs.any {
            changed.push("a reconciliation that ended meanwhile found differences".to_owned());
        }
        Ok(changed)
    }
}

/// What voids one ground and did not void the other. Pure.
fn since(then: &Ground, now: Option<&Ground>) -> Vec<String> {
    let known: Vec<Void> = voids(then, Some(then));
    voids(then, now).iter().filter(|void| !known.contains(void)).map(ToString::to_string).collect()
}

/// Tables of the service that are no whole copies, in words. Asked once everything is drained, since what is drained may make a
/// table diverge.
///
/// # Errors
/// [`JournalError`].
pub(super) async fn not_whole(service: &Session, slice: &str) -> Result<Vec<String>, JournalError> {
    let tables = copies::not_live(service, slice).await?;
    Ok(tables.into_iter().map(|(table, state)| Void::NotLive { table, state }.to_string()).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::journal::grounds::TableGround;

    fn ground(state: &str) -> Ground {
        let table = TableGround {
            copy: 1,
            state: state.to_owned(),
            unheard: false,
            target_shape: "17 described=1 files=1".to_owned(),
            source_shape: Some("18 described=1 files=1".to_owned()),
        };
        Ground {
            plan_hash: "h".to_owned(),
            epoch: 1,
            slot: Some("s".to_owned()),
            stream: Some("running".to_owned()),
            disturbances: 0,
            way_back: None,
            copy: Some("service".to_owned()),
            tables: BTreeMap::from([("t".to_owned(), table)]),
        }
    }

    #[test]
    fn only_what_came_since_speaks_against_a_move_that_was_judged() {
        assert_eq!(since(&ground("live"), Some(&ground("live"))), [""; 0]);
        assert_eq!(since(&ground("live"), Some(&ground("diverged"))), ["table t is diverged"]);
        // Whoever judged it knew that.
        assert_eq!(since(&ground("diverged"), Some(&ground("diverged"))), [""; 0]);
        let mut rewritten = ground("live");
        if let Some(table) = rewritten.tables.get_mut("t") {
            table.source_shape = Some("18 described=2 files=2".to_owned());
        }
        assert_eq!(
            since(&ground("live"), Some(&rewritten)),
            ["the definition of table t changed on the monolith's side"]
        );
        assert_eq!(since(&ground("live"), None), ["the slice is not provisioned"]);
    }
}
