//! Catalogs and plans for unit tests of decisions.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::types::Type;

use crate::catalog::{
    Catalog, Column, ForeignKey, Identity, Index, IndexSettings, Persistence, ReplicaIdentity, Table,
    TableKind, UserType, UserTypeKind,
};
use crate::name::TableName;
use crate::plan::{
    ColumnRule, Ddl, LinkTemplate, Links, Monolith, Others, Plan, Policy, Service, Slice, TableRule,
    TableSelector,
};

pub(crate) fn name(text: &str) -> TableName {
    TableName::parse(text, "public").unwrap()
}

pub(crate) fn column(name: &str, of: &Type) -> Column {
    let type_sql = match *of {
        Type::INT4 => "integer",
        Type::INT8 => "bigint",
        Type::INT2 => "smallint",
        Type::BOOL => "boolean",
        _ => of.name(),
    };
    Column {
        number: 0,
        name: name.into(),
        type_sql: type_sql.into(),
        cast_sql: type_sql.into(),
        type_oid: of.oid(),
        type_builtin: true,
        base_kind: 'b',
        user_type: None,
        not_null: false,
        default_sql: None,
        sequence: None,
        identity: None,
        generated_sql: None,
        generated_virtual: false,
        collation_sql: None,
        collation_is_c: false,
        deterministic: true,
        comment: None,
        correlation: None,
        default_calls: Vec::new(),
    }
}

/// A column of a user type.
pub(crate) fn user_column(name_text: &str, of: &str) -> Column {
    Column {
        type_sql: name(of).sql(),
        cast_sql: name(of).sql(),
        type_oid: 90_000,
        type_builtin: false,
        user_type: Some(name(of)),
        ..column(name_text, &Type::TEXT)
    }
}

pub(crate) fn index(name: &str, columns: &[&str], primary: bool) -> Index {
    Index {
        name: name.into(),
        definition_sql: String::new(),
        columns: columns.iter().map(|column| Some((*column).to_owned())).collect(),
        unique: true,
        primary,
        exclusion: false,
        immediate: true,
        valid: true,
        partial: false,
        constraint: None,
        replica_identity: false,
        comment: None,
        settings: IndexSettings::default(),
    }
}

/// An ordinary table whose first column is its primary key.
pub(crate) fn table(text: &str, columns: Vec<Column>) -> Table {
    let mut table = Table {
        oid: 1,
        name: name(text),
        kind: TableKind::Ordinary,
        persistence: Persistence::Permanent,
        owner: "owner".into(),
        columns,
        indexes: Vec::new(),
        constraints: Vec::new(),
        replica_identity: ReplicaIdentity::Default,
        open_partitions: false,
        partition_of: None,
        inherits: Vec::new(),
        row_security: false,
        rows_estimate: 10.0,
        total_bytes: 16_384,
        heap_bytes: 8_192,
        comment: None,
        storage: Vec::new(),
        can_select: true,
        can_own: true,
    };
    let first = table.columns.first_mut().map(|first| {
        first.not_null = true;
        first.name.clone()
    });
    table.indexes.extend(first.map(|first| index("pk", &[&first], true)));
    table
}

pub(crate) fn foreign_key(from: &str, column: &str, to: &str, referenced: &str) -> ForeignKey {
    ForeignKey {
        name: format!("fk_{column}"),
        table: name(from),
        columns: vec![column.into()],
        references: name(to),
        referenced_columns: vec![referenced.into()],
        definition_sql: String::new(),
        on_delete: 'a',
        validated: true,
        inherited: false,
        cut: false,
        comment: None,
    }
}

pub(crate) fn enum_type(text: &str, labels: &[&str]) -> UserType {
    UserType {
        name: name(text),
        kind: UserTypeKind::Enum(labels.iter().map(|label| (*label).to_owned()).collect()),
        extension: None,
        comment: None,
        check_comments: Vec::new(),
    }
}

pub(crate) fn catalog(tables: Vec<Table>) -> Catalog {
    Catalog {
        database: "retail".into(),
        identity: Identity { system_identifier: "1".into(), database_oid: 5, database_uuid: None },
        version_num: 150_018,
        encoding: "UTF8".into(),
        collation: "libc:C.UTF-8".into(),
        tables: tables.into_iter().map(|table| (table.name.clone(), table)).collect(),
        types: BTreeMap::new(),
        sequences: BTreeMap::new(),
        foreign_keys: Vec::new(),
        dependents: Vec::new(),
        settings: BTreeMap::new(),
        schemas: vec!["public".into(), "sales".into()],
        extensions: BTreeMap::new(),
        dropped: BTreeSet::new(),
    }
}

/// `Products`, `Orders` and `OrderLines`, with keys among them.
pub(crate) fn retail() -> Catalog {
    let mut catalog = catalog(vec![
        table("Products", vec![column("Id", &Type::INT4), column("Sku", &Type::TEXT)]),
        table("Orders", vec![column("Id", &Type::INT8), column("Region", &Type::TEXT)]),
        table(
            "OrderLines",
            vec![column("Id", &Type::UUID), column("OrderId", &Type::INT8), column("ProductId", &Type::INT4)],
        ),
    ]);
    catalog.foreign_keys = vec![
        foreign_key("OrderLines", "OrderId", "Orders", "Id"),
        foreign_key("OrderLines", "ProductId", "Products", "Id"),
    ];
    catalog
}

pub(crate) fn rule(selector: TableSelector) -> TableRule {
    TableRule {
        selector,
        to: None,
        others: Others::Keep,
        columns: BTreeMap::new(),
        filter: BTreeMap::new(),
        place: (7, 3),
    }
}

pub(crate) fn table_rule(text: &str) -> TableRule {
    rule(TableSelector::Table(name(text)))
}

pub(crate) fn renamed(to: &str) -> ColumnRule {
    ColumnRule::Keep { to: Some(to.into()), references: None }
}

fn links() -> Links {
    let link = || LinkTemplate::new("postgresql://nowhere");
    Links { admin: link(), read: link(), apply: link() }
}

/// Each slice goes to a service of its own name.
pub(crate) fn plan(slices: Vec<(&str, Vec<TableRule>)>) -> Plan {
    let service = |service: &str| Service {
        links: links(),
        owner: format!("{service}_owner"),
        app: format!("{service}_app"),
        accepts: Vec::new(),
        ddl: Ddl::Create,
        into: None,
    };
    Plan {
        name: "retail".into(),
        monolith: Monolith { links: links(), app_roles: vec!["retail_app".into()] },
        services: slices.iter().map(|(name, _)| ((*name).to_owned(), service(name))).collect(),
        slices: slices
            .into_iter()
            .map(|(name, tables)| {
                (name.to_owned(), Slice { service: name.to_owned(), tables, policy: Policy::default() })
            })
            .collect(),
        policy: Policy::default(),
        classify: Vec::new(),
    }
}
