//! Which texts of a key are one to each side.
//!
//! A collation that is not deterministic calls texts equal that are written differently. Where the sides do not agree on which,
//! one row of this side is two of the other, or a row that is looked up by another's key is found: a comparison then calls right
//! rows wrong, and its repair takes them away. Deterministic collations all agree, whatever their order is.

mod locale;

use std::collections::{BTreeMap, BTreeSet};

use self::locale::canonical;
use super::TableMapping;
use super::adopted::Misfit;
use crate::name::{TableName, quote_ident, quote_literal};
use crate::problem::Problem;

/// What makes a collation that is not deterministic call texts equal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// `pg_collation.collprovider`, `i` for ICU, which alone has such collations.
    pub provider: String,
    /// Its locale, as the server has it.
    pub locale: String,
    /// Rules of the user's own, empty where there are none.
    pub rules: String,
}

impl Rule {
    /// Servers before 16 keep a locale as it was typed, later ones as a BCP 47 tag: both mean the same.
    fn same(&self) -> (&str, String, &str) {
        (&self.provider, canonical(&self.locale), &self.rules)
    }
}

/// Where a collation that is not deterministic tells values of a key column apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The column's own.
    Column,
    /// That of a unique index on the key, by its name as SQL.
    Index(String),
    /// Inside a type of the user's, by its name and attribute.
    Within(String),
}

/// A key column as one side has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyColumn {
    /// Its type with modifiers, as SQL.
    pub type_sql: String,
    /// Its type by name, where an extension brings it or somebody made it: such a type says for itself what is equal. Domains are what
    /// they are over.
    pub own_type: Option<String>,
    /// Name of its own collation, as SQL; absent where its type has none.
    pub collation_sql: Option<String>,
    /// The collations that are not deterministic, with their names as SQL.
    pub loose: BTreeMap<Place, (String, Rule)>,
}

/// What one side says of keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keys {
    /// The key columns, by table and name. What is not there is left out.
    pub columns: BTreeMap<(TableName, String), KeyColumn>,
    /// The collations of that database that are not deterministic, by their names as SQL.
    pub collations: BTreeMap<String, Rule>,
}

/// Key columns of a table by which the sides do not tell the same texts apart, with what to run in the service. `mapping` is that of the
/// way there, not reversed.
#[must_use]
pub fn apart(mapping: &TableMapping, monolith: &Keys, service: &Keys) -> Vec<Misfit> {
    let found = mapping.key_columns().filter_map(|column| {
        let there = monolith.columns.get(&(mapping.source.clone(), column.source.clone()))?;
        let here = service.columns.get(&(mapping.target.clone(), column.target.clone()))?;
        if there.own_type != here.own_type {
            return Some(other_type((mapping, &column.target), (there, here)));
        }
        let kind = Kind::ALL.into_iter().find(|kind| kind.rules(there) != kind.rules(here))?;
        let fact = format!(
            "key column {} of {} tells texts apart {} in the service, and {} on the monolith",
            column.target,
            mapping.target,
            kind.words(here),
            kind.words(there)
        );
        let next = kind.mend((mapping, &column.target), (there, here), service);
        Some(Misfit { fact, next })
    });
    found.collect()
}

fn other_type((mapping, name): (&TableMapping, &str), (there, here): (&KeyColumn, &KeyColumn)) -> Misfit {
    let (table, column) = (mapping.target.sql(), quote_ident(name));
    Misfit {
        fact: format!(
            "key column {name} of {} is of type {} in the service, and of {} on the monolith, which don't call the same values equal",
            mapping.target, here.type_sql, there.type_sql
        ),
        next: format!("ALTER TABLE {table} ALTER COLUMN {column} TYPE {}", there.type_sql),
    }
}

/// The same as a problem of the slice that goes to `service`.
#[must_use]
pub fn problem(service: &str, misfit: Misfit) -> Problem {
    Problem::error("key-collation", format!("service {service}"))
        .fact(misfit.fact)
        .consequence("a row that is meant may be another one there: the mirror stops, and nothing proves both sides equal")
        .next(format!("run in the service: {}", misfit.next))
}

/// The three kinds of [`Place`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Column,
    Index,
    Within,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Column, Self::Within, Self::Index];

    fn of(place: &Place) -> Self {
        match place {
            Place::Column => Self::Column,
            Place::Index(_) => Self::Index,
            Place::Within(_) => Self::Within,
        }
    }

    fn loose(self, column: &KeyColumn) -> impl Iterator<Item = (&Place, &(String, Rule))> {
        column.loose.iter().filter(move |(place, _)| Self::of(place) == self)
    }

    fn rules(self, column: &KeyColumn) -> BTreeSet<(&str, String, &str)> {
        self.loose(column).map(|(_, (_, rule))| rule.same()).collect()
    }

    fn words(self, column: &KeyColumn) -> String {
        let names: Vec<String> = self
            .loose(column)
            .map(|(place, (name, rule))| {
                let by = match place {
                    Place::Column => String::new(),
                    Place::Index(index) => format!("index {index} with "),
                    Place::Within(attribute) => format!("{attribute} with "),
                };
                format!("{by}{name}, which is not deterministic (locale {})", rule.locale)
            })
            .collect();
        if names.is_empty() { "byte by byte".to_owned() } else { format!("by {}", names.join(" and by ")) }
    }

    /// The service is brought in line: which texts are one to the application is the monolith's to say.
    fn mend(
        self,
        (mapping, name): (&TableMapping, &str),
        (there, here): (&KeyColumn, &KeyColumn),
        service: &Keys,
    ) -> String {
        let wanted = self.loose(there).next().map(|(_, loose)| loose);
        let (made, collation) = match wanted {
            Some((name, rule)) => in_service(name, rule, service),
            None => (String::new(), deterministic(there)),
        };
        let of_key = |of: &str| {
            if of == name { format!("{} COLLATE {collation}", quote_ident(of)) } else { quote_ident(of) }
        };
        let columns: Vec<String> = mapping.key_columns().map(|column| of_key(&column.target)).collect();
        match self {
            Self::Column => format!(
                "{made}ALTER TABLE {} ALTER COLUMN {} TYPE {} COLLATE {collation}",
                mapping.target.sql(),
                quote_ident(name),
                here.type_sql
            ),
            Self::Index => {
                let drops: Vec<String> = self
                    .loose(here)
                    .filter_map(|(place, _)| match place {
                        Place::Index(index) => Some(format!("; DROP INDEX {index}")),
                        Place::Column | Place::Within(_) => None,
                    })
                    .collect();
                format!(
                    "{made}CREATE UNIQUE INDEX ON {} ({}){}",
                    mapping.target.sql(),
                    columns.join(", "),
                    drops.concat()
                )
            }
            Self::Within => format!(
                "{made}make type {} anew there, with COLLATE {collation} for what it has of text",
                here.type_sql
            ),
        }
    }
}

/// A deterministic collation that every database has.
fn deterministic(there: &KeyColumn) -> String {
    let own = |name: &&String| ["pg_catalog.\"C\"", "pg_catalog.\"POSIX\""].contains(&name.as_str());
    there.collation_sql.as_ref().filter(own).cloned().unwrap_or_else(|| "pg_catalog.\"default\"".to_owned())
}

/// What makes such a collation in the service, if it has none, and its name.
fn in_service(name: &str, rule: &Rule, service: &Keys) -> (String, String) {
    if let Some((known, _)) = service.collations.iter().find(|(_, known)| known.same() == rule.same()) {
        return (String::new(), known.clone());
    }
    let mut name = name.to_owned();
    while service.collations.contains_key(&name) {
        name = match name.strip_suffix('"') {
            Some(quoted) => format!("{quoted}_monolith\""),
            None => format!("{name}_monolith"),
        };
    }
    let rules = match rule.rules.as_str() {
        "" => String::new(),
        rules => format!(", rules = {}", quote_literal(rules)),
    };
    let made = format!(
        "CREATE COLLATION {name} (provider = icu, locale = {}{rules}, deterministic = false); ",
        quote_literal(&canonical(&rule.locale))
    );
    (made, name)
}

#[cfg(test)]
mod tests {
    use tokio_postgres::types::Type;

    use super::*;
    use crate::mapping::compile;
    use crate::mapping::fixture::{catalog, column as plain, plan, table, table_rule};

    fn column(collation: &str, loose: &[(Place, &str)]) -> KeyColumn {
        let rule = |locale: &str| Rule { provider: "i".into(), locale: locale.into(), rules: String::new() };
        KeyColumn {
            type_sql: "text".into(),
            own_type: None,
            collation_sql: Some(collation.into()),
            loose: loose
                .iter()
                .map(|(place, locale)| (place.clone(), ("public.ci".into(), rule(locale))))
                .collect(),
        }
    }

    fn sides(there: KeyColumn, here: KeyColumn) -> Vec<Misfit> {
        let plan = plan(vec![("s", vec![table_rule("t")])]);
        let (mappings, _) = compile(&plan, &catalog(vec![table("t", vec![plain("k", &Type::TEXT)])]));
        let mapping = mappings["s"].tables[0].clone();
        let side = |table: &TableName, column: KeyColumn| Keys {
            collations: column.loose.values().cloned().collect(),
            columns: [((table.clone(), "k".to_owned()), column)].into(),
        };
        apart(&mapping, &side(&mapping.source, there), &side(&mapping.target, here))
    }

    #[test]
    fn deterministic_collations_agree_and_others_only_with_their_like() {
        let (en, c) = (|| column("pg_catalog.\"en-x-icu\"", &[]), || column("pg_catalog.\"C\"", &[]));
        let own = |locale| column("public.ci", &[(Place::Column, locale)]);
        assert_eq!(sides(en(), c()), []);
        assert_eq!(sides(own("und-u-ks-level2"), own("@colStrength=secondary")), []);
        for (there, here) in [
            (en(), own("und-u-ks-level2")),
            (own("und-u-ks-level2"), c()),
            (own("und-u-ks-level2"), own("und-u-ks-level1")),
        ] {
            assert_eq!(sides(there.clone(), here.clone()).len(), 1, "{there:?} {here:?}");
        }
    }

    #[test]
    fn the_service_is_told_to_tell_apart_what_the_monolith_does() {
        let own = |locale| column("public.ci", &[(Place::Column, locale)]);
        let next = |there, here| sides(there, here).remove(0).next;
        assert_eq!(
            next(column("public.de", &[]), own("und-u-ks-level2")),
            "ALTER TABLE \"public\".\"t\" ALTER COLUMN \"k\" TYPE text COLLATE pg_catalog.\"default\""
        );
        assert_eq!(
            next(own("und-u-ks-level2"), own("und-u-ks-level1")),
            "CREATE COLLATION public.ci_monolith (provider = icu, locale = 'und-u-ks-level2', deterministic = false); \
             ALTER TABLE \"public\".\"t\" ALTER COLUMN \"k\" TYPE text COLLATE public.ci_monolith"
        );
        let index = |locale| column("pg_catalog.\"C\"", &[(Place::Index("public.u".into()), locale)]);
        assert_eq!(
            next(column("pg_catalog.\"C\"", &[]), index("und-u-ks-level2")),
            "CREATE UNIQUE INDEX ON \"public\".\"t\" (\"k\" COLLATE pg_catalog.\"C\"); DROP INDEX public.u"
        );
    }

    #[test]
    fn a_type_that_says_for_itself_what_is_equal_is_on_both_sides_or_on_none() {
        let text = || column("pg_catalog.\"default\"", &[]);
        let citext = || KeyColumn { type_sql: "citext".into(), own_type: Some("citext".into()), ..text() };
        assert_eq!(sides(citext(), citext()), []);
        assert_eq!(
            sides(text(), citext()).remove(0).next,
            "ALTER TABLE \"public\".\"t\" ALTER COLUMN \"k\" TYPE text"
        );
        assert!(sides(citext(), text()).remove(0).next.ends_with("TYPE citext"));
    }
}
