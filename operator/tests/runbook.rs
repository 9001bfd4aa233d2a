//! Every reason that a condition or an event can have is explained in the runbook, and nothing else is.
//!
//! Which words of the sources are reasons cannot be seen from the words. So every literal that looks like one counts
//! as one unless it is listed here as something else: who adds a word has to say what it is.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Sources in which reasons are given.
const SOURCES: &[&str] = &["api/src", "operator/src", "store/src/object", "volume-driver/src", "runtime-shim/src"];

/// Words in quotes that are no reasons.
const OTHER_WORDS: &[&[&str]] = &[
    // Kinds of Kubernetes and of ours, and what derives from them.
    &["EnvironmentTemplate", "EnvironmentTemplateStatus", "EnvironmentVolume", "EnvironmentVolumeStatus"],
    &["PersistentVolume", "PersistentVolumeClaim", "Pod", "Service", "VirtualEnvironment", "VirtualEnvironmentStatus"],
    &["EnvironmentRestore", "EnvironmentRestoreStatus"],
    &["CSIPlugin", "DateTime", "JournalStore", "JournalStoreStatus", "PartialEq"],
    // Columns of kubectl.
    &[
        "Age",
        "At",
        "Bytes",
        "Digest",
        "Domain",
        "Durable",
        "Environment",
        "Epoch",
        "Followed",
        "Image",
        "Journal",
        "Journals",
        "Kept",
        "Layers",
        "Node",
        "Paths",
        "Reason",
        "Size",
        "Status",
        "Store",
        "Template",
        "Tolerates",
        "Transaction",
        "Type",
        "Undo",
        "Unknown",
        "Used",
    ],
    // Types and states of conditions.
    &[
        "Booted",
        "False",
        "PodResizeInProgress",
        "PodResizePending",
        "PodReadyToStartContainers",
        "PodScheduled",
        "Ready",
        "Reconciling",
        "Restorable",
        "Stalled",
        "Standby",
        "StoreCurrent",
    ],
    &["Complete", "StorageReady", "True"],
    // Values of fields of Kubernetes, and its own reasons, which are understood and not given.
    &["ContainersReady", "ReadinessGatesNotReady"],
    &["Bound", "ClusterIP", "ContainerCreating", "Exists", "Filesystem", "IfNotPresent", "In", "Infeasible", "Lost"],
    &[
        "NamespaceTerminating",
        "Never",
        "NoExecute",
        "NoSchedule",
        "None",
        "NotIn",
        "PodInitializing",
        "ReadWriteOnce",
        "Reconcile",
        "Released",
    ],
    &["ContainersReady", "Local", "ReadinessGatesNotReady", "Retain", "Succeeded"],
    // Actions of the operator, as its metrics count them.
    &[
        "AddFinalizer",
        "AwakenPod",
        "Apply",
        "CreatePod",
        "CreateVolume",
        "Delete",
        "DeletePod",
        "DeleteVolume",
        "EndMove",
        "ReleaseVolume",
    ],
    &["OrderRestore"],
    &["RemoveFinalizer", "RemovePod", "ReplaceVolume", "ReplaceVolumeStatus", "ResizePod"],
    // Types of stores.
    &["Local"],
    // Suffixes of quantities.
    &["Ei", "Gi", "Ki", "Mi", "Pi", "Ti"],
    // A word in the message about a pod that ended.
    &["Ended"],
];

fn root() -> PathBuf {
    PathBuf::from("..")
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "tests") {
                sources(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Literals of one word in CamelCase.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut parts = text.split('"').peekable();
    parts.next();
    std::iter::from_fn(move || {
        let word = parts.next()?;
        Some((word, parts.peek().is_some()))
    })
    .filter_map(|(word, ends)| (ends && is_word(word)).then_some(word))
}

fn is_word(text: &str) -> bool {
    let capital = text.bytes().next().is_some_and(|b| b.is_ascii_uppercase());
    capital && text.len() > 1 && text.bytes().all(|b| b.is_ascii_alphanumeric()) && text != text.to_uppercase()
}

/// Reasons in the sources, tests apart.
fn reasons() -> BTreeSet<String> {
    let mut files = Vec::new();
    for folder in SOURCES {
        sources(&root().join(folder), &mut files);
    }
    let mut all = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(file).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        all.extend(lines.flat_map(words).map(str::to_owned));
    }
    all
}

#[test]
fn every_reason_is_explained_and_nothing_else_is() {
    let book = root().join("docs/src");
    let summary = fs::read_to_string(book.join("SUMMARY.md")).unwrap();
    let index = fs::read_to_string(book.join("runbook/README.md")).unwrap();
    let good_news: BTreeSet<&str> = {
        let (_, list) = index.split_once("that is not simply good news").unwrap();
        let (list, _) = list.split_once("need none").unwrap();
        list.split('`').skip(1).step_by(2).collect()
    };
    let other: BTreeSet<&str> = OTHER_WORDS.iter().copied().flatten().copied().collect();
    let found = reasons();
    let mut faults = Vec::new();
    for reason in found.iter().map(String::as_str).filter(|w| !other.contains(w) && !good_news.contains(w)) {
        if !book.join("runbook").join(format!("{reason}.md")).is_file() {
            faults.push(format!("{reason} has no page docs/src/runbook/{reason}.md"));
        }
        if !summary.contains(&format!("[{reason}](runbook/{reason}.md)")) {
            faults.push(format!("{reason} is not in docs/src/SUMMARY.md"));
        }
        if !index.contains(&format!("[{reason}]({reason}.md)")) {
            faults.push(format!("{reason} is not in docs/src/runbook/README.md"));
        }
    }
    for entry in fs::read_dir(book.join("runbook")).unwrap() {
        let path = entry.unwrap().path();
        let page = path.file_stem().unwrap().to_string_lossy();
        if page != "README" && !found.contains(page.as_ref()) {
            faults.push(format!("{page} has a page, but no program gives that reason"));
        }
    }
    for word in good_news.iter().chain(&other).filter(|word| !found.contains(**word)) {
        faults.push(format!("{word} is listed, but is in no source"));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn words_are_found_between_quotes() {
    let line = r#"Refusal::stalled("NoSuchThing", format!("a {} is no Word", "Other")), "UPPER", 'c', "lower""#;
    assert_eq!(words(line).collect::<Vec<_>>(), ["NoSuchThing", "Other"]);
}
