//! What a developer asks the lab: images that are loaded, logs, shells.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use vivarium_e2e::{lab, run_with};

/// An image archive as `docker save` writes it, with one empty layer.
fn archive(directory: &std::path::Path, name: &str) -> String {
    let script = r#"set -e
cd "$1"; mkdir layer; tar -C layer -cf layer.tar .
printf '{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' "$(sha256sum layer.tar | cut -d' ' -f1)" > config.json
printf '[{"Config":"config.json","RepoTags":["%s"],"Layers":["layer.tar"]}]' "$2" > manifest.json
tar -cf image.tar manifest.json config.json layer.tar
"#;
    let ran = run_with("sh", &["-c", script, "sh", directory.to_str().unwrap(), name], "");
    assert!(ran.ok, "{}{}", ran.stdout, ran.stderr);
    directory.join("image.tar").to_str().unwrap().to_owned()
}

#[test]
fn an_image_is_loaded_into_every_node() {
    let directory = tempfile::tempdir().unwrap();
    let name = format!("localhost/e2e/loaded:{}", std::process::id());
    lab::lab_ok(&["load-image", &archive(directory.path(), &name)]);
    for node in lab::nodes() {
        let there = lab::node_sh(&node, &format!("ctr -n k8s.io images ls -q name=={name}"));
        assert_eq!(there, name, "{node}");
        lab::node_sh(&node, &format!("ctr -n k8s.io images rm {name}"));
    }
    let missing = lab::lab(&["load-image", "/no/such/file.tar"]);
    assert!(!missing.ok && missing.stderr.contains("/no/such/file.tar"), "{}", missing.stderr);
}

#[test]
fn logs_are_found_by_the_beginning_of_their_name() {
    let all = lab::lab(&["logs"]);
    assert!(all.ok && all.stdout.contains("apiserver"), "{}{}", all.stdout, all.stderr);
    let one = lab::lab(&["logs", "n1"]);
    assert!(one.ok && one.stdout.contains("n1.log") && !one.stdout.contains("n2.log"), "{}{}", one.stdout, one.stderr);
    let none = lab::lab(&["logs", "nobody"]);
    assert!(!none.ok && none.stderr.contains("nobody"), "{}{}", none.stdout, none.stderr);
}

#[test]
fn a_shell_on_a_node_takes_commands_and_a_node_that_is_not_there_is_named() {
    let ran = run_with(&std::env::var("VIVARIUM_HACK").unwrap(), &["lab", "node", "shell", "n2"], "hostname; exit 7\n");
    assert_eq!((ran.stdout.trim(), ran.code), ("n2", 7), "{}", ran.stderr);
    let ran = lab::lab(&["node", "shell", "n9", "--", "true"]);
    assert!(!ran.ok && ran.stderr.contains("there are n1, n2, n3"), "{}", ran.stderr);
}
