//! Runs the checks in order and tells each outcome over the serial line as soon as it is known.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    process::ExitCode,
    time::{Duration, Instant},
};

use vivarium_machine_tests::{
    options::{FILE, Options, PROGRAMS},
    plan::plan,
    tap::Line,
};

use crate::{
    checks::{self, Context},
    command::{output, words},
    failure::{self, Failure},
    prepare, processes,
};

/// The serial line.
struct Report(File);

impl Report {
    fn open() -> std::io::Result<Self> {
        // A console that becomes the controlling terminal would deliver its signals here.
        let no_controlling_terminal = rustix::fs::OFlags::NOCTTY.bits() as i32;
        OpenOptions::new().write(true).custom_flags(no_controlling_terminal).open("/dev/console").map(Self)
    }

    fn line(&mut self, line: &Line) {
        // One write for each line: nothing of the kernel comes between its parts. A line that is lost is missed by the host.
        let _ = self.0.write_all(format!("{line}\n").as_bytes());
    }

    fn remark(&mut self, text: &str) {
        for line in text.lines() {
            self.line(&Line::Remark(line.to_owned()));
        }
    }
}

/// Everything; the outcome is what the serial line said.
pub fn run() -> ExitCode {
    let Ok(mut report) = Report::open() else { return ExitCode::FAILURE };
    let begun = Instant::now();
    let mut context = match begin(&mut report) {
        Ok(context) => context,
        Err(failure) => {
            report.line(&Line::BailOut(failure.to_string().replace('\n', " / ")));
            report.remark(&runtime_log());
            report.remark(&logs());
            return ExitCode::FAILURE;
        }
    };
    report.remark(&format!("prepared in {:.1} s", begun.elapsed().as_secs_f32()));
    let mut logged = false;
    for (number, check) in plan(context.options.form).into_iter().enumerate() {
        let outcome = checks::run(check, &mut context);
        report.line(&Line::Outcome { number: number + 1, name: check.name().into(), passed: outcome.is_ok() });
        if let Err(failure) = outcome {
            report.remark(&failure.to_string());
            report.remark(&runtime_log());
            report.remark(&context.inner_log());
            // The first failure is the one to look at; what follows may only be its echo.
            if !std::mem::replace(&mut logged, true) {
                report.remark(&logs());
            }
        }
    }
    report.remark(&format!("all done in {:.1} s", begun.elapsed().as_secs_f32()));
    ExitCode::SUCCESS
}

fn begin(report: &mut Report) -> Result<Context, Failure> {
    let options: Options = serde_json::from_str(&failure::read(format!("{PROGRAMS}/{FILE}"))?)?;
    report.line(&Line::Plan(plan(options.form).len()));
    let uptime = failure::read("/proc/uptime")?;
    report.remark(&format!("up after {} s", uptime.split(' ').next().unwrap_or_default()));
    let step = |what: &str| report.remark(what);
    prepare::machine(step)?;
    Ok(Context::new(options))
}

/// What containerd and the shims logged last, apart from what is no news.
fn runtime_log() -> String {
    let log =
        tail("containerd and shim", &["journalctl", "-b", "-o", "cat", "--no-pager", "-n", "40", "-u", "containerd"]);
    log.lines().filter(|line| !line.contains("loading plugin")).collect::<Vec<_>>().join("\n")
}

/// The end of what a program prints.
fn tail(title: &str, words_of: &[&str]) -> String {
    let text = output(&mut words(words_of), Duration::from_secs(20)).unwrap_or_else(|error| error.to_string());
    let lines: Vec<&str> = text.lines().collect();
    let lines = &lines[lines.len().saturating_sub(40)..];
    format!("--- {title}\n{}\n", lines.join("\n"))
}

/// What else could say why.
fn logs() -> String {
    let mut parts = vec![tail("kernel", &["dmesg"]), format!("--- processes\n{}\n", processes::list().join("\n"))];
    for file in fs::read_dir("/run/vivarium/guests").into_iter().flatten().flatten() {
        parts.push(format!("--- {}\n{}\n", file.path().display(), fs::read_to_string(file.path()).unwrap_or_default()));
    }
    parts.concat()
}
