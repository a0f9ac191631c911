//! Verdicts that every form is tested with.

use std::time::Duration;

use crate::lsn::Lsn;
use crate::name::TableName;
use crate::reconcile::finding::{ColumnDiff, Finding, FindingKind, RawKey, Shown};
use crate::reconcile::verdict::{Counts, Coverage, Outcome, RefusedRow, Repaired, TableVerdict, Verdict};

/// Digest that stands for a classified value in the fixtures.
pub(super) const DIGEST: &str = "5e884898da280471";

pub(super) fn text(value: &str) -> Shown {
    Shown::Text(value.to_owned())
}

fn table(source: &str, target: TableName, outcome: Outcome, rows: u64) -> TableVerdict {
    TableVerdict {
        source_table: TableName::new("public", source),
        target_table: target,
        outcome,
        coverage: Coverage::Full,
        rows_authority: rows,
        rows_copy: rows,
        bytes: rows * 112,
        duration: Duration::from_micros(rows * 3 + 1_400),
        findings: Counts::new(),
        reasons: Vec::new(),
    }
}

fn verdict(slice: &str, service: &str, outcome: Outcome, tables: Vec<TableVerdict>) -> Verdict {
    Verdict {
        run: "0b0f6c1e-7a52-4f0e-9d52-6a2c6a1f7a11".to_owned(),
        plan: "retail".to_owned(),
        slice: slice.to_owned(),
        service: service.to_owned(),
        outcome,
        strict: false,
        every_table: true,
        plan_hash: "9f2c4be7".to_owned(),
        epoch: 3,
        authority: "monolith",
        lsn: Lsn(0x16_B374_D848),
        from_lsn: Lsn(0x16_B374_0000),
        started_at: "2026-11-29T08:00:00.000000Z".to_owned(),
        finished_at: "2026-11-29T08:00:04.215000Z".to_owned(),
        tables,
        listed: Vec::new(),
        reasons: Vec::new(),
        repairs: Vec::new(),
    }
}

/// Everything is equal.
pub(crate) fn clean() -> Verdict {
    let target = |name: &str| TableName::new("catalog", name);
    let tables = vec![
        table("Products", target("products"), Outcome::Clean, 52_311),
        table("Prices", target("prices"), Outcome::Clean, 1_204_118),
    ];
    verdict("catalog", "catalog", Outcome::Clean, tables)
}

/// Nothing that was looked at differs, and not everything was looked at.
pub(crate) fn sampled() -> Verdict {
    let mut verdict = clean();
    for table in &mut verdict.tables {
        table.coverage = Coverage::Sample { percent: 5.0 };
    }
    verdict
}

/// What the rows of a retired slice refer to, of which one table could not be looked at.
pub(crate) fn retired(outcome: Outcome) -> Verdict {
    let mut verdict = clean();
    for table in &mut verdict.tables {
        table.coverage = Coverage::References;
        table.outcome = outcome;
    }
    verdict.run = "not recorded".to_owned();
    verdict.outcome = outcome;
    verdict
}

/// A finding about `Orders`.
pub(super) fn finding(kind: FindingKind, id: &str, columns: &[(&str, Shown, Shown)]) -> Finding {
    let columns = columns.iter().map(|(column, authority, copy)| ColumnDiff {
        column: (*column).to_owned(),
        authority: authority.clone(),
        copy: copy.clone(),
    });
    Finding {
        slice: "ordering".to_owned(),
        source_table: TableName::new("public", "Orders"),
        target_table: TableName::new("sales", "orders"),
        kind,
        key: vec![("id".to_owned(), text(id))],
        columns: columns.collect(),
        detail: None,
        raw_key: RawKey(vec![id.to_owned()]),
    }
}

/// A finding of every kind, more than are listed, and a table that could not be compared to the end.
pub(crate) fn differs() -> Verdict {
    let target = |name: &str| TableName::new("sales", name);
    let mut orders = table("Orders", target("orders"), Outcome::Differs, 1_204_311);
    orders.rows_copy = 1_204_290;
    orders.findings = Counts::from([
        (FindingKind::Missing, 24),
        (FindingKind::Extra, 1),
        (FindingKind::Differs, 2),
        (FindingKind::Duplicate, 1),
        (FindingKind::Misplaced, 1),
    ]);
    let mut lines = table("Order.Lines", target("lines"), Outcome::Differs, 4_000_000);
    lines.findings = Counts::from([(FindingKind::Orphan, 1)]);
    lines.reasons = vec!["2 of 117 chunks hit the statement timeout of 5 s three times".to_owned()];
    let tables = vec![orders, lines, table("Carts", TableName::new("public", "Carts"), Outcome::Clean, 0)];
    let mut verdict = verdict("ordering", "orders", Outcome::Differs, tables);
    let digest = |hex: &str| Shown::Digest(hex.to_owned());
    let mut duplicate = finding(FindingKind::Duplicate, "77", &[]);
    duplicate.detail = Some("the copy has it 3 times".to_owned());
    let mut orphan = finding(FindingKind::Orphan, "9001", &[("product_id", text("812"), text("812"))]);
    orphan.source_table = TableName::new("public", "Order.Lines");
    orphan.target_table = target("lines");
    orphan.key.push(("line no".to_owned(), text("1 b")));
    orphan.detail = Some("catalog has no such row in Products".to_owned());
    let mut misplaced = finding(FindingKind::Misplaced, "5", &[]);
    misplaced.key = vec![("email".to_owned(), digest("03ac674216f3e15c"))];
    verdict.listed = vec![
        finding(FindingKind::Missing, "42", &[]),
        finding(FindingKind::Missing, "43", &[]),
        finding(FindingKind::Extra, "-1", &[]),
        finding(
            FindingKind::Differs,
            "7",
            &[
                ("status", text("open"), text("opened")),
                ("amount", text("12.50"), text("12.05")),
                ("note", Shown::Null, text("")),
                ("email", digest(DIGEST), digest("d74ff0ee8da3b980")),
            ],
        ),
        finding(FindingKind::Differs, "8", &[("payer", text("pay \n"), text("p\u{430}y"))]),
        duplicate,
        misplaced,
        orphan,
    ];
    verdict
}

/// The same after a repair, of which some rows were refused.
pub(super) fn repaired() -> Verdict {
    let mut verdict = differs();
    let reason = "duplicate key value violates unique constraint \"orders_email\" (SQLSTATE 23505)";
    let row = |column: &str, value: Shown| RefusedRow {
        key: vec![(column.to_owned(), value)],
        reason: reason.to_owned(),
    };
    let orders = Repaired {
        slice: verdict.slice.clone(),
        table: "Orders".to_owned(),
        asked: 29,
        done: 25,
        refused: [(reason.to_owned(), 4)].into(),
        refused_rows: vec![row("id", text("43")), row("email", Shown::Digest(DIGEST.to_owned()))],
        still: Counts::from([(FindingKind::Differs, 1)]),
        ..Repaired::default()
    };
    let lines = Repaired { table: "Lines".to_owned(), asked: 1, done: 1, ..orders.clone() };
    let lines = Repaired { refused: [].into(), refused_rows: Vec::new(), still: Counts::new(), ..lines };
    verdict.repairs = vec![orders, lines];
    verdict
}

/// No difference is proven, and nothing is proven.
pub(super) fn incomplete() -> Verdict {
    let target = |name: &str| TableName::new("people", name);
    let mut customers = table("Customers", target("customers"), Outcome::Incomplete, 18_000);
    customers.reasons = vec![
        "meanwhile the definition of table Customers changed on the monolith's side".to_owned(),
        "3 keys could not be locked within 50 ms".to_owned(),
    ];
    let tables = vec![customers, table("Addresses", target("addresses"), Outcome::Clean, 20_411)];
    let mut verdict = verdict("people", "people", Outcome::Incomplete, tables);
    verdict.strict = true;
    verdict.reasons = vec!["the mirror stopped before it had passed 16/B374D848".to_owned()];
    verdict
}

/// Text that tries to get out of wherever it is put.
pub(super) const NASTY: &str = "a</td><script>alert(1)</script> & \"q\" 'p' |pipe| `tick` ```\n```fence\n# h\t<!-- \
    ]]> \u{1b}[31mred\u{202e}\u{0}\u{7}\u{fffe} @someone [l](http://x) &amp; \\| 日本 🙂";

/// Such text everywhere where text comes from outside.
pub(super) fn nasty() -> Verdict {
    let mut orders = table(NASTY, TableName::new(NASTY, NASTY), Outcome::Differs, 3);
    orders.findings = Counts::from([(FindingKind::Differs, 1)]);
    orders.reasons = vec![NASTY.to_owned()];
    let mut found =
        finding(FindingKind::Differs, NASTY, &[("c", text(NASTY), text("x")), ("d", text("y"), text(NASTY))]);
    found.source_table = orders.source_table.clone();
    found.target_table = orders.target_table.clone();
    found.slice = NASTY.to_owned();
    found.key.push((NASTY.to_owned(), Shown::Null));
    found.columns.push(ColumnDiff {
        column: NASTY.to_owned(),
        authority: Shown::Digest(NASTY.to_owned()),
        copy: text(&NASTY.replace("alert", "alarm")),
    });
    found.detail = Some(NASTY.to_owned());
    let mut verdict = verdict(NASTY, NASTY, Outcome::Differs, vec![orders]);
    for field in [&mut verdict.run, &mut verdict.plan, &mut verdict.plan_hash, &mut verdict.started_at] {
        NASTY.clone_into(field);
    }
    verdict.reasons = vec![NASTY.to_owned()];
    verdict.repairs = vec![Repaired {
        slice: NASTY.to_owned(),
        table: NASTY.to_owned(),
        asked: 1,
        refused: [(NASTY.to_owned(), 1)].into(),
        refused_rows: vec![RefusedRow { key: found.key.clone(), reason: NASTY.to_owned() }],
        ..Repaired::default()
    }];
    verdict.listed = vec![found];
    verdict
}

/// As many findings as a report may have to carry.
pub(super) fn huge(count: usize) -> Verdict {
    let mut verdict = differs();
    let found = |at: usize| {
        let id = at.to_string();
        let note = "lorem ipsum dolor sit amet ".repeat(6);
        finding(
            FindingKind::Differs,
            &id,
            &[("note", text(&format!("{note}{at}")), text(&format!("{note}{}", at + 1)))],
        )
    };
    verdict.listed = (0..count).map(found).collect();
    if let Some(orders) = verdict.tables.first_mut() {
        orders.findings = Counts::from([(FindingKind::Differs, count as u64 + 7)]);
    }
    verdict
}

/// A slice of which nothing could be read.
pub(super) fn unreached() -> Verdict {
    let mut verdict = verdict("billing", "billing", Outcome::Incomplete, Vec::new());
    verdict.reasons = vec!["the service billing could not be reached: connection refused".to_owned()];
    verdict.finished_at = String::new();
    verdict.lsn = Lsn::ZERO;
    verdict
}
