//! Values that hash to nothing, and NULL.

use strangler::reconcile::finding::FindingKind::Differs;

use super::found::{Run, Told};
use super::stage::corrupt;
use crate::support::split::Split;

/// Columns, their types, and the value of each that is nothing.
const NOTHING: &[(&str, &str, &str)] = &[
    ("r", "real", "0"),
    ("f", "double precision", "0"),
    ("n", "numeric", "0"),
    ("i", "integer", "0"),
    ("l", "bigint", "0"),
    ("b", "boolean", "false"),
    ("at", "timestamp", "2000-01-01"),
    ("span", "interval", "0"),
    ("t", "text", ""),
    ("data", "bytea", ""),
];

/// The key of a row by its number.
type Key = fn(usize) -> String;

/// A table with one row of nothing and one of NULL for each of the columns; a wide one has twenty columns more.
fn create(name: &str, (key, of): (&str, Key), wide: bool) -> String {
    let columns: Vec<String> = NOTHING.iter().map(|(column, of, _)| format!("{column} {of}")).collect();
    let more: String = (0..if wide { 20 } else { 0 }).map(|number| format!(", w{number} int")).collect();
    let values: Vec<String> = NOTHING.iter().map(|(_, _, value)| format!("'{value}'")).collect();
    let nulls = vec!["NULL"; NOTHING.len()].join(", ");
    let rows: Vec<String> = (0..NOTHING.len())
        .map(|place| {
            format!("('{}', {}), ('{}', {nulls})", of(2 * place), values.join(", "), of(2 * place + 1))
        })
        .collect();
    format!(
        "CREATE TABLE {name} (id {key} PRIMARY KEY, {}{more}); INSERT INTO {name} VALUES {};",
        columns.join(", "),
        rows.join(", ")
    )
}

fn uuid(number: usize) -> String {
    format!("00000000-0000-4000-8000-{number:012x}")
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_became_null_and_null_that_became_nothing_are_found_with_their_column() {
    let int: Key = |number| number.to_string();
    let tables: [(&str, Key, String); 4] = [
        ("ints", int, create("ints", ("int", int), false)),
        ("wide_ints", int, create("wide_ints", ("int", int), true)),
        ("uuids", uuid, create("uuids", ("uuid", uuid), false)),
        ("wide_uuids", uuid, create("wide_uuids", ("uuid", uuid), true)),
    ];
    let setup: String = tables.iter().map(|(_, _, sql)| sql.as_str()).collect();
    let (split, monolith, service) =
        Split::launch("{ ints: {}, wide_ints: {}, uuids: {}, wide_uuids: {} }", &setup).await;
    split.provision();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    let (mut damage, mut expected) = (Vec::new(), Vec::<Told>::new());
    for (table, key, _) in &tables {
        for (place, (column, _, value)) in NOTHING.iter().enumerate() {
            let (zero, null) = (key(2 * place), key(2 * place + 1));
            damage.push(format!("UPDATE {table} SET {column} = NULL WHERE id = '{zero}'"));
            damage.push(format!("UPDATE {table} SET {column} = '{value}' WHERE id = '{null}'"));
            let told = |key| ((*table).to_owned(), Differs, vec![key], vec![(*column).to_owned()]);
            expected.extend([told(zero), told(null)]);
        }
    }
    corrupt(&service, &damage.join("; ")).await;
    expected.sort();
    for arguments in [&[][..], &["--strict"]] {
        assert_eq!(Run::of(&split, arguments).told(), expected, "{arguments:?}");
    }
}
