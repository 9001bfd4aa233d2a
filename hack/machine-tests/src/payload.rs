//! What containers under test do. One static program without a shell, so that the image holds one file.

use std::{
    fs,
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Runs what the words say.
pub fn run(words: &[&str]) -> ExitCode {
    let done = match words {
        ["pause"] => pause(),
        ["identity"] => identity(),
        ["eat", bytes] => bytes.parse().map(eat).is_ok(),
        ["fork", count] => count.parse().map(fork).is_ok(),
        ["burn", seconds] => seconds.parse().map(burn).is_ok(),
        ["tick", file] => tick(file),
        _ => {
            eprintln!(
                "usage: machine-tests run | pause | identity | eat BYTES | fork COUNT | burn SECONDS | tick FILE"
            );
            false
        }
    };
    if done { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// For ever.
fn pause() -> bool {
    loop {
        thread::park();
    }
}

/// Who this process is to the kernel.
fn identity() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    print!("{}", fs::read_to_string("/proc/self/uid_map").unwrap_or_default());
    status.lines().filter(|line| line.starts_with("Uid:")).for_each(|line| println!("{line}"));
    !status.is_empty()
}

/// Uses that much memory, a page at a time.
fn eat(bytes: usize) {
    const CHUNK: usize = 1 << 20;
    let mut eaten: Vec<Vec<u8>> = Vec::new();
    for _ in 0..bytes / CHUNK {
        // Not zero: zeroed memory would come from the allocator untouched.
        eaten.push(vec![1; CHUNK]);
    }
    println!("ate {}", eaten.len() * CHUNK);
}

/// Starts that many processes at most and says how many there were.
fn fork(count: usize) {
    let start = || -> Option<Child> {
        let program = std::env::current_exe().ok()?;
        Command::new(program).arg("pause").stdin(Stdio::null()).stdout(Stdio::null()).spawn().ok()
    };
    let mut children: Vec<Child> = std::iter::repeat_with(start).take(count).map_while(|child| child).collect();
    println!("forked {}", children.len());
    for child in &mut children {
        // One that has ended already is what was wanted.
        let _ = child.kill().and_then(|()| child.wait());
    }
}

/// Keeps two processors busy.
fn burn(seconds: u64) {
    let end = Instant::now() + Duration::from_secs(seconds);
    let spin = move || while Instant::now() < end {};
    let other = thread::spawn(spin);
    spin();
    // A spinning loop cannot fail.
    let _ = other.join();
}

/// Counts in a file, for ever.
fn tick(file: &str) -> bool {
    for count in 0_u64.. {
        if fs::write(file, count.to_string()).is_err() {
            break;
        }
        thread::sleep(Duration::from_millis(100));
    }
    false
}
