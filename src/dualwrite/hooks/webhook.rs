//! A hook that is a URL: one POST, whose answer has to be 2xx.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::{Ended, OUTPUT_BYTES_MAX, shown};

/// Where a webhook goes. `Debug` shows nothing of it: the path may hold a token.
pub(super) struct Target {
    host: String,
    port: u16,
    header: HeaderValue,
    path: Uri,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Target(…)")
    }
}

impl Target {
    /// Reads a URL, and for https the machine's certificate authorities.
    ///
    /// # Errors
    /// What is wrong, without any part of the URL.
    pub(super) fn new(url: &str) -> Result<Self, String> {
        Self::with_authorities(url, || {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            roots
        })
    }

    /// As [`Self::new`], with other authorities.
    pub(super) fn with_authorities(url: &str, roots: impl FnOnce() -> RootCertStore) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|_| "the URL can't be read".to_owned())?;
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            Some(_) | None => return Err("the URL is neither http:// nor https://".to_owned()),
        };
        let authority = uri.authority().ok_or("the URL names no host")?;
        if authority.as_str().contains('@') {
            return Err("the URL holds a user; a token belongs into its path or query".to_owned());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let header = HeaderValue::from_str(authority.as_str()).map_err(|_| "the URL names no host")?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let path = path.parse().map_err(|_| "the URL's path can't be read")?;
        let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let tls = if secure {
            let name = ServerName::try_from(host.clone()).map_err(|_| "the URL's host is no name for TLS")?;
            Some((Arc::new(client_config(roots())?), name))
        } else {
            None
        };
        Ok(Self { host, port, header, path, tls })
    }

    /// Sends the document; all of it, up to the end of the answer, within `limit`.
    pub(super) async fn send(&self, document: &str, limit: Duration) -> Ended {
        let failed = |failure: String| Ended { output: String::new(), failure: Some(failure) };
        match timeout(limit, self.exchange(document)).await {
            Ok(Ok(ended)) => ended,
            Ok(Err(failure)) => failed(failure),
            Err(_elapsed) => failed(format!("got no answer within {} ms", limit.as_millis())),
        }
    }

    async fn exchange(&self, document: &str) -> Result<Ended, String> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await;
        let stream = stream.map_err(|error| format!("could not be reached: {error}"))?;
        let response = match &self.tls {
            None => self.post(stream, document).await?,
            Some((config, name)) => {
                let stream = TlsConnector::from(Arc::clone(config)).connect(name.clone(), stream).await;
                let stream = stream.map_err(|error| format!("could not be reached over TLS: {error}"))?;
                self.post(stream, document).await?
            }
        };
        Ok(response)
    }

    async fn post(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        document: &str,
    ) -> Result<Ended, String> {
        let broken = |error: hyper::Error| format!("could not be asked: {error}");
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // It ends with the answer, or with this function.
        let _connection = AbortOnDropHandle::new(tokio::spawn(async move { drop(connection.await) }));
        let request = Request::builder()
            .method(Method::POST)
            .uri(self.path.clone())
            .header(HOST, self.header.clone())
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, concat!("strangler/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(Bytes::from(document.to_owned())))
            .map_err(|error| format!("could not be asked: {error}"))?;
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let output = beginning(response).await;
        let failure = (!status.is_success()).then(|| format!("answered {}", status.as_u16()));
        Ok(Ended { output, failure })
    }
}

/// The beginning of an answer's body. One that breaks off has said what it had to say in its status.
async fn beginning(mut response: Response<Incoming>) -> String {
    let mut bytes = Vec::new();
    while let Some(Ok(frame)) = response.frame().await {
        if let Some(data) = frame.data_ref() {
            bytes.extend_from_slice(data);
        }
        if bytes.len() > OUTPUT_BYTES_MAX {
            bytes.truncate(OUTPUT_BYTES_MAX);
            return shown(&bytes, true);
        }
    }
    shown(&bytes, false)
}

fn client_config(roots: RootCertStore) -> Result<ClientConfig, String> {
    if roots.is_empty() {
        return Err("this machine has no certificate authorities; install its ca-certificates".to_owned());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| format!("TLS can't be used: {error}"))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use rustls::ServerConfig;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    fn openssl(directory: &Path, arguments: &str) {
        let run = Command::new("openssl").current_dir(directory).args(arguments.split(' ')).output().unwrap();
        assert!(run.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&run.stderr));
    }

    /// A server for `localhost`, the authority that signed its certificate, and what it hears of one request.
    async fn server() -> (u16, CertificateDer<'static>, tokio::task::JoinHandle<String>) {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        let new = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.crt";
        openssl(at, new);
        openssl(at, "req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key.pem -out server.csr");
        std::fs::write(at.join("names"), "subjectAltName=DNS:localhost").unwrap();
        openssl(
            at,
            "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile names -out server.crt",
        );
        let authority = CertificateDer::from_pem_file(at.join("ca.crt")).unwrap();
        let chain = vec![CertificateDer::from_pem_file(at.join("server.crt")).unwrap()];
        let key = PrivateKeyDer::from_pem_file(at.join("key.pem")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = builder.with_no_client_auth().with_single_cert(chain, key).unwrap();
        let listener = TcpListener::bind("localhost:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = TlsAcceptor::from(Arc::new(config)).accept(stream).await else {
                return String::new();
            };
            let mut heard = Vec::new();
            while !heard.ends_with(b"{}") {
                assert!(stream.read_buf(&mut heard).await.unwrap() > 0);
            }
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            stream.shutdown().await.unwrap();
            String::from_utf8(heard).unwrap()
        });
        (port, authority, heard)
    }

    #[tokio::test]
    async fn a_document_travels_over_tls_to_a_server_whose_authority_is_known() {
        let (port, authority, heard) = server().await;
        let roots = || {
            let mut roots = RootCertStore::empty();
            roots.add(authority).unwrap();
            roots
        };
        let target =
            Target::with_authorities(&format!("https://localhost:{port}/flip?token=a"), roots).unwrap();
        let ended = target.send("{}", Duration::from_secs(30)).await;
        assert_eq!(ended.failure, None);
        let heard = heard.await.unwrap();
        assert!(heard.starts_with("POST /flip?token=a HTTP/1.1\r\n"), "{heard}");
        assert!(heard.contains(&format!("host: localhost:{port}\r\n")), "{heard}");
    }

    #[tokio::test]
    async fn a_server_of_another_authority_is_told_nothing() {
        let ((port, ..), (_, other, _)) = (server().await, server().await);
        let roots = || {
            let mut roots = RootCertStore::empty();
            roots.add(other).unwrap();
            roots
        };
        let target = Target::with_authorities(&format!("https://localhost:{port}/"), roots).unwrap();
        let failure = target.send("{}", Duration::from_secs(30)).await.failure.unwrap();
        assert!(failure.starts_with("could not be reached over TLS"), "{failure}");
    }

    #[test]
    fn what_is_wrong_with_a_url_is_said_without_the_url() {
        for (url, why) in [
            ("ftp://token.example/secret", "the URL is neither http:// nor https://"),
            ("/secret", "the URL is neither http:// nor https://"),
            (
                "http://ann:secret@flags.example/",
                "the URL holds a user; a token belongs into its path or query",
            ),
            ("http://flags.example/a secret", "the URL can't be read"),
        ] {
            assert_eq!(Target::new(url).unwrap_err(), why);
        }
    }
}
