use super::*;

const DAY: Duration = Duration::from_secs(86_400);

fn ground() -> Ground {
    let table = || TableGround {
        copy: 1,
        state: "live".to_owned(),
        unheard: false,
        target_shape: "t".to_owned(),
        source_shape: Some("s".to_owned()),
    };
    Ground {
        plan_hash: "hash".to_owned(),
        epoch: 3,
        slot: Some("strangler_retail_ordering_abcdef".to_owned()),
        stream: Some("running".to_owned()),
        disturbances: 0,
        way_back: None,
        copy: Some("service".to_owned()),
        tables: [("Orders".to_owned(), table()), ("OrderLines".to_owned(), table())].into(),
    }
}

fn changed(change: impl FnOnce(&mut Ground)) -> Ground {
    let mut ground = ground();
    change(&mut ground);
    ground
}

fn orders(change: impl FnOnce(&mut TableGround)) -> Ground {
    changed(|ground| change(ground.tables.get_mut("Orders").unwrap()))
}

fn verdict(entry: i64, outcome: Outcome, full: bool) -> LastVerdict {
    LastVerdict {
        entry,
        run: "run".to_owned(),
        outcome,
        full,
        strict: false,
        authority: "monolith".to_owned(),
        at: "2026-01-01T00:00:00Z".to_owned(),
        age: Duration::from_secs(60),
        begun_ago: Duration::from_secs(120),
        epoch: 3,
        lsn: Lsn(1000),
        from_lsn: Lsn(900),
        plan_hash: "hash".to_owned(),
        counts: Counts::new(),
        compared: 2,
        coverage: vec![Coverage::Full],
        differing: Vec::new(),
        ground: ground(),
    }
}

fn evidence(last: LastVerdict, last_full: Option<LastVerdict>) -> Evidence {
    Evidence { last: Some(last), last_full, ..Evidence::default() }
}

fn clean() -> Evidence {
    evidence(verdict(1, Outcome::Clean, true), Some(verdict(1, Outcome::Clean, true)))
}

#[test]
fn unmoved_ground_voids_nothing_and_each_move_is_named() {
    assert_eq!(voids(&ground(), Some(&ground())), []);
    assert_eq!(voids(&ground(), None), [Void::NotProvisioned]);
    let table = || "Orders".to_owned();
    let moves = [
        (changed(|now| now.plan_hash = "other".to_owned()), Void::Mapping),
        (changed(|now| now.epoch = 4), Void::Epoch { then: 3, now: 4 }),
        (changed(|now| now.slot = Some("other".to_owned())), Void::StreamAnew),
        (changed(|now| now.stream = Some("gap".to_owned())), Void::Stream { state: "gap".to_owned() }),
        (changed(|now| now.disturbances = 1), Void::Disturbed),
        (changed(|now| now.stream = None), Void::Stream { state: "never started".to_owned() }),
        (orders(|now| now.copy = 2), Void::Copied { table: table() }),
        (
            orders(|now| (now.copy, now.state) = (2, "copying".to_owned())),
            Void::NotLive { table: table(), state: "copying".to_owned() },
        ),
        (
            orders(|now| now.state = "diverged".to_owned()),
            Void::NotLive { table: table(), state: "diverged".to_owned() },
        ),
        (orders(|now| now.target_shape = "t2".to_owned()), Void::Changed { table: table(), side: "service" }),
        (
            orders(|now| now.source_shape = Some("s2".to_owned())),
            Void::Changed { table: table(), side: "monolith" },
        ),
        (changed(|now| drop(now.tables.remove("Orders"))), Void::Tables { table: table() }),
    ];
    for (now, void) in moves {
        assert_eq!(voids(&ground(), Some(&now)), [void]);
    }
    let unwatched = changed(|then| then.stream = Some("creating".to_owned()));
    let void = Void::Unwatched { state: "creating".to_owned() };
    assert_eq!(
        voids(&unwatched, Some(&ground())),
        [void],
        "a slot may have been made behind what was compared"
    );
    let more = changed(|now| drop(now.tables.insert("New".to_owned(), now.tables["Orders"].clone())));
    assert_eq!(voids(&ground(), Some(&more)), [Void::Tables { table: "New".to_owned() }]);
}

#[test]
fn other_files_void_what_was_proven_of_a_copy_and_nothing_of_the_authority() {
    let of = |copy: Option<&str>, service: &str, monolith: &str| {
        changed(|ground| {
            ground.copy = copy.map(str::to_owned);
            let orders = ground.tables.get_mut("Orders").unwrap();
            orders.target_shape = format!("t described=1 {service}");
            orders.source_shape = Some(format!("s described=1 {monolith}"));
        })
    };
    let files = |side| Void::Files { table: "Orders".to_owned(), side };
    let then = of(Some("service"), "files=1", "files=1");
    assert_eq!(voids(&then, Some(&of(Some("service"), "files=1", "files=2"))), [], "of the authority");
    let emptied = of(Some("service"), "files=2", "files=1");
    assert_eq!(voids(&then, Some(&emptied)), [files("service")], "a crash");
    let mirrored = of(Some("service"), "files=2 emptied=2", "files=2");
    assert_eq!(voids(&then, Some(&mirrored)), [], "the mirror's own TRUNCATE");
    let moved = of(Some("monolith"), "files=1", "files=1");
    assert_eq!(voids(&moved, Some(&of(Some("monolith"), "files=2", "files=1"))), []);
    assert_eq!(voids(&moved, Some(&of(Some("monolith"), "files=1", "files=2"))), [files("monolith")]);
    let unknown = of(None, "files=1", "files=1");
    assert_eq!(
        voids(&unknown, Some(&of(None, "files=1", "files=2"))),
        [files("monolith")],
        "which is the copy"
    );
}

#[test]
fn what_was_no_ground_then_is_none_now() {
    let copying = orders(|then| then.state = "copying".to_owned());
    assert_eq!(voids(&copying, Some(&ground())), [Void::Copied { table: "Orders".to_owned() }]);
    let absent = orders(|then| then.source_shape = Some(ABSENT.to_owned()));
    let gone = [Void::Changed { table: "Orders".to_owned(), side: "monolith" }];
    assert_eq!(voids(&absent, Some(&absent)), gone, "a table that was never there proves nothing");
    let unasked = orders(|then| then.source_shape = None);
    assert_eq!(voids(&unasked, Some(&ground())), gone);
    assert_eq!(voids(&ground(), Some(&unasked)), [], "a monolith that is away is said elsewhere");
}

#[test]
fn only_a_fresh_clean_full_verdict_that_stands_is_a_proof() {
    let now = ground();
    assert_eq!(clean().lacks(Some(&now), DAY), []);
    assert_eq!(Evidence::default().lacks(Some(&now), DAY), [Lack::NoVerdict]);
    let part = evidence(verdict(1, Outcome::Clean, false), None);
    assert_eq!(part.lacks(Some(&now), DAY), [Lack::NoFullVerdict]);
    for (outcome, lack) in [(Outcome::Differs, Lack::Differs), (Outcome::Incomplete, Lack::Incomplete)] {
        let full = verdict(1, outcome, true);
        let later = evidence(verdict(2, Outcome::Clean, false), Some(full));
        assert_eq!(later.lacks(Some(&now), DAY), [lack], "a clean part does not make up for it");
    }
    let since = Evidence { differs_since: true, ..clean() };
    assert_eq!(since.lacks(Some(&now), DAY), [Lack::DiffersSince]);
    let moved = changed(|now| now.epoch = 4);
    assert_eq!(clean().lacks(Some(&moved), DAY), [Lack::Void(Void::Epoch { then: 3, now: 4 })]);
    let begun_ago = Duration::from_secs(120);
    assert_eq!(clean().lacks(Some(&now), begun_ago), []);
    let max_age = Duration::from_secs(119);
    assert_eq!(clean().lacks(Some(&now), max_age), [Lack::Old { begun_ago, max_age }]);
}

#[test]
fn what_is_missing_is_said_in_words() {
    let words = |lack: Lack| lack.to_string();
    let void = Void::Copied { table: "Orders".to_owned() };
    assert_eq!(words(Lack::Void(void)), "the last full verdict is void: table Orders was copied again");
    let old = Lack::Old { begun_ago: DAY + Duration::from_secs(1_900), max_age: DAY };
    assert_eq!(words(old), "the last full comparison began 1 d 31 min ago, and evidence_max_age is 1 d");
    let shown = [0, 59, 60, 3_700, 90_000].map(|seconds| period(Duration::from_secs(seconds)));
    assert_eq!(shown, ["0 min", "0 min", "1 min", "1 h 1 min", "1 d 1 h"]);
}

#[test]
fn differences_are_only_orphans_where_no_verdict_that_counts_found_a_row() {
    let of = |counts: &[(FindingKind, u64)]| {
        let found =
            LastVerdict { counts: counts.iter().copied().collect(), ..verdict(7, Outcome::Differs, true) };
        evidence(found.clone(), Some(found))
    };
    let orphans = of(&[(FindingKind::Orphan, 3), (FindingKind::Differs, 0)]);
    assert_eq!(orphans.only_orphans(), Some(3));
    assert_eq!(of(&[(FindingKind::Orphan, 3), (FindingKind::Missing, 1)]).only_orphans(), None);
    let since = Evidence { differs_since: true, rows_differ_since: true, ..orphans };
    assert_eq!(since.only_orphans(), None);
    assert_eq!(clean().only_orphans(), None);
}
