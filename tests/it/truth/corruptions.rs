//! The corruptions that are planted, and what has to be found of each.

use std::collections::BTreeSet;

use strangler::reconcile::finding::FindingKind;
use strangler::reconcile::finding::FindingKind::{Differs, Duplicate, Extra, Misplaced, Missing};

use super::found::Told;
use super::stage::{COLUMNS, Sizes, code};

/// A corruption of one row of `things`: what is set, which columns differ then, and whether that is a difference of
/// representation, which only a strict comparison is to find.
type Sort = (&'static str, &'static [&'static str], bool);

const SORTS: &[Sort] = &[
    ("num = num + 1", &["num"], false),
    ("num = -num", &["num"], false),
    ("num = NULL", &["num"], false),
    ("big = 2", &["big"], false),
    // PostgreSQL's hash of a bigint folds its two halves into one; the upper half is hashed beside it.
    ("big = 4294967296", &["big"], false),
    ("price = 2", &["price"], false),
    ("price = 1.00", &["price"], true),
    ("price = -1.0", &["price"], false),
    ("price = 'NaN'", &["price"], false),
    ("ratio = '-0'", &["ratio"], true),
    ("ratio = 5e-324", &["ratio"], false),
    ("ok = NOT ok", &["ok"], false),
    ("label_text = upper(label_text)", &["label_text"], false),
    ("label_text = label_text || ' '", &["label_text"], false),
    // Cyrillic.
    ("label_text = replace(label_text, 'a', '\u{430}')", &["label_text"], false),
    // The same letters, taken apart; the sign of the unit; a blank that nobody sees.
    ("title = 'A\u{30a}ngstro\u{308}m'", &["title"], false),
    ("title = replace(title, 'Å', '\u{212b}')", &["title"], false),
    ("title = title || '\u{200b}'", &["title"], false),
    ("title = title || ' '", &["title"], false),
    ("code = 'C'", &["code"], false),
    ("pad = 'c  '", &["pad"], true),
    ("day = day + 1", &["day"], false),
    ("at = at + interval '1 microsecond'", &["at"], false),
    ("seen = seen AT TIME ZONE 'UTC' AT TIME ZONE 'Asia/Tokyo'", &["seen"], false),
    ("seen = 'infinity'", &["seen"], false),
    ("span = '24 hours'", &["span"], true),
    ("span = '1 day 00:00:00.000001'", &["span"], false),
    ("data = data || '\\x00'", &["data"], false),
    ("data = ''", &["data"], false),
    ("uid = md5('other ' || id)::uuid", &["uid"], false),
    ("doc = '{\"a\": [2, 1]}'", &["doc"], false),
    ("doc = '{\"a\": [\"1\", 2]}'", &["doc"], false),
    ("doc2 = '[1]'", &["doc2"], false),
    ("doc2 = '-1'", &["doc2"], false),
    ("raw = '{\"a\":1}'", &["raw"], false),
    ("addr = '10.0.0.1/24'", &["addr"], false),
    ("nums = '[0:2]={1,2,3}'", &["nums"], false),
    ("nums = '{1,2,NULL}'", &["nums"], false),
    ("tags = '{a,\"NULL\"}'", &["tags"], false),
    ("tags = '{}'", &["tags"], false),
    ("mood = 'sad'", &["mood"], false),
    ("note = NULL", &["note"], false),
    ("region = 'US'", &["region"], false),
    ("num = 0, label_text = '', addr = NULL", &["addr", "label_text", "num"], false),
];

/// What is to be run on the service, and what is to be found then.
#[derive(Default)]
pub struct Planted {
    pub sql: Vec<String>,
    pub strict: BTreeSet<Told>,
    /// Without differences of representation.
    pub loose: BTreeSet<Told>,
    pub sorts: usize,
}

impl Planted {
    /// Every sort so many times.
    pub fn new(sizes: Sizes, times: i64) -> Self {
        let mut planted = Self::default();
        planted.in_things(sizes, times);
        for number in 0..times {
            planted.in_words(number * 3 + 3);
            planted.in_pairs(number * 10 + 20);
            planted.in_codes(number * 10 + 1);
            planted.in_sums(number * 10 + 1);
        }
        planted.twice();
        planted.sorts = SORTS.len() + 20;
        planted
    }

    pub fn expected(&self, strict: bool) -> Vec<Told> {
        if strict { &self.strict } else { &self.loose }.iter().cloned().collect()
    }

    fn told(&mut self, (table, kind): (&str, FindingKind), key: &[&str], columns: &[&str], strict: bool) {
        let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        let told: Told = (table.to_owned(), kind, texts(key), texts(columns));
        if !strict {
            assert!(self.loose.insert(told.clone()), "{told:?} is planted twice");
        }
        assert!(self.strict.insert(told.clone()), "{told:?} is planted twice");
    }

    fn thing(&mut self, kind: FindingKind, id: i64, columns: &[&str], strict: bool) {
        self.told(("things", kind), &[&id.to_string()], columns, strict);
    }

    /// Rows whose number is one more than a multiple of six are in the slice, multiples of six are not.
    fn in_things(&mut self, sizes: Sizes, times: i64) {
        let rows = (i64::try_from(SORTS.len()).unwrap() + 8) * times;
        let step = sizes.things / 2 / 6 / rows;
        assert!(step > 0, "there are too few rows for {rows} corruptions");
        let mut ids = (0..rows).map(|number| number * step * 6 + 1);
        let mut next = || ids.next().unwrap();
        for number in 0..times {
            for (set, columns, strict) in SORTS {
                let id = next();
                self.sql.push(format!("UPDATE things SET {set} WHERE id = {id}"));
                self.thing(Differs, id, columns, *strict);
            }
            let (deleted, left, right, moved) = (next(), next(), next(), next());
            let (extra, away) = (90_000_000 + number, 91_000_000 + number);
            self.sql.push(format!("DELETE FROM things WHERE id = {deleted}"));
            self.thing(Missing, deleted, &[], false);
            self.sql.push(format!(
                "UPDATE things t SET label_text = o.label_text FROM things o \
                 WHERE t.id IN ({left}, {right}) AND o.id IN ({left}, {right}) AND o.id <> t.id"
            ));
            self.thing(Differs, left, &["label_text"], false);
            self.thing(Differs, right, &["label_text"], false);
            self.sql.push(format!("UPDATE things SET id = {away} WHERE id = {moved}"));
            self.thing(Missing, moved, &[], false);
            self.thing(Extra, away, &[], false);
            self.copied(next(), extra, "EU", Extra);
            // A row that nobody has and the filter forbids, one that the monolith has outside the filter, and one
            // that has left the filter there and not here.
            self.copied(next(), 92_000_000 + number, "US", Misplaced);
            let (forbidden, left_behind) = (next(), next());
            self.copied(forbidden, forbidden + 5, "US", Misplaced);
            self.copied(left_behind, left_behind + 5, "EU", Misplaced);
        }
    }

    fn copied(&mut self, of: i64, id: i64, region: &str, kind: FindingKind) {
        self.sql.push(format!(
            "INSERT INTO things (id, region, {COLUMNS}) SELECT {id}, '{region}', {COLUMNS} FROM things WHERE id = {of}"
        ));
        self.thing(kind, id, &[], false);
    }

    fn in_words(&mut self, n: i64) {
        let (sharp, double) = (format!("straße {n}"), format!("strasse {n}"));
        let (plain, upper) = (format!("word {}", n + 1), format!("WORD {}", n + 1));
        let (other, blank) = (format!("word {}", n + 2), format!("word {} ", n + 2));
        self.sql.push(format!("UPDATE words SET word = '{double}' WHERE word = '{sharp}'"));
        self.told(("words", Missing), &[&sharp], &[], false);
        self.told(("words", Extra), &[&double], &[], false);
        self.sql.push(format!("UPDATE words SET word = '{upper}' WHERE word = '{plain}'"));
        self.told(("words", Missing), &[&plain], &[], false);
        self.told(("words", Extra), &[&upper], &[], false);
        self.sql.push(format!("INSERT INTO words VALUES ('{blank}', 0)"));
        self.told(("words", Extra), &[&blank], &[], false);
        self.sql.push(format!("UPDATE words SET value = -value WHERE word = '{other}'"));
        self.told(("words", Differs), &[&other], &["value"], false);
    }

    fn in_pairs(&mut self, n: i64) {
        let (a, next) = ((n / 10).to_string(), (n / 10 + 900_000_000).to_string());
        self.sql.push(format!(
            "UPDATE pairs SET value = value || ' ' WHERE (a, b) = ({a}, 'b1'); DELETE FROM pairs WHERE (a, b) = ({a}, 'b2'); \
             UPDATE pairs SET value = NULL WHERE (a, b) = ({a}, 'b3'); \
             INSERT INTO pairs VALUES ({a}, 'B1', 'value'), ({next}, 'b1', NULL)"
        ));
        self.told(("pairs", Differs), &[&a, "b1"], &["value"], false);
        self.told(("pairs", Missing), &[&a, "b2"], &[], false);
        self.told(("pairs", Differs), &[&a, "b3"], &["value"], false);
        self.told(("pairs", Extra), &[&a, "B1"], &[], false);
        self.told(("pairs", Extra), &[&next, "b1"], &[], false);
    }

    fn in_codes(&mut self, n: i64) {
        let (changed, gone, extra) = (code(n), code(n + 1), code(n + 900_000_000));
        self.sql.push(format!(
            "UPDATE codes SET value = '' WHERE code = '{changed}'; DELETE FROM codes WHERE code = '{gone}'; \
             INSERT INTO codes VALUES ('{extra}', 'value {n}')"
        ));
        self.told(("codes", Differs), &[&changed], &["value"], false);
        self.told(("codes", Missing), &[&gone], &[], false);
        self.told(("codes", Extra), &[&extra], &[], false);
    }

    /// Keys that are equal and are written differently name one row.
    fn in_sums(&mut self, n: i64) {
        let [scale, both, gone] = [n, n + 1, n + 2].map(|n| n.to_string());
        self.sql.push(format!(
            "UPDATE sums SET sum = {scale}.00 WHERE sum = {scale}; DELETE FROM sums WHERE sum = {gone}; \
             UPDATE sums SET sum = {both}.00, value = 'other' WHERE sum = {both}"
        ));
        self.told(("sums", Differs), &[&scale], &["sum"], true);
        self.told(("sums", Missing), &[&gone], &[], false);
        self.strict.insert((
            "sums".to_owned(),
            Differs,
            vec![both.clone()],
            vec!["sum".to_owned(), "value".to_owned()],
        ));
        self.loose.insert(("sums".to_owned(), Differs, vec![both], vec!["value".to_owned()]));
    }

    /// Where no key guards; the key's constraint is gone before.
    fn twice(&mut self) {
        self.sql.push(
            "INSERT INTO days SELECT * FROM days WHERE day = 7; \
             INSERT INTO days SELECT d.day, d.value FROM days d, generate_series(1, 2) WHERE day = 70"
                .to_owned(),
        );
        self.told(("days", Duplicate), &["7"], &[], false);
        self.told(("days", Duplicate), &["70"], &[], false);
    }
}
