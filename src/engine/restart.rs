//! The restart policy: what counts as a failure, and how long to wait after it.
//!
//! Refuses: state. Everything here is a function of its arguments.

use std::time::Duration;

use crate::base::exit::{Exit, RunId, SpawnStep};
use crate::base::luck::Luck;
use crate::base::time::Monotonic;
use crate::engine::effect::Cause;
use crate::engine::state::State;
use crate::unit::spec::{Limits, Restart, RestartPolicy, ServiceType};

/// What the end of a main process that nobody asked to end means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Failure,
    /// A oneshot did its work: ready.
    Done,
    /// Ended as it may under `on-failure` or `never`: at rest.
    Finished,
}

/// A service under `always` should never end, so every end of it is a failure (contract:
/// "unexpected end of the main process"); otherwise the exit status decides.
pub(crate) fn judge(kind: ServiceType, restart: &Restart, exit: Exit) -> Ending {
    let success = match exit {
        Exit::Code(code) => restart.success_exit_status.contains(&code),
        Exit::Signal { .. } | Exit::NotExecuted { .. } | Exit::Unknown => false,
    };
    match (kind, restart.policy, success) {
        (_, _, false) => Ending::Failure,
        (ServiceType::Oneshot, _, true) => Ending::Done,
        (_, RestartPolicy::Always, true) => Ending::Failure,
        (_, RestartPolicy::OnFailure | RestartPolicy::Never, true) => Ending::Finished,
    }
}

/// The last moment at which a unit was known to be well whose run failed at `at`; none for an older
/// run's failure that is heard when the next is ready already.
pub(crate) fn well_until(state: &State, run: RunId, cause: &Cause, at: Monotonic) -> Option<Monotonic> {
    let before = |ms: u64| Monotonic::from_ns(at.as_ns().saturating_sub(ms.saturating_mul(1_000_000)));
    let watch = match state {
        State::Active(active) if active.main.is_some_and(|main| main > run) => return None,
        State::Active(active) => active.health.as_ref(),
        State::Inactive { .. }
        | State::Waiting { .. }
        | State::Activating(_)
        | State::Backoff { .. }
        | State::Deactivating { .. }
        | State::Failed { .. } => None,
    };
    Some(match cause {
        Cause::Exited(_) | Cause::Hook { .. } | Cause::WatchdogTriggered => at,
        Cause::NotReady { timeout_ms, .. } | Cause::HookTimeout { timeout_ms } => before(*timeout_ms),
        Cause::Watchdog { silent_ms } => before(*silent_ms),
        Cause::Unhealthy { .. } => watch.map_or(at, |watch| watch.good_at),
    })
}

/// errno(3), of every Linux.
const EAGAIN: i32 = 11;
const ENOMEM: i32 = 12;
const ENFILE: i32 = 23;
const EMFILE: i32 = 24;

/// Whether a run came to nothing between fork and exec for want of fds, memory or pids, which
/// passes and is not the unit's doing (reliability D1, D3). Where the unit limits itself, it
/// is: no later try would find more.
pub(crate) fn is_shortage(own: &Limits, step: SpawnStep, errno: i32) -> bool {
    let executing = matches!(step, SpawnStep::Uid | SpawnStep::Exec);
    match errno {
        EMFILE | ENFILE => true,
        // execve(2), NOTES: above RLIMIT_NPROC it is exec that says so, not setuid.
        EAGAIN => !(executing && own.nproc.is_some()),
        ENOMEM => !(executing && (own.as_bytes.is_some() || own.stack_bytes.is_some())),
        _ => false,
    }
}

/// The wait after the k-th consecutive failure, `failures` ≥ 1: `delays[min(k, len) - 1]`,
/// with `jitter` of it added at random. Jitter only ever lengthens: a restart is never
/// earlier than the list says.
pub(crate) fn delay(restart: &Restart, failures: u32, luck: &mut Luck) -> Duration {
    let last = restart.delays.len().saturating_sub(1);
    let index = usize::try_from(failures.saturating_sub(1)).unwrap_or(last).min(last);
    let base = restart.delays.get(index).copied().unwrap_or_default();
    let spread_ns = base.as_nanos() * u128::from(restart.jitter_percent) / 100;
    let spread_ns = u64::try_from(spread_ns).unwrap_or(u64::MAX);
    base + Duration::from_nanos(luck.below(spread_ns.saturating_add(1)))
}

/// Whether the k-th failure is the last that is answered with a restart.
pub(crate) fn gives_up(restart: &Restart, failures: u32) -> bool {
    restart.policy == RestartPolicy::Never || (restart.give_up_after > 0 && failures >= restart.give_up_after)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::name::UnitName;
    use crate::unit::spec::UnitSpec;

    fn restart() -> Restart {
        UnitSpec::minimal(UnitName::parse("a").expect("name"), vec!["x".into()]).restart
    }

    #[test]
    fn delays_are_5_10_15_and_the_last_repeats() {
        let mut luck = Luck::new(1);
        let seconds: Vec<u64> = (1..=6).map(|k| delay(&restart(), k, &mut luck).as_secs()).collect();
        assert_eq!(seconds, [5, 10, 15, 15, 15, 15]);
    }

    #[test]
    fn jitter_lengthens_and_never_shortens() {
        let mut luck = Luck::new(1);
        let policy = Restart { jitter_percent: 20, ..restart() };
        for _ in 0..1_000 {
            let wait = delay(&policy, 1, &mut luck);
            assert!(wait >= Duration::from_secs(5) && wait <= Duration::from_secs(6), "{wait:?}");
        }
    }

    #[test]
    fn an_end_is_judged_by_policy_and_status() {
        let with = |policy| Restart { policy, ..restart() };
        let table = [
            (ServiceType::Simple, RestartPolicy::Always, 0, Ending::Failure),
            (ServiceType::Simple, RestartPolicy::OnFailure, 0, Ending::Finished),
            (ServiceType::Simple, RestartPolicy::OnFailure, 1, Ending::Failure),
            (ServiceType::Simple, RestartPolicy::Never, 0, Ending::Finished),
            (ServiceType::Simple, RestartPolicy::Never, 1, Ending::Failure),
            (ServiceType::Oneshot, RestartPolicy::Always, 0, Ending::Done),
            (ServiceType::Oneshot, RestartPolicy::Never, 3, Ending::Failure),
        ];
        for (kind, policy, code, expected) in table {
            assert_eq!(judge(kind, &with(policy), Exit::Code(code)), expected, "{kind:?} {policy:?} {code}");
        }
        assert_eq!(judge(ServiceType::Oneshot, &restart(), Exit::Unknown), Ending::Failure);
    }
}
