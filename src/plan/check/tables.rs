//! The slices: which tables move, under which names, with which columns and rows.

use std::collections::{BTreeMap, BTreeSet};

use super::super::TableSelector;
use super::super::file::{ColumnFile, OthersFile, PlanFile, SliceFile, TableFile};
use super::super::problem::{Place, PlanProblem, Severity, closest, named};
use super::super::resolve::{bare_name, selector};
use super::super::tree::Kind;
use super::databases::is_reserved_schema;
use super::{Review, Seen, with_first};
use crate::name::TableName;

/// One table entry that could be read.
pub(super) struct TableEntry<'a> {
    pub(super) slice: &'a str,
    pub(super) service: Option<&'a str>,
    pub(super) selector: TableSelector,
    pub(super) file: Option<&'a TableFile>,
    /// The key as written.
    text: &'a str,
    place: Option<Place>,
}

impl TableEntry<'_> {
    /// Whether the table moves with this entry.
    pub(super) fn covers(&self, table: &TableName) -> bool {
        match &self.selector {
            TableSelector::Table(own) => own == table,
            TableSelector::Schema(schema) => *schema == table.schema,
        }
    }

    /// Whether the column stays behind.
    pub(super) fn drops(&self, column: &str) -> bool {
        let Some(file) = self.file else { return false };
        match file.columns.as_ref().and_then(|columns| columns.get(column)) {
            Some(ColumnFile::Rule(rule)) => rule.drop == Some(true),
            Some(ColumnFile::Keep | ColumnFile::Rename(_)) => false,
            None => matches!(file.others, Some(OthersFile::Drop)),
        }
    }

    fn filter(&self) -> BTreeMap<&str, &[String]> {
        let filter = self.file.and_then(|file| file.filter.as_ref());
        filter.into_iter().flatten().map(|(column, values)| (column.as_str(), values.0.as_slice())).collect()
    }

    /// No row can match both filters: some column must hold values that the two do not share.
    fn is_disjoint_from(&self, other: &Self) -> bool {
        let others = other.filter();
        self.filter().iter().any(|(column, values)| {
            others.get(column).is_some_and(|theirs| !values.iter().any(|value| theirs.contains(value)))
        })
    }
}

pub(super) fn check<'a>(review: &mut Review<'_>, file: &'a PlanFile) -> Vec<TableEntry<'a>> {
    let Some(slices) = file.slices.as_ref().filter(|slices| !slices.is_empty()) else {
        review.nothing_in("slices", file.slices.is_some());
        return Vec::new();
    };
    let mut entries = Vec::new();
    for (name, slice) in slices {
        check_slice(review, file, name, slice);
        for (text, table) in slice.tables.iter().flatten() {
            entries.extend(check_table(review, name, slice, text, table.as_ref()));
        }
    }
    entries.sort_by_key(|entry| entry.place);
    check_shared(review, file, &entries);
    check_targets(review, file, &entries);
    check_references(review, &entries);
    entries
}

fn check_slice(review: &mut Review<'_>, file: &PlanFile, name: &str, slice: &SliceFile) {
    let path = ["slices", name];
    review.name("slice", name, review.key(&path));
    match &slice.service {
        None => review.missing(&path, "service", &format!("slice {}", named(name))),
        Some(service) => {
            let known = review.root.keys_of(&["services"]);
            if !known.contains(&service.as_str()) && file.services.is_some() {
                review.unknown("service", service, &known, review.value(&["slices", name, "service"]));
            }
        }
    }
    if slice.reversible.is_some() {
        review.not_yet(&["slices", name, "reversible"]);
    }
    let written = review.root.keys_of(&["slices", name, "tables"]);
    let unread = slice.tables.is_none() && review.is_written(&["slices", name, "tables"]);
    if written.is_empty() && !unread {
        let place = review.key(&["slices", name, "tables"]).or_else(|| review.key(&path));
        review.add(
            PlanProblem::error("plan.empty-slice", format!("slice {} has no tables", named(name)))
                .at(place)
                .help("name at least one under `tables:`, for example `tables: { Orders: {} }`, or remove the slice"),
        );
    }
}

fn check_table<'a>(
    review: &mut Review<'_>,
    slice_name: &'a str,
    slice: &'a SliceFile,
    text: &'a str,
    file: Option<&'a TableFile>,
) -> Option<TableEntry<'a>> {
    let path = ["slices", slice_name, "tables", text];
    let place = review.key(&path);
    let selector = match selector(text) {
        Ok(selector) => selector,
        Err(words) => {
            review.add(PlanProblem::error("plan.bad-name", words).at(place).help(
                "write `Orders`, `schema.table`, or `schema.*` for all tables of a schema, with the exact case of the catalog",
            ));
            return None;
        }
    };
    let schema = match &selector {
        TableSelector::Table(table) => &table.schema,
        TableSelector::Schema(schema) => schema,
    };
    if is_reserved_schema(schema) {
        review.add(
            PlanProblem::error(
                "plan.reserved-schema",
                format!("the tables of schema {} cannot move", named(schema)),
            )
            .at(place)
            .help("remove the line: they belong to PostgreSQL or to strangler itself"),
        );
    }
    if let Some(file) = file {
        match &selector {
            TableSelector::Table(_) => check_rule(review, &path, file),
            TableSelector::Schema(schema) => check_schema_rule(review, &path, schema, file),
        }
        check_filter(review, &path, file);
    }
    let entry =
        TableEntry { slice: slice_name, service: slice.service.as_deref(), selector, file, text, place };
    check_filter_columns(review, &path, &entry);
    Some(entry)
}

fn below<'a>(path: &[&'a str], rest: &[&'a str]) -> Vec<&'a str> {
    path.iter().chain(rest).copied().collect()
}

/// A whole schema has no name and no columns of its own.
fn check_schema_rule(review: &mut Review<'_>, path: &[&str], schema: &str, file: &TableFile) {
    let keys = [
        ("to", file.to.is_some(), "tables of a whole schema keep their names"),
        ("columns", file.columns.is_some(), "a whole schema has no columns of its own"),
        (
            "others",
            matches!(file.others, Some(OthersFile::Drop)),
            "a whole schema would move without any column",
        ),
    ];
    for (key, written, fact) in keys {
        if written {
            review.add(
                PlanProblem::error("plan.whole-schema", format!("`{key}` cannot stand here: {fact}"))
                    .at(review.key(&below(path, &[key])))
                    .help(format!(
                        "give the table an entry of its own beside this one, for example `{schema}.orders: {{ {key}: … }}`; \
                         to change the schema, write `into:` in the service"
                    )),
            );
        }
    }
}

fn check_rule(review: &mut Review<'_>, path: &[&str], file: &TableFile) {
    if let Some(to) = &file.to {
        check_new_table_name(review, &below(path, &["to"]), to);
    }
    let mut targets = Seen::new();
    let mut stays = 0_usize;
    let mut moves = 0_usize;
    for (name, column) in file.columns.iter().flatten() {
        let path = below(path, &["columns", name]);
        review.identifier("column", name, review.key(&path));
        match column_target(review, &path, name, column) {
            None => stays += 1,
            Some(target) => {
                moves += 1;
                let place = review.value(&path);
                if let Some(first) = targets.again(target.to_owned(), place) {
                    let problem = PlanProblem::error(
                        "plan.same-column",
                        format!(
                            "two columns of {} would be called {}",
                            named(path.get(3).copied().unwrap_or_default()),
                            named(target)
                        ),
                    )
                    .at(place)
                    .help("give one of them another name with `to`, or drop it with `drop: true`");
                    review.add(with_first(problem, first, "the other one"));
                }
            }
        }
    }
    let unread = review.root.keys_of(&below(path, &["columns"])).len() > stays + moves;
    if matches!(file.others, Some(OthersFile::Drop)) && moves == 0 && !unread {
        review.add(
            PlanProblem::error(
                "plan.no-columns",
                "with `others: drop` and no column listed, nothing of this table moves",
            )
            .at(review.value(&below(path, &["others"])))
            .help(
                "list the columns that move under `columns:`, for example `columns: { Id: {}, Name: name }`",
            ),
        );
    }
}

fn check_new_table_name(review: &mut Review<'_>, path: &[&str], to: &str) {
    let place = review.value(path);
    match TableName::parse(to, "") {
        Ok(name) if name.schema.is_empty() => {}
        Ok(name) => review.add(
            PlanProblem::error("plan.bad-name", "`to` is a name without a schema").at(place).help(format!(
                "write `to: {}`, and `into: {}` in the service when the schema changes",
                name.name, name.schema
            )),
        ),
        Err(error) => review.add(
            PlanProblem::error("plan.bad-name", "`to` is not a name that a table can have")
                .at(place)
                .help(error.to_string()),
        ),
    }
}

/// The column's name in the service, or `None` when it stays behind.
fn column_target<'a>(
    review: &mut Review<'_>,
    path: &[&str],
    name: &'a str,
    column: &'a ColumnFile,
) -> Option<&'a str> {
    let rule = match column {
        ColumnFile::Keep => return Some(name),
        ColumnFile::Rename(to) => {
            review.identifier("column", to, review.value(path));
            return Some(to);
        }
        ColumnFile::Rule(rule) => rule,
    };
    let mut later = false;
    for (key, written) in [("lookup", rule.lookup.is_some()), ("expr", rule.expr.is_some())] {
        if written {
            review.not_yet(&below(path, &[key]));
            later = true;
        }
    }
    for (key, written) in [("keep", rule.keep.is_some()), ("reverse", rule.reverse.is_some())] {
        // They belong to `lookup` and `expr`, which are told already.
        if written && !later {
            review.not_yet(&below(path, &[key]));
        }
    }
    if let Some(to) = &rule.to {
        review.identifier("column", to, review.value(&below(path, &["to"])));
    }
    if rule.drop != Some(true) {
        return Some(rule.to.as_deref().unwrap_or(name));
    }
    for (key, written, fact) in
        [("to", rule.to.is_some(), "renamed"), ("references", rule.references.is_some(), "given a reference")]
    {
        if written {
            review.add(
                PlanProblem::error(
                    "plan.dropped-column",
                    format!("column {} is both dropped and {fact}", named(name)),
                )
                .at(review.key(&below(path, &[key])))
                .help(format!(
                    "remove `drop: true` if the column should move, or `{key}` if it should stay behind"
                )),
            );
        }
    }
    None
}

fn check_filter(review: &mut Review<'_>, path: &[&str], file: &TableFile) {
    let Some(filter) = &file.filter else { return };
    let written = review.root.keys_of(&below(path, &["where"])).len();
    if written == 0 {
        review.add(
            PlanProblem::error("plan.empty-filter", "`where` has no condition")
                .at(review.key(&below(path, &["where"])))
                .help("write for example `where: { Region: [EU, UK] }`, or remove `where` to move all rows"),
        );
    }
    for (column, values) in filter {
        let path = below(path, &["where", column]);
        if column == "via" {
            review.not_yet(&path);
            continue;
        }
        review.identifier("column", column, review.key(&path));
        let is_list_of_none = values.0.is_empty()
            && review
                .root
                .find(&path)
                .is_some_and(|node| matches!(&node.kind, Kind::List(items) if items.is_empty()));
        if is_list_of_none {
            review.add(
                PlanProblem::error(
                    "plan.empty-filter",
                    format!("the list of values for {} is empty, so no row would move", named(column)),
                )
                .at(review.key(&path))
                .help(format!(
                    "name the values that move, `{column}: [EU, UK]`, or remove the line to move all"
                )),
            );
        }
        let mut seen = Seen::new();
        for (number, value) in values.0.iter().enumerate() {
            let place = review.value(&below(&path, &[&number.to_string()])).or_else(|| review.value(&path));
            if let Some(first) = seen.again(value.as_str(), place) {
                let problem = PlanProblem::warning(
                    "plan.repeated-value",
                    format!("the list for {} names a value twice", named(column)),
                )
                .at(place)
                .help("remove one of them");
                review.add(with_first(problem, first, "the same value"));
            }
        }
    }
}

/// A column has to move to be filtered on: the mirror decides by its value on both sides.
fn check_filter_columns(review: &mut Review<'_>, path: &[&str], entry: &TableEntry<'_>) {
    for column in entry.filter().into_keys().filter(|column| *column != "via") {
        if !entry.drops(column) {
            continue;
        }
        let written = review.key(&below(path, &["columns", column]));
        let fact =
            if written.is_some() { "is dropped" } else { "is not listed, and `others: drop` drops it" };
        let problem = PlanProblem::error(
            "plan.filter-on-dropped",
            format!("the rows are chosen by {}, which {fact}", named(column)),
        )
        .at(review.key(&below(path, &["where", column])))
        .help(format!("let the column move (`columns: {{ {column}: {{}} }}`), or choose by another one"));
        review.add(with_first(problem, written, "dropped here"));
    }
}

/// One table in two slices: only with disjoint filters, and then the slices flip together.
fn check_shared(review: &mut Review<'_>, file: &PlanFile, entries: &[TableEntry<'_>]) {
    let mut by_schema: BTreeMap<&str, Vec<&TableEntry<'_>>> = BTreeMap::new();
    let mut by_table: BTreeMap<&TableName, Vec<&TableEntry<'_>>> = BTreeMap::new();
    for entry in entries {
        match &entry.selector {
            TableSelector::Schema(schema) => by_schema.entry(schema).or_default().push(entry),
            TableSelector::Table(table) => by_table.entry(table).or_default().push(entry),
        }
    }
    for (schema, group) in &by_schema {
        check_pairs(review, file, &format!("schema {}", named(schema)), group);
    }
    for (table, group) in &by_table {
        let what = format!("table {}", named(&table.to_string()));
        check_pairs(review, file, &what, group);
        let elsewhere = by_schema.get(table.schema.as_str()).into_iter().flatten();
        for (whole, entry) in elsewhere.flat_map(|whole| group.iter().map(move |entry| (*whole, *entry))) {
            // In one slice, the table's own entry is the more precise one and wins.
            if whole.slice != entry.slice {
                check_pair(review, file, &what, whole, entry);
            }
        }
    }
}

fn check_pairs(review: &mut Review<'_>, file: &PlanFile, what: &str, group: &[&TableEntry<'_>]) {
    for (number, second) in group.iter().enumerate() {
        for first in group.iter().take(number) {
            check_pair(review, file, what, first, second);
        }
    }
}

fn check_pair(
    review: &mut Review<'_>,
    file: &PlanFile,
    what: &str,
    first: &TableEntry<'_>,
    second: &TableEntry<'_>,
) {
    let (first, second) = if first.place <= second.place { (first, second) } else { (second, first) };
    let (a, b) = (named(first.slice), named(second.slice));
    let problem = if first.slice == second.slice {
        PlanProblem::error("plan.table-twice", format!("{what} is written twice in slice {a}"))
            .help("keep one of the two; `Orders` and `public.Orders` are one table")
    } else if !first.is_disjoint_from(second) {
        PlanProblem::error("plan.table-twice", format!("{what} is in the slices {a} and {b}, and a row could belong to both"))
            .help(format!(
                "leave it in one slice, or give both a `where` on one column with different values, \
                 `where: {{ Region: [EU] }}` and `where: {{ Region: [US] }}`, and add `policy: {{ flip_together: [[{}, {}]] }}`",
                first.slice, second.slice
            ))
    } else if !flip_together(file, first.slice, second.slice) {
        PlanProblem::error(
            "plan.flip-together",
            format!("{what} is in the slices {a} and {b}, which do not flip together"),
        )
        .help(format!("add `policy: {{ flip_together: [[{}, {}]] }}`", first.slice, second.slice))
    } else {
        return;
    };
    review.add(with_first(problem.at(second.place), first.place, "the other entry"));
}

fn flip_together(file: &PlanFile, a: &str, b: &str) -> bool {
    let own = file.slices.iter().flatten().filter_map(|(_, slice)| slice.policy.as_ref());
    own.chain(&file.policy)
        .filter_map(|policy| policy.flip_together.as_ref())
        .flatten()
        .any(|group| [a, b].iter().all(|name| group.iter().any(|member| member == name)))
}

/// Two tables with one name in one service.
fn check_targets(review: &mut Review<'_>, file: &PlanFile, entries: &[TableEntry<'_>]) {
    let mut seen: BTreeMap<(&str, String, String), &TableEntry<'_>> = BTreeMap::new();
    let mut told: BTreeSet<(&str, &str)> = BTreeSet::new();
    for entry in entries {
        let (Some(service), TableSelector::Table(table)) = (entry.service, &entry.selector) else { continue };
        let into = file.services.as_ref().and_then(|services| services.get(service)?.into.clone());
        let schema = into.unwrap_or_else(|| table.schema.clone());
        let to = entry.file.and_then(|file| file.to.as_deref());
        let name = to.map_or_else(|| table.name.clone(), bare_name);
        let Some(first) = seen.get(&(service, schema.clone(), name.clone())) else {
            seen.insert((service, schema, name), entry);
            continue;
        };
        let same_source = first.selector == entry.selector;
        if same_source && (first.slice == entry.slice || !first.is_disjoint_from(entry)) {
            continue; // Told by check_shared.
        }
        let shown = named(&TableName::new(schema, name).to_string());
        let problem = PlanProblem::error(
            "plan.same-table",
            format!("two tables of service {} would be called {shown}", named(service)),
        );
        let help = if same_source {
            "one service needs one slice for a table: put all values into one `where`, or give one part another name with `to`"
        } else {
            "give one of them another name with `to`"
        };
        if told.insert((first.slice, entry.slice)) || !same_source {
            review.add(with_first(problem.at(entry.place).help(help), first.place, "the other one"));
        }
    }
}

/// Soft references have to be readable; one that nearly names a table of the plan is probably a slip.
fn check_references(review: &mut Review<'_>, entries: &[TableEntry<'_>]) {
    let mut tables = BTreeMap::new();
    let mut schemas = BTreeSet::new();
    for entry in entries {
        match &entry.selector {
            TableSelector::Table(table) => drop(tables.insert(table.clone(), table.to_string())),
            TableSelector::Schema(schema) => drop(schemas.insert(schema.as_str())),
        }
    }
    for entry in entries {
        let columns = entry.file.and_then(|file| file.columns.as_ref()).into_iter().flatten();
        for (column, rule) in columns {
            let ColumnFile::Rule(rule) = rule else { continue };
            let Some(text) = &rule.references else { continue };
            let place =
                review.value(&["slices", entry.slice, "tables", entry.text, "columns", column, "references"]);
            match TableName::parse(text, "public") {
                Err(error) => review.add(
                    PlanProblem::error("plan.bad-name", "`references` is not the name of a table")
                        .at(place)
                        .help(error.to_string()),
                ),
                Ok(table) if tables.contains_key(&table) || schemas.contains(table.schema.as_str()) => {}
                Ok(table) => near_miss(review, &table, tables.values().map(String::as_str), place),
            }
        }
    }
}

fn near_miss<'a>(
    review: &mut Review<'_>,
    table: &TableName,
    known: impl Iterator<Item = &'a str>,
    place: Option<Place>,
) {
    if review.is_full(Severity::Warning) {
        return;
    }
    let shown = table.to_string();
    if let Some(meant) = closest(&shown, known) {
        review.add(
            PlanProblem::warning("plan.unknown-table", format!("no slice moves a table {}", named(&shown)))
                .at(place)
                .help(format!(
                    "did you mean `{meant}`? If the table stays in the monolith, nothing is wrong here"
                )),
        );
    }
}
