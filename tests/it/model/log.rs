//! The write-ahead log of one slice in one database: whole transactions, in the order of their commits.

/// More transactions than any bound lets happen.
const TRANSACTIONS_MAX: usize = 24;

/// One committed transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Entry {
    /// The application's write of this number, let in by the gate.
    Accepted(u8),
    /// The same write, brought by the mirror: it carries the slice's tag.
    Applied(u8),
    /// A write past a closed gate.
    Rogue(u8),
    /// A transaction of ours on the gate, which touches no table of the slice.
    Own,
}

/// The log. Positions count transactions: the first one lies between 0 and 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Log {
    /// As [`Entry::code`], because a byte is quickly hashed.
    codes: [u8; TRANSACTIONS_MAX],
    end: u8,
}

const KIND: u8 = 0b1100_0000;

impl Entry {
    fn code(self) -> u8 {
        match self {
            Self::Own => 0,
            Self::Accepted(id) => 0b0100_0000 | id,
            Self::Applied(id) => 0b1000_0000 | id,
            Self::Rogue(id) => KIND | id,
        }
    }

    fn of(code: u8) -> Self {
        match (code & KIND, code & !KIND) {
            (0, _) => Self::Own,
            (0b0100_0000, id) => Self::Accepted(id),
            (0b1000_0000, id) => Self::Applied(id),
            (_, id) => Self::Rogue(id),
        }
    }
}

impl Log {
    pub const EMPTY: Self = Self { codes: [0; TRANSACTIONS_MAX], end: 0 };

    /// The insert position.
    pub fn end(&self) -> u8 {
        self.end
    }

    pub fn push(&mut self, entry: Entry) {
        self.codes[usize::from(self.end)] = entry.code();
        self.end += 1;
    }

    pub fn at(&self, position: u8) -> Entry {
        assert!(position < self.end);
        Entry::of(self.codes[usize::from(position)])
    }

    /// Loses everything from `end` on.
    pub fn cut(&mut self, end: u8) {
        while self.end > end {
            self.end -= 1;
            self.codes[usize::from(self.end)] = 0;
        }
    }

    pub fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        self.codes[..usize::from(self.end)].iter().map(|code| Entry::of(*code))
    }

    /// Numbers of the writes whose effect the tables have, in order. Rogue ones that the mirror did not bring are not
    /// among them.
    pub fn writes(&self) -> impl Iterator<Item = u8> + '_ {
        self.entries().filter_map(|entry| match entry {
            Entry::Accepted(id) | Entry::Applied(id) => Some(id),
            Entry::Rogue(_) | Entry::Own => None,
        })
    }
}
