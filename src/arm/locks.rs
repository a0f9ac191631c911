//! The locks that a step asks for, and which locks of others stand in their way.

use crate::name::TableName;

/// How strong a lock is (PostgreSQL documentation, section 13.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockMode {
    /// Publications and VALIDATE: the application goes on, VACUUM and DDL wait.
    ShareUpdateExclusive,
    /// CREATE TRIGGER and ADD FOREIGN KEY: readers go on, writers wait.
    ShareRowExclusive,
    /// DROP: everybody waits.
    AccessExclusive,
}

impl LockMode {
    fn sql(self) -> &'static str {
        match self {
            Self::ShareUpdateExclusive => "SHARE UPDATE EXCLUSIVE",
            Self::ShareRowExclusive => "SHARE ROW EXCLUSIVE",
            Self::AccessExclusive => "ACCESS EXCLUSIVE",
        }
    }

    /// Modes of `pg_locks` that it has to wait for.
    #[must_use]
    pub fn waits_for(self) -> &'static [&'static str] {
        const ALL: &[&str] = &[
            "AccessShareLock",
            "RowShareLock",
            "RowExclusiveLock",
            "ShareUpdateExclusiveLock",
            "ShareLock",
            "ShareRowExclusiveLock",
            "ExclusiveLock",
            "AccessExclusiveLock",
        ];
        let weaker = match self {
            Self::ShareUpdateExclusive => 3,
            Self::ShareRowExclusive => 2,
            Self::AccessExclusive => 0,
        };
        ALL.get(weaker..).unwrap_or_default()
    }
}

/// Tables that are locked together, in one statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locks {
    /// How.
    pub mode: LockMode,
    /// Which. Partitions come with their root, children by inheritance do not come with their parent.
    pub tables: Vec<Locked>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locked {
    /// The table.
    pub table: TableName,
    /// It has partitions, which are locked with it.
    pub partitioned: bool,
}

impl Locks {
    /// One table.
    #[must_use]
    pub fn of(mode: LockMode, table: &TableName, partitioned: bool) -> Self {
        Self { mode, tables: vec![Locked { table: table.clone(), partitioned }] }
    }

    /// Takes them all or fails, within one limit for all of them together: `lock_timeout` alone is one per lock, and a
    /// root with many partitions would hold the first ones for long. What follows has no limit of its own.
    #[must_use]
    pub fn statements(&self, limit_ms: u64) -> Vec<String> {
        let one = |locked: &Locked| {
            if locked.partitioned { locked.table.sql() } else { format!("ONLY {}", locked.table.sql()) }
        };
        let tables: Vec<String> = self.tables.iter().map(one).collect();
        vec![
            format!("SET LOCAL statement_timeout = {limit_ms}"),
            format!("LOCK TABLE {} IN {} MODE", tables.join(", "), self.mode.sql()),
            "SET LOCAL statement_timeout = 0".to_owned(),
        ]
    }

    /// The tables, quoted for SQL.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.tables.iter().map(|locked| locked.table.sql()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stronger_locks_wait_for_more() {
        assert!(!LockMode::ShareRowExclusive.waits_for().contains(&"AccessShareLock"), "readers go on");
        assert!(LockMode::ShareRowExclusive.waits_for().contains(&"RowExclusiveLock"), "writers do not");
        assert!(LockMode::ShareRowExclusive.waits_for().contains(&"ShareUpdateExclusiveLock"), "VACUUM");
        assert!(!LockMode::ShareUpdateExclusive.waits_for().contains(&"RowExclusiveLock"));
        assert_eq!(LockMode::AccessExclusive.waits_for().len(), 8);
    }

    #[test]
    fn all_locks_come_in_one_statement_with_one_limit() {
        let mut locks = Locks::of(LockMode::AccessExclusive, &TableName::new("public", "a"), false);
        locks.tables.push(Locked { table: TableName::new("s", "b"), partitioned: true });
        assert_eq!(
            locks.statements(50),
            [
                "SET LOCAL statement_timeout = 50",
                "LOCK TABLE ONLY \"public\".\"a\", \"s\".\"b\" IN ACCESS EXCLUSIVE MODE",
                "SET LOCAL statement_timeout = 0",
            ]
        );
    }
}
