//! An archive in an S3-compatible store: moto, a server of this machine that keeps its objects in memory, behind a server that speaks TLS.
//! At the root of a bucket it is made to check every signature; below a prefix it can't, as it takes the address apart before it does.
//! Compiled with the feature `s3`.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use strangler::cluster::Cluster;
use strangler::failpoint;
use tokio_rustls::TlsAcceptor;

use super::archive::away;
use super::quarantine::place;
use super::{refused, ripe, token};
use crate::support::binary::Ended;
use crate::support::cluster::{connect, create_database};
use crate::support::split::Split;
use crate::support::wait::{SOON, until_blocking};

/// The server, and how it is reached; ends with the test.
struct Moto {
    child: Child,
    port: u16,
    settings: BTreeMap<&'static str, String>,
    folder: tempfile::TempDir,
}

impl Moto {
    async fn launch() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new("moto_server");
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.expect("moto_server is installed: pip install 'moto[server]'");
        let folder = tempfile::tempdir().unwrap();
        let mut moto = Self { child, port, settings: BTreeMap::new(), folder };
        until_blocking("the store answers", SOON, || TcpStream::connect(("127.0.0.1", port)).ok().map(drop));
        moto.iam("Action=CreateUser&UserName=keeper");
        let key = moto.iam("Action=CreateAccessKey&UserName=keeper");
        let of = |tag: &str| {
            let (_, rest) = key.split_once(&format!("<{tag}>")).unwrap_or_else(|| panic!("{key}"));
            rest.split('<').next().unwrap().to_owned()
        };
        let may = "%7B%22Version%22%3A%222012-10-17%22%2C%22Statement%22%3A%5B%7B%22Effect%22%3A%22Allow%22%2C\
                   %22Action%22%3A%22s3%3A%2A%22%2C%22Resource%22%3A%22%2A%22%7D%5D%7D";
        moto.iam(&format!("Action=PutUserPolicy&UserName=keeper&PolicyName=all&PolicyDocument={may}"));
        moto.put("/kept", b"");
        moto.put("/signed", b"");
        moto.put("/kept/shop/one-more/letter.txt", b"dear");
        let (tls, authority) = front(moto.folder.path(), port).await;
        moto.settings = BTreeMap::from([
            ("AWS_ACCESS_KEY_ID", of("AccessKeyId")),
            ("AWS_SECRET_ACCESS_KEY", of("SecretAccessKey")),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ENDPOINT_URL", format!("https://localhost:{tls}")),
            ("SSL_CERT_FILE", authority),
        ]);
        moto
    }

    /// One request without a signature, and the whole answer.
    fn asked(&self, (method, path, service): (&str, &str, &str), body: &[u8]) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let scope = format!("Credential=x/20260101/us-east-1/{service}/aws4_request");
        let kind = if service == "iam" { "application/x-www-form-urlencoded" } else { "text/plain" };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\nContent-Length: {}\r\n\
             Content-Type: {kind}\r\n\
             Authorization: AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=0\r\n\r\n",
            self.port,
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn iam(&self, form: &str) -> String {
        self.asked(("POST", "/", "iam"), format!("{form}&Version=2010-05-08").as_bytes())
    }

    fn put(&self, path: &str, body: &[u8]) {
        let answer = self.asked(("PUT", path, "s3"), body);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    /// From now on every request needs a signature, or none does.
    fn check_signatures(&self, check: bool) {
        let without: &[u8] = if check { b"0" } else { b"inf" };
        let answer = self.asked(("POST", "/moto-api/reset-auth", "s3"), without);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    fn command(&self, split: &Split, words: &[&str]) -> Command {
        let mut command = split.command(words);
        command.envs(&self.settings);
        command
    }

    fn run(&self, split: &Split, words: &[&str]) -> Ended {
        self.ended(self.command(split, words))
    }

    fn ended(&self, mut command: Command) -> Ended {
        let ended = Ended::of(command.output().unwrap());
        assert!(!ended.page().contains(&self.settings["AWS_SECRET_ACCESS_KEY"]), "{}", ended.page());
        ended
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Speaks TLS for a server that does not; returns its port, and the file of the authority that signed its certificate.
async fn front(folder: &Path, port: u16) -> (u16, String) {
    let openssl = |arguments: &str| {
        let run = Command::new("openssl").current_dir(folder).args(arguments.split(' ')).output().unwrap();
        assert!(run.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&run.stderr));
    };
    openssl("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.crt");
    openssl("req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key.pem -out server.csr");
    std::fs::write(folder.join("names"), "subjectAltName=DNS:localhost").unwrap();
    openssl(
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile names -out server.crt",
    );
    let chain = vec![CertificateDer::from_pem_file(folder.join("server.crt")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(folder.join("key.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let acceptor =
        TlsAcceptor::from(Arc::new(builder.with_no_client_auth().with_single_cert(chain, key).unwrap()));
    let listener = tokio::net::TcpListener::bind("localhost:0").await.unwrap();
    let own = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut behind = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut behind).await;
            });
        }
    });
    (own, folder.join("ca.crt").to_str().unwrap().to_owned())
}

const AT: &str = "s3://kept/shop/one";
const ARCHIVE: &[&str] = &["retire", "plan.yaml", "--stage", "archive", "--to", AT];
const VERIFY: &[&str] = &["restore", "--from", AT, "--verify"];
const PART: &str = "/kept/shop/one/data/0001_public.accounts/00001.copy.zst";

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_in_a_store_is_read_back_and_comes_back_as_it_was() {
    let (mut split, monolith, _service, mirror) = ripe().await;
    away(&split);
    let moto = Moto::launch().await;
    let shown = token(&moto.run(&split, ARCHIVE));
    let confirmed = [ARCHIVE, &["--confirm", &shown]].concat();
    for point in failpoint::ARCHIVE {
        let mut command = moto.command(&split, &confirmed);
        command.env("STRANGLER_FAILPOINT", point);
        let killed = moto.ended(command);
        assert_eq!(killed.exit, None, "{point} was not reached: {}", killed.page());
        if *point == "archive-verified" {
            // A manifest makes what is there an archive: from here on the same command would only prove it.
            break;
        }
    }
    let done = moto.run(&split, &confirmed);
    assert_eq!(done.exit, Some(0), "{}", done.page());
    let listed = moto.asked(("GET", "/kept?list-type=2", "s3"), b"");
    assert!(listed.contains("shop/one/manifest.json") && !listed.contains("begun.json"), "{listed}");

    create_database(&split.pair.monolith, "elsewhere").await;
    let url = split.pair.monolith.url("elsewhere");
    split.lead("ELSEWHERE", &url);
    let restored = moto.run(&split, &["restore", "--from", AT, "--to", "${ELSEWHERE}"]);
    assert_eq!(restored.exit, Some(0), "{}", restored.page());
    let elsewhere = connect(&url).await;
    let of = async |client: &tokio_postgres::Client| {
        let stands = place(client, "accounts").await;
        let rows = format!("SELECT string_agg(a::text, ',' ORDER BY id) FROM {stands}.accounts a");
        client.query_one(&rows, &[]).await.unwrap().get::<_, String>(0)
    };
    assert_eq!(of(&elsewhere).await, of(&monolith).await);
    distrusted(&split, &moto);
    damaged(&split, &moto);
    mirror.stop();
}

/// What is not as it was, not there, or somebody else's.
fn damaged(split: &Split, moto: &Moto) {
    let whole = moto.run(split, VERIFY);
    assert_eq!(whole.exit, Some(0), "{}", whole.page());
    moto.put(PART, b"other bytes");
    let damaged = moto.run(split, VERIFY);
    let part = PART.replace("/kept/", "s3://kept/");
    assert!(damaged.exit == Some(1) && damaged.stderr.contains(&part), "{}", damaged.page());
    moto.asked(("DELETE", PART, "s3"), b"");
    let gone = moto.run(split, VERIFY);
    assert!(gone.exit == Some(1) && gone.stderr.contains("is not there"), "{}", gone.page());
    let other = [&ARCHIVE[..5], &["s3://kept/shop/one-more"]].concat();
    refused(&moto.run(split, &other), &["place-taken"]);
}

/// A store is not written to in the clear, by a key that it does not know, or under a certificate of nobody.
fn distrusted(split: &Split, moto: &Moto) {
    let root = [&ARCHIVE[..5], &["s3://signed"]].concat();
    let verify = ["restore", "--from", "s3://signed", "--verify"];
    moto.check_signatures(true);
    let shown = token(&moto.run(split, &root));
    let signed = moto.run(split, &[&root[..], &["--confirm", &shown]].concat());
    assert_eq!(signed.exit, Some(0), "{}", signed.page());
    assert_eq!(moto.run(split, &verify).exit, Some(0));
    let with = |changed: &[(&str, &str)]| {
        let mut command = moto.command(split, &verify);
        command.envs(changed.iter().copied());
        moto.ended(command)
    };
    let clear = format!("http://127.0.0.1:{}", moto.port);
    for changed in [
        &[("AWS_SECRET_ACCESS_KEY", "another")][..],
        &[("SSL_CERT_FILE", "/dev/null")],
        &[("AWS_ENDPOINT_URL", &clear)],
    ] {
        let ended = with(changed);
        assert_eq!(ended.exit, Some(4), "{changed:?}: {}", ended.page());
        assert!(ended.stderr.contains("error[archive-place]"), "{changed:?}: {}", ended.page());
    }
    let allowed = with(&[("AWS_ENDPOINT_URL", &clear), ("AWS_ALLOW_HTTP", "true")]);
    assert_eq!(allowed.exit, Some(0), "{}", allowed.page());
    let nowhere = moto.run(split, &["restore", "--from", "s3://lost/shop/one", "--verify"]);
    assert!(matches!(nowhere.exit, Some(3 | 4)), "{}", nowhere.page());
    moto.check_signatures(false);
}
