//! The ledger has each move once, with its reason, whoever came to write it.

use tokio_postgres::Client;

use super::bank::Side;
use super::{UNPROVEN, armed, flip, killed};
use crate::support::wait::{SOON, until};

/// Action and reason of the entries about moves, by epoch.
async fn entries(service: &Client) -> Vec<(i64, String, Option<String>)> {
    let sql = "SELECT epoch, body->>'action', body->>'remark' FROM strangler.ledger WHERE kind = 'flip' ORDER BY id";
    let rows = service.query(sql, &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_move_is_in_the_ledger_once_with_its_reason_wherever_its_operator_died() {
    let (split, _monolith, service, mirror) = armed().await;
    let reason = Some(UNPROVEN[1].to_owned());
    let mut known = Vec::new();
    for (number, point) in ["flip-fenced", "flip-opened", "flip-swapped"].into_iter().enumerate() {
        let (to, action): (&[&str], _) =
            if number % 2 == 0 { (&[], "flip") } else { (&["--back"], "flip-back") };
        killed(&split, point, to);
        known.push((i64::try_from(number).unwrap() + 2, action.to_owned(), reason.clone()));
        until("the mirror writes it down", SOON, async || {
            (entries(&service).await.len() == known.len()).then_some(())
        })
        .await;
        assert_eq!(entries(&service).await, known, "{point}");
        // Whoever looks again adds nothing.
        flip(&split, &mirror, if number % 2 == 0 { Side::Service } else { Side::Monolith });
        assert_eq!(entries(&service).await, known, "{point}");
    }
    // One that has no entry, because nobody was there to write it, gets it from whoever looks next.
    mirror.stop();
    service
        .batch_execute("BEGIN; ALTER TABLE strangler.ledger DISABLE TRIGGER USER; DELETE FROM strangler.ledger WHERE epoch = 4; \
            ALTER TABLE strangler.ledger ENABLE TRIGGER USER; COMMIT")
        .await
        .unwrap();
    let already = split.run("flip", &[]);
    assert!(already.exit == Some(0) && already.stdout.contains("already"), "{}", already.page());
    assert_eq!(entries(&service).await, known);
}
