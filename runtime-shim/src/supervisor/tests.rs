use std::time::{Duration, UNIX_EPOCH};

use super::*;

fn exit(status: u32) -> Exit {
    Exit { status, at: UNIX_EPOCH + Duration::from_secs(1) }
}

fn exec(id: &str) -> Who {
    Who::Exec(id.into())
}

/// Feeds events and collects all notices.
fn play(life: &mut Lifecycle, events: &[Event]) -> Vec<Notice> {
    events.iter().flat_map(|event| life.handle(event.clone()).unwrap()).collect()
}

fn running() -> Lifecycle {
    let mut life = Lifecycle::new(10);
    play(&mut life, &[Event::Starting(Who::Init), Event::Started(Who::Init, 10)]);
    life
}

#[test]
fn a_short_lived_init_is_told_to_start_before_it_is_told_to_end() {
    let mut life = Lifecycle::new(10);
    let notices = play(
        &mut life,
        &[Event::Starting(Who::Init), Event::Exited(Who::Init, exit(0)), Event::Started(Who::Init, 10)],
    );
    assert_eq!(notices, [Notice::Started(Who::Init, 10), Notice::Exited(Who::Init, 10, exit(0))]);
    assert_eq!(life.look(&Who::Init).unwrap(), (Phase::Stopped, 10, Some(exit(0))));
}

#[test]
fn an_init_that_dies_before_its_start_is_told_at_once() {
    let mut life = Lifecycle::new(10);
    assert_eq!(play(&mut life, &[Event::Exited(Who::Init, exit(137))]), [Notice::Exited(Who::Init, 10, exit(137))]);
    assert_eq!(life.handle(Event::Starting(Who::Init)), Err(Misfit::NotStartable(Who::Init)));
}

#[test]
fn a_failed_start_of_init_ends_in_its_exit() {
    let mut life = Lifecycle::new(10);
    let notices = play(
        &mut life,
        &[Event::Starting(Who::Init), Event::StartFailed(Who::Init), Event::Exited(Who::Init, exit(1))],
    );
    assert_eq!(notices, [Notice::Exited(Who::Init, 10, exit(1))]);
}

#[test]
fn the_end_of_an_exec_is_never_told_before_its_start() {
    let mut life = running();
    let notices = play(
        &mut life,
        &[
            Event::ExecAdded("a".into()),
            Event::Starting(exec("a")),
            Event::Exited(exec("a"), exit(3)),
            Event::Started(exec("a"), 20),
        ],
    );
    assert_eq!(
        notices,
        [Notice::ExecAdded("a".into()), Notice::Started(exec("a"), 20), Notice::Exited(exec("a"), 20, exit(3))]
    );
}

#[test]
fn an_exec_that_could_not_start_has_no_exit() {
    let mut life = running();
    let notices = play(
        &mut life,
        &[
            Event::ExecAdded("a".into()),
            Event::Starting(exec("a")),
            Event::StartFailed(exec("a")),
            Event::Exited(exec("a"), exit(126)),
        ],
    );
    assert_eq!(notices, [Notice::ExecAdded("a".into())]);
    assert_eq!(life.remove_exec("a"), Ok((0, Some(exit(126)))));
}

#[test]
fn the_exit_of_init_comes_last() {
    let mut life = running();
    play(&mut life, &[Event::ExecAdded("a".into()), Event::Starting(exec("a")), Event::Started(exec("a"), 20)]);
    play(&mut life, &[Event::ExecAdded("b".into()), Event::Starting(exec("b"))]);
    assert_eq!(play(&mut life, &[Event::Exited(Who::Init, exit(0))]), []);
    let (phase, ..) = life.look(&Who::Init).unwrap();
    assert_eq!(phase, Phase::Running, "an exit that was not told is not seen");
    assert_eq!(play(&mut life, &[Event::Exited(exec("a"), exit(137))]), [Notice::Exited(exec("a"), 20, exit(137))]);
    assert_eq!(play(&mut life, &[Event::StartFailed(exec("b"))]), [Notice::Exited(Who::Init, 10, exit(0))]);
    assert!(life.is_deletable());
}

#[test]
fn an_announced_exec_that_never_starts_does_not_hold_the_container() {
    let mut life = running();
    play(&mut life, &[Event::ExecAdded("a".into())]);
    assert_eq!(play(&mut life, &[Event::Exited(Who::Init, exit(0))]), [Notice::Exited(Who::Init, 10, exit(0))]);
    assert_eq!(life.handle(Event::Starting(exec("a"))), Err(Misfit::NotRunning));
}

#[test]
fn a_reboot_is_no_exit_and_changes_the_pid() {
    let mut life = running();
    assert_eq!(play(&mut life, &[Event::Rebooting, Event::Rebooted(11)]), []);
    assert_eq!(life.look(&Who::Init).unwrap(), (Phase::Running, 11, None));
    assert_eq!(play(&mut life, &[Event::Exited(Who::Init, exit(0))]), [Notice::Exited(Who::Init, 11, exit(0))]);
}

#[test]
fn misfits_are_refused() {
    let mut life = Lifecycle::new(10);
    assert_eq!(life.handle(Event::ExecAdded("a".into())), Err(Misfit::NotRunning));
    let mut life = running();
    assert_eq!(life.handle(Event::Starting(Who::Init)), Err(Misfit::NotStartable(Who::Init)));
    assert_eq!(life.handle(Event::Starting(exec("x"))), Err(Misfit::Unknown(exec("x"))));
    life.handle(Event::ExecAdded("a".into())).unwrap();
    assert_eq!(life.handle(Event::ExecAdded("a".into())), Err(Misfit::Taken("a".into())));
    play(&mut life, &[Event::Starting(exec("a")), Event::Started(exec("a"), 20)]);
    assert_eq!(life.remove_exec("a"), Err(Misfit::NotStopped(exec("a"))));
    assert!(!life.is_deletable());
}
