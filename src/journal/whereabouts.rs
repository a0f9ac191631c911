//! Where a link leads, by what the database itself says: which one it is, and whose it was made by `provision`. Links
//! that were mixed up, and slices that are another plan's, are told before anything is read or written through them.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Client;

use super::{JournalError, migrate};
use crate::postgres::ask::Ask;
use crate::problem::{Problem, START_ANEW};

/// Code of a slice whose name another plan has provisioned; every verb says it.
const SLICE_TAKEN: &str = "slice-taken";
/// Code of a slice that is being taken back.
const ABANDONED: &str = "slice-abandoned";
/// Code of a database that a later version of this program has provisioned.
const NEWER: &str = "newer-tables";

/// What is wrong with a database that is not [itself](is_itself).
pub const CLONED: &str =
    "what is written in it was written in another database: it is a clone or a restored copy of that one";

/// One side of a slice, as `provision` entered it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Side {
    /// Slice.
    pub slice: String,
    /// Plan that it came from.
    pub plan: String,
    /// Service that it goes to.
    pub service: String,
    /// This database is the service's; else the monolith.
    pub of_service: bool,
}

/// What a database says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Whereabouts {
    /// Tells this database from any other that runs: see [`place`].
    pub place: String,
    /// Its name.
    pub database: String,
    /// The slices of which it holds a side; none where nothing was provisioned, or where the role may not look.
    pub sides: Vec<Side>,
    /// Slices whose stream into this database has begun, with the hash of the mapping that they were provisioned for.
    pub begun: BTreeMap<String, String>,
    /// A later version of this program has provisioned it.
    pub newer: bool,
    /// Slices that `abandon` has begun to take back; told by their service.
    pub abandoned: BTreeSet<String>,
}

/// [`place`], of `d` (`pg_database`).
const PLACE: &str = "extract(epoch FROM pg_postmaster_start_time())::text || '/' || d.oid::text";

/// Tells one running database from any other: start of its server and its oid. The system identifier would not do,
/// since servers may be copies of one template.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn place(client: &Client) -> Result<String, JournalError> {
    let sql = format!("SELECT {PLACE} FROM pg_database d WHERE d.datname = current_database()");
    let row = client.query_typed_one(&sql, &[]).await;
    Ok(row.map_err(JournalError::database("looking where a link leads"))?.get(0))
}

/// Whether this is the database that was provisioned, and no clone or restored copy of it: its cluster and its oid are those
/// that are written down in it (PostgreSQL documentation, section 9.28.3, `pg_control_system`).
///
/// # Errors
/// [`JournalError::Database`].
pub async fn is_itself(client: &impl Ask) -> Result<bool, JournalError> {
    let sql = "SELECT d.system_identifier = c.system_identifier::text AND d.database_oid = b.oid \
               FROM strangler.database d, pg_control_system() c, pg_database b WHERE b.datname = current_database()";
    let row =
        client.ask_one(sql, &[]).await.map_err(JournalError::database("reading a database's identity"))?;
    Ok(row.get(0))
}

/// Asks a database. Called with any of the plan's links.
///
/// # Errors
/// [`JournalError::Database`].
pub async fn read(client: &Client) -> Result<Whereabouts, JournalError> {
    let failed = || JournalError::database("looking where a link leads");
    // What the role may not read is not asked for: that would end the transaction that this may be in.
    let sql = format!(
        "SELECT {PLACE}, d.datname::text, ARRAY(SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname = 'strangler' AND c.relname IN ('slice', 'stream', 'schema_history', 'abandonment') \
               AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')) \
         FROM pg_database d WHERE d.datname = current_database()"
    );
    let row = client.query_typed_one(&sql, &[]).await.map_err(failed())?;
    let (place, database, open): (String, String, Vec<String>) = (row.get(0), row.get(1), row.get(2));
    let mut found = Whereabouts { place, database, ..Whereabouts::default() };
    let sql = parts(&open);
    if sql.is_empty() {
        return Ok(found);
    }
    for row in client.query_typed(&sql, &[]).await.map_err(failed())? {
        let (slice, plan, service): (String, String, String) = (row.get(1), row.get(2), row.get(3));
        match row.get(0) {
            IS_SIDE => found.sides.push(Side { slice, plan, service, of_service: row.get(4) }),
            IS_BEGUN => drop(found.begun.insert(slice, plan)),
            IS_ABANDONED => drop(found.abandoned.insert(slice)),
            _ => found.newer = row.get(4),
        }
    }
    found.sides.sort();
    Ok(found)
}

// Numbers of the parts of the statement below.
const IS_SIDE: i32 = 0;
const IS_BEGUN: i32 = 1;
const IS_ABANDONED: i32 = 2;
const IS_NEWER: i32 = 3;

/// One statement for all that stands in these of our tables; empty where that is nothing.
fn parts(open: &[String]) -> String {
    let sides = format!("SELECT {IS_SIDE}, slice, plan, service, side = 'service' FROM strangler.slice");
    let begun = format!(
        "SELECT {IS_BEGUN}, s.slice, s.plan_hash, '', false FROM strangler.slice s \
         WHERE EXISTS (SELECT FROM strangler.stream t WHERE t.slice = s.slice AND t.dir = 'forward')"
    );
    let abandoned = format!("SELECT {IS_ABANDONED}, slice, '', '', false FROM strangler.abandonment");
    // It may mean something else by what stands there.
    let newer = format!("SELECT {IS_NEWER}, '', '', '', {}", migrate::newer());
    let parts: [(&[&str], String); 4] = [
        (&["slice"], sides),
        (&["slice", "stream"], begun),
        (&["abandonment"], abandoned),
        (&["schema_history"], newer),
    ];
    let is_open = |table: &&str| open.iter().any(|one| one == table);
    let asked = parts.into_iter().filter(|(tables, _)| tables.iter().all(is_open));
    asked.map(|(_, sql)| sql).collect::<Vec<_>>().join(" UNION ALL ")
}

/// A slice with where the plan says that it goes.
#[derive(Debug, Clone, Copy)]
pub struct Route<'a> {
    /// Plan.
    pub plan: &'a str,
    /// Slice.
    pub slice: &'a str,
    /// Service.
    pub service: &'a str,
}

/// What a database says against the plan: it is another one than the plan means, or the slice in it is another plan's or another
/// service's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Astray {
    /// The monolith's link and a service's lead to the same database.
    Same {
        /// Service.
        service: String,
        /// Name of the database.
        database: String,
        /// Whose it is, where that is known: a service's by name, or `None` for the monolith's.
        owner: Option<Option<String>>,
    },
    /// The monolith's link leads to a service's database.
    MonolithAtService {
        /// The service whose database it is.
        service: String,
        /// Its name.
        database: String,
    },
    /// A service's link leads to the monolith.
    ServiceAtMonolith {
        /// The service.
        service: String,
        /// Name of the database.
        database: String,
    },
    /// A service's link leads to another service's database.
    ServiceAtOther {
        /// The service.
        service: String,
        /// The service whose database it is.
        other: String,
        /// Its name.
        database: String,
    },
    /// The slice of this name was provisioned from another plan, or for another service: its gate and its streams are that one's.
    Taken {
        /// Where, as an operator names it: `monolith` or `service orders`.
        database: String,
        /// What was provisioned there.
        side: Side,
    },
    /// `abandon` has begun to take the slice back, and has not ended.
    Abandoned {
        /// The slice.
        slice: String,
    },
    /// A later version of this program has provisioned the database.
    Newer {
        /// Where, as an operator names it.
        database: String,
    },
}

/// Whether a slice is being taken back, and no more is wrong with it.
#[must_use]
pub fn is_abandoned(found: &BTreeSet<Astray>) -> bool {
    !found.is_empty() && found.iter().all(|one| matches!(one, Astray::Abandoned { .. }))
}

/// What is wrong with the two links of a slice. A side that is not known, because its database did not answer, tells
/// nothing. Pure.
#[must_use]
pub fn astray(
    route: Route<'_>,
    monolith: Option<&Whereabouts>,
    service: Option<&Whereabouts>,
) -> BTreeSet<Astray> {
    let mut found = BTreeSet::new();
    let ours = |at: &Whereabouts| {
        at.sides.iter().filter(|side| side.plan == route.plan).cloned().collect::<Vec<_>>()
    };
    if let (Some(monolith), Some(there)) = (monolith, service)
        && monolith.place == there.place
    {
        let side = ours(there).into_iter().next();
        let owner = side.map(|side| side.of_service.then_some(side.service));
        let (service, database) = (route.service.to_owned(), there.database.clone());
        return [Astray::Same { service, database, owner }].into();
    }
    if let Some(at) = monolith
        && let Some(side) = ours(at).into_iter().find(|side| side.of_service)
    {
        found.insert(Astray::MonolithAtService { service: side.service, database: at.database.clone() });
    }
    if let Some(at) = service {
        let (service, database) = (route.service.to_owned(), at.database.clone());
        let sides = ours(at);
        let known = sides.iter().any(|side| side.of_service && side.slice == route.slice);
        let other = sides.iter().find(|side| side.of_service && side.service != route.service);
        if sides.iter().any(|side| !side.of_service) {
            found.insert(Astray::ServiceAtMonolith { service, database });
        } else if let Some(other) = other.filter(|_| !known) {
            found.insert(Astray::ServiceAtOther { service, other: other.service.clone(), database });
        }
    }
    let places = [(monolith, "monolith".to_owned()), (service, format!("service {}", route.service))];
    for (at, database) in places {
        let mut sides = at.iter().flat_map(|at| &at.sides);
        let other = |side: &&Side| side.plan != route.plan || side.service != route.service;
        if let Some(side) = sides.find(|side| side.slice == route.slice && other(side)) {
            found.insert(Astray::Taken { database: database.clone(), side: side.clone() });
        }
        if at.is_some_and(|at| at.abandoned.contains(route.slice)) {
            found.insert(Astray::Abandoned { slice: route.slice.to_owned() });
        }
        if at.is_some_and(|at| at.newer) {
            found.insert(Astray::Newer { database });
        }
    }
    found
}

/// What such problems come to, as a heading and the code of an error: of slices that are another plan's, the link is right.
#[must_use]
pub fn summary(problems: &[Problem]) -> (&'static str, &'static str) {
    if problems.iter().all(|problem| problem.code == NEWER) {
        ("a later version of strangler has provisioned the databases", NEWER)
    } else if problems.iter().all(|problem| problem.code == ABANDONED) {
        ("the slice is being abandoned", ABANDONED)
    } else if problems.iter().all(|problem| problem.code == SLICE_TAKEN) {
        ("the databases hold a slice of this name that is another plan's or another service's", SLICE_TAKEN)
    } else {
        ("links lead to other databases than the plan says", "links-astray")
    }
}

impl Astray {
    /// In words: object, fact, consequence, what to do.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let correct = |link: &str| {
            format!(
                "correct {link} in the plan, or the variable that holds it; are two links swapped? Then: \
                 strangler check PLAN"
            )
        };
        let of_service = |name: &str| format!("the link of service {name}");
        match self {
            Self::Same { service, database, owner } => {
                let (whose, wrong) = match owner {
                    None => (String::new(), of_service(service)),
                    Some(None) => (", which is the monolith".to_owned(), of_service(service)),
                    Some(Some(owner)) => {
                        (format!(", which is that of service {owner}"), "the link of the monolith".to_owned())
                    }
                };
                Problem::error("service-is-monolith", format!("service {service}"))
                    .fact(format!(
                        "its link and the monolith's both lead to the same database, {database}{whose}"
                    ))
                    .consequence("tables would be mirrored onto themselves")
                    .next(correct(&wrong) + "; another database of the same server is fine")
            }
            Self::MonolithAtService { service, database } => {
                Problem::error("monolith-is-service", "monolith")
                    .fact(format!("its link leads to {database}, which is the database of service {service}"))
                    .consequence("what is read there is a copy, and not what the application writes")
                    .next(correct("the link of the monolith"))
            }
            Self::ServiceAtMonolith { service, database } => {
                Problem::error("service-is-monolith", format!("service {service}"))
                    .fact(format!("its link leads to {database}, which is the monolith"))
                    .consequence("rows would be written into the monolith's own tables")
                    .next(correct(&of_service(service)))
            }
            Self::ServiceAtOther { service, other, database } => {
                Problem::error("other-service", format!("service {service}"))
                    .fact(format!("its link leads to {database}, which is the database of service {other}"))
                    .consequence("tables of two services would meet in one database")
                    .next(correct(&of_service(service)))
            }
            Self::Taken { database, side } => {
                Problem::error(SLICE_TAKEN, format!("slice {} on {database}", side.slice))
                    .fact(format!(
                        "it was provisioned by plan {} for service {} as the {} side",
                        side.plan,
                        side.service,
                        if side.of_service { "service" } else { "monolith" }
                    ))
                    .consequence("two slices would share one gate")
                    .next(format!(
                        "take the file of plan {} for that slice, with service {}; to have one of this plan, give it another name, or undo \
                         the other one first: {START_ANEW}",
                        side.plan, side.service
                    ))
            }
            Self::Abandoned { slice } => Problem::error(ABANDONED, format!("slice {slice}"))
                .fact("it is being taken back: strangler abandon has begun, and has not ended")
                .consequence("parts of it may be gone already, so no other verb touches it")
                .next(format!("strangler abandon PLAN --slice {slice}, which says what is left to do; then it may be provisioned anew")),
            Self::Newer { database } => Problem::error(NEWER, database)
                .fact("strangler's own tables there are of a later version than this program knows")
                .consequence("it could mistake what stands there")
                .next("use the strangler that provisioned it last, or a later one"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTE: Route<'_> = Route { plan: "retail", slice: "ordering", service: "orders" };

    fn at(place: &str, sides: &[(&str, &str, bool)]) -> Whereabouts {
        let side = |(slice, service, of_service): &(&str, &str, bool)| Side {
            slice: (*slice).into(),
            plan: "retail".into(),
            service: (*service).into(),
            of_service: *of_service,
        };
        Whereabouts {
            place: place.into(),
            database: format!("db{place}"),
            sides: sides.iter().map(side).collect(),
            begun: BTreeMap::new(),
            newer: false,
            abandoned: BTreeSet::new(),
        }
    }

    fn monolith() -> Whereabouts {
        at("1", &[("ordering", "orders", false), ("catalog", "products", false)])
    }

    fn orders() -> Whereabouts {
        at("2", &[("ordering", "orders", true)])
    }

    fn products() -> Whereabouts {
        at("3", &[("catalog", "products", true)])
    }

    fn codes(monolith: Option<&Whereabouts>, service: Option<&Whereabouts>) -> Vec<&'static str> {
        astray(ROUTE, monolith, service).iter().map(|one| one.problem().code).collect()
    }

    #[test]
    fn a_database_that_a_later_version_has_provisioned_is_named() {
        let newer = Whereabouts { newer: true, ..orders() };
        let problems: Vec<Problem> =
            astray(ROUTE, Some(&monolith()), Some(&newer)).iter().map(Astray::problem).collect();
        assert_eq!(problems.iter().map(|problem| problem.code).collect::<Vec<_>>(), [NEWER]);
        assert_eq!(summary(&problems).1, NEWER);
    }

    #[test]
    fn links_that_lead_where_they_should_or_nowhere_yet_are_no_fault() {
        for monolith in [None, Some(&at("1", &[])), Some(&monolith())] {
            for service in [None, Some(&at("2", &[])), Some(&orders())] {
                assert_eq!(codes(monolith, service), Vec::<&str>::new());
            }
        }
        let other_plan = Route { plan: "another", slice: "addresses", ..ROUTE };
        assert!(
            astray(other_plan, Some(&orders()), Some(&products())).is_empty(),
            "a service may be split itself"
        );
    }

    #[test]
    fn a_slice_of_another_plan_is_not_this_one_whatever_it_is_called() {
        let other_plan = Route { plan: "another", ..ROUTE };
        let found = astray(other_plan, Some(&monolith()), Some(&orders()));
        let problems: Vec<Problem> = found.iter().map(Astray::problem).collect();
        let objects: Vec<&str> = problems.iter().map(|problem| problem.object.as_str()).collect();
        assert_eq!(objects, ["slice ordering on monolith", "slice ordering on service orders"]);
        for problem in &problems {
            assert_eq!(problem.code, "slice-taken");
            assert!(problem.fact.contains("by plan retail"), "{}", problem.fact);
            assert!(problem.next.starts_with("take the file of plan retail"), "{}", problem.next);
        }
    }

    #[test]
    fn mixed_links_are_told_with_whose_database_they_lead_to() {
        assert_eq!(codes(Some(&monolith()), Some(&monolith())), ["service-is-monolith"]);
        assert_eq!(codes(Some(&at("9", &[])), Some(&at("9", &[]))), ["service-is-monolith"]);
        assert_eq!(codes(Some(&orders()), Some(&monolith())), ["monolith-is-service", "service-is-monolith"]);
        assert_eq!(codes(Some(&monolith()), Some(&products())), ["other-service"]);
        assert_eq!(codes(Some(&orders()), None), ["monolith-is-service"]);
        let both = astray(ROUTE, Some(&orders()), Some(&orders()));
        let problem = both.first().unwrap().problem();
        assert!(
            problem.fact.contains("both lead to the same database, db2, which is that of service orders")
        );
        assert!(problem.next.contains("the link of the monolith"), "{}", problem.next);
    }

    #[test]
    fn a_slice_that_was_provisioned_for_another_service_is_not_the_plans() {
        let there = at("2", &[("ordering", "inv", true)]);
        assert_eq!(codes(Some(&monolith()), Some(&there)), ["slice-taken"], "the link is right");
        let here = at("1", &[("ordering", "inv", false)]);
        assert_eq!(codes(Some(&here), Some(&at("2", &[]))), ["slice-taken"]);
        let problem = astray(ROUTE, Some(&here), None).first().unwrap().problem();
        assert!(
            problem.fact.contains("by plan retail for service inv as the monolith side"),
            "{}",
            problem.fact
        );
    }
}
