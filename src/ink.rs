//! Colours for words that people read. Whether they are wanted, `cli` knows.

/// What a piece of text is about; on a terminal it has a colour, and without one it still reads well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ink {
    /// Something a human must look at.
    Alarm,
    /// Something a human may want to look at.
    Caution,
    /// All is well.
    Good,
    /// Beside the point.
    Faint,
    /// A heading.
    Strong,
}

impl Ink {
    /// The "select graphic rendition" code of ECMA-48.
    fn code(self) -> &'static str {
        match self {
            Self::Alarm => "31;1",
            Self::Caution => "33",
            Self::Good => "32",
            Self::Faint => "2",
            Self::Strong => "1",
        }
    }
}

/// Whether text is coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    /// With colours.
    Colour,
    /// Without.
    Plain,
}

impl Paint {
    /// The text in the colour of `ink`, or as it is.
    #[must_use]
    pub fn ink(self, ink: Ink, text: &str) -> String {
        match self {
            Self::Colour => format!("\x1b[{}m{text}\x1b[0m", ink.code()),
            Self::Plain => text.to_owned(),
        }
    }
}
