//! Real programs as tenants: a database that is one file, a database server, a repository, and a package manager. Each does
//! one numbered transaction after the other, in its own way of making it last, and each can tell afterwards whether what it
//! left is whole and which transaction was the last.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Application {
    /// `SQLite` through its shell, with a rollback journal.
    Sqlite,
    /// The same with a write-ahead log.
    SqliteLog,
    /// `PostgreSQL`.
    Postgres,
    /// git, with everything synced.
    Git,
    /// dpkg, which installs and upgrades packages that are made for it.
    Dpkg,
}

impl Application {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Sqlite, Self::SqliteLog, Self::Postgres, Self::Git, Self::Dpkg];
}

impl FromStr for Application {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|application| format!("{application:?}").eq_ignore_ascii_case(text));
        found.ok_or_else(|| format!("'{text}' is none of {:?}", Self::ALL))
    }
}

/// A directory with what a program keeps.
#[derive(Debug)]
pub struct Home {
    application: Application,
    path: PathBuf,
    /// Outside of the volume: packages, sockets.
    aside: TempDir,
    shell: Option<Shell>,
}

/// Packages between which dpkg goes round.
const PACKAGES: u64 = 3;
const DATABASE: &str = "db";
/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

impl Home {
    /// Below `parent`; made if it is not there. What is of no use later is put below `aside`.
    ///
    /// # Errors
    /// The program is not on this machine, or refuses.
    pub fn open(application: Application, parent: &Path, aside: &Path) -> io::Result<Self> {
        let path = parent.join(format!("{application:?}").to_lowercase());
        let is_new = !path.join("whole").exists();
        let home = Self { application, path, aside: TempDir::new_in(aside)?, shell: None };
        if is_new {
            // What was half made when the node died.
            match fs::remove_dir_all(&home.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            fs::create_dir(&home.path)?;
            home.make()?;
            fs::write(home.path.join("whole"), "")?;
        }
        Ok(home)
    }

    fn make(&self) -> io::Result<()> {
        match self.application {
            Application::Sqlite | Application::SqliteLog => {
                let mode = if self.application == Application::SqliteLog { "WAL" } else { "DELETE" };
                let table = "CREATE TABLE t (n INTEGER PRIMARY KEY, content BLOB)";
                output(self.sqlite().arg(format!("PRAGMA journal_mode={mode}; {table};")))?;
            }
            Application::Postgres => {
                output(
                    unprivileged(&of_postgres("initdb"))
                        .args(["--no-sync", "-A", "trust", "-U", "v", "-D"])
                        .arg(self.data()),
                )?;
                let server = Server::start(self)?;
                output(server.psql().args(["-c", "CREATE TABLE t (n bigint PRIMARY KEY, content text)"]))?;
            }
            Application::Git => {
                output(self.git().args(["init", "--quiet"]))?;
            }
            Application::Dpkg => {
                for directory in ["info", "updates", "triggers"] {
                    fs::create_dir_all(self.path.join("var/lib/dpkg").join(directory))?;
                }
                fs::write(self.path.join("var/lib/dpkg/status"), "")?;
            }
        }
        Ok(())
    }

    /// Does transaction `number`; when this returns, the program has made it last.
    ///
    /// # Errors
    /// The program fails.
    pub fn step(&mut self, number: u64) -> io::Result<()> {
        match self.application {
            Application::Sqlite | Application::SqliteLog | Application::Postgres => {
                if self.shell.is_none() {
                    self.shell = Some(Shell::start(self)?);
                }
                let Some(shell) = &mut self.shell else { return Ok(()) };
                let content = match self.application {
                    Application::Postgres => format!("repeat(md5('{number}'), 40)"),
                    _ => "randomblob(1500)".into(),
                };
                shell.ask(&format!("INSERT INTO t VALUES ({number}, {content}); SELECT {number};"), number)
            }
            Application::Git => {
                fs::write(self.path.join(format!("file{}", number % 20)), noise(number))?;
                output(self.git().args(["add", "--all"]))?;
                output(self.git().args(["commit", "--quiet", "--message", &number.to_string()])).map(drop)
            }
            Application::Dpkg => output(self.dpkg().arg("--install").arg(self.package(number)?)).map(drop),
        }
    }

    /// Whether what is here is whole, after the program has done what it does after a crash; the last transaction, 0 if
    /// there is none.
    ///
    /// # Errors
    /// Something is missing or damaged.
    pub fn verify(&self) -> io::Result<u64> {
        match self.application {
            Application::Sqlite | Application::SqliteLog => {
                let check = "PRAGMA integrity_check; SELECT count(*) || ' ' || coalesce(max(n), 0) FROM t;";
                rows(&output(self.sqlite().arg(check))?, Some("ok"))
            }
            Application::Postgres => {
                let server = Server::start(self)?;
                let query = "SELECT count(*) || ' ' || coalesce(max(n), 0) FROM t \
                             WHERE content = repeat(md5(n::text), 40)";
                rows(&output(server.psql().args(["-c", query]))?, None)
            }
            Application::Git => self.verify_git(),
            Application::Dpkg => self.verify_dpkg(),
        }
    }

    /// Starts its database server.
    ///
    /// # Errors
    /// It does not start.
    pub fn serve(&self) -> io::Result<Server> {
        Server::start(self)
    }

    fn verify_git(&self) -> io::Result<u64> {
        // A lock of a process that is no more; git asks to remove it.
        for lock in ["index.lock", "HEAD.lock", "refs/heads/master.lock"] {
            let _ = fs::remove_file(self.path.join(".git").join(lock));
        }
        output(self.git().args(["fsck", "--full", "--strict", "--no-dangling"]))?;
        if output(self.git().args(["rev-list", "--all", "--max-count=1"]))?.is_empty() {
            return Ok(0);
        }
        output(self.git().args(["checkout", "--quiet", "--force", "HEAD"]))?;
        let last = number(&output(self.git().args(["log", "-1", "--format=%s"]))?)?;
        let count = number(&output(self.git().args(["rev-list", "--count", "HEAD"]))?)?;
        for of in last.saturating_sub(19).max(1)..=last {
            if fs::read(self.path.join(format!("file{}", of % 20)))? != noise(of) {
                return Err(io::Error::other(format!("the file of commit {of} has another content")));
            }
        }
        if count == last { Ok(last) } else { Err(io::Error::other(format!("{count} commits, the last is {last}"))) }
    }

    fn verify_dpkg(&self) -> io::Result<u64> {
        let format = "${Package} ${Version} ${db:Status-Abbrev}\n";
        let database = self.path.join("var/lib/dpkg");
        let query = |arguments: &[&str]| {
            let mut command = Command::new("dpkg-query");
            command.arg("--admindir").arg(&database).args(arguments);
            command
        };
        let listed = query(&["--show", "--showformat", format]).output()?;
        let mut last = 0;
        for line in String::from_utf8_lossy(&listed.stdout).lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [package, version, status] = words[..] else { continue };
            let version = number(version)?;
            // One that dpkg was busy with is to be installed again, it says.
            if status != "ii" {
                output(self.dpkg().arg("--install").arg(self.package(version)?))?;
            }
            let wrong = output(self.dpkg().args(["--verify", package]))?;
            let content = fs::read(self.path.join("usr/share").join(package).join("content"))?;
            if !wrong.is_empty() || content != noise(version) {
                return Err(io::Error::other(format!("package {package} {version} is not whole: {wrong}")));
            }
            if status == "ii" {
                last = last.max(version);
            }
        }
        Ok(last)
    }

    fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    fn sqlite(&self) -> Command {
        let mut command = Command::new("sqlite3");
        command.args(["-batch", "-bail"]).arg(self.path.join(DATABASE));
        command
    }

    fn git(&self) -> Command {
        let mut command = Command::new("git");
        command.arg("-C").arg(&self.path).args(["-c", "core.fsync=all", "-c", "user.name=v", "-c", "user.email=v@v"]);
        command.args(["-c", "init.defaultBranch=master", "-c", "gc.auto=50", "-c", "gc.autoDetach=false"]);
        command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
        command
    }

    fn dpkg(&self) -> Command {
        let mut command = Command::new("dpkg");
        command.arg("--root").arg(&self.path).args(["--log=/dev/null", "--force-bad-path", "--force-not-root"]);
        command
    }

    /// The file of the package whose version is `number`.
    fn package(&self, number: u64) -> io::Result<PathBuf> {
        let name = format!("oracle{}", number % PACKAGES);
        let tree = self.aside.path().join("tree");
        match fs::remove_dir_all(&tree) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let share = tree.join("usr/share").join(&name);
        fs::create_dir_all(&share)?;
        fs::create_dir_all(tree.join("DEBIAN"))?;
        fs::write(share.join("content"), noise(number))?;
        for file in 0..number % 7 {
            fs::write(share.join(format!("file{file}")), format!("{number}"))?;
        }
        let mut control = format!("Package: {name}\nVersion: {number}\nArchitecture: all\n");
        let _ = writeln!(control, "Maintainer: v <v@example.org>\nDescription: made for a test");
        fs::write(tree.join("DEBIAN/control"), control)?;
        let file = self.aside.path().join("package.deb");
        output(Command::new("dpkg-deb").args(["-Znone", "--build"]).arg(&tree).arg(&file))?;
        Ok(file)
    }
}

/// Content that follows from a number.
fn noise(number: u64) -> Vec<u8> {
    crate::rng::Rng::new(number, 9).noise(3000)
}

/// Count and greatest number of rows, which must be the same.
fn rows(text: &str, first: Option<&str>) -> io::Result<u64> {
    let mut lines = text.lines();
    let damaged = || io::Error::other(format!("the database is not whole: {text}"));
    if first.is_some_and(|first| lines.next() != Some(first)) {
        return Err(damaged());
    }
    let (count, last) = lines.next().and_then(|line| line.split_once(' ')).ok_or_else(damaged)?;
    if count == last { number(count) } else { Err(damaged()) }
}

fn number(text: &str) -> io::Result<u64> {
    text.trim().parse().map_err(|_| io::Error::other(format!("{text:?} is no number")))
}

/// Runs a command; what it prints, or what it complains of.
fn output(command: &mut Command) -> io::Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| io::Error::new(error.kind(), format!("cannot run {program}: {error}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned());
    }
    Err(io::Error::other(format!("{program} failed: {}", String::from_utf8_lossy(&output.stderr))))
}

/// A program of the database server. Debian has them by version, where no `PATH` leads.
fn of_postgres(program: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let found = versions.map(|version| version.path().join("bin").join(program)).filter(|path| path.is_file());
    found.max().unwrap_or_else(|| program.into())
}

/// A program that refuses to be run by root, for files of root: root by another name.
fn unprivileged(program: &Path) -> Command {
    // Whoever started it may be killed, and then it dies with it.
    let mut command = Command::new("setpriv");
    command.args([
        "--pdeathsig",
        "KILL",
        "unshare",
        "--user",
        "--map-user=1000",
        "--map-group=1000",
        "--kill-child",
        "--pid",
        // The segment by which postgres knows that another server runs goes with the processes.
        "--ipc",
        "--fork",
    ]);
    command.arg(program);
    command
}

/// A database server, stopped like one that is killed.
#[derive(Debug)]
pub struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    fn start(home: &Home) -> io::Result<Self> {
        // What the one before has left, if it was on another machine or in another life.
        let _ = fs::remove_file(home.data().join("postmaster.pid"));
        let log = fs::File::create(home.aside.path().join("log"))?;
        let mut command = unprivileged(&of_postgres("postgres"));
        command.arg("-D").arg(home.data()).arg("-k").arg(home.aside.path());
        command.args(["-c", "listen_addresses=", "-c", "shared_buffers=4MB", "-c", "max_connections=10"]);
        // What it shares among processes must not outlive them.
        command.args(["-c", "shared_memory_type=mmap", "-c", "dynamic_shared_memory_type=mmap"]);
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let mut server = Self { child, socket: home.aside.path().to_owned() };
        let begun = Instant::now();
        while output(server.psql().args(["-c", "SELECT 1"])).is_err() {
            let ended = server.child.try_wait()?.is_some();
            if ended || begun.elapsed() > PATIENCE {
                let log = fs::read_to_string(home.aside.path().join("log")).unwrap_or_default();
                return Err(io::Error::other(format!("the server does not start: {log}")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// Runs `PostgreSQL`'s own benchmark on it.
    ///
    /// # Errors
    /// It fails.
    pub fn pgbench(&self, arguments: &[&str]) -> io::Result<()> {
        let mut command = Command::new(of_postgres("pgbench"));
        command.arg("-h").arg(&self.socket).args(["-U", "v"]).args(arguments).arg("postgres");
        output(&mut command).map(drop)
    }

    fn psql(&self) -> Command {
        let mut command = Command::new("psql");
        command.arg("-h").arg(&self.socket).args(["-U", "v", "-d", "postgres", "-X", "-q", "-A", "-t"]);
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A shell of a database that is asked and answers.
#[derive(Debug)]
struct Shell {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
    _server: Option<Server>,
}

impl Shell {
    fn start(home: &Home) -> io::Result<Self> {
        let (mut command, server) = if home.application == Application::Postgres {
            let server = Server::start(home)?;
            (server.psql(), Some(server))
        } else {
            (home.sqlite(), None)
        };
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let (Some(mut questions), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("the shell has no pipes"));
        };
        if server.is_none() {
            questions.write_all(b"PRAGMA synchronous=FULL;\n")?;
        }
        Ok(Self { child, questions, answers: BufReader::new(answers), _server: server })
    }

    fn ask(&mut self, question: &str, answer: u64) -> io::Result<()> {
        writeln!(self.questions, "{question}")?;
        self.questions.flush()?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if number(&line).is_ok_and(|found| found == answer) {
            return Ok(());
        }
        Err(io::Error::other(format!("instead of {answer} the database says {line:?}")))
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_program_counts_its_transactions_and_notices_damage() {
        for application in Application::ALL {
            let parent = tempfile::tempdir().unwrap();
            let mut home = Home::open(application, parent.path(), parent.path()).unwrap();
            assert_eq!(home.verify().unwrap(), 0, "{application:?}");
            for number in 1..=5 {
                home.step(number).unwrap();
            }
            drop(home);
            let home = Home::open(application, parent.path(), parent.path()).unwrap();
            assert_eq!(home.verify().unwrap(), 5, "{application:?}");
            match application {
                Application::Sqlite | Application::SqliteLog => {
                    output(home.sqlite().arg("DELETE FROM t WHERE n = 3")).map(drop).unwrap();
                }
                Application::Postgres => {
                    let server = Server::start(&home).unwrap();
                    output(server.psql().args(["-c", "DELETE FROM t WHERE n = 3"])).map(drop).unwrap();
                }
                Application::Git => {
                    let objects = output(home.git().args(["rev-parse", "HEAD~1:file4"])).unwrap();
                    let object = home.path.join(".git/objects").join(&objects[..2]).join(&objects[2..]);
                    fs::remove_file(object).unwrap();
                }
                Application::Dpkg => fs::write(home.path.join("usr/share/oracle2/content"), "other").unwrap(),
            }
            assert!(home.verify().is_err(), "{application:?}");
        }
    }
}
