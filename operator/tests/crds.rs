//! The files in `crds/` are what the types say. After a change of a type:
//! `UPDATE_CRDS=1 cargo test -p vivarium-operator --test crds`.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::Path;

use vivarium_operator::crds::definitions;

#[test]
fn the_installed_definitions_are_those_of_the_types() {
    let folder = Path::new("../crds");
    let wanted = definitions().expect("definitions become YAML");
    if std::env::var_os("UPDATE_CRDS").is_some() {
        std::fs::create_dir_all(folder).expect("crds/ can be made");
        for definition in &wanted {
            std::fs::write(folder.join(&definition.file), &definition.yaml).expect("crds/ can be written");
        }
    }
    for definition in &wanted {
        let path = folder.join(&definition.file);
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == definition.yaml,
            "{} differs from the types: run `UPDATE_CRDS=1 cargo test -p vivarium-operator --test crds`",
            path.display()
        );
    }
    let files: BTreeSet<_> = std::fs::read_dir(folder)
        .expect("crds/ can be read")
        .map(|entry| entry.expect("crds/ can be read").file_name().into_string().expect("a name in UTF-8"))
        .collect();
    let known: BTreeSet<_> = wanted.into_iter().map(|definition| definition.file).collect();
    assert_eq!(files, known, "crds/ holds files that no type stands for");
}
