//! A small HTTP server for the metrics. Whatever a client does, it can't hold up a reconciliation or another client for
//! long: a connection has one request of limited size, and a limited time.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus_client::encoding::prometheus_text;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Metrics;

/// Limits of a server; tests have smaller ones.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Connections at the same time; others wait in the system's queue.
    connections: usize,
    /// How long one may last. Prometheus gives up after 10 seconds itself.
    time: Duration,
}

const LIMITS: Limits = Limits { connections: 64, time: Duration::from_secs(5) };

/// Bytes of a request's head, the smallest limit that hyper takes. A scraper sends some 300.
const HEAD_BYTES: usize = 8_192;

/// After an error of the system, e.g. when the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers `GET /metrics` with the metrics and `GET /healthz` with `ok` until it is told to stop; then connections end
/// where they are. It only ends when told to.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>, stop: CancellationToken) {
    serve_within(LIMITS, listener, metrics, stop).await;
}

async fn serve_within(limits: Limits, listener: TcpListener, metrics: Arc<Metrics>, stop: CancellationToken) {
    let free = Arc::new(Semaphore::new(limits.connections));
    // They end with this set, at the end of this function.
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            // What has ended is forgotten, so that the set does not grow.
            Some(_) = connections.join_next() => continue,
            accepted = accept(&listener, &free) => accepted,
        };
        match accepted {
            Some((stream, place)) => {
                let metrics = Arc::clone(&metrics);
                connections.spawn(async move {
                    // Nobody needs to know why a scraper went away, or was too slow.
                    let _ = timeout(limits.time, answer_one(stream, metrics)).await;
                    drop(place);
                });
            }
            None => sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// The next connection, once there is a place for it.
async fn accept(
    listener: &TcpListener,
    free: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let place = Arc::clone(free).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, place)),
        Err(error) => {
            tracing::warn!(%error, "a connection for metrics could not be accepted");
            None
        }
    }
}

async fn answer_one(stream: TcpStream, metrics: Arc<Metrics>) -> hyper::Result<()> {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(&request, &metrics);
        async move { Ok::<_, Infallible>(response) }
    });
    http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

fn answer<B>(request: &Request<B>, metrics: &Metrics) -> Response<Full<Bytes>> {
    const WORDS: &str = "text/plain; charset=utf-8";
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = response(StatusCode::METHOD_NOT_ALLOWED, WORDS, "only GET\n".to_owned());
        response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/metrics" => response(StatusCode::OK, prometheus_text::CONTENT_TYPE, metrics.text()),
        "/healthz" => response(StatusCode::OK, WORDS, "ok\n".to_owned()),
        _ => response(StatusCode::NOT_FOUND, WORDS, "there are /metrics and /healthz\n".to_owned()),
    }
}

fn response(status: StatusCode, content_type: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::SocketAddr;
    use std::time::Instant;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::reconcile::report::fixture;

    const SMALL: Limits = Limits { connections: 2, time: Duration::from_millis(300) };

    struct Running {
        address: SocketAddr,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
        task: tokio::task::JoinHandle<()>,
    }

    async fn start(limits: Limits, address: &str) -> std::io::Result<Running> {
        let listener = TcpListener::bind(address).await?;
        let (metrics, stop) = (Arc::new(Metrics::new(["ordering"])), CancellationToken::new());
        let address = listener.local_addr()?;
        let task = tokio::spawn(serve_within(limits, listener, Arc::clone(&metrics), stop.clone()));
        Ok(Running { address, metrics, stop, task })
    }

    /// Sends a text and reads until the server closes.
    async fn talk(address: SocketAddr, text: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // A server that closes while more is coming resets; what it said before is what counts.
        let _ =
            timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.expect("it never closes");
        String::from_utf8(answer).unwrap()
    }

    async fn get(address: SocketAddr, path: &str) -> String {
        talk(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await
    }

    #[tokio::test]
    async fn metrics_and_health_are_answered_over_both_families() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let server = match start(LIMITS, address).await {
                // A machine without IPv6, as many containers are.
                Err(error) if address.starts_with('[') && error.kind() == ErrorKind::AddrNotAvailable => {
                    continue;
                }
                other => other.unwrap(),
            };
            server.metrics.record(&fixture::differs());
            let page = get(server.address, "/metrics").await;
            assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
            assert!(page.contains("content-type: text/plain; version=0.0.4"), "{page}");
            let body = page.split_once("\r\n\r\n").unwrap().1;
            assert_eq!(body.lines().count(), server.metrics.text().lines().count());
            assert!(
                body.contains("strangler_reconcile_last_verdict{slice=\"ordering\",outcome=\"differs\"} 1\n")
            );
            assert!(get(server.address, "/healthz").await.ends_with("\r\n\r\nok\n"));
            assert!(get(server.address, "/metrics?x=1").await.starts_with("HTTP/1.1 200"));
        }
    }

    #[tokio::test]
    async fn what_is_not_there_is_refused() {
        let server = start(LIMITS, "127.0.0.1:0").await.unwrap();
        assert!(get(server.address, "/").await.starts_with("HTTP/1.1 404"));
        let post =
            talk(server.address, "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc").await;
        assert!(post.starts_with("HTTP/1.1 405") && post.contains("allow: GET, HEAD"), "{post}");
        let head = talk(server.address, "HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
        assert!(!talk(server.address, "\u{0}\u{1}nonsense\r\n\r\n").await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn a_request_without_an_end_is_cut_off() {
        let server = start(LIMITS, "127.0.0.1:0").await.unwrap();
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let began = Instant::now();
        let mut sent = 0;
        // Some hundred kB go into the system's own buffers before the server's end is felt.
        while stream.write_all(&[b'a'; 4096]).await.is_ok() && sent < 100_000_000 {
            sent += 4096;
        }
        assert!(sent < 100_000_000 && began.elapsed() < Duration::from_secs(15), "{sent} bytes were taken");
        assert!(get(server.address, "/healthz").await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn clients_that_say_nothing_do_not_hold_up_others_for_long() {
        let server = start(SMALL, "127.0.0.1:0").await.unwrap();
        let mut silent = Vec::new();
        for _ in 0..5 {
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            stream.write_all(b"GET /metr").await.unwrap();
            silent.push(stream);
        }
        // Three turns of two connections each come first.
        assert!(get(server.address, "/healthz").await.starts_with("HTTP/1.1 200"));
        for mut stream in silent {
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            assert!(!rest.starts_with(b"HTTP/1.1 200"));
        }
    }

    #[tokio::test]
    async fn clients_that_break_off_leave_the_server_as_it_was() {
        let server = start(SMALL, "127.0.0.1:0").await.unwrap();
        for _ in 0..50 {
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            // Unread bytes make the system reset the connection instead of closing it.
            drop(stream);
        }
        assert!(get(server.address, "/metrics").await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn it_stops_at_once_with_connections_open() {
        let server = start(LIMITS, "127.0.0.1:0").await.unwrap();
        let mut open = TcpStream::connect(server.address).await.unwrap();
        open.write_all(b"GET").await.unwrap();
        assert!(get(server.address, "/healthz").await.starts_with("HTTP/1.1 200"));
        server.stop.cancel();
        timeout(Duration::from_secs(2), server.task).await.expect("it goes on").unwrap();
        assert_eq!(open.read(&mut [0; 10]).await.unwrap_or(0), 0);
        assert!(TcpStream::connect(server.address).await.is_err());
    }
}
