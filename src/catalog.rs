//! What one database looks like, as plain values read from its catalogs in one transaction.
//!
//! `postgres::introspect` fills it; `check`, `mapping` and `provision` decide on it. Nothing here does I/O.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::name::TableName;

mod fragment;

pub use fragment::Fragment;

/// Who a database is. Clusters copied from one template share a system identifier, and a clone shares the uuid,
/// so an identity is all of it together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Identity {
    /// `pg_control_system().system_identifier`.
    pub system_identifier: String,
    /// `pg_database.oid`.
    pub database_oid: u32,
    /// Random, written by `provision` into `strangler.database`; absent before it.
    pub database_uuid: Option<String>,
}

/// One database.
#[derive(Debug, Clone)]
pub struct Catalog {
    /// Database name.
    pub database: String,
    /// Who it is.
    pub identity: Identity,
    /// `server_version_num`, e.g. 150018.
    pub version_num: u32,
    /// `pg_encoding_to_char(encoding)`, e.g. `UTF8`.
    pub encoding: String,
    /// `datcollate` and provider, e.g. `libc:C.UTF-8`.
    pub collation: String,
    /// All relations outside the system schemas and our own.
    pub tables: BTreeMap<TableName, Table>,
    /// Enums, domains, composites, ranges that user schemas define, by schema and name.
    pub types: BTreeMap<TableName, UserType>,
    /// Sequences by schema and name.
    pub sequences: BTreeMap<TableName, Sequence>,
    /// Foreign keys of all tables, with those that `arm` has dropped: see [`ForeignKey::cut`].
    pub foreign_keys: Vec<ForeignKey>,
    /// Views, materialised views, functions, triggers, rules, policies and publications that name a table.
    pub dependents: Vec<Dependent>,
    /// Server settings that checks need: name to value, in the unit that `SHOW` gives.
    pub settings: BTreeMap<String, String>,
    /// Schemas outside the system's.
    pub schemas: Vec<String>,
    /// Extensions: name to version.
    pub extensions: BTreeMap<String, String>,
    /// Tables that are here as they were before `retire` dropped them, so that mappings and references go on to be known.
    pub dropped: BTreeSet<TableName>,
}

/// The types of whole numbers, each wider than the one before it.
pub const INTEGERS: &[&str] = &["smallint", "integer", "bigint"];

/// What kind of relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TableKind {
    /// `relkind` r.
    Ordinary,
    /// `relkind` p, the root or an inner node.
    Partitioned,
    /// `relkind` v.
    View,
    /// `relkind` m.
    MaterializedView,
    /// `relkind` f.
    Foreign,
}

/// `pg_class.relpersistence`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Persistence {
    /// Written to the WAL.
    Permanent,
    /// Not decoded.
    Unlogged,
    /// Not decoded.
    Temporary,
}

/// `pg_class.relreplident`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaIdentity {
    /// The primary key, if there is one.
    Default,
    /// None.
    Nothing,
    /// The whole old row.
    Full,
    /// A unique index, by name.
    Index(String),
}

/// A relation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Table {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Exact name.
    pub name: TableName,
    /// Kind.
    pub kind: TableKind,
    /// Permanent, unlogged, temporary.
    pub persistence: Persistence,
    /// Owner role name.
    pub owner: String,
    /// Columns by position, dropped ones left out.
    pub columns: Vec<Column>,
    /// Indexes, the primary key's among them.
    pub indexes: Vec<Index>,
    /// Primary key, unique, check, exclusion and named not null constraints; foreign keys are in [`Catalog::foreign_keys`].
    pub constraints: Vec<Constraint>,
    /// Replica identity as set.
    pub replica_identity: ReplicaIdentity,
    /// Partitioned by range or list, without a DEFAULT partition and, as far as the bounds show, not for every key.
    pub open_partitions: bool,
    /// Root or inner partitioned table this one is a partition of.
    pub partition_of: Option<TableName>,
    /// Plain inheritance parents (not partitions).
    pub inherits: Vec<TableName>,
    /// Row level security is on (`relrowsecurity`).
    pub row_security: bool,
    /// `pg_class.reltuples`, -1 when never analysed.
    pub rows_estimate: f64,
    /// `pg_total_relation_size`, bytes.
    pub total_bytes: u64,
    /// `pg_relation_size` of the main fork, bytes; a partitioned table's is the sum of its leaves.
    pub heap_bytes: u64,
    /// `COMMENT ON TABLE`.
    pub comment: Option<String>,
    /// `reloptions`, as `name=value`, with those of its TOAST table under `toast.`.
    pub storage: Vec<String>,
    /// The connected role may SELECT it.
    pub can_select: bool,
    /// The connected role is, or is a member of, its owner.
    pub can_own: bool,
}

/// A column.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Column {
    /// `attnum`.
    pub number: i16,
    /// Exact name.
    pub name: String,
    /// `format_type(atttypid, atttypmod)`, schema-qualified where needed: for DDL.
    pub type_sql: String,
    /// `format_type(atttypid, -1)`: for casts that must not truncate (`bpchar`, never `character`).
    pub cast_sql: String,
    /// `pg_type.oid` (differs between databases for user types).
    pub type_oid: u32,
    /// The type is one of PostgreSQL's own (`oid < 16384`): same meaning and binary form on both sides.
    pub type_builtin: bool,
    /// `typtype` of the type under all domains and array layers: b, c, d, e, m, p, r.
    pub base_kind: char,
    /// User type that the column depends on (through array and domain), when any.
    pub user_type: Option<TableName>,
    /// NOT NULL, and validated.
    pub not_null: bool,
    /// Default expression, as `pg_get_expr` prints it.
    pub default_sql: Option<String>,
    /// Sequence that the default or identity draws from; without a default the one that the column owns.
    pub sequence: Option<TableName>,
    /// Functions that the default calls and that may do anything: volatile, neither built in nor an extension's. As SQL.
    pub default_calls: Vec<String>,
    /// `a` always, `d` by default.
    pub identity: Option<char>,
    /// Generation expression of a stored (or virtual) generated column.
    pub generated_sql: Option<String>,
    /// The generated column is virtual (18 and later): computed when it is read.
    pub generated_virtual: bool,
    /// `schema.collation` where it is not the type's default, quoted for SQL.
    pub collation_sql: Option<String>,
    /// The collation is deterministic and bytewise (`C`), so both sides order text alike.
    pub collation_is_c: bool,
    /// Texts that are written differently are never equal: `collisdeterministic`, and of everything without a collation.
    pub deterministic: bool,
    /// `COMMENT ON COLUMN`.
    pub comment: Option<String>,
    /// `pg_stats.correlation` of physical and logical order, -1 to 1.
    pub correlation: Option<f64>,
}

/// An index.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Index {
    /// Name, in the table's schema.
    pub name: String,
    /// `pg_get_indexdef`.
    pub definition_sql: String,
    /// Key columns by name; `None` for an expression.
    pub columns: Vec<Option<String>>,
    /// Unique.
    pub unique: bool,
    /// The primary key's.
    pub primary: bool,
    /// Exclusion constraint's.
    pub exclusion: bool,
    /// `indimmediate`: not deferrable. Only such an index can be a replica identity.
    pub immediate: bool,
    /// `indisvalid`.
    pub valid: bool,
    /// Partial: has a predicate.
    pub partial: bool,
    /// Name of the constraint that owns it, when one does.
    pub constraint: Option<String>,
    /// `indisreplident`.
    pub replica_identity: bool,
    /// `COMMENT ON INDEX`.
    pub comment: Option<String>,
    /// What is set beside its definition.
    pub settings: IndexSettings,
}

/// What an index has that the definition of its constraint does not say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexSettings {
    /// `WITH`, as `name=value, …`.
    pub storage_sql: Option<String>,
    /// `ALTER TABLE … CLUSTER ON`.
    pub clustered: bool,
    /// `ALTER INDEX … ALTER COLUMN … SET STATISTICS`: number of the key from 1, and the target.
    pub statistics: Vec<(i32, i32)>,
}

/// What a constraint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConstraintKind {
    /// `contype` p.
    PrimaryKey,
    /// `contype` u.
    Unique,
    /// `contype` c.
    Check,
    /// `contype` x.
    Exclusion,
    /// `contype` n (18 and later).
    NotNull,
}

/// A constraint other than a foreign key.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Constraint {
    /// Name.
    pub name: String,
    /// Kind.
    pub kind: ConstraintKind,
    /// `pg_get_constraintdef`.
    pub definition_sql: String,
    /// Columns it names.
    pub columns: Vec<String>,
    /// `convalidated`.
    pub validated: bool,
    /// `COMMENT ON CONSTRAINT`.
    pub comment: Option<String>,
}

/// A foreign key.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ForeignKey {
    /// Constraint name.
    pub name: String,
    /// Referencing table.
    pub table: TableName,
    /// Its columns, in key order.
    pub columns: Vec<String>,
    /// Referenced table.
    pub references: TableName,
    /// Referenced columns, in key order.
    pub referenced_columns: Vec<String>,
    /// `pg_get_constraintdef`.
    pub definition_sql: String,
    /// `ON DELETE`: a no action, r restrict, c cascade, n set null, d set default.
    pub on_delete: char,
    /// `convalidated`.
    pub validated: bool,
    /// Comes with a partition from its parent's (`conparentid <> 0`).
    pub inherited: bool,
    /// `arm` wrote it down and dropped it: it guards nothing, and the mapping still knows what it referred to.
    pub cut: bool,
    /// `COMMENT ON CONSTRAINT`.
    pub comment: Option<String>,
}

/// What a type of a user schema is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum UserTypeKind {
    /// Labels in their order.
    Enum(Vec<String>),
    /// A domain.
    Domain {
        /// `format_type` of the base type.
        base_sql: String,
        /// Default expression.
        default_sql: Option<String>,
        /// NOT NULL.
        not_null: bool,
        /// Checks: name and `pg_get_constraintdef`.
        checks: Vec<(String, String)>,
        /// User type underneath, when any.
        base_type: Option<TableName>,
    },
    /// Columns: name and `format_type`.
    Composite(Vec<(String, String)>),
    /// A range or multirange, or a base type an extension brings.
    Other,
}

/// A type of a user schema.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UserType {
    /// Exact name.
    pub name: TableName,
    /// What it is.
    pub kind: UserTypeKind,
    /// Extension that owns it, when one does.
    pub extension: Option<String>,
    /// `COMMENT ON TYPE`.
    pub comment: Option<String>,
    /// `COMMENT ON CONSTRAINT … ON DOMAIN`: check and comment.
    pub check_comments: Vec<(String, String)>,
}

/// A sequence.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sequence {
    /// Exact name.
    pub name: TableName,
    /// `smallint`, `integer` or `bigint`.
    pub type_sql: String,
    /// START.
    pub start: i64,
    /// INCREMENT, may be negative.
    pub increment: i64,
    /// MINVALUE.
    pub min: i64,
    /// MAXVALUE.
    pub max: i64,
    /// CACHE.
    pub cache: i64,
    /// CYCLE.
    pub cycle: bool,
    /// Table and column of OWNED BY or identity.
    pub owned_by: Option<(TableName, String)>,
    /// Every table and column whose default draws from it.
    pub used_by: Vec<(TableName, String)>,
    /// `COMMENT ON SEQUENCE`.
    pub comment: Option<String>,
}

/// What kind of object depends on a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DependentKind {
    /// A view.
    View,
    /// A materialised view.
    MaterializedView,
    /// A function or procedure whose body names the table, or whose signature uses its row type.
    Function,
    /// A user trigger on the table.
    Trigger,
    /// A rewrite rule on the table.
    Rule,
    /// A row security policy on the table.
    Policy,
    /// A publication that holds the table.
    Publication,
    /// A subscription that writes into the table.
    Subscription,
}

/// An object that depends on a table.
#[derive(Debug, Clone)]
pub struct Dependent {
    /// Kind.
    pub kind: DependentKind,
    /// The table it depends on.
    pub table: TableName,
    /// How to name it to an operator, e.g. `public.order_totals` or `audit_orders on Orders`.
    pub name: String,
    /// For a trigger `tgenabled`, for a rule `ev_enabled` (O origin, A always, R replica, D disabled). For others empty.
    pub detail: String,
}

impl Catalog {
    /// A table by name.
    #[must_use]
    pub fn table(&self, name: &TableName) -> Option<&Table> {
        self.tables.get(name)
    }

    /// The same as if every relation stood where its name says: for statements that make them in another database.
    #[must_use]
    pub fn unmoved(&self) -> Self {
        let column_of = |(table, column): &(TableName, String)| (table.unmoved(), column.clone());
        let tables = self.tables.values().map(Table::unmoved);
        let types = self.types.values().map(|one| UserType { name: one.name.unmoved(), ..one.clone() });
        let sequences = self.sequences.values().map(|sequence| Sequence {
            name: sequence.name.unmoved(),
            owned_by: sequence.owned_by.as_ref().map(column_of),
            used_by: sequence.used_by.iter().map(column_of).collect(),
            ..sequence.clone()
        });
        let keys = self.foreign_keys.iter().map(|key| ForeignKey {
            table: key.table.unmoved(),
            references: key.references.unmoved(),
            ..key.clone()
        });
        let dependents = self.dependents.iter();
        let dependents = dependents.map(|one| Dependent { table: one.table.unmoved(), ..one.clone() });
        Self {
            tables: tables.map(|table| (table.name.clone(), table)).collect(),
            types: types.map(|one| (one.name.clone(), one)).collect(),
            sequences: sequences.map(|sequence| (sequence.name.clone(), sequence)).collect(),
            foreign_keys: keys.collect(),
            dependents: dependents.collect(),
            ..self.clone()
        }
    }

    /// PostgreSQL's major version, e.g. 15.
    #[must_use]
    pub fn major(&self) -> u32 {
        self.version_num / 10_000
    }
}

impl Table {
    /// See [`Catalog::unmoved`].
    fn unmoved(&self) -> Self {
        let column = |column: &Column| Column {
            user_type: column.user_type.as_ref().map(TableName::unmoved),
            sequence: column.sequence.as_ref().map(TableName::unmoved),
            ..column.clone()
        };
        Self {
            name: self.name.unmoved(),
            partition_of: self.partition_of.as_ref().map(TableName::unmoved),
            inherits: self.inherits.iter().map(TableName::unmoved).collect(),
            columns: self.columns.iter().map(column).collect(),
            ..self.clone()
        }
    }

    /// A column by its exact name.
    #[must_use]
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// The constraint by which a column is NOT NULL, on servers that give it a name (18 and later); it need not be validated.
    #[must_use]
    pub fn not_null(&self, column: &str) -> Option<&Constraint> {
        let of_column = |one: &&Constraint| one.columns.iter().eq([column]);
        self.constraints.iter().filter(|one| one.kind == ConstraintKind::NotNull).find(of_column)
    }

    /// Whether new rows must hold something in a column, whatever older ones do.
    #[must_use]
    pub fn refuses_null(&self, column: &Column) -> bool {
        column.not_null || self.not_null(&column.name).is_some()
    }

    /// The primary key's index.
    #[must_use]
    pub fn primary_key(&self) -> Option<&Index> {
        self.indexes.iter().find(|index| index.primary)
    }

    /// The columns that tell one row from another in the stream: those of the replica identity index or of the
    /// primary key; with identity FULL those of the primary key, else of the first usable unique index.
    /// `None` when no index can serve, so that rows can't be told apart.
    #[must_use]
    pub fn key_columns(&self) -> Option<Vec<&str>> {
        let index = match &self.replica_identity {
            ReplicaIdentity::Nothing => None,
            ReplicaIdentity::Default => self.primary_key().filter(|index| index.immediate),
            ReplicaIdentity::Index(name) => self.indexes.iter().find(|index| &index.name == name),
            ReplicaIdentity::Full => self
                .primary_key()
                .filter(|index| index.immediate)
                .or_else(|| self.indexes.iter().find(|index| self.can_identify(index))),
        }?;
        index.columns.iter().map(Option::as_deref).collect()
    }

    /// Whether the index could be a replica identity: unique, immediate, valid, whole, over NOT NULL columns.
    #[must_use]
    pub fn can_identify(&self, index: &Index) -> bool {
        index.unique
            && index.immediate
            && index.valid
            && !index.partial
            && index.columns.iter().all(|name| {
                name.as_deref().and_then(|name| self.column(name)).is_some_and(|column| column.not_null)
            })
    }
}
