//! The configuration file through which containerd (2.0 and later, configuration version 3) learns of the runtime.

use std::path::Path;

use vivarium_api::names;

/// Renders the drop-in. It names nothing but the new runtime, so merging it changes nothing else.
pub(super) fn render(shim: &Path) -> String {
    format!(
        "# Written by Vivarium, removed when it is uninstalled.
version = 3

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.{handler}]
  runtime_type = {kind}
  runtime_path = {path}
",
        handler = names::RUNTIME_CLASS,
        kind = quoted(names::RUNTIME_TYPE),
        path = quoted(&shim.to_string_lossy()),
    )
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted.extend(format!("\\u{:04X}", u32::from(c)).chars()),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drop_in_names_the_runtime_and_nothing_else() {
        assert_eq!(
            render(Path::new("/opt/vivarium/bin/containerd-shim-vivarium-v1")),
            r#"# Written by Vivarium, removed when it is uninstalled.
version = 3

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.vivarium]
  runtime_type = "io.containerd.vivarium.v1"
  runtime_path = "/opt/vivarium/bin/containerd-shim-vivarium-v1"
"#
        );
    }

    #[test]
    fn odd_paths_stay_one_string() {
        assert_eq!(quoted("a\"b\\c\n"), "\"a\\\"b\\\\c\\u000A\"");
    }
}
