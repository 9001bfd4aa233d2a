//! The load in an environment: a bank in a database (`SQLite`, write-ahead log, every transaction synchronous) that tells an
//! outside witness the number of each transaction once it is on disk. Ten times a second: two accounts change, an entry of
//! about a kilobyte is written, all in one transaction. At its start it looks whether the database is whole: pages and
//! indices, the sum of all accounts, no entry missing.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, params};

const ACCOUNTS: i64 = 1000;
const SUM: i64 = ACCOUNTS * 1000;
/// So many of the newest entries are kept.
const KEPT: i64 = 5000;
const PAUSE: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(5);

type Error = Box<dyn std::error::Error>;

fn open(path: &str) -> Result<Connection, Error> {
    let database = Connection::open(path)?;
    // This one answers with a row.
    database.query_row("PRAGMA journal_mode=WAL", [], |_| Ok(()))?;
    database.execute_batch(&format!(
        "PRAGMA synchronous=FULL;
         BEGIN IMMEDIATE;
         CREATE TABLE IF NOT EXISTS accounts(id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
         CREATE TABLE IF NOT EXISTS entries(number INTEGER PRIMARY KEY, origin INTEGER, target INTEGER, note TEXT);
         CREATE INDEX IF NOT EXISTS by_origin ON entries(origin);
         INSERT OR IGNORE INTO accounts
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ACCOUNTS}) SELECT i, {each} FROM n;
         COMMIT;",
        each = SUM / ACCOUNTS
    ))?;
    Ok(database)
}

fn newest(database: &Connection) -> Result<i64, Error> {
    Ok(database.query_row("SELECT coalesce(max(number), 0) FROM entries", [], |row| row.get(0))?)
}

/// What is wrong with it; nothing if it is whole.
fn damage(database: &Connection) -> Result<Option<String>, Error> {
    let pages: String = database.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    let sum: i64 = database.query_row("SELECT sum(balance) FROM accounts", [], |row| row.get(0))?;
    let entries: i64 = database.query_row("SELECT count(*) FROM entries", [], |row| row.get(0))?;
    let expected = newest(database)?.min(KEPT);
    Ok(match (pages.as_str(), sum, entries) {
        ("ok", SUM, entries) if entries == expected => None,
        ("ok", SUM, _) => Some(format!("{entries}-entries-instead-of-{expected}")),
        ("ok", ..) => Some(format!("sum-{sum}-instead-of-{SUM}")),
        _ => Some(pages.replace(char::is_whitespace, "-")),
    })
}

fn transfer(database: &mut Connection, number: i64, note: &str) -> Result<(), Error> {
    let (origin, target) = (number * 7919 % ACCOUNTS + 1, number * 104_729 % ACCOUNTS + 1);
    let transaction = database.transaction()?;
    transaction.execute("UPDATE accounts SET balance = balance - 1 WHERE id = ?1", [origin])?;
    transaction.execute("UPDATE accounts SET balance = balance + 1 WHERE id = ?1", [target])?;
    transaction.execute("INSERT INTO entries VALUES (?1, ?2, ?3, ?4)", params![number, origin, target, note])?;
    transaction.execute("DELETE FROM entries WHERE number <= ?1", [number - KEPT])?;
    Ok(transaction.commit()?)
}

/// A connection to the witness.
struct Witness(BufReader<TcpStream>);

impl Witness {
    fn connect(address: &str) -> Result<Self, Error> {
        let stream = TcpStream::connect_timeout(&address.parse()?, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Says a line, and returns once the witness has it.
    fn say(&mut self, line: &str) -> Result<(), Error> {
        self.0.get_mut().write_all(format!("{line}\n").as_bytes())?;
        let mut answer = String::new();
        if self.0.read_line(&mut answer)? == 0 { Err("the witness is gone".into()) } else { Ok(()) }
    }
}

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, name, address, path] = &arguments[..] else {
        return Err("ledger NAME ADDRESS-OF-THE-WITNESS DATABASE".into());
    };
    // Another one after each boot, and only then does it matter.
    let life = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
    let mut database = open(path)?;
    let mut number = newest(&database)?;
    let found = damage(&database)?.map_or_else(|| "found".to_owned(), |damage| format!("broken:{damage}"));
    let (found, note) = (format!("{name} {life} {number} {found}"), "x".repeat(1000));
    // Said again and again until it was heard; the first is what was found.
    let mut unheard = Some(found);
    loop {
        std::thread::sleep(PAUSE);
        let Ok(mut witness) = Witness::connect(address) else { continue };
        loop {
            if unheard.is_none() {
                number += 1;
                transfer(&mut database, number, &note)?;
            }
            let words = unheard.take().unwrap_or_else(|| format!("{name} {life} {number} wrote"));
            if witness.say(&words).is_err() {
                unheard = Some(words);
                break;
            }
            std::thread::sleep(PAUSE);
        }
    }
}
