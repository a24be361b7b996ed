//! Which process a run is: `MAINPID=`, daemons that go to the background, and who is refused.
//!
//! Refuses: an end that nobody saw. Each process that is killed here is one that lived.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::puppet::{self, PYTHON, SOON, push, say, tell, unit};
use crate::support::{Home, eventually, proc, skip_tool};
use crate::{QUICK, await_pid, engine, failures, kill_engine, lacking, pid_in, said};

#[test]
fn a_main_process_is_handed_over_and_stays_so_without_the_engine() {
    if skip_tool(lacking()) {
        return;
    }
    let mut home = Home::new();
    unit(&home, "web", "say('READY=1')", QUICK);
    home.daemon();
    home.await_state("web", "active", SOON);
    let first = home.pid("web");
    let second = pid_in(&tell(&home, "web", "fork('second')"));
    say(&home, "web", &format!("MAINPID={second}"));
    await_pid(&home, "web", second);
    kill_engine(&home);
    await_pid(&home, "web", second);
    // The first one's end is not the run's.
    push(&home, "web", "os._exit(0)");
    eventually("the first process is gone", SOON, || {
        proc::find(Pid::from_raw(first)).is_none().then_some(())
    });
    say(&home, "second", "STATUS=alone now");
    let status = home.status("web");
    assert_eq!((&status["state"], &status["pid"]), (&"active".into(), &second.into()), "{status}");
    assert_eq!(status["restarts"], 0);
    assert!(failures(&home, "web").is_empty());
    // The new one is reaped by the keeper, so its end is known.
    let last = home.last_event();
    kill(Pid::from_raw(second), Signal::SIGKILL).expect("it lives");
    home.await_event(last, "web failed", SOON, |event| {
        event["event"] == "unit.failed" && event["unit"] == "web" && event["data"]["signal"] == "SIGKILL"
    });
    home.await_unit("web", "it runs again", SOON, |status| {
        status["state"] == "active" && status["pid"] != second && status["pid"] != first
    });
}

#[test]
fn a_main_process_that_ends_under_a_living_parent_ends_the_run() {
    if skip_tool(lacking()) {
        return;
    }
    let mut home = Home::new();
    unit(&home, "web", "say('READY=1')", QUICK);
    home.daemon();
    home.await_state("web", "active", SOON);
    let second = pid_in(&tell(&home, "web", "fork('second')"));
    say(&home, "web", &format!("MAINPID={second}"));
    await_pid(&home, "web", second);
    let last = home.last_event();
    kill(Pid::from_raw(second), Signal::SIGKILL).expect("it lives");
    home.await_event(last, "web failed", SOON, |event| {
        event["event"] == "unit.failed" && event["unit"] == "web"
    });
    home.await_unit("web", "it runs again", SOON, |status| {
        status["state"] == "active" && status["pid"] != second
    });
    assert_eq!(failures(&home, "web").len(), 1);
}

/// A daemon that forks, names its child and is gone before anybody has read that.
#[test]
fn a_handover_said_with_the_last_breath_counts() {
    if skip_tool(lacking()) {
        return;
    }
    let mut home = Home::new();
    unit(&home, "web", "", QUICK);
    home.daemon();
    home.await_state("web", "activating", SOON);
    let first = home.pid("web");
    let second = pid_in(&tell(&home, "web", "fork('second')"));
    let engine = engine(&home);
    kill(engine, Signal::SIGSTOP).expect("it lives");
    push(&home, "web", &format!("say('MAINPID={second}\\nREADY=1'), os._exit(0)"));
    eventually("the first process is reaped", SOON, || {
        proc::find(Pid::from_raw(first)).is_none().then_some(())
    });
    kill(engine, Signal::SIGCONT).expect("it lives");
    await_pid(&home, "web", second);
    let status = home.await_state("web", "active", SOON);
    assert_eq!((&status["restarts"], failures(&home, "web").len()), (&0.into(), 0));
    assert!(home.stop().success());
}

/// The same with nobody there to hear it: the next engine does, before it judges the end.
#[test]
fn a_handover_said_to_nobody_counts() {
    if skip_tool(lacking()) {
        return;
    }
    let mut home = Home::new();
    unit(&home, "web", "", QUICK);
    home.daemon();
    home.await_state("web", "activating", SOON);
    let first = home.pid("web");
    let second = pid_in(&tell(&home, "web", "fork('second')"));
    let engine = engine(&home);
    kill(engine, Signal::SIGSTOP).expect("it lives");
    push(&home, "web", &format!("say('MAINPID={second}\\nREADY=1'), os._exit(0)"));
    eventually("the first process is reaped", SOON, || {
        proc::find(Pid::from_raw(first)).is_none().then_some(())
    });
    kill(engine, Signal::SIGKILL).expect("it lives");
    await_pid(&home, "web", second);
    let status = home.await_state("web", "active", SOON);
    assert_eq!((&status["restarts"], failures(&home, "web").len()), (&0.into(), 0));
    assert!(home.stop().success());
}

/// `type = "forking"`: the command ends, and what it left behind is the service.
#[test]
fn a_daemon_that_goes_to_the_background_is_followed_there() {
    if skip_tool(lacking()) {
        return;
    }
    let mut home = Home::new();
    let forking = |name: &str, code: &str| {
        let dir = home.path().to_str().expect("UTF-8");
        let command = [PYTHON, &puppet::script(&home), dir, name, code];
        home.unit(name, &format!("[service]\ntype = \"forking\"\ncommand = {command:?}\n{QUICK}\n"));
    };
    forking("once", "fork('once-child'); os._exit(0)");
    let twice = "pid = os.fork()\nif pid: os._exit(0)\nos.setsid()\ntime.sleep(0.2)\nfork('twice-child'); os._exit(0)";
    forking("twice", twice);
    forking("none", "os._exit(3)");
    home.daemon();
    for name in ["once", "twice"] {
        home.await_state(name, "active", SOON);
        let inner = pid_in(&tell(&home, &format!("{name}-child"), "os.getpid()"));
        await_pid(&home, name, inner);
        assert!(failures(&home, name).is_empty());
    }
    let once = home.pid("once");
    kill_engine(&home);
    await_pid(&home, "once", once);
    let last = home.last_event();
    kill(Pid::from_raw(once), Signal::SIGKILL).expect("it lives");
    home.await_event(last, "once failed", SOON, |event| {
        event["event"] == "unit.failed" && event["unit"] == "once" && event["data"]["signal"] == "SIGKILL"
    });
    home.await_unit("once", "it runs again", SOON, |status| {
        status["state"] == "active" && status["pid"] != once
    });
    let failed = failures(&home, "none");
    assert_eq!(failed[0]["data"]["exit_code"], 3, "{failed:?}");
    home.upright_exits(&["stop", "once", "twice"], 0);
    assert!(home.stop().success());
}

#[test]
fn a_main_process_of_somebody_else_is_refused() {
    if skip_tool(lacking()) {
        return;
    }
    let mut home = Home::new();
    unit(&home, "web", "say('READY=1')", "");
    home.daemon();
    home.await_state("web", "active", SOON);
    let pid = home.pid("web");
    for foreign in [std::process::id(), 1, u32::try_from(i32::MAX).expect("a number")] {
        say(&home, "web", &format!("MAINPID={foreign}"));
        assert_eq!(home.pid("web"), pid);
    }
    said(&home, "as its main process");
    let refusals = home.said().lines().filter(|line| line.contains("as its main process")).count();
    assert_eq!(refusals, 1, "said once for a run:\n{}", home.said());
    kill_engine(&home);
    assert_eq!(home.pid("web"), pid);
}
