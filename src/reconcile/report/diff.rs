//! One column of a finding as an inline diff.

use similar::{Algorithm, DiffTag, capture_diff_slices};
use unicode_width::UnicodeWidthChar;

use super::visible::{code_point, visible};
use crate::reconcile::finding::{ColumnDiff, Shown};

/// An equal stretch that is longer is cut down to [`CONTEXT`] characters beside each change.
const SAME_MAX: usize = 60;
const CONTEXT: usize = 24;
/// A changed stretch that is longer shows its beginning and the number of the other characters.
const CHANGED_MAX: usize = 400;
/// The diff takes a time that grows with the square of this, and there may be a thousand findings.
const DIFFED_MAX: usize = 1_000;
/// Less than this share of characters in common, in per cent, and two whole values are easier to read than a diff.
const ALIKE_PERCENT: usize = 40;
/// Equal stretches between two changes that are no longer than this only make them harder to read.
const NOISE: usize = 2;
/// Changes up to this length are also told by number where they are not ASCII: they may look the same.
const SPELLED_MAX: usize = 4;
/// How many of them.
const SPELLED_COUNT: usize = 3;

/// A stretch of a diff, ready to be shown on one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stretch {
    /// Both have it.
    Same(String),
    /// Only the authority has it.
    Authority(String),
    /// Only the copy has it.
    Copy(String),
}

/// A column's diff.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inline {
    /// In the order in which they are read.
    pub(super) stretches: Vec<Stretch>,
    /// What the stretches do not show.
    pub(super) note: Option<String>,
}

impl Inline {
    /// On one line without colours: `"ope[-n-]{+ned+}"`. The note is not in it.
    pub(super) fn plain(&self) -> String {
        let stretches = self.stretches.iter().map(|stretch| match stretch {
            Stretch::Same(text) => text.clone(),
            Stretch::Authority(text) => format!("[-{text}-]"),
            Stretch::Copy(text) => format!("{{+{text}+}}"),
        });
        stretches.collect()
    }
}

/// The diff of one column.
pub(super) fn inline(column: &ColumnDiff) -> Inline {
    match (&column.authority, &column.copy) {
        (authority, copy) if authority == copy => Inline {
            stretches: vec![Stretch::Same(value(authority))],
            note: Some(
                "equal as shown here; the difference is in what was cut off, or in the representation"
                    .to_owned(),
            ),
        },
        (Shown::Text(authority), Shown::Text(copy)) => texts(authority, copy),
        (authority, copy) => Inline {
            stretches: vec![Stretch::Authority(value(authority)), Stretch::Copy(value(copy))],
            note: None,
        },
    }
}

/// A value on one line: `NULL`, `"text"`, `digest 3fa9`.
pub(super) fn value(shown: &Shown) -> String {
    match shown {
        Shown::Null => "NULL".to_owned(),
        Shown::Text(text) => ["\"", &cut(&text.chars().collect::<Vec<_>>()), "\""].concat(),
        Shown::Digest(hex) => format!("digest {}", visible(hex)),
    }
}

/// A stretch of characters that was found to be equal or changed.
enum Run {
    Same(Vec<char>),
    Changed(Vec<char>, Vec<char>),
}

fn texts(authority: &str, copy: &str) -> Inline {
    let (authority, copy): (Vec<char>, Vec<char>) = (authority.chars().collect(), copy.chars().collect());
    let runs = runs(&authority, &copy);
    let note = spelled(&runs);
    let mut stretches = vec![Stretch::Same("\"".to_owned())];
    let last = runs.len().saturating_sub(1);
    for (at, run) in runs.iter().enumerate() {
        match run {
            Run::Same(text) => stretches.push(Stretch::Same(context(text, at == 0, at == last))),
            Run::Changed(before, after) => {
                let changed = [Stretch::Authority(cut(before)), Stretch::Copy(cut(after))];
                stretches.extend(
                    changed
                        .into_iter()
                        .zip([before, after])
                        .filter(|(_, text)| !text.is_empty())
                        .map(|(stretch, _)| stretch),
                );
            }
        }
    }
    stretches.push(Stretch::Same("\"".to_owned()));
    Inline { stretches: joined(stretches), note }
}

/// Puts equal neighbours into one stretch.
fn joined(stretches: Vec<Stretch>) -> Vec<Stretch> {
    let mut all: Vec<Stretch> = Vec::with_capacity(stretches.len());
    for stretch in stretches {
        match (all.last_mut(), stretch) {
            (Some(Stretch::Same(text)), Stretch::Same(more)) => text.push_str(&more),
            (_, stretch) => all.push(stretch),
        }
    }
    all
}

fn runs(authority: &[char], copy: &[char]) -> Vec<Run> {
    let prefix = common_prefix(authority, copy);
    let (authority_rest, copy_rest) = (tail(authority, prefix), tail(copy, prefix));
    let suffix = common_suffix(authority_rest, copy_rest);
    let (before, end) = split_end(authority_rest, suffix);
    let (after, _) = split_end(copy_rest, suffix);
    let mut runs = vec![Run::Same(authority.iter().take(prefix).copied().collect())];
    runs.extend(middle(before, after));
    runs.push(Run::Same(end.to_vec()));
    runs.retain(|run| !matches!(run, Run::Same(text) if text.is_empty()));
    runs
}

fn tail(text: &[char], from: usize) -> &[char] {
    text.get(from..).unwrap_or_default()
}

fn split_end(text: &[char], suffix: usize) -> (&[char], &[char]) {
    text.split_at_checked(text.len().saturating_sub(suffix)).unwrap_or_default()
}

/// Length of the common beginning; a letter is not torn from its combining marks.
fn common_prefix(left: &[char], right: &[char]) -> usize {
    let mut length = left.iter().zip(right).take_while(|(a, b)| a == b).count();
    let is_mark = |text: &[char], at: usize| text.get(at).is_some_and(|c| c.width() == Some(0));
    while length > 0 && (is_mark(left, length) || is_mark(right, length)) {
        length -= 1;
    }
    length
}

/// Length of the common end, which does not begin with a combining mark.
fn common_suffix(left: &[char], right: &[char]) -> usize {
    let same: Vec<char> =
        left.iter().rev().zip(right.iter().rev()).take_while(|(a, b)| a == b).map(|(a, _)| *a).collect();
    let marks = same.iter().rev().take_while(|c| c.width() == Some(0)).count();
    same.len() - marks
}

/// What lies between the common ends, in equal and changed stretches.
fn middle(before: &[char], after: &[char]) -> Vec<Run> {
    let whole = || vec![Run::Changed(before.to_vec(), after.to_vec())];
    if before.is_empty() || after.is_empty() || before.len().max(after.len()) > DIFFED_MAX {
        return whole();
    }
    let operations = capture_diff_slices(Algorithm::Myers, before, after);
    let same: usize =
        operations.iter().filter(|op| op.tag() == DiffTag::Equal).map(|op| op.old_range().len()).sum();
    if same * 200 < ALIKE_PERCENT * (before.len() + after.len()) {
        return whole();
    }
    let (mut runs, mut old, mut new) = (Vec::new(), Vec::new(), Vec::new());
    for operation in operations {
        let left = before.get(operation.old_range()).unwrap_or_default();
        let right = after.get(operation.new_range()).unwrap_or_default();
        if operation.tag() == DiffTag::Equal && (left.len() > NOISE || old.is_empty() && new.is_empty()) {
            if !(old.is_empty() && new.is_empty()) {
                runs.push(Run::Changed(std::mem::take(&mut old), std::mem::take(&mut new)));
            }
            runs.push(Run::Same(left.to_vec()));
        } else {
            old.extend_from_slice(left);
            new.extend_from_slice(right);
        }
    }
    if !(old.is_empty() && new.is_empty()) {
        runs.push(Run::Changed(old, new));
    }
    runs
}

/// An equal stretch with what is far from any change left out.
fn context(text: &[char], first: bool, last: bool) -> String {
    let text_of = |chars: &[char]| visible(&chars.iter().collect::<String>());
    if text.len() <= SAME_MAX {
        return text_of(text);
    }
    let begin = if first { String::new() } else { text_of(text.get(..CONTEXT).unwrap_or_default()) };
    let end = if last { String::new() } else { text_of(tail(text, text.len() - CONTEXT)) };
    format!("{begin}…{end}")
}

fn cut(text: &[char]) -> String {
    match text.get(..CHANGED_MAX) {
        Some(begin) if text.len() > CHANGED_MAX => {
            format!(
                "{}… {} more characters",
                visible(&begin.iter().collect::<String>()),
                text.len() - CHANGED_MAX
            )
        }
        _ => visible(&text.iter().collect::<String>()),
    }
}

/// Short changes by number, where letters of other scripts may look like those that they replaced.
fn spelled(runs: &[Run]) -> Option<String> {
    let number = |text: &[char]| text.iter().map(|c| code_point(*c)).collect::<Vec<_>>().join(" ");
    let mut pairs = Vec::new();
    for run in runs {
        let Run::Changed(before, after) = run else { continue };
        let short = [before, after].iter().all(|text| (1..=SPELLED_MAX).contains(&text.len()));
        if short && !before.iter().chain(after).all(char::is_ascii) {
            pairs.push(format!("{} instead of {}", number(after), number(before)));
        }
    }
    pairs.truncate(SPELLED_COUNT);
    (!pairs.is_empty()).then(|| pairs.join(", "))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn diff(authority: Shown, copy: Shown) -> Inline {
        inline(&ColumnDiff { column: "c".to_owned(), authority, copy })
    }

    fn plain(authority: &str, copy: &str) -> String {
        diff(Shown::Text(authority.to_owned()), Shown::Text(copy.to_owned())).plain()
    }

    #[test]
    fn changed_parts_are_marked() {
        assert_eq!(plain("open", "opened"), r#""open{+ed+}""#);
        assert_eq!(plain("12.50", "12.05"), r#""12.[-50-]{+05+}""#);
        assert_eq!(plain("abc ", "abc"), r#""abc[- -]""#);
        assert_eq!(plain("", "x"), r#""{+x+}""#);
        assert_eq!(plain("the quick brown fox", "the quick red fox"), r#""the quick [-brown-]{+red+} fox""#);
        assert_eq!(
            plain("2024-01-01 00:00:00+00", "2024-01-01 02:00:00+00"),
            r#""2024-01-01 0[-0-]{+2+}:00:00+00""#
        );
        assert_eq!(plain("nothing in common", "ZZZ"), r#""[-nothing in common-]{+ZZZ+}""#);
    }

    #[test]
    fn null_is_not_a_text() {
        assert_eq!(diff(Shown::Null, Shown::Text(String::new())).plain(), r#"[-NULL-]{+""+}"#);
        assert_eq!(diff(Shown::Text("NULL".to_owned()), Shown::Null).plain(), r#"[-"NULL"-]{+NULL+}"#);
    }

    #[test]
    fn digests_are_not_compared_letter_by_letter() {
        let digest = |hex: &str| Shown::Digest(hex.to_owned());
        assert_eq!(diff(digest("aabb"), digest("aabc")).plain(), "[-digest aabb-]{+digest aabc+}");
    }

    #[test]
    fn letters_that_look_the_same_are_told_by_number() {
        let copy = diff(Shown::Text("pay".to_owned()), Shown::Text("p\u{430}y".to_owned()));
        assert_eq!(copy.note.as_deref(), Some("U+0430 instead of U+0061"));
        let composed = diff(Shown::Text("caf\u{e9}".to_owned()), Shown::Text("cafe\u{301}".to_owned()));
        assert_eq!(composed.plain(), "\"caf[-\u{e9}-]{+e\u{301}+}\"");
        assert_eq!(composed.note.as_deref(), Some("U+0065 U+0301 instead of U+00E9"));
    }

    #[test]
    fn values_that_were_cut_before_their_difference_are_said_to_be() {
        let same = diff(Shown::Text("a".to_owned()), Shown::Text("a".to_owned()));
        assert_eq!(same.plain(), r#""a""#);
        assert!(same.note.unwrap().contains("cut off"));
    }

    #[test]
    fn long_values_show_their_change_and_little_else() {
        let (head, tail) = ("a".repeat(5_000), "b".repeat(5_000));
        let shown = plain(&format!("{head}one{tail}"), &format!("{head}two{tail}"));
        assert!(shown.contains("[-one-]{+two+}") || shown.contains("{+tw+}o[-ne-]"), "{shown}");
        assert!(shown.chars().count() < 100, "{shown}");
        assert!(plain(&"a".repeat(9_000), &"b".repeat(9_000)).contains("8600 more characters"));
    }

    proptest! {
        /// Whoever reads one side out of the diff reads that side.
        #[test]
        fn both_sides_can_be_read_out(authority in "[ab ]{0,30}", copy in "[abc ]{0,30}") {
            prop_assume!(authority != copy);
            let shown = diff(Shown::Text(authority.clone()), Shown::Text(copy.clone()));
            let side = |ours: bool| shown.stretches.iter().map(|stretch| match stretch {
                Stretch::Same(text) => text.as_str(),
                Stretch::Authority(text) => if ours { text } else { "" },
                Stretch::Copy(text) => if ours { "" } else { text },
            }).collect::<String>();
            prop_assert_eq!(side(true), format!("\"{authority}\""));
            prop_assert_eq!(side(false), format!("\"{copy}\""));
        }

        #[test]
        fn nothing_panics(authority in any::<String>(), copy in any::<String>()) {
            plain(&authority, &copy);
        }
    }
}
