//! What a type of the user's is made of, and whether a value means the same in both databases' types. The stream carries
//! a composite value by the places of its attributes, not by their names, so a type whose attributes have other places
//! takes every value and mixes it up.

use super::adopted::Misfit;
use crate::name::{quote_ident, quote_literal};

/// A type down to PostgreSQL's own. Domains stand for what they are over, because their values are written alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TypeTree {
    /// One that is not looked into, by its name with modifier.
    Plain(String),
    /// An enum.
    Enum {
        /// Name as SQL.
        name: String,
        /// Labels in their order.
        labels: Vec<String>,
    },
    /// A composite type.
    Composite {
        /// Name as SQL.
        name: String,
        /// Attributes in their order.
        attributes: Vec<Attribute>,
    },
    /// An array.
    Array(Box<TypeTree>),
    /// A range or multirange.
    Range(Box<TypeTree>),
}

/// An attribute of a composite type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribute {
    /// Exact name.
    pub name: String,
    /// Type as SQL, with its modifier.
    pub type_sql: String,
    /// What the type is made of.
    pub of: TypeTree,
}

/// Why values of the monolith's type would mean something else in the service's, with the statement that brings the
/// service's type in line. Labels that only one side has are no such thing: a value with one is refused, not mistaken.
#[must_use]
pub fn apart(monolith: &TypeTree, service: &TypeTree) -> Option<Misfit> {
    match (monolith, service) {
        (TypeTree::Array(monolith), TypeTree::Array(service))
        | (TypeTree::Range(monolith), TypeTree::Range(service)) => apart(monolith, service),
        (TypeTree::Enum { labels, .. }, TypeTree::Enum { name, labels: present }) => {
            renamed(name, labels, present)
        }
        (TypeTree::Composite { attributes, .. }, TypeTree::Composite { name, attributes: present }) => {
            let pairs = attributes.iter().zip(present);
            pairs
                .clone()
                .filter(|(wanted, present)| alike(wanted, present))
                .find_map(|(wanted, present)| apart(&wanted.of, &present.of))
                .or_else(|| other_attributes(name, attributes, present))
        }
        // Both catalogs' columns were compared when the table was made; what fits there may have another name.
        (TypeTree::Plain(_), TypeTree::Plain(_)) => None,
        (monolith, service) => Some(Misfit {
            fact: format!("the service's type is {}, and the monolith's {}", kind(service), kind(monolith)),
            next: format!("ALTER TABLE … ALTER COLUMN … TYPE {}", type_sql(monolith)),
        }),
    }
}

/// The labels that an enum of the service lacks, at any depth, with the statements that add them where the monolith has them.
/// A value with one of them is refused there.
#[must_use]
pub fn lacking_labels(monolith: &TypeTree, service: &TypeTree) -> Option<Misfit> {
    match (monolith, service) {
        (TypeTree::Array(monolith), TypeTree::Array(service))
        | (TypeTree::Range(monolith), TypeTree::Range(service)) => lacking_labels(monolith, service),
        (TypeTree::Composite { attributes, .. }, TypeTree::Composite { attributes: present, .. }) => {
            attributes
                .iter()
                .zip(present)
                .find_map(|(wanted, present)| lacking_labels(&wanted.of, &present.of))
        }
        (TypeTree::Enum { labels, .. }, TypeTree::Enum { name, labels: present }) => {
            let (mut lacking, mut statements) = (Vec::new(), Vec::new());
            for (at, label) in labels.iter().enumerate().filter(|(_, label)| !present.contains(label)) {
                let before = at.checked_sub(1).and_then(|at| labels.get(at));
                let place = match (before, present.first()) {
                    (Some(before), _) => format!(" AFTER {}", quote_literal(before)),
                    (None, Some(first)) => format!(" BEFORE {}", quote_literal(first)),
                    (None, None) => String::new(),
                };
                lacking.push(quote_literal(label));
                statements.push(format!("ALTER TYPE {name} ADD VALUE {}{place}", quote_literal(label)));
            }
            let fact = format!("the enum {name} lacks the labels {}", lacking.join(", "));
            (!lacking.is_empty()).then(|| Misfit { fact, next: statements.join("; ") })
        }
        _ => None,
    }
}

/// A label stands where the monolith has another one that the service lacks: it got another name there.
fn renamed(name: &str, wanted: &[String], present: &[String]) -> Option<Misfit> {
    let pairs = wanted.iter().zip(present);
    let changed: Vec<(&String, &String)> =
        pairs.filter(|(new, old)| !present.contains(new) && !wanted.contains(old)).collect();
    if changed.is_empty() {
        return None;
    }
    let words = |(new, old): &(&String, &String)| format!("{old} in the service and {new} on the monolith");
    let statement = |(new, old): &(&String, &String)| {
        format!("ALTER TYPE {name} RENAME VALUE {} TO {};", quote_literal(old), quote_literal(new))
    };
    Some(Misfit {
        fact: format!(
            "a label of the enum {name} is {}",
            changed.iter().map(words).collect::<Vec<_>>().join(", and another ")
        ),
        next: changed.iter().map(statement).collect::<Vec<_>>().join(" "),
    })
}

fn other_attributes(name: &str, wanted: &[Attribute], present: &[Attribute]) -> Option<Misfit> {
    let same =
        |(wanted, present): (&Attribute, &Attribute)| wanted.name == present.name && alike(wanted, present);
    if wanted.len() == present.len() && wanted.iter().zip(present).all(same) {
        return None;
    }
    let only_names = wanted.len() == present.len()
        && wanted.iter().zip(present).all(|(wanted, present)| alike(wanted, present));
    let kept = wanted.iter().zip(present).take_while(|pair| same(*pair)).count();
    Some(Misfit {
        fact: format!(
            "the attributes of the service's type {name} are {}, and the monolith's are {}",
            list(present),
            list(wanted)
        ),
        next: if only_names { rename(name, wanted, present) } else { replace(name, kept, wanted, present) },
    })
}

/// A type of the user's may have another name in the service; what it is made of was compared before.
fn alike(wanted: &Attribute, present: &Attribute) -> bool {
    match (&wanted.of, &present.of) {
        (TypeTree::Plain(wanted), TypeTree::Plain(present)) => wanted == present,
        (wanted, present) => std::mem::discriminant(wanted) == std::mem::discriminant(present),
    }
}

/// Attributes that only have other names keep their values. Those that swap names need others in between.
fn rename(name: &str, wanted: &[Attribute], present: &[Attribute]) -> String {
    let changed: Vec<(&str, &str)> = wanted
        .iter()
        .zip(present)
        .filter(|(wanted, present)| wanted.name != present.name)
        .map(|(wanted, present)| (present.name.as_str(), wanted.name.as_str()))
        .collect();
    let taken = |new: &str| present.iter().any(|attribute| attribute.name == new);
    let statement = |old: &str, new: &str| {
        format!("ALTER TYPE {name} RENAME ATTRIBUTE {} TO {};", quote_ident(old), quote_ident(new))
    };
    if !changed.iter().any(|(_, new)| taken(new)) {
        return changed.iter().map(|(old, new)| statement(old, new)).collect::<Vec<_>>().join(" ");
    }
    let between = |number: usize| format!("strangler_{number}");
    let away = changed.iter().enumerate().map(|(number, (old, _))| statement(old, &between(number)));
    let there = changed.iter().enumerate().map(|(number, (_, new))| statement(&between(number), new));
    away.chain(there).collect::<Vec<_>>().join(" ")
}

/// Values of attributes that go are lost in the service, so its tables have to be copied again.
fn replace(name: &str, kept: usize, wanted: &[Attribute], present: &[Attribute]) -> String {
    let dropped = present.iter().skip(kept).map(|one| format!("DROP ATTRIBUTE {}", quote_ident(&one.name)));
    let added = wanted
        .iter()
        .skip(kept)
        .map(|one| format!("ADD ATTRIBUTE {} {}", quote_ident(&one.name), one.type_sql));
    format!("ALTER TYPE {name} {};", dropped.chain(added).collect::<Vec<_>>().join(", "))
}

fn list(attributes: &[Attribute]) -> String {
    let each = |one: &Attribute| format!("{} {}", one.name, one.type_sql);
    format!("({})", attributes.iter().map(each).collect::<Vec<_>>().join(", "))
}

fn type_sql(of: &TypeTree) -> String {
    match of {
        TypeTree::Plain(name) | TypeTree::Enum { name, .. } | TypeTree::Composite { name, .. } => {
            name.clone()
        }
        TypeTree::Array(of) => format!("{}[]", type_sql(of)),
        TypeTree::Range(_) => "…".to_owned(),
    }
}

fn kind(of: &TypeTree) -> String {
    match of {
        TypeTree::Plain(name) => name.clone(),
        TypeTree::Enum { name, .. } => format!("the enum {name}"),
        TypeTree::Composite { name, .. } => format!("the composite {name}"),
        TypeTree::Array(of) => format!("an array of {}", kind(of)),
        TypeTree::Range(of) => format!("a range of {}", kind(of)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn composite(attributes: &[(&str, &str)]) -> TypeTree {
        let attribute = |(name, of): &(&str, &str)| Attribute {
            name: (*name).to_owned(),
            type_sql: (*of).to_owned(),
            of: TypeTree::Plain((*of).to_owned()),
        };
        TypeTree::Composite {
            name: "public.full".to_owned(),
            attributes: attributes.iter().map(attribute).collect(),
        }
    }

    fn mood(labels: &[&str]) -> TypeTree {
        TypeTree::Enum {
            name: "public.mood".to_owned(),
            labels: labels.iter().map(|&label| label.to_owned()).collect(),
        }
    }

    fn next(monolith: &TypeTree, service: &TypeTree) -> String {
        apart(monolith, service).map(|misfit| misfit.next).unwrap_or_default()
    }

    #[test]
    fn attributes_have_the_same_names_types_and_places_or_the_statement_that_gives_them_is_said() {
        let service = composite(&[("first", "text"), ("last", "text")]);
        assert_eq!(next(&service.clone(), &service), "");
        let added = composite(&[("first", "text"), ("last", "text"), ("nick", "text")]);
        assert_eq!(next(&added, &service), "ALTER TYPE public.full ADD ATTRIBUTE \"nick\" text;");
        let retyped = composite(&[("first", "text"), ("last", "integer")]);
        assert_eq!(
            next(&retyped, &service),
            "ALTER TYPE public.full DROP ATTRIBUTE \"last\", ADD ATTRIBUTE \"last\" integer;"
        );
        let mut other_kind = composite(&[("first", "text"), ("last", "public.mood")]);
        if let TypeTree::Composite { attributes, .. } = &mut other_kind {
            attributes[1].of = mood(&["ok"]);
        }
        assert_eq!(
            next(&other_kind, &service),
            "ALTER TYPE public.full DROP ATTRIBUTE \"last\", ADD ATTRIBUTE \"last\" public.mood;"
        );
        let renamed = composite(&[("given", "text"), ("last", "text")]);
        assert_eq!(
            next(&renamed, &service),
            "ALTER TYPE public.full RENAME ATTRIBUTE \"first\" TO \"given\";"
        );
        let swapped = composite(&[("last", "text"), ("first", "text")]);
        assert_eq!(next(&swapped, &service).matches("RENAME ATTRIBUTE").count(), 4, "through other names");
    }

    #[test]
    fn a_label_with_another_name_is_told_and_labels_of_one_side_are_not() {
        assert_eq!(
            next(&mood(&["fine", "sad"]), &mood(&["ok", "sad"])),
            "ALTER TYPE public.mood RENAME VALUE 'ok' TO 'fine';"
        );
        assert_eq!(next(&mood(&["ok", "sad", "new"]), &mood(&["ok", "sad"])), "");
        assert_eq!(next(&mood(&["ok", "sad"]), &mood(&["ok", "sad", "more"])), "");
        let of = |labels: &[&str]| TypeTree::Array(Box::new(mood(labels)));
        let lacking = lacking_labels(&of(&["a", "ok", "b"]), &of(&["ok", "more"])).unwrap();
        assert_eq!(
            lacking.next,
            "ALTER TYPE public.mood ADD VALUE 'a' BEFORE 'ok'; ALTER TYPE public.mood ADD VALUE 'b' AFTER 'ok'"
        );
        assert_eq!(lacking_labels(&mood(&["ok"]), &mood(&["ok", "more"])), None);
    }

    #[test]
    fn types_are_compared_at_every_depth() {
        let deep = |labels: &[&str]| {
            let attribute =
                Attribute { name: "m".to_owned(), type_sql: "public.mood".to_owned(), of: mood(labels) };
            let composite = TypeTree::Composite { name: "public.c".to_owned(), attributes: vec![attribute] };
            TypeTree::Array(Box::new(TypeTree::Range(Box::new(composite))))
        };
        assert_eq!(apart(&deep(&["ok"]), &deep(&["ok"])), None);
        assert!(next(&deep(&["fine"]), &deep(&["ok"])).contains("RENAME VALUE 'ok' TO 'fine'"));
        assert!(apart(&deep(&["ok"]), &mood(&["ok"])).is_some(), "another kind");
    }
}
