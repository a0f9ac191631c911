//! What a test changes in, or asks of, one engine: known wrong forms of the landing rule, and gates that hold the
//! engine at a named place. Each engine has its own, so tests with different ones run side by side.

/// A known wrong form of the landing rule, or of the rules that keep two directions apart. Tests show that each of them
/// loses data or raises a false alarm, or that another rule makes up for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// An event is in a piece when it committed before the piece's position, visible or not.
    LsnWatermark,
    /// A snapshot is used although it does not see everything that the stream has delivered.
    NoR1,
    /// Rounds begin at once after a start, without waiting for older transactions.
    NoBarrier,
    /// A key change with both ends in copied pieces is one UPDATE, whatever the pieces saw of it.
    OneUpdate,
    /// A row that has to be read again is inserted as the stream has it, with NULL for what was left out.
    NoRefetch,
    /// After a crash, finished parts of a whole table stay, and the others are read under a new snapshot.
    PartsKept,
    /// Workers lock a table when they first read it, after the snapshot.
    LateLock,
    /// Transactions of the mirror's other direction are taken for somebody else's.
    NoTag,
    /// Repairs look rows up by keys that the sides collate in other ways.
    AnyCollation,
    /// A tripwire passes the first write of a side that was just opened.
    TripwireAdvances,
}

#[cfg(feature = "failpoints")]
pub use armed::Hooks;
#[cfg(not(feature = "failpoints"))]
pub use unarmed::Hooks;

#[cfg(not(feature = "failpoints"))]
mod unarmed {
    use super::Mutant;

    /// Nothing, in this build.
    #[derive(Debug, Clone, Default)]
    pub struct Hooks(());

    impl Hooks {
        /// The rule is always as it should be.
        #[inline]
        #[must_use]
        pub fn mutant(&self, _mutant: Mutant) -> bool {
            false
        }

        /// Positions that only passed unrelated WAL are made durable now and then.
        #[inline]
        #[must_use]
        pub fn is_eager(&self) -> bool {
            false
        }

        /// Every gate is open.
        #[inline]
        #[must_use]
        pub fn may(&self, _gate: &'static str) -> bool {
            true
        }

        /// Every gate is open.
        #[inline]
        pub fn pass(&self, _gate: &'static str) -> std::future::Ready<()> {
            std::future::ready(())
        }
    }
}

#[cfg(feature = "failpoints")]
mod armed {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use tokio::sync::watch;

    use super::Mutant;

    /// Mutants and gates of one engine; clones share them.
    #[derive(Debug, Clone, Default)]
    pub struct Hooks {
        mutants: Vec<Mutant>,
        eager: bool,
        gates: Arc<watch::Sender<BTreeMap<&'static str, Gate>>>,
    }

    /// A gate that is not there is open.
    #[derive(Debug, Clone, Copy, Default)]
    struct Gate {
        /// How often it may still be passed.
        passes: usize,
        /// How often the engine came to it and found it shut.
        stopped: usize,
    }

    impl Hooks {
        /// An engine with these mutants.
        #[must_use]
        pub fn with(mutants: &[Mutant]) -> Self {
            Self { mutants: mutants.to_vec(), ..Self::default() }
        }

        /// The engine is to follow this wrong form.
        #[must_use]
        pub fn mutant(&self, mutant: Mutant) -> bool {
            self.mutants.contains(&mutant)
        }

        /// Makes every position durable at once, so that a test need not wait.
        #[must_use]
        pub fn eager(self) -> Self {
            Self { eager: true, ..self }
        }

        /// Positions that only passed unrelated WAL are made durable at once.
        #[must_use]
        pub fn is_eager(&self) -> bool {
            self.eager
        }

        /// Shuts a gate after this many more passes.
        pub fn close(&self, gate: &'static str, passes: usize) {
            self.gates.send_modify(|gates| {
                gates.insert(gate, Gate { passes, stopped: 0 });
            });
        }

        /// Opens a gate for good.
        pub fn open(&self, gate: &'static str) {
            self.gates.send_modify(|gates| {
                gates.remove(gate);
            });
        }

        /// Waits until the engine has come to a shut gate.
        pub async fn reached(&self, gate: &'static str) {
            let mut gates = self.gates.subscribe();
            // The sender lives as long as we do, so the wait can't fail.
            let _ = gates.wait_for(|gates| gates.get(gate).is_some_and(|gate| gate.stopped > 0)).await;
        }

        /// Whether the engine may go on here now.
        #[must_use]
        pub fn may(&self, gate: &'static str) -> bool {
            let mut may = true;
            self.gates.send_if_modified(|gates| {
                let Some(gate) = gates.get_mut(gate) else { return false };
                may = gate.passes > 0;
                gate.passes = gate.passes.saturating_sub(1);
                gate.stopped += usize::from(!may);
                !may
            });
            may
        }

        /// Waits until the engine may go on here.
        pub async fn pass(&self, gate: &'static str) {
            if self.may(gate) {
                return;
            }
            let mut gates = self.gates.subscribe();
            let _ = gates.wait_for(|gates| gates.get(gate).is_none_or(|gate| gate.passes > 0)).await;
        }
    }
}
