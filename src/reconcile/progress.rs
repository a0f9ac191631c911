//! What a run shows while it goes on.

use std::sync::Arc;

use tokio::sync::watch;

/// One table's part.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableProgress {
    /// The table by the monolith's name.
    pub name: String,
    /// Rows that the authority is expected to have.
    pub rows_estimate: u64,
    /// Rows of the authority that were compared.
    pub rows: u64,
    /// Findings so far.
    pub findings: u64,
    /// Nothing is left to do.
    pub done: bool,
}

/// One slice's part.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SliceProgress {
    /// Slice.
    pub slice: String,
    /// The run's uuid, once there is one.
    pub run: String,
    /// What it waits for, when it waits.
    pub waits: Option<String>,
    /// Tables in the plan's order.
    pub tables: Vec<TableProgress>,
}

/// Where a run shows how far it is.
#[derive(Debug, Clone)]
pub struct Board {
    sender: Arc<watch::Sender<Vec<SliceProgress>>>,
}

impl Board {
    /// A board for these slices, and the receiver to watch it with.
    #[must_use]
    pub fn new(slices: &[String]) -> (Self, watch::Receiver<Vec<SliceProgress>>) {
        let begun = |slice: &String| SliceProgress { slice: slice.clone(), ..SliceProgress::default() };
        let (sender, receiver) = watch::channel(slices.iter().map(begun).collect());
        (Self { sender: Arc::new(sender) }, receiver)
    }

    /// Changes what is shown of a slice.
    pub fn update(&self, slice: &str, change: impl FnOnce(&mut SliceProgress)) {
        self.sender.send_modify(|slices| {
            if let Some(shown) = slices.iter_mut().find(|shown| shown.slice == slice) {
                change(shown);
            }
        });
    }

    /// Changes what is shown of a table.
    pub fn table(&self, slice: &str, table: &str, change: impl FnOnce(&mut TableProgress)) {
        self.update(slice, |slice| {
            if let Some(shown) = slice.tables.iter_mut().find(|shown| shown.name == table) {
                change(shown);
            }
        });
    }
}
