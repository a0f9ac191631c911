//! The first stage inside a transaction: rights on the old tables are taken away, and given back. Every statement is kept, so what is
//! shown beforehand is what was run and rolled back.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Client;

use super::gather::RetireError;
use super::rights::{self, Relation, privilege, privilege_sql, role_sql, role_words};
use crate::journal::ledger::{RETIRE, UNRETIRE};
use crate::journal::retirement::{self, Retirement, Right, Stage};
use crate::name::{TableName, quote_ident};
use crate::problem::Problem;

/// An open transaction on the monolith, and what was done in it.
#[derive(Debug)]
pub(super) struct Transaction<'a> {
    pub(super) monolith: &'a Client,
    pub(super) statements: Vec<String>,
}

impl Transaction<'_> {
    pub(super) async fn run(&mut self, sql: String) -> Result<(), RetireError> {
        let done = self.monolith.batch_execute(&sql).await;
        done.map_err(|source| RetireError::Statement { sql: sql.clone(), source })?;
        self.statements.push(sql);
        Ok(())
    }

    async fn rows(&mut self, sql: String) -> Result<usize, RetireError> {
        let rows = self.monolith.query(&sql, &[]).await;
        let rows = rows.map_err(|source| RetireError::Statement { sql: sql.clone(), source })?;
        self.statements.push(sql);
        Ok(rows.len())
    }

    /// Runs statements as the owner of a relation: whatever he grants and revokes comes from himself.
    async fn as_owner(&mut self, relation: &Relation, sql: Vec<String>) -> Result<(), RetireError> {
        if sql.is_empty() {
            return Ok(());
        }
        self.run(format!("SET LOCAL ROLE {}", quote_ident(&relation.owner))).await?;
        for sql in sql {
            self.run(sql).await?;
        }
        self.run("SET LOCAL ROLE NONE".to_owned()).await
    }

    async fn read(&self, tables: &[TableName]) -> Result<Vec<Relation>, RetireError> {
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
    if transaction.rows(retirement::only_in_epoch(slice, taking.epoch)).await? == 0 {
        return Err(RetireError::Changed { slice: slice.to_owned() });
    }
    let relations = hold(transaction, tables).await?;
    let problems = rights::problems(&relations, own, taking.user);
    if !problems.is_empty() {
        return Err(RetireError::Refused { problems });
    }
    let failed = || RetireError::database("what the roles of the links may do");
    let could = rights::of_links(transaction.monolith, tables, own).await.map_err(failed())?;
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
    let can = rights::of_links(transaction.monolith, tables, own).await.map_err(failed())?;
    let lost: Vec<Problem> = could.difference(&can).map(lost_by_a_link).collect();
    if !lost.is_empty() {
        return Err(RetireError::Refused { problems: lost });
    }
    if taken.is_empty() && taking.again {
        return Ok(taken);
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

fn lost_by_a_link((role, privilege, table): &(String, String, String)) -> Problem {
    Problem::error("link-loses-right", format!("role {role}"))
        .fact(format!("a link of the plan logs in as it, and it may {privilege} {table} only by way of a right that goes"))
        .consequence("the mirror or a comparison would fail")
        .next(format!("GRANT {privilege} ON TABLE {table} TO {};", quote_ident(role)))
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
    /// Those that can't come back, with what of them is not there any more.
    pub gone: Vec<(Right, &'static str)>,
    /// Relations that belong to somebody else than who gave the rights: relation, who gave them, whose it is.
    pub moved: BTreeSet<(TableName, String, String)>,
}

/// Gives back every right that was taken away, with its grant option, by whoever owns the relation, and forgets them.
///
/// # Errors
/// [`RetireError`]; the transaction is to be rolled back then.
pub(super) async fn give(
    transaction: &mut Transaction<'_>,
    (slice, user): (&str, &str),
    done: &Retirement,
) -> Result<Restored, RetireError> {
    let rights = retirement::rights(transaction.monolith, slice).await?;
    let names: BTreeSet<TableName> = rights.iter().map(|right| right.relation.clone()).collect();
    let names: Vec<TableName> = names.into_iter().collect();
    let relations = transaction.read(&names).await?;
    let mut restored = Restored::default();
    let mut told = Vec::new();
    for name in &names {
        let of: Vec<&Right> = rights.iter().filter(|right| right.relation == *name).collect();
        let Some(relation) = relations.iter().find(|relation| relation.name == *name) else {
            restored.gone.extend(of.into_iter().map(|right| (right.clone(), "the table")));
            continue;
        };
        let problems = rights::not_owner(std::slice::from_ref(relation), user);
        if !problems.is_empty() {
            return Err(RetireError::Refused { problems });
        }
        let mut giving: BTreeMap<(Option<&str>, bool), Vec<&Right>> = BTreeMap::new();
        for right in of {
            if let Some(what) = gone(transaction.monolith, right).await? {
                restored.gone.push((right.clone(), what));
                continue;
            }
            restored.rights += 1;
            if right.grantor != relation.owner {
                restored.moved.insert((name.clone(), right.grantor.clone(), relation.owner.clone()));
            }
            if right.grantee.as_ref() != Some(&relation.owner) {
                giving.entry((right.grantee.as_deref(), right.grantable)).or_default().push(right);
            }
        }
        let mut sql = Vec::new();
        for ((whose, grantable), rights) in giving {
            let (what, who) = (list(&rights, privilege_sql), role_sql(whose));
            let option = if grantable { " WITH GRANT OPTION" } else { "" };
            sql.push(format!("GRANT {what} ON TABLE {} TO {who}{option}", name.sql()));
            let action = format!("give {}{option} back to {}", list(&rights, privilege), role_words(whose));
            told.push((action, name.to_string()));
        }
        transaction.as_owner(relation, sql).await?;
    }
    let now = transaction.read(&names).await?;
    let promised = rights.iter().filter(|right| restored.gone.iter().all(|(gone, _)| gone != *right));
    let there =
        |right: &&Right| now.iter().any(|relation| relation.name == right.relation && relation.has(right));
    let missing: Vec<String> = promised.filter(|right| !there(right)).map(rights::words).collect();
    if !missing.is_empty() {
        return Err(RetireError::NotExact { missing: missing.join(", ") });
    }
    for sql in retirement::forget(slice) {
        transaction.run(sql).await?;
    }
    told.push((format!("undo stage {}", done.stage.as_str()), slice.to_owned()));
    for (action, object) in &told {
        transaction.run(retirement::tell(UNRETIRE, slice, (action, object), None)).await?;
    }
    Ok(restored)
}

/// What of a right is not there any more.
async fn gone(monolith: &Client, right: &Right) -> Result<Option<&'static str>, RetireError> {
    let sql = "SELECT $2 IS NOT NULL AND NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass($1) AND attname = $2 \
                   AND NOT attisdropped), \
               $3 IS NOT NULL AND NOT EXISTS (SELECT FROM pg_roles WHERE rolname = $3)";
    let text = tokio_postgres::types::Type::TEXT;
    let relation = right.relation.sql();
    let rows = monolith
        .query_typed(sql, &[(&relation, text.clone()), (&right.column, text.clone()), (&right.grantee, text)])
        .await;
    let rows = rows.map_err(RetireError::database("what became of the rights"))?;
    Ok(match rows.first().map(|row| (row.get(0), row.get(1))) {
        Some((true, _)) => Some("the column"),
        Some((_, true)) => Some("the role"),
        Some((false, false)) | None => None,
    })
}
