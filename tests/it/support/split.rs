//! A split of tables of the test's own, run by the real binary: a monolith, a service's server, a plan file.

use std::cell::RefCell;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};

use tokio_postgres::Client;

use super::binary::{Ended, command};
use super::cluster::Pair;
use super::wait::{SOON, until, until_blocking};

/// The servers, the plan and the links that its variables stand for.
pub struct Split {
    pub pair: Pair,
    folder: tempfile::TempDir,
    links: Vec<(String, String)>,
}

impl Split {
    /// One slice `one` with what the plan says of its tables, in YAML's flow style; the monolith gets `setup`.
    pub async fn launch(tables: &str, setup: &str) -> (Self, Client, Client) {
        Self::with_plan(&Self::plan(tables), setup).await
    }

    /// The plan of one slice `one`.
    pub fn plan(tables: &str) -> String {
        format!(
            "version: 1\nplan: split\nmonolith: {{ url: \"${{MONOLITH}}\" }}\n\
             services: {{ service: {{ url: \"${{SERVICE}}\" }} }}\n\
             slices: {{ one: {{ service: service, tables: {tables} }} }}\n"
        )
    }

    /// The plan as it is on disk.
    pub fn plan_text(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("plan.yaml")).unwrap()
    }

    /// A plan whose links are `${MONOLITH}` and `${SERVICE}`, or others that [`Self::lead`] sets.
    pub async fn with_plan(plan: &str, setup: &str) -> (Self, Client, Client) {
        Self::between(Pair::launch().await, plan, setup).await
    }

    /// As [`Self::with_plan`], between two servers that are there already.
    pub async fn between(pair: Pair, plan: &str, setup: &str) -> (Self, Client, Client) {
        let (monolith, service) = (pair.monolith().await, pair.service().await);
        monolith.batch_execute(setup).await.unwrap();
        let mut split = Self { pair, folder: tempfile::tempdir().unwrap(), links: Vec::new() };
        split.write_plan(plan);
        let (source, target) = (split.pair.monolith_url(), split.pair.service_url());
        split.lead("MONOLITH", &source);
        split.lead("SERVICE", &target);
        (split, monolith, service)
    }

    /// Replaces the plan.
    pub fn write_plan(&self, plan: &str) {
        std::fs::write(self.folder.path().join("plan.yaml"), plan).unwrap();
    }

    /// Replaces a part of the plan.
    pub fn change_plan(&self, old: &str, new: &str) {
        let plan = std::fs::read_to_string(self.folder.path().join("plan.yaml")).unwrap();
        assert!(plan.contains(old), "{plan}");
        self.write_plan(&plan.replace(old, new));
    }

    /// From now on the plan's variable stands for this link.
    pub fn lead(&mut self, variable: &str, link: &str) {
        self.links.retain(|(name, _)| name != variable);
        self.links.push((variable.to_owned(), link.to_owned()));
    }

    /// The binary with the links and nothing else in its environment.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command(self.folder.path(), arguments);
        command.envs(self.links.iter().cloned());
        command
    }

    /// Runs a verb on the plan to its end.
    pub fn run(&self, verb: &str, arguments: &[&str]) -> Ended {
        Ended::of(self.command(&[&[verb, "plan.yaml"], arguments].concat()).output().unwrap())
    }

    /// Starts a verb on the plan, to be ended later.
    pub fn start(&self, verb: &str, arguments: &[&str]) -> Background {
        self.start_command(self.command(&[&[verb, "plan.yaml"], arguments].concat()))
    }

    /// Starts a command of [`Self::command`], to be ended later.
    pub fn start_command(&self, mut command: Command) -> Background {
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Background(Some(child))
    }

    pub fn provision(&self) {
        let ended = self.run("provision", &[]);
        assert_eq!(ended.exit, Some(0), "{}", ended.page());
    }

    pub fn mirror(&self, failpoint: Option<&str>) -> Mirror {
        self.mirror_with(failpoint, &[])
    }

    pub fn mirror_with(&self, failpoint: Option<&str>, arguments: &[&str]) -> Mirror {
        self.mirror_as(failpoint, &[&["--rows-per-piece", "100"], arguments].concat())
    }

    /// A mirror with these arguments and no others.
    pub fn mirror_as(&self, failpoint: Option<&str>, arguments: &[&str]) -> Mirror {
        let mut command = self.command(&[&["mirror", "plan.yaml"], arguments].concat());
        if let Some(name) = failpoint {
            command.env("STRANGLER_FAILPOINT", name);
        }
        self.logged("mirror.log", command)
    }

    /// Starts a command of [`Self::command`] that says more than a pipe holds: all of it goes into a file.
    pub fn logged(&self, name: &str, mut command: Command) -> Mirror {
        let log = self.folder.path().join(name);
        let file = std::fs::File::create(&log).unwrap();
        let child = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        Mirror { child: RefCell::new(child), log }
    }
}

/// A command that runs beside the test; ends with it at the latest.
pub struct Background(Option<Child>);

impl Background {
    pub fn id(&self) -> u32 {
        self.0.as_ref().unwrap().id()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(self.0.as_ref().unwrap());
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub fn has_ended(&mut self) -> bool {
        self.0.as_mut().is_some_and(|child| child.try_wait().unwrap().is_some())
    }

    /// Waits until it is frozen, at the point of `STRANGLER_FREEZE`; `false` when it ended before.
    pub fn stands_still(&mut self) -> bool {
        until_blocking("the command stands still or ends", SOON, || {
            if self.has_ended() {
                return Some(false);
            }
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id())).ok()?;
            // proc(5): the state is behind the name, which ends with a parenthesis.
            stat.rsplit(") ").next()?.starts_with('T').then_some(true)
        })
    }

    /// Waits for its end.
    pub fn ended(mut self) -> Ended {
        Ended::of(self.0.take().unwrap().wait_with_output().unwrap())
    }

    /// Ends it as a crash would.
    pub fn kill(self) -> Ended {
        self.signal(rustix::process::Signal::KILL);
        self.ended()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A mirror process, or another one whose words go into a file; ends with the test.
pub struct Mirror {
    child: RefCell<Child>,
    log: std::path::PathBuf,
}

impl Mirror {
    /// It has looked at the catalogs twice from now on.
    pub async fn looked_twice(&self, service: &Client) {
        let beats = "SELECT extract(epoch FROM seen_at)::float8 FROM strangler.mirror_process";
        let seen: f64 = service.query_one(beats, &[]).await.unwrap().get(0);
        until("the mirror has looked", SOON, async || {
            assert!(self.exited().is_none(), "the mirror ended:\n{}", self.log());
            let now: f64 = service.query_one(beats, &[]).await.unwrap().get(0);
            (now > seen + 3.5).then_some(())
        })
        .await;
    }

    /// Everything written so far is applied and every table live.
    pub async fn caught_up(&self, monolith: &Client, service: &Client) {
        self.caught_up_in("", monolith, service).await;
    }

    /// The same of one slice, where this mirror brings no other: a stream that nobody reads stays where it is.
    pub async fn caught_up_in(&self, slice: &str, monolith: &Client, service: &Client) {
        let row = monolith.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.unwrap();
        let position: String = row.get(0);
        let sql = "SELECT (SELECT bool_and(state = 'live') FROM strangler.mirror_table WHERE $2::text IN ('', slice)) \
                     AND (SELECT bool_and(applied_lsn >= $1::text::pg_lsn) FROM strangler.stream WHERE $2::text IN ('', slice))";
        until("the mirror catches up", SOON, async || {
            assert!(self.exited().is_none(), "the mirror ended:\n{}", self.log());
            let row = service.query_one(sql, &[&position, &slice]).await.unwrap();
            row.get::<_, Option<bool>>(0).unwrap_or(false).then_some(())
        })
        .await;
    }

    pub fn exited(&self) -> Option<ExitStatus> {
        self.child.borrow_mut().try_wait().unwrap()
    }

    /// Waits until it has ended by itself or by its kill point, and returns what it said.
    pub fn ended(&self) -> (ExitStatus, String) {
        let status = until_blocking("the mirror ends", SOON, || self.exited());
        (status, self.log())
    }

    /// Waits until its kill point has ended it.
    pub fn died_at(&self, point: &str) {
        let status = until_blocking(point, SOON, || self.exited());
        assert_eq!(
            status.signal(),
            Some(9),
            "at {point} the mirror ended by itself: {status}\n{}",
            self.log()
        );
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child.borrow());
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Ends it as a crash would.
    pub fn kill(&self) {
        self.signal(rustix::process::Signal::KILL);
        self.ended();
    }

    pub fn stop(&self) {
        self.signal(rustix::process::Signal::TERM);
        self.ended();
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        let child = self.child.get_mut();
        let _ = child.kill();
        let _ = child.wait();
    }
}
