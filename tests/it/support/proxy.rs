//! A link that can be cut, or go silent, while it is in use.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What happens to what is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// It arrives.
    Whole,
    /// Connections end, and new ones are ended at once.
    Cut,
    /// Nothing arrives and nobody is told, as behind a firewall that forgot the connection.
    Silent,
}

/// A listener on this machine that passes everything on. Ends with the test.
pub struct Proxy {
    line: Arc<watch::Sender<Line>>,
    port: u16,
}

impl Proxy {
    /// In front of the server that the URL names, which must be one of this machine with its port in it.
    pub async fn before(url: &str) -> (Self, String) {
        let config: tokio_postgres::Config = url.parse().unwrap();
        let server = *config.get_ports().first().unwrap();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let line = Arc::new(watch::Sender::new(Line::Whole));
        let proxy = Self { line: Arc::clone(&line), port };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let line = line.subscribe();
                tokio::spawn(pass(client, server, line));
            }
        });
        let through = url.replace(&format!(":{server}/"), &format!(":{}/", proxy.port));
        assert_ne!(through, url, "the port is in the URL");
        (proxy, through)
    }

    pub fn set(&self, line: Line) {
        self.line.send_replace(line);
    }
}

async fn pass(client: TcpStream, server: u16, line: watch::Receiver<Line>) {
    if *line.borrow() == Line::Cut {
        return;
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { return };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    // The first direction that ends ends both: the halves of the other one are dropped with it.
    tokio::select! {
        () = one_way(from_client, to_server, line.clone()) => {}
        () = one_way(from_server, to_client, line) => {}
    }
}

async fn one_way(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut line: watch::Receiver<Line>,
) {
    let mut buffer = [0; 8192];
    loop {
        let read = tokio::select! {
            cut = line.wait_for(|line| *line == Line::Cut) => {
                drop(cut);
                return;
            }
            read = from.read(&mut buffer) => read,
        };
        let Ok(count @ 1..) = read else { return };
        // What was read before the line went silent must not arrive either.
        let state = line.wait_for(|line| *line != Line::Silent).await.map_or(Line::Cut, |line| *line);
        if state != Line::Whole || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
