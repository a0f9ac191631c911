//! What a mirror notes when it finds something wrong is there once it is said: killed right behind the note, the next start says it again
//! and loses nothing.

use crate::support::split::Split;
use crate::support::wait::{SOON, until};

const SETUP: &str =
    "CREATE TABLE t (id int PRIMARY KEY, v text UNIQUE); INSERT INTO t VALUES (1, 'a'), (2, 'b')";

async fn status_tells(split: &Split, words: &str) {
    until("status tells it", SOON, async || {
        let status = split.run("status", &[]);
        status.stdout.contains(words).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_behind_the_note_of_an_index_that_cannot_be_built_the_next_start_tries_and_tells_it_again() {
    let (split, monolith, service) = Split::launch("{ t: {} }", SETUP).await;
    split.provision();
    let asked = "UPDATE strangler.deferred SET create_sql = 'ALTER TABLE public.t ADD CHECK (v <> ''a'')'";
    service.batch_execute(asked).await.unwrap();
    split.mirror(Some("deferred-failed-noted")).died_at("deferred-failed-noted");
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    status_tells(&split, "(SQLSTATE 23514) could not be made.").await;
    mirror.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_behind_the_note_of_a_trigger_that_fires_what_was_proven_before_stays_void() {
    let (split, monolith, service) = Split::launch("{ t: {} }", SETUP).await;
    split.provision();
    let mirror = split.mirror(Some("fired-noted"));
    mirror.caught_up(&monolith, &service).await;
    let proven = split.run("reconcile", &[]);
    assert_eq!(proven.exit, Some(0), "{}", proven.page());
    let trigger = "CREATE FUNCTION louder() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$; \
                   CREATE TRIGGER louder BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION louder(); \
                   ALTER TABLE t ENABLE ALWAYS TRIGGER louder";
    service.batch_execute(trigger).await.unwrap();
    mirror.died_at("fired-noted");
    service.batch_execute("DROP TRIGGER louder ON t").await.unwrap();
    let mirror = split.mirror(None);
    mirror.caught_up(&monolith, &service).await;
    let status = split.run("status", &[]);
    assert!(!status.stdout.contains("both sides are proven equal"), "{}", status.page());
    let compared = split.run("reconcile", &[]);
    assert_eq!(compared.exit, Some(0), "{}", compared.page());
    status_tells(&split, "both sides are proven equal").await;
    mirror.stop();
}
