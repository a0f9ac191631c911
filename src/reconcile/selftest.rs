//! The self-test of a run: before hashes are trusted, both servers hash the same values of every type that is compared.
//!
//! Another version, architecture, encoding, or definition of a type may hash or print a value otherwise. Where two
//! servers disagree, the form of the columns of this type is weakened until they agree; where they never do, the
//! columns can't be compared.

mod samples;

use std::collections::BTreeMap;

use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

use super::form::{ColumnForm, Side, TableForm, direct_hash, text_sql};
use super::sides::Sides;
use crate::catalog::INTEGERS;
use crate::mapping::input::value_sql;
use crate::name::{TableName, quote_ident};
use crate::postgres::sqlstate::{self, Failure};

/// Real values of a column that stand for its type, where the type is not one with samples of ours.
const REAL_VALUES: usize = 20;
/// Rows that they are looked for in.
const ROWS_LOOKED_AT: usize = 200;
/// Columns of one type in one table that they are looked for in: each is a query of its own in one statement, which takes a
/// server seconds to plan when they are a thousand.
const COLUMNS_LOOKED_AT: usize = 20;

/// A column that is not compared in the form of its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weakened {
    /// Table by the monolith's name.
    pub table: TableName,
    /// Column by the service's name.
    pub column: String,
    /// The form that both servers agree on; `None` when there is none, so that the table's comparison is incomplete.
    pub form: Option<ColumnForm>,
    /// Why, without values.
    pub reason: String,
}

/// The servers could not be asked.
#[derive(Debug, thiserror::Error)]
#[error("trying whether both servers hash alike: {words}")]
pub struct SelfTestError {
    words: String,
}

impl From<tokio_postgres::Error> for SelfTestError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self { words: sqlstate::words(&error) }
    }
}

/// A column's type on one side.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct SideType {
    /// Name for casts; `None` when there is no such column.
    sql: Option<String>,
    /// Labels, of an enum.
    labels: Vec<String>,
    /// The server computes the column from others.
    generated: bool,
}

/// What one server says of all columns.
struct Facts {
    encoding: String,
    /// Who asks.
    role: String,
    types: Vec<SideType>,
}

/// Columns whose values are hashed alike on either side.
struct Group {
    cast_sql: String,
    form: ColumnForm,
    authority: String,
    copy: String,
    /// Indexes of tables and of their columns.
    columns: Vec<(usize, usize)>,
    samples: Vec<String>,
    /// One of them is classified, so that there may be no real values.
    classified: bool,
}

/// Hashes of a group's samples by form.
type Hashes = Vec<(ColumnForm, Vec<i64>)>;

/// Tries every type of the tables' columns on both servers, and weakens the forms where they don't agree. Takes two
/// round trips. Returns what is not as the types alone would have it.
///
/// # Errors
/// [`SelfTestError`].
pub async fn settle_forms(
    authority: &Client,
    copy: &Client,
    authority_side: Side,
    tables: &mut [TableForm],
) -> Result<Vec<Weakened>, SelfTestError> {
    let copy_side = match authority_side {
        Side::Source => Side::Target,
        Side::Target => Side::Source,
    };
    let (here, there, values) = tokio::try_join!(
        facts(authority, tables, authority_side),
        facts(copy, tables, copy_side),
        real_values(authority, tables, authority_side)
    )?;
    note_generated(tables, &there);
    by_text_where_widths_differ(tables, &here, &there);
    let mut weakened = Vec::new();
    if here.encoding != there.encoding {
        weakened.extend(in_utf8(tables, &here.encoding, &there.encoding));
    }
    let unicode = here.encoding == "UTF8" && there.encoding == "UTF8";
    let (mut groups, missing) = group(tables, &here, &there, &values, unicode);
    weakened.extend(missing);
    for group in groups.iter_mut().filter(|group| group.classified && group.samples.is_empty()) {
        group.samples = made_up(authority, &group.authority).await?;
    }
    groups.retain(|group| !group.samples.is_empty());
    let hashed = tokio::join!(
        hash_all(authority, &groups, (authority_side, &here.role), |group| &group.authority),
        hash_all(copy, &groups, (copy_side, &there.role), |group| &group.copy)
    );
    for (group, (here, there)) in groups.iter().zip(hashed.0?.into_iter().zip(hashed.1?)) {
        let (form, reason) = verdict(group, &here, &there);
        if form == Some(group.form) {
            continue;
        }
        for (table, column) in &group.columns {
            let Some(table) = tables.get_mut(*table) else { continue };
            if let (Some(place), Some(form)) = (table.forms.get_mut(*column), form) {
                *place = form;
            }
            weakened.extend(note(table, *column, form, &reason));
        }
    }
    Ok(weakened)
}

/// The strongest form, from `form` on, for which `agrees` holds.
fn settle(form: ColumnForm, agrees: impl Fn(ColumnForm) -> bool) -> Option<ColumnForm> {
    std::iter::successors(Some(form), |form| form.weaker()).find(|form| agrees(*form))
}

fn verdict(
    group: &Group,
    here: &Result<Hashes, String>,
    there: &Result<Hashes, String>,
) -> (Option<ColumnForm>, String) {
    match (here, there) {
        (Ok(here), Ok(there)) => {
            let of =
                |hashes: &Hashes, form| hashes.iter().find(|(of, _)| *of == form).map(|(_, h)| h.clone());
            let form =
                settle(group.form, |form| of(here, form).is_some() && of(here, form) == of(there, form));
            (form, format!("the two servers do not hash values of type {} alike", group.cast_sql))
        }
        (Err(words), _) | (_, Err(words)) => {
            (None, format!("values of type {} are not read alike on both sides: {words}", group.cast_sql))
        }
    }
}

fn note(table: &TableForm, column: usize, form: Option<ColumnForm>, reason: &str) -> Option<Weakened> {
    let column = table.mapping.columns.get(column)?.target.clone();
    Some(Weakened { table: table.mapping.source.clone(), column, form, reason: reason.to_owned() })
}

/// Text has other bytes in another encoding, so it is compared in one that both can be brought to.
fn in_utf8(tables: &mut [TableForm], here: &str, there: &str) -> Vec<Weakened> {
    let reason = format!("one server keeps text in {here} and the other in {there}");
    let mut weakened = Vec::new();
    for table in tables {
        for index in 0..table.forms.len() {
            let Some(column) = table.mapping.columns.get(index) else { continue };
            let depends =
                column.cast_sql.starts_with("character") || ["text", "bpchar"].contains(&&*column.cast_sql);
            let Some(form) =
                table.forms.get_mut(index).filter(|form| **form != ColumnForm::Native || depends)
            else {
                continue;
            };
            *form = ColumnForm::Utf8;
            weakened.extend(note(table, index, Some(ColumnForm::Utf8), &reason));
        }
    }
    weakened
}

/// Which of the generated columns the copy generates too.
fn note_generated(tables: &mut [TableForm], copy: &Facts) {
    let places: Vec<(usize, usize)> = all_columns(tables).collect();
    for ((table, column), of) in places.into_iter().zip(&copy.types) {
        let Some(form) = tables.get_mut(table) else { continue };
        let name = form.mapping.columns.get(column).map(|column| &column.target);
        if let Some(filled) = name.and_then(|name| form.generated.get_mut(name)) {
            *filled = of.generated;
        }
    }
}

/// An adopted column may be a larger integer than the monolith's, which has another hash function, and the same text.
fn by_text_where_widths_differ(tables: &mut [TableForm], here: &Facts, there: &Facts) {
    let integer = |of: &SideType| of.sql.as_deref().is_some_and(|sql| INTEGERS.contains(&sql));
    let places: Vec<(usize, usize)> = all_columns(tables).collect();
    for ((table, column), (here, there)) in places.into_iter().zip(here.types.iter().zip(&there.types)) {
        let form = tables.get_mut(table).and_then(|form| form.forms.get_mut(column));
        if let Some(form) = form.filter(|_| integer(here) && integer(there) && here.sql != there.sql) {
            *form = ColumnForm::Text;
        }
    }
}

fn all_columns(tables: &[TableForm]) -> impl Iterator<Item = (usize, usize)> + '_ {
    tables
        .iter()
        .enumerate()
        .flat_map(|(table, form)| (0..form.forms.len()).map(move |column| (table, column)))
}

fn group(
    tables: &[TableForm],
    here: &Facts,
    there: &Facts,
    values: &BTreeMap<usize, Vec<String>>,
    unicode: bool,
) -> (Vec<Group>, Vec<Weakened>) {
    let mut groups: BTreeMap<_, Group> = BTreeMap::new();
    let mut missing = Vec::new();
    let types = here.types.iter().zip(&there.types).enumerate();
    for ((table, column), (index, (here, there))) in all_columns(tables).zip(types) {
        let Some(form) = tables.get(table) else { continue };
        let (Some(mapped), Some(of)) = (form.mapping.columns.get(column), form.forms.get(column)) else {
            continue;
        };
        let (Some(authority), Some(copy)) = (here.sql.clone(), there.sql.clone()) else {
            missing.extend(note(form, column, None, "the column is not on both sides"));
            continue;
        };
        let key = (mapped.cast_sql.clone(), *of, authority.clone(), copy.clone());
        let group = groups.entry(key).or_insert_with(|| Group {
            cast_sql: mapped.cast_sql.clone(),
            form: *of,
            authority,
            copy,
            columns: Vec::new(),
            samples: samples::of(&mapped.cast_sql, unicode).unwrap_or_else(|| here.labels.clone()),
            classified: false,
        });
        group.columns.push((table, column));
        group.classified |= mapped.class.is_some();
        if here.labels.is_empty() {
            group.samples.extend(values.get(&index).into_iter().flatten().cloned());
        }
    }
    (groups.into_values().collect(), missing)
}

/// One statement for all columns: their types by name, for casts, with an enum's labels.
async fn facts(client: &Client, tables: &[TableForm], side: Side) -> Result<Facts, tokio_postgres::Error> {
    const SQL: &str = "\
SELECT current_setting('server_encoding'), current_user::text, format_type(a.atttypid, -1),
    ARRAY(SELECT e.enumlabel::text FROM pg_enum AS e WHERE e.enumtypid = a.atttypid ORDER BY e.enumsortorder),
    coalesce(a.attgenerated <> '', false)
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS n (name, attname, place)
LEFT JOIN pg_attribute AS a ON a.attrelid = to_regclass(n.name) AND a.attname = n.attname AND NOT a.attisdropped
ORDER BY n.place";
    let named = all_columns(tables).filter_map(|(table, column)| {
        let form = tables.get(table)?;
        let mapped = form.mapping.columns.get(column)?;
        let name = if side == Side::Source { &mapped.source } else { &mapped.target };
        Some((form.name(side).sql(), name.as_str()))
    });
    let (tables, columns): (Vec<String>, Vec<&str>) = named.unzip();
    let rows = client.query_typed(SQL, &[(&tables, Type::TEXT_ARRAY), (&columns, Type::TEXT_ARRAY)]).await?;
    let mut facts =
        Facts { encoding: String::new(), role: String::new(), types: Vec::with_capacity(rows.len()) };
    for row in &rows {
        (facts.encoding, facts.role) = (row.try_get(0)?, row.try_get(1)?);
        facts.types.push(SideType {
            sql: row.try_get(2)?,
            labels: row.try_get(3)?,
            generated: row.try_get(4)?,
        });
    }
    Ok(facts)
}

/// Those texts of ours that the authority reads as values of a type: a classified column's own values do not leave their
/// database, not even for the other side of the split. Each is tried by itself, which only types of the user need.
async fn made_up(authority: &Client, of: &str) -> Result<Vec<String>, tokio_postgres::Error> {
    let sql = format!("SELECT num_nulls({}) > 0", value_sql(of, "$1::text"));
    let mut found = Vec::new();
    for text in samples::any() {
        match authority.query_typed(&sql, &[(&text, Type::TEXT)]).await {
            Ok(_) => found.push(text.to_owned()),
            Err(error) if is_about_values(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Some values, as texts, of the columns whose types have no samples of ours, by the column's place among all; none of
/// classified columns. Further columns of a type have those of the others of their table.
async fn real_values(
    authority: &Client,
    tables: &[TableForm],
    side: Side,
) -> Result<BTreeMap<usize, Vec<String>>, tokio_postgres::Error> {
    let mut seen: BTreeMap<(usize, String), usize> = BTreeMap::new();
    let select = |(place, (table, column)): (usize, (usize, usize))| {
        let form = tables.get(table)?;
        let mapped = form
            .mapping
            .columns
            .get(column)
            .filter(|c| c.class.is_none() && samples::of(&c.cast_sql, false).is_none())?;
        let columns = seen.entry((table, mapped.cast_sql.clone())).or_default();
        *columns += 1;
        if *columns > COLUMNS_LOOKED_AT {
            return None;
        }
        let name = quote_ident(if side == Side::Source { &mapped.source } else { &mapped.target });
        Some(format!(
            "SELECT {place}::int8, ARRAY(SELECT DISTINCT {text} COLLATE \"C\" FROM (SELECT t.{name} AS v FROM {from} AS t \
             WHERE num_nulls(t.{name}) = 0 LIMIT {ROWS_LOOKED_AT}) AS s LIMIT {REAL_VALUES})",
            text = text_sql(&mapped.cast_sql, "s.v"),
            from = form.from(side)
        ))
    };
    let selects: Vec<String> = all_columns(tables).enumerate().filter_map(select).collect();
    if selects.is_empty() {
        return Ok(BTreeMap::new());
    }
    let rows = authority.query_typed(&selects.join(" UNION ALL "), &[]).await?;
    let mut values = BTreeMap::new();
    for row in &rows {
        values.insert(usize::try_from(row.try_get::<_, i64>(0)?).unwrap_or(usize::MAX), row.try_get(1)?);
    }
    Ok(values)
}

/// Which side's type the samples of a group are cast to.
type Cast = fn(&Group) -> &str;

/// Hashes the samples of all groups in one statement. When one of them can't be read, each group is tried alone.
async fn hash_all(
    client: &Client,
    groups: &[Group],
    asked: (Side, &str),
    cast: Cast,
) -> Result<Vec<Result<Hashes, String>>, tokio_postgres::Error> {
    let all: Vec<&Group> = groups.iter().collect();
    match hash(client, &all, cast).await {
        Ok(hashes) => return Ok(hashes.into_iter().map(Ok).collect()),
        Err(error) if is_about_values(&error) => {}
        Err(error) => return Err(error),
    }
    let mut found = Vec::with_capacity(groups.len());
    for group in groups {
        found.push(match hash(client, &[group], cast).await {
            Ok(hashes) => Ok(hashes.into_iter().flatten().collect()),
            Err(error) if is_about_values(&error) => Err(refused(&error, asked, cast(group))),
            Err(error) => return Err(error),
        });
    }
    Ok(found)
}

/// Which server refused, to whom, and what would help.
fn refused(error: &tokio_postgres::Error, (side, role): (Side, &str), of: &str) -> String {
    let words = format!("on the {}, as {role}: {}", Sides::word(side), sqlstate::words(error));
    let named = TableName::parse(of.trim_end_matches("[]"), "").ok().filter(|name| !name.schema.is_empty());
    match named {
        Some(name) if Failure::of(error) == Failure::Privilege => {
            format!(
                "{words}; run there: GRANT USAGE ON SCHEMA {} TO {};",
                quote_ident(&name.schema),
                quote_ident(role)
            )
        }
        _ => words,
    }
}

fn is_about_values(error: &tokio_postgres::Error) -> bool {
    matches!(Failure::of(error), Failure::Data | Failure::Shape | Failure::Constraint | Failure::Privilege)
}

async fn hash(client: &Client, groups: &[&Group], cast: Cast) -> Result<Vec<Hashes>, tokio_postgres::Error> {
    let mut found = vec![Vec::new(); groups.len()];
    let mut selects = Vec::new();
    let mut asked = Vec::new();
    for (index, group) in groups.iter().enumerate() {
        for form in std::iter::successors(Some(group.form), |form| form.weaker()) {
            let hashed = form.sql(&group.cast_sql, "t.v");
            // Rows are hashed as records, and column by column. Under one seed both are the same number, and would
            // cancel each other out.
            let hash = match direct_hash(form, &group.cast_sql) {
                Some(function) => {
                    format!("hash_record_extended(ROW({hashed}), 7) # coalesce({function}({hashed}, 11), 13)")
                }
                None => format!("hash_record_extended(ROW({hashed}), 7)"),
            };
            selects.push(format!(
                "SELECT {place}::int8, ARRAY(SELECT {hash} \
                 FROM (SELECT {value} AS v, s.n FROM unnest(${number}::text[]) WITH ORDINALITY AS s (text, n) \
                 OFFSET 0) AS t ORDER BY t.n)",
                place = asked.len(),
                value = value_sql(cast(group), "s.text"),
                number = index + 1,
            ));
            asked.push((index, form));
        }
    }
    if selects.is_empty() {
        return Ok(found);
    }
    let samples: Vec<&Vec<String>> = groups.iter().map(|group| &group.samples).collect();
    let parameters: Vec<(&(dyn ToSql + Sync), Type)> =
        samples.iter().map(|samples| (*samples as _, Type::TEXT_ARRAY)).collect();
    for row in client.query_typed(&selects.join(" UNION ALL "), &parameters).await? {
        let place = usize::try_from(row.try_get::<_, i64>(0)?).unwrap_or(usize::MAX);
        if let Some((index, form)) = asked.get(place)
            && let Some(group) = found.get_mut(*index)
        {
            group.push((*form, row.try_get(1)?));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_weakened_until_both_agree_and_no_further() {
        use ColumnForm::{Native, Text, Utf8};
        for (form, agreed, expected) in [
            (Native, vec![Native, Text, Utf8], Some(Native)),
            (Native, vec![Text, Utf8], Some(Text)),
            (Native, vec![Utf8], Some(Utf8)),
            (Text, vec![Native, Utf8], Some(Utf8)),
            (Native, vec![], None),
        ] {
            assert_eq!(settle(form, |form| agreed.contains(&form)), expected);
        }
    }

    #[test]
    fn hashes_that_differ_in_one_value_are_no_agreement() {
        let group = Group {
            cast_sql: "real".to_owned(),
            form: ColumnForm::Native,
            authority: "real".to_owned(),
            copy: "real".to_owned(),
            columns: vec![(0, 0)],
            samples: vec!["0".to_owned(), "1".to_owned()],
            classified: false,
        };
        let of = |native, text| {
            Ok(vec![
                (ColumnForm::Native, vec![1, native]),
                (ColumnForm::Text, vec![3, text]),
                (ColumnForm::Utf8, vec![]),
            ])
        };
        assert_eq!(verdict(&group, &of(2, 4), &of(2, 4)).0, Some(ColumnForm::Native));
        assert_eq!(verdict(&group, &of(2, 4), &of(9, 4)).0, Some(ColumnForm::Text));
        let (form, reason) = verdict(&group, &of(2, 4), &Err("no such type".to_owned()));
        assert_eq!(form, None);
        assert_eq!(reason, "values of type real are not read alike on both sides: no such type");
    }
}
