//! The sessions that one slice's comparison works with; made anew when one of them breaks.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::try_join_all;
use tokio::sync::Mutex;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::form::{Side, TableForm};
use super::meet::{MeetError, Meeting};
use super::prove::{ProveError, Prover};
use super::reader::{OpenError, Reader};
use super::redact::Redactor;
use super::scan::Pair;
use super::selftest::{self, Weakened};
use super::sides::Sides;
use super::throttle::Throttle;
use super::walk::{self, KeyFacts};
use crate::cdc::mirror::chain_of;
use crate::journal::JournalError;
use crate::mapping::adopted::Misfit;
use crate::mapping::{ColumnMapping, TableMapping, type_tree};
use crate::name::TableName;
use crate::postgres::connect::ConnectError;
use crate::postgres::inheritance::{self, Inherited};
use crate::postgres::{collations, sqlstate, stand_ins, type_trees};

/// The sessions of one slice.
#[derive(Debug)]
pub struct Hands {
    /// One pair of readers for each chunk that is compared at a time.
    pub pairs: Vec<Pair>,
    /// Chooses borders on the authority.
    pub border: Reader,
    /// Where the sides meet.
    pub meeting: Arc<Meeting>,
    /// Proves what differs.
    pub prover: Mutex<OnDemand>,
    /// Waits for the authority.
    pub throttle: Throttle,
}

/// A prover that opens its sessions when something has to be proven: mostly nothing has.
#[derive(Debug)]
pub struct OnDemand {
    slice: String,
    sides: Sides,
    meeting: Arc<Meeting>,
    redactor: Arc<Redactor>,
    stop: CancellationToken,
    made: Option<Prover>,
}

impl OnDemand {
    /// The prover.
    ///
    /// # Errors
    /// [`ProveError`] when its sessions can't be opened.
    pub async fn get(&mut self) -> Result<&mut Prover, ProveError> {
        let made = match self.made.take() {
            Some(made) => made,
            None => {
                let (meeting, redactor) = (Arc::clone(&self.meeting), Arc::clone(&self.redactor));
                Prover::new((&self.slice, &self.sides), meeting, redactor, self.stop.clone()).await?
            }
        };
        Ok(self.made.insert(made))
    }
}

/// What both servers don't hash alike in any form, with why not, by the monolith's name of the table.
#[derive(Debug, Default)]
pub struct Distrusted {
    /// Tables that can't be compared at all.
    pub tables: BTreeMap<TableName, String>,
    /// Tables that are compared without some generated columns.
    pub left_out: BTreeMap<TableName, Vec<String>>,
}

/// The sessions could not be made.
#[derive(Debug, thiserror::Error)]
pub enum HandsError {
    /// A database could not be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The meeting point.
    #[error(transparent)]
    Meet(#[from] MeetError),
    /// Our own tables.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl From<OpenError> for HandsError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Connect(error) => Self::Connect(error),
            OpenError::Journal(error) => Self::Journal(error),
        }
    }
}

/// Opens everything at once. `parallel` is the number of chunks at a time, `max_load` the number of open transactions
/// above which nothing new is read; nothing is proven any more once `stop` is cancelled.
///
/// # Errors
/// [`HandsError`].
pub async fn open(
    slice: &str,
    sides: &Sides,
    redactor: &Arc<Redactor>,
    (parallel, max_load): (usize, Option<u32>),
    stop: &CancellationToken,
) -> Result<Hands, HandsError> {
    let pair = async || -> Result<Pair, OpenError> {
        let (authority, copy) = tokio::try_join!(
            Reader::open(sides, sides.authority, slice),
            Reader::open(sides, sides.copy(), slice)
        )?;
        Ok(Pair { authority, copy })
    };
    let meeting = async {
        let (authority, copy) = tokio::try_join!(sides.reader(sides.authority), sides.reader(sides.copy()))?;
        Ok::<_, HandsError>(Arc::new(Meeting::new(slice, sides.direction(), authority, copy).await?))
    };
    let throttle = async {
        match max_load {
            Some(most) => Ok(Throttle::new(Some((most, sides.reader(sides.authority).await?)))),
            None => Ok(Throttle::new(None)),
        }
    };
    let pairs = async { Ok::<_, HandsError>(try_join_all((0..parallel.max(1)).map(|_| pair())).await?) };
    let border = async { Ok(Reader::open(sides, sides.authority, slice).await?) };
    let (pairs, border, meeting, throttle) = tokio::try_join!(pairs, border, meeting, throttle)?;
    let prover = OnDemand {
        slice: slice.to_owned(),
        sides: sides.clone(),
        meeting: Arc::clone(&meeting),
        redactor: Arc::clone(redactor),
        stop: stop.clone(),
        made: None,
    };
    Ok(Hands { pairs, border, meeting, prover: Mutex::new(prover), throttle })
}

impl Hands {
    /// What both sides say of the keys of tables.
    ///
    /// # Errors
    /// The words of the side that could not be asked.
    pub async fn facts(
        &self,
        forms: &[TableForm],
        (authority, copy): (Side, Side),
    ) -> Result<(Vec<KeyFacts>, Vec<KeyFacts>), String> {
        let Some(pair) = self.pairs.first() else { return Ok((Vec::new(), Vec::new())) };
        let asked = tokio::try_join!(
            walk::key_facts(pair.authority.client(), forms, authority),
            walk::key_facts(pair.copy.client(), forms, copy),
        );
        asked.map_err(|error| sqlstate::words(&error))
    }

    /// Makes sure that both servers hash values alike, and weakens the forms of types that they don't. A table can't be
    /// compared without a column that they never do, unless that is a generated one, which is left out then.
    ///
    /// # Errors
    /// The words of the side that could not be asked.
    pub async fn trust(&self, forms: &mut [TableForm], authority: Side) -> Result<Distrusted, String> {
        let mut distrusted = Distrusted::default();
        let Some(pair) = self.pairs.first() else { return Ok(distrusted) };
        let (here, there) = (pair.authority.client(), pair.copy.client());
        let weakened = selftest::settle_forms(here, there, authority, forms).await;
        for one in weakened.map_err(|error| chain_of(&error))? {
            let Weakened { table, column, form, reason } = one;
            if let Some(form) = form {
                tracing::debug!(%table, column, ?form, reason, "a column is hashed in a weaker form");
                continue;
            }
            let of_table = forms.iter_mut().find(|form| form.mapping.source == table);
            if of_table.is_some_and(|form| form.leave_out(&column)) {
                let why = format!(
                    "the generated column {column} was not compared: {reason}; where the service is not meant to have it \
                     as the monolith does, write `drop: true` for it in the plan"
                );
                distrusted.left_out.entry(table).or_default().push(why);
            } else {
                distrusted.tables.insert(table, format!("column {column} can't be compared: {reason}"));
            }
        }
        for (table, column, fact) in self::apart(forms, (here, there), authority).await? {
            let why = format!(
                "column {column} can't be compared: {fact}; the mirror's next start says how the types are brought in line"
            );
            distrusted.tables.entry(table).or_insert(why);
        }
        for (table, why) in inherited(forms, (here, there), authority).await? {
            distrusted.tables.entry(table).or_insert(why);
        }
        for (table, why) in self.collated(forms.iter().map(|form| &form.mapping), authority).await? {
            distrusted.tables.insert(table, why);
        }
        for (table, why) in standing_in(forms, (here, there), authority).await? {
            distrusted.tables.insert(table, why);
        }
        Ok(distrusted)
    }

    /// Tables with a key whose values the sides don't tell apart alike, with why they can't be compared.
    ///
    /// # Errors
    /// The words of the side that could not be asked.
    pub async fn collated(
        &self,
        tables: impl Iterator<Item = &TableMapping> + Clone,
        authority: Side,
    ) -> Result<Vec<(TableName, String)>, String> {
        let Some(pair) = self.pairs.first() else { return Ok(Vec::new()) };
        let (here, there) = (pair.authority.client(), pair.copy.client());
        let sides = if authority == Side::Source { (here, there) } else { (there, here) };
        let found = collations::apart(sides, tables).await.map_err(|error| sqlstate::words(&error))?;
        let why = |misfit: Misfit| format!("{}; run in the service: {}", misfit.fact, misfit.next);
        Ok(found.into_iter().map(|(table, misfit)| (table, why(misfit))).collect())
    }
}

/// Tables of either side whose name another relation has, which may show only some of the rows.
async fn standing_in(
    forms: &[TableForm],
    (here, there): (&Client, &Client),
    authority: Side,
) -> Result<Vec<(TableName, String)>, String> {
    let mut found = Vec::new();
    for (side, client) in [(authority, here), (authority.other(), there)] {
        let names: Vec<TableName> = forms.iter().map(|form| form.name(side).clone()).collect();
        for one in stand_ins::read(client, &names).await.map_err(|error| sqlstate::words(&error))? {
            let of = forms.iter().find(|form| *form.name(side) == one.table);
            let why = format!("{one} on the {}; run there: {}", Sides::word(side), one.undo());
            found.extend(of.map(|form| (form.mapping.source.clone(), why)));
        }
    }
    Ok(found)
}

/// Tables of either side that others inherit from, with why that keeps them from being compared: whoever reads the table reads
/// rows of the other too.
async fn inherited(
    forms: &[TableForm],
    (here, there): (&Client, &Client),
    authority: Side,
) -> Result<Vec<(TableName, String)>, String> {
    let (monolith, service) = if authority == Side::Source { (here, there) } else { (there, here) };
    let sources: Vec<TableName> = forms.iter().map(|form| form.mapping.source.clone()).collect();
    let targets: Vec<TableName> = forms.iter().map(|form| form.mapping.target.clone()).collect();
    let read =
        tokio::try_join!(inheritance::children(monolith, &sources), inheritance::children(service, &targets));
    let (on_monolith, in_service) = read.map_err(|error| sqlstate::words(&error))?;
    let why = |one: &Inherited, side: &str| {
        format!("{one} on the {side}, so that its rows are part of both; run there: {}", one.undo())
    };
    let of = |form: &TableForm| {
        let there =
            on_monolith.iter().find(|one| one.parent == form.mapping.source).map(|one| why(one, "monolith"));
        let here =
            || in_service.iter().find(|one| one.parent == form.mapping.target).map(|one| why(one, "service"));
        there.or_else(here).map(|why| (form.mapping.source.clone(), why))
    };
    Ok(forms.iter().filter_map(of).collect())
}

/// Columns whose types are not made of the same on both sides, with what is not: a hash is of a value's text, which leaves
/// the names of attributes out.
async fn apart(
    forms: &[TableForm],
    (here, there): (&Client, &Client),
    authority: Side,
) -> Result<Vec<(TableName, String, String)>, String> {
    let (monolith, service) = if authority == Side::Source { (here, there) } else { (there, here) };
    let read = tokio::try_join!(
        type_trees::read(monolith, forms.iter().map(|form| &form.mapping.source)),
        type_trees::read(service, forms.iter().map(|form| &form.mapping.target)),
    );
    let (monolith, service) = read.map_err(|error| sqlstate::words(&error))?;
    let misfit = |mapping: &TableMapping, column: &ColumnMapping| {
        let wanted = monolith.get(&(mapping.source.clone(), column.source.clone()))?;
        let present = service.get(&(mapping.target.clone(), column.target.clone()))?;
        let misfit = type_tree::apart(wanted, present)?;
        Some((mapping.source.clone(), column.source.clone(), misfit.fact))
    };
    let of_table = |form: &TableForm| {
        let columns = form.mapping.columns.iter();
        columns.filter_map(|column| misfit(&form.mapping, column)).collect::<Vec<_>>()
    };
    Ok(forms.iter().flat_map(of_table).collect())
}
