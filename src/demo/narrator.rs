//! The commentary: what happens, in the words of somebody who stands beside you.

use std::io::{self, Write};
use std::time::Duration;

/// Writes the commentary, act by act.
pub(super) struct Narrator<'a> {
    out: &'a mut (dyn Write + Send),
    act: u32,
}

impl<'a> Narrator<'a> {
    pub(super) fn new(out: &'a mut (dyn Write + Send)) -> Self {
        Self { out, act: 0 }
    }

    /// A new act begins.
    pub(super) fn act(&mut self, title: &str) -> io::Result<()> {
        self.act += 1;
        let space = if self.act == 1 { "" } else { "\n" };
        self.line(&format!("{space}{}. {title}", self.act))
    }

    /// One sentence about what happened.
    pub(super) fn say(&mut self, text: &str) -> io::Result<()> {
        self.line(&format!("   {text}"))
    }

    /// What an operator would type.
    pub(super) fn command(&mut self, text: &str) -> io::Result<()> {
        self.line(&format!("   $ {text}"))
    }

    /// What a command said, line by line.
    pub(super) fn output(&mut self, text: &str) -> io::Result<()> {
        for line in text.trim_end().lines() {
            self.line(format!("     {line}").trim_end())?;
        }
        Ok(())
    }

    /// The first and the last lines of what a command said, and how many are between them.
    pub(super) fn excerpt(&mut self, text: &str, first: usize, last: usize) -> io::Result<()> {
        self.parts(text, "\n", (first, last), "more lines")
    }

    /// The first and the last paragraphs of what a command said, and how many of something are between them.
    pub(super) fn paragraphs(
        &mut self,
        text: &str,
        first: usize,
        last: usize,
        of_what: &str,
    ) -> io::Result<()> {
        self.parts(text, "\n\n", (first, last), of_what)
    }

    fn parts(&mut self, text: &str, border: &str, shown: (usize, usize), of_what: &str) -> io::Result<()> {
        let (first, last) = shown;
        let parts: Vec<&str> = text.trim_end().split(border).collect();
        let left_out = parts.len().saturating_sub(first + last);
        if left_out < 2 {
            return self.output(text);
        }
        let beginning = parts.iter().take(first).copied();
        let gap = format!("… {left_out} {of_what}");
        let end = parts.iter().skip(first + left_out).copied();
        let told: Vec<&str> = beginning.chain([gap.as_str()]).chain(end).collect();
        self.output(&told.join(border))
    }

    pub(super) fn blank(&mut self) -> io::Result<()> {
        self.line("")
    }

    /// Flushed at once: a commentary that comes late is none.
    fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "{text}")?;
        self.out.flush()
    }
}

/// A period to a tenth of a second.
pub(super) fn seconds(period: Duration) -> String {
    format!("{:.1} s", period.as_secs_f64())
}

/// A whole number with its thousands apart.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&[u8]> = digits.as_bytes().rchunks(3).rev().collect();
    String::from_utf8_lossy(&groups.join(&b","[..])).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Narrator<'_>) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        write(&mut Narrator::new(&mut out)).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_excerpt_says_how_much_is_left_out() {
        let six = "1\n2\n3\n4\n5\n6\n";
        assert_eq!(
            written(|narrator| narrator.excerpt(six, 1, 2)),
            "     1\n     … 3 more lines\n     5\n     6\n"
        );
        assert_eq!(
            written(|narrator| narrator.excerpt("1\n2\n3\n4", 1, 2)),
            written(|n| n.output("1\n2\n3\n4"))
        );
        assert_eq!(written(|narrator| narrator.excerpt("1", 3, 2)), "     1\n");
    }

    #[test]
    fn thousands_stand_apart() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
    }
}
