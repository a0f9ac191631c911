//! An archive in an S3-compatible store: moto, a server of this machine that keeps its objects in memory. Compiled with the feature
//! `s3`.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use strangler::cluster::Cluster;

use super::quarantine::{move_away, place};
use super::{ripe, take, token};
use crate::support::binary::Ended;
use crate::support::cluster::{connect, create_database};
use crate::support::split::Split;
use crate::support::wait::{SOON, until_blocking};

/// The server; ends with the test.
struct Moto {
    child: Child,
    port: u16,
}

impl Moto {
    fn launch() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new("moto_server");
        command
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command.spawn().expect("moto_server is installed: pip install 'moto[server]'");
        let moto = Self { child, port };
        until_blocking("the store answers", SOON, || TcpStream::connect(("127.0.0.1", port)).ok().map(drop));
        assert!(moto.asked("PUT", "/kept", b"").starts_with("HTTP/1.1 200"));
        moto
    }

    /// One request, and the whole answer; moto asks for no signature.
    fn asked(&self, method: &str, path: &str, body: &[u8]) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            self.port,
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    fn run(&self, split: &Split, words: &[&str]) -> Ended {
        let mut command = split.command(words);
        command.envs([
            ("AWS_ACCESS_KEY_ID", "key"),
            ("AWS_SECRET_ACCESS_KEY", "very-secret"),
            ("AWS_REGION", "eu-central-1"),
            ("AWS_ALLOW_HTTP", "true"),
        ]);
        command.env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", self.port));
        let ended = Ended::of(command.output().unwrap());
        assert!(!ended.page().contains("very-secret"), "{}", ended.page());
        ended
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_in_a_store_is_read_back_and_comes_back_as_it_was() {
    let (mut split, monolith, _service, mirror) = ripe().await;
    take(&split);
    move_away(&split);
    let moto = Moto::launch();
    let archive = ["retire", "plan.yaml", "--stage", "archive", "--to", "s3://kept/shop/one"];
    let preview = moto.run(&split, &archive);
    assert_eq!(preview.exit, Some(0), "{}", preview.page());
    let done = moto.run(&split, &[&archive[..], &["--confirm", &token(&preview)]].concat());
    assert_eq!(done.exit, Some(0), "{}", done.page());
    assert!(!moto.asked("GET", "/kept?list-type=2", b"").contains("begun.json"));

    create_database(&split.pair.monolith, "elsewhere").await;
    let url = split.pair.monolith.url("elsewhere");
    split.lead("ELSEWHERE", &url);
    let restore = ["restore", "--from", "s3://kept/shop/one", "--to", "${ELSEWHERE}"];
    let part = "/kept/shop/one/data/0001_public.accounts/00001.copy.zst";
    let whole = moto.run(&split, &["restore", "--from", "s3://kept/shop/one", "--verify"]);
    assert_eq!(whole.exit, Some(0), "{}", whole.page());
    let restored = moto.run(&split, &restore);
    assert_eq!(restored.exit, Some(0), "{}", restored.page());
    let elsewhere = connect(&url).await;
    let of = async |client: &tokio_postgres::Client| {
        let stands = place(client, "accounts").await;
        let rows = format!("SELECT string_agg(a::text, ',' ORDER BY id) FROM {stands}.accounts a");
        client.query_one(&rows, &[]).await.unwrap().get::<_, String>(0)
    };
    assert_eq!(of(&elsewhere).await, of(&monolith).await);

    assert!(moto.asked("PUT", part, b"other bytes").starts_with("HTTP/1.1 200"));
    let damaged = moto.run(&split, &["restore", "--from", "s3://kept/shop/one", "--verify"]);
    assert!(damaged.exit == Some(1) && damaged.stderr.contains(part), "{}", damaged.page());
    let nowhere = moto.run(&split, &["restore", "--from", "s3://lost/shop/one", "--verify"]);
    assert!(matches!(nowhere.exit, Some(3 | 4)), "{}", nowhere.page());
    mirror.stop();
}
