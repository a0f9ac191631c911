//! A server in a folder of its own.

use std::fmt::{self, Write as _};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::account::Account;
use super::binaries::Binaries;
use super::error::io;
use super::guard::PID_FILE;
use super::home::{Claim, Home, last_lines};
use super::{Cluster, ClusterError, Result, SETTINGS, SUPERUSER, StopMode, connection_url};

/// Crash recovery on a loaded machine takes seconds; nothing that works takes longer than this.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// As [`START_TIMEOUT`]; a fast stop writes a checkpoint.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// How often the server's state is looked at while we wait for it.
const POLL: Duration = Duration::from_millis(4);

/// Ports are drawn from below the range that systems use for outgoing connections (32768 upward on Linux), so that
/// none of those sits on the port while the server is down for a moment.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Two processes may draw the same port at the same moment; this many draws in a row do not all fail.
const PORT_DRAWS: usize = 20;

/// How much of the log an error shows.
const LOG_LINES: usize = 12;

/// Asks the shell to note the process id and then to become the server: see [`PID_FILE`].
const START_SCRIPT: &str = r#"dir=$1; shift; echo $$ > "$dir/server.pid" && exec "$@""#;

/// Who may log in over TCP. The unix socket needs no password: its folder is closed to other users.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Auth {
    /// SCRAM with a random password, which the URLs hold.
    #[default]
    Scram,
    /// Every user of this machine, as any role, without a password: saves some milliseconds per connection in tests.
    Trust,
}

/// What a cluster shall be like.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Which installation; `None` for [`Binaries::find`].
    pub binaries: Option<Binaries>,
    /// Settings of the server, on top of those that every cluster has; a later one wins. They stand in
    /// `postgresql.conf`, so `ALTER SYSTEM` can still override them.
    pub settings: Vec<(String, String)>,
    /// Who may log in.
    pub auth: Auth,
}

impl Options {
    /// Adds a setting.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A server of our own on 127.0.0.1 and a unix socket, with its data in a folder that goes away with it.
///
/// Dropping it stops the server at once and removes the folder; so does the death of the process, by whatever means.
///
/// All clusters of one installation are copies of one template, so they **share a system identifier**. It does not
/// tell two of them apart; whoever must needs more than that.
pub struct LocalCluster {
    claim: Claim,
    account: Account,
    binaries: Binaries,
    auth: Auth,
    port: u16,
    server: Option<Child>,
}

/// Without the password.
impl fmt::Debug for LocalCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalCluster")
            .field("dir", &self.claim.dir)
            .field("port", &self.port)
            .field("version", &self.binaries.version)
            .field("pid", &self.pid())
            .finish_non_exhaustive()
    }
}

impl LocalCluster {
    /// Makes a cluster and starts it.
    ///
    /// # Errors
    /// [`ClusterError`]: no installation, a folder or a program that fails, a server that does not come up.
    pub fn launch(options: Options) -> Result<Self> {
        let binaries = options.binaries.map_or_else(Binaries::find, Ok)?;
        let account = Account::for_servers()?;
        let claim = Home::open(&account)?.claim(&binaries, &account)?;
        let cluster = Self { claim, account, binaries, auth: options.auth, port: 0, server: None };
        cluster.configure(&options.settings)?;
        cluster.started_somewhere()
    }

    /// Makes another cluster of what this one holds, and starts it: the same databases, roles, replication slots, settings and password, on
    /// a port of its own. For tests that begin where others ended.
    ///
    /// # Errors
    /// [`ClusterError`]; [`ClusterError::Running`] where this one is not stopped: files that change meanwhile are no database.
    pub fn copied(&self) -> Result<Self> {
        if self.server.is_some() {
            return Err(ClusterError::Running { dir: self.claim.dir.clone() });
        }
        let claim = Home::open(&self.account)?.claim_copy(&self.claim, &self.account)?;
        let (account, binaries) = (self.account.clone(), self.binaries.clone());
        let cluster = Self { claim, account, binaries, auth: self.auth, port: 0, server: None };
        cluster.settle(&[])?;
        cluster.started_somewhere()
    }

    /// Starts it on a port that is free.
    fn started_somewhere(mut self) -> Result<Self> {
        for draw in 1..=PORT_DRAWS {
            self.port = draw_port();
            match self.start() {
                Err(ClusterError::Ended { log, .. }) if draw < PORT_DRAWS && says_port_taken(&log) => {}
                result => return result.map(|()| self),
            }
        }
        self.start().map(|()| self)
    }

    /// The TCP port on 127.0.0.1. It stays the same over restarts.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of everything that belongs to this cluster, the unix socket among it.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.claim.dir
    }

    /// The data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.claim.dir.join("data")
    }

    /// The server's log.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.claim.dir.join("log")
    }

    /// The installation that the server runs from.
    #[must_use]
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// The process id of the postmaster, the server's first process; `None` while it is stopped.
    #[must_use]
    pub fn pid(&self) -> Option<Pid> {
        self.server.as_ref().map(Pid::from_child)
    }

    /// The connection URL of `database` for the superuser through the unix socket.
    #[must_use]
    pub fn socket_url(&self, database: &str) -> String {
        let host = super::percent(&self.claim.dir.to_string_lossy());
        connection_url(SUPERUSER, "", &host, self.port, database)
    }

    /// Writes a file into the data directory that only the server's user can read, as a server demands of a private
    /// key.
    ///
    /// # Errors
    /// [`ClusterError::Io`].
    pub fn write_data_file(&self, name: &str, contents: &[u8]) -> Result<PathBuf> {
        let path = self.data_dir().join(name);
        OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(contents))
            .and_then(|()| self.account.own(&path))
            .map_err(io("write", &path))?;
        Ok(path)
    }

    fn configure(&self, settings: &[(String, String)]) -> Result<()> {
        let asked = settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let fixed = [("listen_addresses", "127.0.0.1")];
        self.settle(&SETTINGS.iter().copied().chain(fixed).chain(asked).collect::<Vec<_>>())?;
        if self.auth == Auth::Trust {
            let rules = "local all all trust\nlocal replication all trust\n\
                         host all all all trust\nhost replication all all trust\n";
            self.write_data_file("pg_hba.conf", rules.as_bytes())?;
        }
        Ok(())
    }

    /// Adds settings to those that are there, and the folder of this cluster's socket in front of them.
    fn settle(&self, settings: &[(&str, &str)]) -> Result<()> {
        let dir = self.claim.dir.to_string_lossy().into_owned();
        let mut all = vec![("unix_socket_directories", dir.as_str())];
        all.extend_from_slice(settings);
        let mut text = String::from("\n");
        for (name, value) in all {
            if name.contains(['\n', '\0']) || value.contains(['\n', '\0']) {
                return Err(ClusterError::BadSetting { name: name.to_owned() });
            }
            let value = value.replace('\\', "\\\\").replace('\'', "\\'");
            let _ = writeln!(text, "{name} = '{value}'");
        }
        let path = self.data_dir().join("postgresql.conf");
        OpenOptions::new()
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(io("write", &path))
    }

    fn spawn(&self) -> Result<Child> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(self.log_path())
            .map_err(io("open", &self.log_path()))?;
        let errors = log.try_clone().map_err(io("open", &self.log_path()))?;
        let program = self.binaries.program("postgres");
        let mut command = self.account.command(Path::new("/bin/sh"));
        command.arg("-c").arg(START_SCRIPT).arg("sh").arg(&self.claim.dir).arg(&program);
        command.arg("-D").arg(self.data_dir()).arg("-p").arg(self.port.to_string());
        command.stdout(log).stderr(errors).spawn().map_err(io("start", &program))
    }

    /// Waits until the server says in its lock file that it takes connections, as `pg_ctl` does.
    fn wait_until_ready(&self, child: &mut Child, log_from: u64) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        let dir = || self.claim.dir.clone();
        loop {
            if lock_file_says_ready(&self.data_dir(), child.id()) {
                return Ok(());
            }
            if child.try_wait().map_err(io("wait for the server in", &self.claim.dir))?.is_some() {
                return Err(ClusterError::Ended { dir: dir(), log: self.log_since(log_from) });
            }
            if Instant::now() >= deadline {
                let log = self.log_since(log_from);
                return Err(ClusterError::NotReady { dir: dir(), seconds: START_TIMEOUT.as_secs(), log });
            }
            thread::sleep(POLL);
        }
    }

    fn log_since(&self, from: u64) -> String {
        let mut text = Vec::new();
        let read = File::open(self.log_path()).and_then(|mut log| {
            log.seek(SeekFrom::Start(from))?;
            log.read_to_end(&mut text)
        });
        match read {
            Ok(_) => last_lines(&String::from_utf8_lossy(&text), LOG_LINES),
            Err(error) => format!("(the log cannot be read: {error})"),
        }
    }

    fn start_once(&mut self) -> Result<()> {
        let log_from = fs::metadata(self.log_path()).map_or(0, |found| found.len());
        let mut child = self.spawn()?;
        let ready = self.wait_until_ready(&mut child, log_from);
        self.server = Some(child);
        if ready.is_err() {
            self.stop(StopMode::Immediate)?;
        }
        ready
    }
}

impl Cluster for LocalCluster {
    fn url(&self, database: &str) -> String {
        let password = if self.auth == Auth::Trust { "" } else { &self.claim.password };
        self.url_as(SUPERUSER, password, database)
    }

    fn url_as(&self, role: &str, password: &str, database: &str) -> String {
        connection_url(role, password, "127.0.0.1", self.port, database)
    }

    fn version_num(&self) -> u32 {
        self.binaries.version.num()
    }

    fn stop(&mut self, mode: StopMode) -> Result<()> {
        let Some(mut child) = self.server.take() else { return Ok(()) };
        let pid = Pid::from_child(&child);
        let _ = kill_process(pid, signal(mode));
        if mode == StopMode::Immediate {
            // For a server that a test has frozen.
            let _ = kill_process(pid, Signal::CONT);
        }
        let deadline = Instant::now() + STOP_TIMEOUT;
        while child.try_wait().map_err(io("wait for the server in", &self.claim.dir))?.is_none() {
            if Instant::now() >= deadline {
                self.server = Some(child);
                let seconds = STOP_TIMEOUT.as_secs();
                return Err(ClusterError::StillRunning { dir: self.claim.dir.clone(), mode, seconds });
            }
            thread::sleep(POLL);
        }
        let _ = fs::remove_file(self.claim.dir.join(PID_FILE));
        Ok(())
    }

    /// Where the server was killed rather than stopped, its last children may hold its memory for a moment; that is
    /// waited for.
    fn start(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        if self.is_up_or_dead()? {
            return Ok(());
        }
        loop {
            match self.start_once() {
                Err(ClusterError::Ended { log, .. })
                    if log.contains("is still in use") && Instant::now() < deadline =>
                {
                    thread::sleep(POLL);
                }
                result => return result,
            }
        }
    }
}

impl LocalCluster {
    /// Whether the server takes connections. Forgets one that was killed from outside; a process that is being killed
    /// closes its port a moment before its end can be seen, which is waited for.
    fn is_up_or_dead(&mut self) -> Result<bool> {
        let deadline = Instant::now() + STOP_TIMEOUT;
        while let Some(child) = &mut self.server {
            if child.try_wait().map_err(io("wait for the server in", &self.claim.dir))?.is_some() {
                self.server = None;
            } else if TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok() {
                return Ok(true);
            } else if Instant::now() >= deadline {
                let log = self.log_since(0);
                let (dir, seconds) = (self.claim.dir.clone(), STOP_TIMEOUT.as_secs());
                return Err(ClusterError::NotReady { dir, seconds, log });
            } else {
                thread::sleep(POLL);
            }
        }
        Ok(false)
    }
}

/// Stops the server. The guard, which goes after this, removes the folder and whatever else is left.
impl Drop for LocalCluster {
    fn drop(&mut self) {
        if self.stop(StopMode::Immediate).is_err()
            && let Some(mut child) = self.server.take()
        {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn signal(mode: StopMode) -> Signal {
    match mode {
        StopMode::Smart => Signal::TERM,
        StopMode::Fast => Signal::INT,
        StopMode::Immediate => Signal::QUIT,
    }
}

/// The first line of `postmaster.pid` is the process id, the eighth the state. A server that was killed leaves one
/// behind, with its own process id.
fn lock_file_says_ready(data_dir: &Path, pid: u32) -> bool {
    let Ok(text) = fs::read_to_string(data_dir.join("postmaster.pid")) else { return false };
    let mut lines = text.lines();
    let same = lines.next().is_some_and(|line| line.trim() == pid.to_string());
    same && lines.nth(6).is_some_and(|line| line.trim() == "ready")
}

/// A port that nobody listens on at the moment.
pub(super) fn draw_port() -> u16 {
    let mut port = fastrand::u16(PORTS);
    for _ in 0..PORT_DRAWS {
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            break;
        }
        port = fastrand::u16(PORTS);
    }
    port
}

fn says_port_taken(log: &str) -> bool {
    log.contains("could not bind") || log.contains("could not create any TCP/IP sockets")
}
