//! The folder that holds our clusters and the templates they are copied from.
//!
//! ```text
//! strangler-UID/lock                 exclusive: change what is here; shared: copy a template
//! strangler-UID/template-HASH/       one per installation: data/, password, made-by
//! strangler-UID/template-HASH.making/   the same, half-made
//! strangler-UID/cluster-RANDOM/      one per cluster: lock (held while it is in use), data/, log, sockets
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::UNIX_EPOCH;

use super::account::Account;
use super::binaries::Binaries;
use super::error::io;
use super::guard::{self, Guard};
use super::{ClusterError, Result, SUPERUSER};
use crate::clock;

/// Memory is much faster than a disk, but a cluster of a test with a million rows needs some hundred MB of it, and
/// several run at once.
const MEMORY_FREE_BYTES_MIN: u64 = 4 << 30;

/// A template older than this is made anew: cleaners of temporary folders remove old files one by one, usually after
/// ten days.
const TEMPLATE_AGE_US_MAX: i64 = 86_400_000_000;

/// Changed whenever a template is made in another way.
const TEMPLATE_FORMAT: u32 = 2;

/// A cluster's folder with a copy of the template in it, and what was needed to claim it.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) dir: PathBuf,
    /// The superuser's.
    pub(super) password: String,
    pub(super) _guard: Guard,
    /// Says that the folder is in use, as long as it is open here or in the guard.
    pub(super) _lock: File,
}

/// The folder of one user.
#[derive(Debug)]
pub(super) struct Home {
    path: PathBuf,
}

impl Home {
    /// Opens it, or makes it: under `STRANGLER_CLUSTER_DIR`, else in memory where there is room, else in the folder
    /// for temporary files.
    pub(super) fn open(account: &Account) -> Result<Self> {
        let uid = rustix::process::geteuid().as_raw();
        let path = base().join(format!("strangler-{uid}"));
        // Another user who runs the servers has to pass through it, but needs to see nothing.
        let mode = if account.is_other() { 0o711 } else { 0o700 };
        DirBuilder::new().recursive(true).mode(mode).create(&path).map_err(io("create", &path))?;
        let found = fs::symlink_metadata(&path).map_err(io("look at", &path))?;
        let unsafe_home = |fact: &str| ClusterError::UnsafeHome { path: path.clone(), fact: fact.to_owned() };
        if !found.is_dir() {
            return Err(unsafe_home("is not a folder"));
        }
        if found.uid() != uid {
            return Err(unsafe_home("belongs to another user"));
        }
        if found.mode() & 0o022 != 0 {
            return Err(unsafe_home("can be written by other users"));
        }
        // The process's umask may have taken some of the mode away.
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(io("open up", &path))?;
        Ok(Self { path })
    }

    /// A new cluster's folder with fresh data, under guard. Removes what earlier runs left behind.
    pub(super) fn claim(&self, binaries: &Binaries, account: &Account) -> Result<Claim> {
        let lock = self.lock()?;
        self.sweep()?;
        let template = self.template(binaries, account, &lock)?;
        let password = fs::read_to_string(template.join("password")).map_err(io("read", &template))?;
        let claim = self.folder(password, account)?;
        // From here on only the template must stay as it is, which others may copy at the same time.
        lock.lock_shared().map_err(io("lock", &self.path))?;
        copy_data(&template, &claim, account)?;
        Ok(claim)
    }

    /// A new cluster's folder with the data of another one, whose server is stopped and stays so meanwhile.
    pub(super) fn claim_copy(&self, of: &Claim, account: &Account) -> Result<Claim> {
        let lock = self.lock()?;
        let claim = self.folder(of.password.clone(), account)?;
        drop(lock);
        copy_data(&of.dir, &claim, account)?;
        Ok(claim)
    }

    /// A new cluster's folder without data, under guard. The caller holds the exclusive lock: until the folder's own lock is held, it looks
    /// like one that was left behind.
    fn folder(&self, password: String, account: &Account) -> Result<Claim> {
        let dir = tempfile::Builder::new()
            .prefix("cluster-")
            .rand_bytes(8)
            .tempdir_in(&self.path)
            .map_err(io("create a folder in", &self.path))?
            .keep();
        let own_lock = lock_file(&dir.join("lock"))?;
        own_lock.lock().map_err(io("lock", &dir))?;
        let guard = Guard::over(&dir, &own_lock)?;
        account.own(&dir).map_err(io("hand over", &dir))?;
        Ok(Claim { dir, password, _guard: guard, _lock: own_lock })
    }

    fn lock(&self) -> Result<File> {
        let path = self.path.join("lock");
        let file = lock_file(&path)?;
        file.lock().map_err(io("lock", &path))?;
        Ok(file)
    }

    /// Removes the folders of clusters whose process and guard have both died, and the templates of installations that
    /// are gone. The caller holds the exclusive lock.
    fn sweep(&self) -> Result<()> {
        for entry in fs::read_dir(&self.path).map_err(io("list", &self.path))?.flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("cluster-") {
                let in_use = File::open(path.join("lock")).is_ok_and(|lock| lock.try_lock().is_err());
                if !in_use {
                    guard::clear(&path)?;
                }
            } else if name.starts_with("template-") && !installation_is_there(&path) {
                fs::remove_dir_all(&path).map_err(io("remove", &path))?;
            }
        }
        Ok(())
    }

    /// The template for `binaries`, made if needed. The caller holds the exclusive lock, and lends it to `initdb`, so
    /// that it stays locked until `initdb` has ended even if we die.
    fn template(&self, binaries: &Binaries, account: &Account, lock: &File) -> Result<PathBuf> {
        let path = self.path.join(format!("template-{:016x}", fingerprint(&binaries.bin)));
        let made_by = format!(
            "{}\nformat {TEMPLATE_FORMAT}, PostgreSQL {}, for {}\n",
            binaries.bin.display(),
            binaries.version,
            account.identity()
        );
        if fs::read_to_string(path.join("made-by")).is_ok_and(|text| text == made_by) && is_young(&path) {
            return Ok(path);
        }
        let making = path.with_extension("making");
        for old in [&path, &making] {
            if old.exists() {
                fs::remove_dir_all(old).map_err(io("remove", old))?;
            }
        }
        make_template(&making, binaries, account, lock)?;
        fs::write(making.join("made-by"), made_by).map_err(io("write", &making))?;
        fs::rename(&making, &path).map_err(io("rename", &making))?;
        Ok(path)
    }
}

/// Copies the data directory in a folder into that of a new cluster.
fn copy_data(from: &Path, claim: &Claim, account: &Account) -> Result<()> {
    let mut copy = account.command(Path::new("cp"));
    copy.arg("-a").arg(from.join("data")).arg(claim.dir.join("data"));
    run(copy, Path::new("cp"), account)
}

fn make_template(path: &Path, binaries: &Binaries, account: &Account, lock: &File) -> Result<()> {
    DirBuilder::new().mode(0o700).create(path).map_err(io("create", path))?;
    let password = path.join("password");
    fs::write(&password, random_password()?).map_err(io("write", &password))?;
    for owned in [path, &password] {
        account.own(owned).map_err(io("hand over", owned))?;
    }
    let program = binaries.program("initdb");
    let mut initdb = account.command(&program);
    initdb.arg("-D").arg(path.join("data")).args(["-U", SUPERUSER, "-E", "UTF8", "--no-sync"]);
    initdb.args(["--auth-local=trust", "--auth-host=scram-sha-256"]).arg("--pwfile").arg(&password);
    // The one UTF-8 locale that every Linux has. Elsewhere plain C, which sorts the same.
    initdb.arg(if cfg!(target_os = "linux") { "--locale=C.UTF-8" } else { "--locale=C" });
    initdb.stdin(lock.try_clone().map_err(io("keep the lock of", path))?);
    run(initdb, &program, account)
}

/// Runs a program to its end.
fn run(mut command: Command, program: &Path, account: &Account) -> Result<()> {
    let failed = |output: String| ClusterError::Program {
        program: program.to_owned(),
        user: account.name().to_owned(),
        output,
    };
    let out = command.output().map_err(|error| failed(error.to_string()))?;
    if out.status.success() {
        return Ok(());
    }
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    Err(failed(last_lines(&said, 8)))
}

/// The end of a text.
pub(super) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n")
}

fn base() -> PathBuf {
    if let Some(dir) = std::env::var_os("STRANGLER_CLUSTER_DIR").filter(|dir| !dir.is_empty()) {
        let dir = PathBuf::from(dir);
        return std::path::absolute(&dir).unwrap_or(dir);
    }
    let memory = PathBuf::from("/dev/shm");
    let free_bytes =
        rustix::fs::statvfs(&memory).map_or(0, |found| found.f_bavail.saturating_mul(found.f_frsize));
    let writable = rustix::fs::access(&memory, rustix::fs::Access::WRITE_OK).is_ok();
    if writable && free_bytes >= MEMORY_FREE_BYTES_MIN { memory } else { std::env::temp_dir() }
}

fn lock_file(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(io("open", path))
}

/// The first line of `made-by` is the folder of the programs. A half-made template has none, and stays for whoever
/// needs it next.
fn installation_is_there(template: &Path) -> bool {
    fs::read_to_string(template.join("made-by"))
        .is_ok_and(|text| text.lines().next().is_some_and(|bin| Path::new(bin).join("postgres").is_file()))
}

fn is_young(path: &Path) -> bool {
    let modified = fs::metadata(path.join("made-by")).and_then(|found| found.modified());
    let Some(since) = modified.ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()) else {
        return false;
    };
    let made_us = i64::try_from(since.as_micros()).unwrap_or_default();
    clock::machine_us().saturating_sub(made_us) < TEMPLATE_AGE_US_MAX
}

/// FNV-1a: stable between builds, as the standard hasher is not.
fn fingerprint(path: &Path) -> u64 {
    path.as_os_str()
        .as_encoded_bytes()
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A password for a role of a cluster. Other users of the machine reach the server's port, so it can't be guessed.
///
/// # Errors
/// [`super::ClusterError::Io`] when the system gives no random bytes.
pub fn random_password() -> Result<String> {
    let source = Path::new("/dev/urandom");
    let mut bytes = [0_u8; 16];
    File::open(source).and_then(|mut file| file.read_exact(&mut bytes)).map_err(io("read", source))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
