//! Terminals: the console of an environment by `kubectl attach`, and the size of the window by `kubectl exec`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use vivarium_e2e::terminal::Terminal;
use vivarium_e2e::{Environment, Namespace};

/// Longest that something takes to get to the screen. getty(8) asks for a password after a pause.
const SOON: Duration = Duration::from_secs(60);

fn console(ve: &Environment) -> Terminal {
    let pod = ve.pod();
    Terminal::open(24, 80, &["kubectl", "-n", &ve.namespace, "attach", "--stdin", "--tty", &pod])
}

/// Presses Enter until the console asks who wants to log in: what was printed before the attach is not shown again.
fn ask_for_the_login(console: &mut Terminal) {
    for _ in 0..12 {
        console.types("\r");
        if console.prints("login: ", SOON / 12) {
            return;
        }
    }
    panic!("no login prompt on the console: {:?}", console.text());
}

#[test]
fn the_console_is_attached_and_left_without_harm() {
    let namespace = Namespace::new("attach");
    let ve = namespace.environment("shop").up();
    let boot = ve.boot();
    let mut first = console(&ve);
    ask_for_the_login(&mut first);
    assert!(first.text().contains("shop login: "), "not the console of this environment: {:?}", first.text());
    // What is typed arrives: a name is asked for its password, and a wrong password is refused.
    first.types("nobody-of-this-name\r");
    first.must_print("Password: ", SOON);
    first.types("wrong\r");
    first.must_print("Login incorrect", SOON);
    // What the environment prints arrives.
    ve.sh("echo heard-by-all > /dev/console");
    first.must_print("heard-by-all", SOON);
    drop(first);
    // The window was closed: the environment goes on, and its console can be attached again.
    ve.wait_ready();
    assert_eq!(ve.boot(), boot, "the environment was started again");
    let mut second = console(&ve);
    ask_for_the_login(&mut second);
    assert_eq!(ve.sh("systemctl is-active console-getty.service"), "active");
}

#[test]
fn a_program_knows_the_size_of_the_window_and_its_changes() {
    let namespace = Namespace::new("window");
    let ve = namespace.environment("shop").up();
    let pod = ve.pod();
    let mut window = Terminal::open(
        33,
        101,
        &["kubectl", "-n", &namespace.name, "exec", "--stdin", "--tty", &pod, "--", "bash", "--norc"],
    );
    // The size may come a moment after the program: kubectl sends it once the connection stands.
    let asks = |window: &mut Terminal, wanted: &str| {
        for _ in 0..12 {
            // Split, so that the echo of what is typed is not taken for the answer.
            window.types("echo size'='$(stty size)\r");
            if window.prints(&format!("size={wanted}\r"), SOON / 12) {
                return;
            }
        }
        panic!("stty size does not say {wanted}: {:?}", window.text());
    };
    asks(&mut window, "33 101");
    // A program is told of a change, not only when it asks.
    window.types("trap 'echo change''d' WINCH; echo wait''s\r");
    // The size comes by another way than what is typed, and faster.
    window.must_print("waits", SOON);
    window.resize(50, 132);
    // bash runs a trap when the command before it has ended.
    window.types("\r");
    window.must_print("changed", SOON);
    asks(&mut window, "50 132");
    window.types("exit\r");
}
