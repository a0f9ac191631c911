//! Did you mean: the name that was probably meant.

use std::collections::BTreeMap;

use crate::name::TableName;

/// The candidate nearest to `written`, when it is near enough to be a slip: the same but for case, or within a
/// third of its length in edits.
pub(super) fn nearest<'a>(written: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = written.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&wanted, &candidate.to_lowercase()), candidate))
        .min()
        .filter(|(edits, _)| *edits <= (wanted.chars().count() / 3).max(1))
        .map(|(_, candidate)| candidate)
}

/// The table nearest to `written`: by its full name, or one of another schema by its bare name.
pub(super) fn nearest_table<T>(written: &TableName, tables: &BTreeMap<TableName, T>) -> Option<TableName> {
    let shown: Vec<String> = tables.keys().map(ToString::to_string).collect();
    let full = nearest(&written.to_string(), shown.iter().map(String::as_str))
        .and_then(|near| tables.keys().find(|table| table.to_string() == near));
    let bare = || {
        let near = nearest(&written.name, tables.keys().map(|table| table.name.as_str()))?;
        tables.keys().find(|table| table.name == near)
    };
    full.or_else(bare).cloned()
}

/// `Write Orders.`, or where nothing is near, how to list what there is.
pub(super) fn advice(near: Option<impl std::fmt::Display>, otherwise: &str) -> String {
    near.map_or_else(|| otherwise.to_owned(), |name| format!("did you mean {name}?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_find_their_name_and_strangers_find_none() {
        let names = ["Orders", "OrderLines", "Products"];
        for (written, expected) in [
            ("orders", Some("Orders")),
            ("Ordres", Some("Orders")),
            ("OrderLine", Some("OrderLines")),
            ("Customers", None),
            ("", None),
        ] {
            assert_eq!(nearest(written, names), expected, "{written}");
        }
    }

    #[test]
    fn a_table_of_another_schema_is_found() {
        let tables = BTreeMap::from([(TableName::new("sales", "orders"), ())]);
        let near = nearest_table(&TableName::new("public", "Orders"), &tables);
        assert_eq!(near, Some(TableName::new("sales", "orders")));
    }
}
