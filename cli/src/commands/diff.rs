//! `kubectl ve diff`.

use std::io::{BufRead, Write};

use vivarium_cli::quote;
use vivarium_cli::wire::{Aspect, Change, Entry, Type};

use crate::at::At;
use crate::kubectl::Kubectl;
use crate::reader::{Reader, Show, root};
use crate::{Error, Reading};

/// Shows the differences between two instants.
pub fn run(
    kubectl: &Kubectl,
    name: &str,
    (from, to): (At, Option<At>),
    read_all: bool,
    json: bool,
    reading: &Reading,
) -> Result<(), Error> {
    let reader = Reader::start(kubectl, name, &[Show::Tree(Some(from)), Show::Tree(to)], reading)?;
    let (before, after) = (root(0), root(1));
    let mut arguments = vec!["compare", &before, &after];
    if read_all {
        arguments.push("--read-all");
    }
    reader.read(arguments, |from| {
        let mut out = std::io::stdout().lock();
        for line in from.lines() {
            let line = line.map_err(Error::io("read the differences"))?;
            let text = if json {
                line
            } else {
                show(&serde_json::from_str(&line).map_err(|error| Error::NotUnderstood("ve-reader", error))?)
            };
            writeln!(out, "{text}").map_err(Error::io("print"))?;
        }
        Ok(())
    })
}

/// One difference as a line.
fn show(change: &Change) -> String {
    match (&change.before, &change.after) {
        (Some(before), Some(after)) => {
            let what: Vec<String> = change.aspects.iter().map(|aspect| differs(*aspect, before, after)).collect();
            format!("M {}  {}", path(after), what.join(", "))
        }
        (Some(gone), None) => format!("- {}  {}", path(gone), brief(gone, change.below)),
        (None, Some(fresh)) => format!("+ {}  {}", path(fresh), brief(fresh, change.below)),
        (None, None) => String::new(),
    }
}

fn path(entry: &Entry) -> String {
    quote::name(&entry.path) + if entry.kind == Type::Directory { "/" } else { "" }
}

fn brief(entry: &Entry, below: u64) -> String {
    match (entry.kind, &entry.target) {
        (Type::File, _) => quote::bytes(entry.size),
        (Type::Directory, _) => format!("{below} names below"),
        (Type::Link, Some(target)) => format!("-> {}", quote::name(target)),
        (kind, _) => word(kind).into(),
    }
}

fn word(kind: Type) -> &'static str {
    match kind {
        Type::File => "file",
        Type::Directory => "directory",
        Type::Link => "link",
        Type::Character => "character device",
        Type::Block => "block device",
        Type::Fifo => "pipe",
        Type::Socket => "socket",
    }
}

fn differs(aspect: Aspect, before: &Entry, after: &Entry) -> String {
    match aspect {
        Aspect::Type => format!("{} is now {}", word(before.kind), word(after.kind)),
        Aspect::Content if after.kind == Type::Link => {
            let target = |entry: &Entry| quote::name(entry.target.as_deref().unwrap_or_default());
            format!("-> {} is now -> {}", target(before), target(after))
        }
        Aspect::Content if after.kind == Type::File => {
            format!("content ({}, was {})", quote::bytes(after.size), quote::bytes(before.size))
        }
        Aspect::Content => "device number".into(),
        Aspect::Mode => format!("mode {:04o}, was {:04o}", after.mode, before.mode),
        Aspect::Owner => format!("owner {}:{}, was {}:{}", after.uid, after.gid, before.uid, before.gid),
        Aspect::Attributes => "extended attributes".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_lines_that_a_person_can_read() {
        let entry = |path: &str, kind, size, mode| Entry {
            path: path.into(),
            kind,
            mode,
            uid: 0,
            gid: 0,
            size,
            modified: (0, 0),
            target: (kind == Type::Link).then(|| b"to\x1b".to_vec()),
            device: 0,
        };
        let file = entry("/etc/a", Type::File, 1536, 0o644);
        let directory = entry("/srv", Type::Directory, 0, 0o755);
        let suid = Entry { mode: 0o4755, size: 10, uid: 1, ..file.clone() };
        let change = |before: Option<&Entry>, after: Option<&Entry>, aspects: &[Aspect], below| {
            show(&Change { before: before.cloned(), after: after.cloned(), aspects: aspects.to_vec(), below })
        };
        assert_eq!(change(Some(&file), None, &[], 0), "- /etc/a  1.5 KiB");
        assert_eq!(change(None, Some(&directory), &[], 7), "+ /srv/  7 names below");
        let link = entry("/l\n", Type::Link, 0, 0o777);
        assert_eq!(change(None, Some(&link), &[], 0), "+ /l\\n  -> to\\u{1b}");
        assert_eq!(
            change(Some(&file), Some(&suid), &[Aspect::Content, Aspect::Mode, Aspect::Owner], 0),
            "M /etc/a  content (10 B, was 1.5 KiB), mode 4755, was 0644, owner 1:0, was 0:0"
        );
        assert_eq!(change(Some(&file), Some(&directory), &[Aspect::Type], 3), "M /srv/  file is now directory");
    }
}
