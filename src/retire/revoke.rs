//! The first stage inside a transaction: rights on the old tables are taken away, and given back. Every statement is kept, so what is
//! shown beforehand is what was run and rolled back.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Client;

use super::gather::RetireError;
use super::rights::{self, Relation, privilege, privilege_sql, role_sql, role_words};
use crate::journal::archives::{self, Archive};
use crate::journal::ledger::{RETIRE, UNRETIRE};
use crate::journal::retirement::{self, Noted, Right, Stage};
use crate::name::{TableName, quote_ident};

/// An open transaction on the monolith, and what was done in it.
#[derive(Debug)]
pub(super) struct Transaction<'a> {
    pub(super) monolith: &'a Client,
    pub(super) statements: Vec<String>,
}

impl Transaction<'_> {
    pub(super) async fn run(&mut self, sql: String) -> Result<(), RetireError> {
        self.run_as(None, sql).await
    }

    /// `owner` is as whom, where that is not the administrator.
    async fn run_as(&mut self, owner: Option<&str>, sql: String) -> Result<(), RetireError> {
        let done = self.monolith.batch_execute(&sql).await;
        let owner = owner.map(str::to_owned);
        done.map_err(|source| RetireError::Statement { sql: sql.clone(), owner, source })?;
        self.statements.push(sql);
        Ok(())
    }

    /// Runs a query whose rows are only counted.
    pub(super) async fn rows(&mut self, sql: String) -> Result<usize, RetireError> {
        let rows = self.monolith.query_typed(&sql, &[]).await;
        let rows = rows.map_err(|source| RetireError::Statement { sql: sql.clone(), owner: None, source })?;
        self.statements.push(sql);
        Ok(rows.len())
    }

    /// Runs statements as the owner of a relation: whatever he grants and revokes comes from himself.
    pub(super) async fn as_owner(
        &mut self,
        relation: &Relation,
        sql: Vec<String>,
    ) -> Result<(), RetireError> {
        self.as_role(&relation.owner, sql).await
    }

    /// Runs statements as a role.
    pub(super) async fn as_role(&mut self, role: &str, sql: Vec<String>) -> Result<(), RetireError> {
        if sql.is_empty() {
            return Ok(());
        }
        self.run(format!("SET LOCAL ROLE {}", quote_ident(role))).await?;
        for sql in sql {
            self.run_as(Some(role), sql).await?;
        }
        self.run("SET LOCAL ROLE NONE".to_owned()).await
    }

    pub(super) async fn read(&self, tables: &[TableName]) -> Result<Vec<Relation>, RetireError> {
        let read = rights::read(self.monolith, tables).await;
        read.map_err(RetireError::database("the rights on old tables"))
    }
}

/// Whose rights go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taking<'a> {
    pub(super) slice: &'a str,
    /// Epoch of the authority.
    pub(super) epoch: i64,
    /// The slice's old tables.
    pub(super) tables: &'a [TableName],
    /// Roles of the plan's links: theirs stay.
    pub(super) own: &'a BTreeSet<String>,
    /// Whom the administrator's link logs in as.
    pub(super) user: &'a str,
    /// Who approved it.
    pub(super) approved_by: Option<&'a str>,
    /// The stage was taken before: only what was granted since goes.
    pub(super) again: bool,
}

/// Takes the rights away and writes them down; returns what went.
///
/// # Errors
/// [`RetireError`]; the transaction is to be rolled back then.
pub(super) async fn take(
    transaction: &mut Transaction<'_>,
    taking: Taking<'_>,
) -> Result<Vec<Right>, RetireError> {
    let Taking { slice, tables, own, .. } = taking;
    let relations = hold(transaction, tables).await?;
    let problems = rights::problems(&relations, own, taking.user);
    if !problems.is_empty() {
        return Err(RetireError::Refused { problems });
    }
    let failed = || RetireError::database("what links and owners may do");
    let asked = (relations.as_slice(), tables);
    let before = rights::allowed(transaction.monolith, asked, own).await.map_err(failed())?;
    let mut taken = Vec::new();
    let mut told = Vec::new();
    for relation in &relations {
        let going: Vec<&Right> = relation.taken(own).collect();
        if going.is_empty() {
            continue;
        }
        let mut sql = Vec::new();
        for (whose, rights) in by_grantee(&going) {
            let (what, who) = (list(&rights, privilege_sql), role_sql(whose));
            sql.push(format!("REVOKE {what} ON TABLE {} FROM {who}", relation.name.sql()));
            let action = format!("take {} away from {}", list(&rights, privilege), role_words(whose));
            told.push((action, relation.name.to_string()));
        }
        transaction.as_owner(relation, sql).await?;
        transaction.run(retirement::note_rights(slice, &going)).await?;
        taken.extend(going.into_iter().cloned());
    }
    let after = transaction.read(tables).await?;
    exact(&relations, &after, own)?;
    let problems =
        rights::lost(&before, &rights::allowed(transaction.monolith, asked, own).await.map_err(failed())?);
    if !problems.is_empty() {
        return Err(RetireError::Refused { problems });
    }
    if taken.is_empty() && taking.again {
        return Ok(taken);
    }
    // Held last, and so for no longer than it must be: whoever opens the monolith waits for it.
    if transaction.rows(retirement::only_in_epoch(slice, taking.epoch)).await? == 0 {
        return Err(RetireError::Changed { slice: slice.to_owned() });
    }
    told.push((format!("take stage {}", Stage::Revoked.as_str()), slice.to_owned()));
    transaction.run(retirement::set_stage(slice, Stage::Revoked, taking.epoch)).await?;
    for (action, object) in &told {
        transaction.run(retirement::tell(RETIRE, slice, (action, object), taking.approved_by)).await?;
    }
    Ok(taken)
}

/// Reads the relations once nobody else can change their rights. PUBLIC never has a grant option, so nothing changes; but the rows of the
/// relation and of each of its columns that have rights are written, and whoever wants to write them waits until the end, and fails.
async fn hold(transaction: &mut Transaction<'_>, tables: &[TableName]) -> Result<Vec<Relation>, RetireError> {
    for relation in transaction.read(tables).await?.iter().filter(|relation| relation.ours) {
        let sql = format!("REVOKE GRANT OPTION FOR SELECT ON TABLE {} FROM PUBLIC", relation.name.sql());
        transaction.as_owner(relation, vec![sql]).await?;
    }
    let relations = transaction.read(tables).await?;
    // A partition, or the first right on a column, came in between.
    if relations.iter().any(|relation| relation.ours && !relation.held) {
        return Err(RetireError::Raced);
    }
    Ok(relations)
}

/// Exactly the rights that are kept are left, and no column lost rights that it did not have when they were read: REVOKE takes them on
/// every column, also those that somebody gave a moment ago.
fn exact(before: &[Relation], after: &[Relation], own: &BTreeSet<String>) -> Result<(), RetireError> {
    let rest = |relation: &Relation| {
        let going: Vec<&Right> = relation.taken(own).collect();
        let left = relation.rights.iter().filter(|right| !going.contains(right));
        (relation.name.clone(), relation.columns_written, left.cloned().collect::<Vec<_>>())
    };
    let expected: Vec<_> = before.iter().map(rest).collect();
    let found = after
        .iter()
        .map(|relation| (relation.name.clone(), relation.columns_written, relation.rights.clone()));
    if found.eq(expected) { Ok(()) } else { Err(RetireError::Raced) }
}

fn by_grantee<'a>(rights: &[&'a Right]) -> BTreeMap<Option<&'a str>, Vec<&'a Right>> {
    let mut by: BTreeMap<Option<&str>, Vec<&Right>> = BTreeMap::new();
    for right in rights {
        by.entry(right.grantee.as_deref()).or_default().push(right);
    }
    by
}

fn list(rights: &[&Right], one: impl Fn(&Right) -> String) -> String {
    rights.iter().map(|right| one(right)).collect::<Vec<_>>().join(", ")
}

/// What bringing rights back came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restored {
    /// The statements of one transaction on the monolith, in their order.
    pub statements: Vec<String>,
    /// How many rights were given back.
    pub rights: usize,
    /// Those that can't come back, by the names that they had, with what became of their table, column or role.
    pub gone: Vec<(Right, String)>,
    /// Where the tables were archived: it stays there, and is none of this retirement's any more.
    pub archive: Option<Archive>,
    /// Relations that belong to somebody else than who gave the rights: relation, who gave them, whose it is.
    pub moved: BTreeSet<(TableName, String, String)>,
    /// How many tables and partitions came back from quarantine.
    pub tables: usize,
    /// What was moved there and is gone since, by the name that it had.
    pub lost: BTreeSet<TableName>,
    /// Quarantine schemas that hold something else and so stay, with what that is.
    pub left: Vec<(String, String)>,
}

/// Whose rights come back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Giving<'a> {
    pub(super) slice: &'a str,
    /// Whom the administrator's link logs in as.
    pub(super) user: &'a str,
    /// The stage that is undone; `None` where only what an earlier run had to leave is tried again.
    pub(super) stage: Option<Stage>,
    /// Rights that can't come back are forgotten.
    pub(super) give_up: bool,
}

/// Gives every right that was taken away back to the role that had it, with its grant option, by whoever owns the relation, and forgets
/// them. What leads to another object than it did, or to none, stays written down.
///
/// # Errors
/// [`RetireError`]; the transaction is to be rolled back then.
pub(super) async fn give(
    transaction: &mut Transaction<'_>,
    giving: Giving<'_>,
) -> Result<Restored, RetireError> {
    let Giving { slice, user, .. } = giving;
    let noted = retirement::rights(transaction.monolith, slice).await?;
    let mut restored = Restored::default();
    let mut rights = Vec::new();
    for Noted { right, now } in noted {
        match now {
            Ok(now) => rights.push(now),
            Err(why) => restored.gone.push((right, why)),
        }
    }
    let oids: BTreeSet<u32> = rights.iter().map(|right| right.ids.relation).collect();
    let oids: Vec<u32> = oids.into_iter().collect();
    let relations = of_oids(transaction, &oids).await?;
    let mut told = Vec::new();
    for relation in relations.iter().filter(|relation| oids.contains(&relation.oid)) {
        let problems = rights::not_owner(std::slice::from_ref(relation), user);
        if !problems.is_empty() {
            return Err(RetireError::Refused { problems });
        }
        let of: Vec<&Right> = rights.iter().filter(|right| right.ids.relation == relation.oid).collect();
        restored.rights += of.len();
        let others = of.iter().filter(|right| right.grantor != relation.owner);
        let moved = |right: &&Right| (relation.name.clone(), right.grantor.clone(), relation.owner.clone());
        restored.moved.extend(others.map(moved));
        let sql = given(relation, &of, &mut told);
        transaction.as_owner(relation, sql).await?;
    }
    let now = of_oids(transaction, &oids).await?;
    let there =
        |right: &&Right| now.iter().any(|relation| relation.oid == right.ids.relation && relation.has(right));
    let missing: Vec<String> = rights.iter().filter(|right| !there(right)).map(rights::words).collect();
    if !missing.is_empty() {
        return Err(RetireError::NotExact { missing: missing.join(", ") });
    }
    let left = restored.gone.iter().filter(|_| !giving.give_up).map(|(right, _)| right);
    for sql in retirement::forget(slice, left) {
        transaction.run(sql).await?;
    }
    restored.archive = archives::read(transaction.monolith, slice).await?;
    if restored.archive.is_some() {
        transaction.run(archives::forget(slice)).await?;
    }
    told.extend(ending(giving, &restored));
    for (action, object) in &told {
        transaction.run(retirement::tell(UNRETIRE, slice, (action, object), None)).await?;
    }
    Ok(restored)
}

async fn of_oids(transaction: &Transaction<'_>, oids: &[u32]) -> Result<Vec<Relation>, RetireError> {
    let read = rights::read_oids(transaction.monolith, oids).await;
    read.map_err(RetireError::database("the rights on old tables"))
}

/// The statements that give rights on one relation back, and what is told of them. An owner has all rights by himself.
fn given(relation: &Relation, rights: &[&Right], told: &mut Vec<(String, String)>) -> Vec<String> {
    let mut giving: BTreeMap<(Option<&str>, bool), Vec<&Right>> = BTreeMap::new();
    for right in rights.iter().filter(|right| right.grantee.as_ref() != Some(&relation.owner)) {
        giving.entry((right.grantee.as_deref(), right.grantable)).or_default().push(right);
    }
    let mut sql = Vec::new();
    for ((whose, grantable), rights) in giving {
        let (what, who) = (list(&rights, privilege_sql), role_sql(whose));
        let option = if grantable { " WITH GRANT OPTION" } else { "" };
        sql.push(format!("GRANT {what} ON TABLE {} TO {who}{option}", relation.name.sql()));
        let action = format!("give {}{option} back to {}", list(&rights, privilege), role_words(whose));
        told.push((action, relation.name.to_string()));
    }
    sql
}

/// What is told behind the rights that were given: what was left out, once, and the stage that is undone.
fn ending(giving: Giving<'_>, restored: &Restored) -> Vec<(String, String)> {
    let verb = if giving.give_up { "give up" } else { "leave out" };
    let tells = giving.give_up || giving.stage.is_some();
    let gone = restored.gone.iter().filter(|_| tells).map(|(right, why)| {
        let of = role_words(right.grantee.as_deref());
        (format!("{verb} {} of {of}: {why}", privilege(right)), right.relation.to_string())
    });
    let archive = restored.archive.iter().map(|archive| {
        (format!("leave archive with manifest {}", archive.manifest_sha256), archive.place.clone())
    });
    let undone =
        giving.stage.map(|stage| (format!("undo stage {}", stage.as_str()), giving.slice.to_owned()));
    gone.chain(archive).chain(undone).collect()
}
