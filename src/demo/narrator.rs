//! The commentary: what happens, in the words of somebody who stands beside you.

use std::io::{self, Write};

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

    pub(super) fn blank(&mut self) -> io::Result<()> {
        self.line("")
    }

    /// Flushed at once: a commentary that comes late is none.
    fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "{text}")?;
        self.out.flush()
    }
}
