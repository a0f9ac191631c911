//! What holds for every form alike.

use super::{fixture, html, json, junit, markdown, text};
use crate::ink::Paint;
use crate::reconcile::finding::{FindingKind, Shown};
use crate::reconcile::verdict::{Outcome, Verdict};

/// Every form by its name.
fn forms(verdicts: &[Verdict]) -> [(&'static str, String); 6] {
    [
        ("text", text::page(verdicts, Paint::Plain)),
        ("coloured text", text::page(verdicts, Paint::Colour)),
        ("json", json::page(verdicts)),
        ("junit", junit::page(verdicts)),
        ("markdown", markdown::page(verdicts)),
        ("html", html::page(verdicts)),
    ]
}

#[test]
fn classified_values_are_digests_in_every_form() {
    for (form, page) in forms(&[fixture::differs()]) {
        for digest in [fixture::DIGEST, "d74ff0ee8da3b980", "03ac674216f3e15c"] {
            assert!(page.contains(digest), "{form} does not show {digest}");
        }
    }
}

#[test]
fn no_form_shows_a_key_as_it_is_asked_for_again() {
    let mut verdict = fixture::differs();
    for finding in &mut verdict.listed {
        finding.raw_key.0 = vec!["SECRET".to_owned()];
        finding.key = vec![("email".to_owned(), Shown::Digest("03ac674216f3e15c".to_owned()))];
    }
    for (form, page) in forms(&[verdict]) {
        assert!(!page.contains("SECRET") && page.contains("03ac674216f3e15c"), "{form}");
    }
}

#[test]
fn every_form_names_rows_whose_repair_was_refused_with_the_reason_and_counts_the_rest() {
    for (form, page) in forms(&[fixture::repaired()]) {
        let quoted = page.replace("\\\"", "\"").replace("&quot;", "\"");
        let words = ["Orders", "43", fixture::DIGEST, "unique constraint \"orders_email\" (SQLSTATE 23505)"];
        for word in words {
            assert!(quoted.contains(word), "{form} does not say {word}");
        }
        assert!(
            form == "json" && quoted.contains("\"rows\": 4") || quoted.contains("2 more refused"),
            "{form}"
        );
    }
}

#[test]
fn every_form_says_the_outcome_of_everything() {
    for verdict in [fixture::clean(), fixture::differs(), fixture::incomplete(), fixture::unreached()] {
        let word = verdict.outcome.as_str();
        for (form, page) in forms(&[verdict]) {
            assert!(page.contains(word), "{form} does not say {word}");
        }
    }
    for (form, page) in forms(&[]) {
        assert!(page.contains(Outcome::Incomplete.as_str()), "{form}");
    }
}

#[test]
fn every_form_names_every_kind_table_reason_and_where_it_comes_from() {
    let mut verdict = fixture::differs();
    verdict.reasons.push("the mirror stopped".to_owned());
    let origin = [&verdict.run, &verdict.plan_hash, &verdict.lsn.to_string()].map(String::clone);
    let tables = ["sales.orders", "sales.lines", "Carts"].map(str::to_owned);
    let reasons = ["the mirror stopped", "hit the statement timeout"].map(str::to_owned);
    let kinds = FindingKind::ALL.map(|kind| kind.as_str().to_owned());
    for (form, page) in forms(&[verdict]) {
        for word in origin.iter().chain(&tables).chain(&reasons).chain(&kinds) {
            assert!(page.contains(word), "{form} does not say {word}");
        }
    }
}

#[test]
fn a_part_is_never_shown_as_proof_for_the_whole() {
    for (form, page) in forms(&[fixture::sampled()]) {
        assert!(!page.contains("both sides are equal") && !page.contains("Both sides are equal"), "{form}");
        let said = page.contains("a sample of 5 %") || page.contains("\"percent\": 5.0");
        assert!(said, "{form} does not say that it is a sample");
    }
}

#[test]
fn references_of_a_retired_slice_are_never_shown_as_proof_and_every_form_says_why_they_could_not_be_looked_at()
 {
    for (form, page) in forms(&[fixture::retired(Outcome::Clean)]) {
        assert!(!page.contains("both sides are equal") && !page.contains("Both sides are equal"), "{form}");
        let said = page.contains("the slice is retired") || page.contains("\"kind\": \"references\"");
        assert!(said || form == "junit", "{form} does not say that it is about references: {page}");
    }
    let mut verdict = fixture::retired(Outcome::Incomplete);
    verdict.tables[0].reasons = vec!["what it refers to is not known".to_owned()];
    for (form, page) in forms(&[verdict.clone()]) {
        for word in ["what it refers to is not known", "incomplete", "Prices"] {
            assert!(page.contains(word), "{form} does not say {word}: {page}");
        }
        assert!(form != "junit" || page.contains("errors=\"2\""), "{page}");
    }
    // Nobody knows of any table of it.
    verdict.tables.clear();
    verdict.reasons = vec!["what its references are is not known".to_owned()];
    for (form, page) in forms(&[verdict]) {
        for word in ["what its references are is not known", "incomplete"] {
            assert!(page.contains(word), "{form} does not say {word}: {page}");
        }
        assert!(form != "junit" || page.contains("errors=\"1\""), "{page}");
    }
}

#[test]
fn some_tables_are_never_shown_as_proof_for_all() {
    let mut verdict = fixture::clean();
    verdict.every_table = false;
    for (form, page) in forms(&[verdict]) {
        assert!(!page.contains("both sides are equal") && !page.contains("Both sides are equal"), "{form}");
        let said = page.contains("some of the slice") || page.contains("\"full\": false");
        assert!(said, "{form} does not say that it is about some tables");
    }
}

#[test]
fn nothing_that_acts_on_a_terminal_or_a_reader_comes_through() {
    for (form, page) in forms(&[fixture::nasty()]) {
        let plain = page.replace("\u{1b}[31;1m", "").replace("\u{1b}[32m", "").replace("\u{1b}[33m", "");
        let plain = plain.replace("\u{1b}[2m", "").replace("\u{1b}[1m", "").replace("\u{1b}[0m", "");
        let bad =
            plain.chars().find(|c| (c.is_control() && *c != '\n') || matches!(c, '\u{202e}' | '\u{fffe}'));
        // JSON carries values as they are, and what acts in them by number where it must.
        assert!(form == "json" || bad.is_none(), "{form}: {bad:?}");
        assert!(form != "json" || !plain.chars().any(|c| c.is_control() && c != '\n'), "{form}");
    }
}

#[test]
fn a_thousand_findings_are_written_at_once() {
    let verdicts = [fixture::huge(1_000)];
    for (form, page) in forms(&verdicts) {
        assert!(page.len() < 2_000_000, "{form}: {} bytes", page.len());
    }
}
