//! A bucket of an S3-compatible store. What is signed and asked how is the crate's; the connections are ours, so that the binary has
//! one HTTP client and one cryptography library.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use http_body_util::BodyExt as _;
use hyper::Uri;
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderValue};
use hyper::http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::client::{
    ClientConfigKey, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStore as _, ObjectStoreExt as _, PutMode, PutPayload, RetryConfig};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// How long a connection may take to be there.
const CONNECT: Duration = Duration::from_secs(20);
/// How long the head of an answer may take, from the first byte of the request: a file is at most some hundred megabytes, but for one
/// whose single row is longer.
const ANSWER: Duration = Duration::from_secs(600);
/// For how long a request is tried again that a store could not answer.
const RETRY: Duration = Duration::from_secs(60);
/// How often.
const RETRIES: usize = 6;

/// A bucket, with what the names of files there begin with.
#[derive(Clone)]
pub struct Bucket {
    store: AmazonS3,
    name: String,
    prefix: String,
}

/// A store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    /// The name of the bucket is not there.
    #[error("it names no bucket: s3://bucket/prefix")]
    NoBucket,
    /// The name of a file is none.
    #[error("a store has no such name")]
    Name(#[from] object_store::path::Error),
    /// Whatever else.
    #[error(transparent)]
    Store(#[from] object_store::Error),
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bucket({self})")
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.name)?;
        if self.prefix.is_empty() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

impl Bucket {
    /// Reads `s3://bucket/prefix`. `settings` are variables of the environment; those that begin with `AWS_` and that the crate knows
    /// are taken.
    ///
    /// # Errors
    /// [`BucketError`].
    pub(super) fn parse(text: &str, settings: &BTreeMap<String, String>) -> Result<Self, BucketError> {
        let rest = text.strip_prefix("s3://").unwrap_or(text);
        let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if name.is_empty() {
            return Err(BucketError::NoBucket);
        }
        let prefix = prefix.trim_matches('/').to_owned();
        Path::parse(&prefix)?;
        let retry = RetryConfig { max_retries: RETRIES, retry_timeout: RETRY, ..RetryConfig::default() };
        let mut builder = AmazonS3Builder::new().with_http_connector(Connector).with_retry(retry);
        for (variable, value) in settings.iter().filter(|(variable, _)| variable.starts_with("AWS_")) {
            if let Ok(key) = variable.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
                builder = builder.with_config(key, value);
            }
        }
        let store = builder.with_bucket_name(name).build()?;
        Ok(Self { store, name: name.to_owned(), prefix })
    }

    fn path(&self, file: &str) -> Result<Path, BucketError> {
        let whole = if self.prefix.is_empty() { file.to_owned() } else { format!("{}/{file}", self.prefix) };
        Ok(Path::parse(whole)?)
    }

    pub(super) async fn is_empty(&self) -> Result<bool, BucketError> {
        let prefix = Path::parse(&self.prefix)?;
        let first = self.store.list(Some(&prefix)).next().await;
        Ok(first.transpose()?.is_none())
    }

    pub(super) async fn put(&self, file: &str, bytes: Vec<u8>) -> Result<(), BucketError> {
        self.store.put(&self.path(file)?, PutPayload::from(bytes)).await?;
        Ok(())
    }

    pub(super) async fn put_new(&self, file: &str, bytes: Vec<u8>) -> Result<bool, BucketError> {
        let put =
            self.store.put_opts(&self.path(file)?, PutPayload::from(bytes), PutMode::Create.into()).await;
        match put {
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            put => Ok(put.map(|_| true)?),
        }
    }

    pub(super) async fn get(&self, file: &str) -> Result<Option<Vec<u8>>, BucketError> {
        let got = match self.store.get(&self.path(file)?).await {
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            got => got?,
        };
        Ok(Some(got.bytes().await?.into()))
    }

    pub(super) async fn size(&self, file: &str) -> Result<Option<u64>, BucketError> {
        match self.store.head(&self.path(file)?).await {
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            found => Ok(Some(found?.size)),
        }
    }

    pub(super) async fn remove(&self, file: &str) -> Result<(), BucketError> {
        match self.store.delete(&self.path(file)?).await {
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            removed => Ok(removed?),
        }
    }
}

/// Makes [`Requests`].
#[derive(Debug)]
struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let clear = options.get_config_value(&ClientConfigKey::AllowHttp);
        let clear = clear.is_some_and(|value| value.eq_ignore_ascii_case("true"));
        Ok(HttpClient::new(Requests { tls: tls()?, clear }))
    }
}

fn tls() -> object_store::Result<Arc<ClientConfig>> {
    let failed =
        |source: rustls::Error| object_store::Error::Generic { store: "S3", source: Box::new(source) };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Ok(Arc::new(builder.map_err(failed)?.with_root_certificates(roots).with_no_client_auth()))
}

/// Sends each request over a connection of its own: there are few, and most carry megabytes.
struct Requests {
    tls: Arc<ClientConfig>,
    /// Without TLS, too: `AWS_ALLOW_HTTP`.
    clear: bool,
}

impl fmt::Debug for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requests").field("clear", &self.clear).finish_non_exhaustive()
    }
}

/// What the trait's `async fn` stands for.
type Answer<'a> = Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'a>>;

impl HttpService for Requests {
    fn call<'life0, 'async_trait>(&'life0 self, request: HttpRequest) -> Answer<'async_trait>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(self.exchange(request))
    }
}

impl Requests {
    async fn exchange(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let unusable = |why: &str| HttpError::new(HttpErrorKind::Unknown, io::Error::other(why.to_owned()));
        let uri = request.uri().clone();
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") if self.clear => false,
            Some(_) | None => {
                return Err(unusable(
                    "the store's address is not https://; AWS_ALLOW_HTTP=true allows http://",
                ));
            }
        };
        let authority = uri.authority().ok_or_else(|| unusable("the store's address names no host"))?;
        let header = HeaderValue::from_str(authority.as_str());
        request
            .headers_mut()
            .insert(HOST, header.map_err(|_| unusable("the store's address names no host"))?);
        let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
        *request.uri_mut() = path.parse::<Uri>().map_err(|_| unusable("the file's name makes no address"))?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let stream = timeout(CONNECT, TcpStream::connect((host.as_str(), port))).await;
        let stream = stream.map_err(|slow| HttpError::new(HttpErrorKind::Timeout, slow))?;
        let stream = stream.map_err(|error| HttpError::new(HttpErrorKind::Connect, error))?;
        if !secure {
            return send(TokioIo::new(stream), request).await;
        }
        let name = ServerName::try_from(host).map_err(|_| unusable("the store's host is no name for TLS"))?;
        let stream = timeout(CONNECT, TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream)).await;
        let stream = stream.map_err(|slow| HttpError::new(HttpErrorKind::Timeout, slow))?;
        // A certificate that is not accepted is not accepted the next time either.
        let stream = stream.map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
        send(TokioIo::new(stream), request).await
    }
}

async fn send<S>(stream: S, request: HttpRequest) -> Result<HttpResponse, HttpError>
where
    S: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let (mut sender, connection) = http1::handshake(stream).await.map_err(broken)?;
    // It ends with the last byte of the answer, or when nobody waits for one.
    tokio::spawn(async move { drop(connection.await) });
    let answer = timeout(ANSWER, sender.send_request(request)).await;
    let answer = answer.map_err(|slow| HttpError::new(HttpErrorKind::Timeout, slow))?.map_err(broken)?;
    let (head, body) = answer.into_parts();
    Ok(HttpResponse::from_parts(head, HttpResponseBody::new(body.map_err(broken))))
}

fn broken(error: hyper::Error) -> HttpError {
    let kind = if error.is_timeout() {
        HttpErrorKind::Timeout
    } else if error.is_parse() {
        HttpErrorKind::Decode
    } else {
        HttpErrorKind::Interrupted
    };
    HttpError::new(kind, error)
}
