use std::pin::Pin;
use std::time::{Duration, Instant};
use tokio_postgres::{Client, Config, Error, NoTls, Transaction};

/// One of the two databases, with a connection while there is one.
pub struct Side {
    pub config: Config,
    pub client: Option<Client>,
}

/// What `work` returns: a boxed future, so that it can be spawned.
pub type Doing<'a> = Pin<Box<dyn Future<Output = Result<(), Error>> + Send + 'a>>;

/// Does a piece of work exactly once, on whichever side owns the slice. `sides[0]` is where the last one succeeded.
pub async fn write(
    sides: &mut [Side; 2],
    request: &str,
    work: impl for<'a> Fn(&'a Transaction<'_>) -> Doing<'a>,
) -> Result<(), Error> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut pause = Duration::from_millis(5);
    let mut refused = 0_u32;
    loop {
        let error = match once(&mut sides[0], request, &work).await {
            Ok(()) => return Ok(()),
            Err(error) if is_worth_a_retry(&error) && Instant::now() < deadline => error,
            Err(error) => return Err(error),
        };
        if error.is_closed() || error.code().is_none() {
            sides[0].client = None; // Whether it committed is not known; `request` tells on the next attempt.
        }
        sides.swap(0, 1);
        refused += 1;
        if refused.is_multiple_of(2) {
            // Both sides refused: authority is on its way.
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
            pause = (pause * 2).min(Duration::from_millis(200));
        }
    }
}

/// One attempt: the work and the note that it was done are one transaction.
async fn once(
    side: &mut Side,
    request: &str,
    work: &impl for<'a> Fn(&'a Transaction<'_>) -> Doing<'a>,
) -> Result<(), Error> {
    if side.client.as_ref().is_none_or(Client::is_closed) {
        let (client, connection) = side.config.connect(NoTls).await?;
        tokio::spawn(connection);
        side.client = Some(client);
    }
    let Some(client) = &mut side.client else { unreachable!("it was just made") };
    let transaction = client.transaction().await?;
    let note = "INSERT INTO requests (id) VALUES ($1) ON CONFLICT DO NOTHING";
    if transaction.execute(note, &[&request]).await? == 1 {
        work(&transaction).await?;
    }
    transaction.commit().await
}

/// Fenced, an old snapshot, a deadlock, or a connection that broke or could not be made.
fn is_worth_a_retry(error: &Error) -> bool {
    match error.code().map(|code| code.code()) {
        Some(code) => matches!(code, "25006" | "40001" | "40P01") || code.starts_with("08") || code.starts_with("57P0"),
        None => true,
    }
}
