//! The keeper's messages: whatever is encoded decodes to itself, whatever arrives is
//! answered with a value.
//!
//! Refuses: sockets; `tests/keeper.rs` has the real ones.

use std::os::fd::OwnedFd;

use proptest::prelude::*;
use upright::base::exit::{Exit, RunId, SpawnStep};
use upright::base::signal::Signal;
use upright::base::time::Monotonic;
use upright::keeper::codec::{
    CodecError, MESSAGE_BYTES_MAX, decode_news, decode_request, encode_news, encode_request,
};
use upright::keeper::plan::{decode_plan, encode_plan};
use upright::keeper::wire::{
    EngineEnd, FDS_MAX, FdUse, HOLD_NAME_LEN_MAX, Ids, News, Orphan, Request, SpawnPlan, Stage, TAG_LEN_MAX,
    TableRow,
};
use upright::sys::pipe;

fn fd() -> OwnedFd {
    pipe::null().expect("null")
}

/// The debug text with fd numbers masked: requests and news own fds and have no equality.
fn text_of(value: &impl std::fmt::Debug) -> String {
    let fds = regex::Regex::new(r"OwnedFd \{ fd: \d+ \}").expect("regex");
    fds.replace_all(&format!("{value:?}"), "FD").into_owned()
}

fn bytes(len_max: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..=len_max)
}

fn exit() -> impl Strategy<Value = Exit> {
    prop_oneof![
        any::<u8>().prop_map(Exit::Code),
        (1..=64, any::<bool>())
            .prop_map(|(n, core)| Exit::Signal { signal: Signal::from_number(n).expect("signal"), core }),
        (prop::sample::select(SpawnStep::ALL.to_vec()), any::<i32>())
            .prop_map(|(step, errno)| Exit::NotExecuted { step, errno }),
        Just(Exit::Unknown),
    ]
}

fn plan() -> impl Strategy<Value = SpawnPlan> {
    let texts = || prop::collection::vec(bytes(40), 0..6);
    let ids = (any::<u32>(), any::<u32>(), prop::collection::vec(any::<u32>(), 0..5))
        .prop_map(|(uid, gid, groups)| Ids { uid, gid, groups });
    let numbers = (any::<u32>(), any::<Option<i32>>(), any::<Option<i32>>(), any::<bool>());
    let rlimits = prop::collection::vec(any::<(u32, u64, u64)>(), 0..4);
    let lists = (texts(), texts(), texts());
    (bytes(40), lists, prop::option::of(bytes(40)), prop::option::of(ids), numbers, rlimits).prop_map(
        |(path, (argv, env, pid_env), cwd, ids, (umask, nice, oom_score_adj, no_new_privs), rlimits)| {
            SpawnPlan {
                path,
                argv,
                env,
                pid_env,
                cwd,
                ids,
                umask,
                rlimits,
                nice,
                oom_score_adj,
                no_new_privs,
            }
        },
    )
}

fn fd_use() -> impl Strategy<Value = FdUse> {
    prop_oneof![any::<i32>().prop_map(FdUse::Child), any::<u8>().prop_map(FdUse::Hold), Just(FdUse::Cgroup)]
}

fn request() -> impl Strategy<Value = Request> {
    let run = || any::<u64>().prop_map(RunId);
    let uses = prop::collection::vec(fd_use(), 0..FDS_MAX);
    prop_oneof![
        Just(()).prop_map(|()| Request::Hello),
        prop::sample::select(vec![Stage::Beginning, Stage::Running])
            .prop_map(|stage| Request::Alive { stage }),
        (run(), bytes(TAG_LEN_MAX), plan(), uses).prop_map(|(run, tag, plan, uses)| {
            let fds = uses.into_iter().map(|use_of| (use_of, fd())).collect();
            Request::Spawn { run, tag, plan, fds }
        }),
        (run(), 1..=64)
            .prop_map(|(run, n)| Request::Signal { run, signal: Signal::from_number(n).expect("signal") }),
        (run(), 1..=64).prop_map(|(run, n)| Request::SignalToEnd {
            run,
            signal: Signal::from_number(n).expect("signal")
        }),
        run().prop_map(|run| Request::NoteReady { run }),
        run().prop_map(|run| Request::Release { run }),
        (run(), any::<i32>()).prop_map(|(run, pid)| Request::NoteMain { run, pid, process: fd() }),
        ((run(), bytes(TAG_LEN_MAX), any::<i32>(), any::<(bool, bool)>()), bytes(4)).prop_map(
            |((run, tag, pid, (end_asked, said_ready)), labels)| {
                let spawned_at = Monotonic::from_ns(run.0);
                let orphan = Orphan { run, tag, pid, spawned_at, end_asked, said_ready };
                let held = labels.into_iter().map(|label| (label, fd())).collect();
                Request::Adopt { orphan, process: fd(), held }
            }
        ),
        bytes(HOLD_NAME_LEN_MAX).prop_map(|name| Request::Hold { name, fd: fd() }),
        bytes(HOLD_NAME_LEN_MAX).prop_map(|name| Request::LetGo { name }),
        any::<u8>().prop_map(|code| Request::End { code }),
    ]
}

fn news() -> impl Strategy<Value = News> {
    let run = || any::<u64>().prop_map(RunId);
    let time = || any::<u64>().prop_map(Monotonic::from_ns);
    let row = (
        (run(), bytes(TAG_LEN_MAX), any::<i32>(), time()),
        any::<(bool, bool)>(),
        prop::option::of((time(), exit())),
        bytes(4),
    );
    prop_oneof![
        (any::<i32>(), any::<u32>(), time()).prop_map(|(keeper_pid, engine_starts, started_at)| {
            News::Welcome { keeper_pid, engine_starts, started_at }
        }),
        row.prop_map(|((run, tag, pid, spawned_at), (executed, end_asked), ended, labels)| {
            let held = labels.into_iter().map(|label| (label, fd())).collect();
            let said_ready = run.0 % 2 == 0;
            let identity = Some(run.0 / 2).filter(|inode| *inode > 0);
            News::Row(TableRow {
                run,
                tag,
                pid,
                spawned_at,
                executed,
                end_asked,
                said_ready,
                identity,
                ended,
                held,
            })
        }),
        bytes(HOLD_NAME_LEN_MAX).prop_map(|name| News::Held { name, fd: fd() }),
        Just(()).prop_map(|()| News::TableEnd),
        Just(()).prop_map(|()| News::Ping),
        (any::<i32>(), time(), exit(), any::<bool>())
            .prop_map(|(pid, at, exit, hung)| News::EngineEnded(EngineEnd { pid, at, exit, hung })),
        (run(), any::<i32>()).prop_map(|(run, pid)| News::Spawned { run, pid, identity: None }),
        (run(), any::<i32>()).prop_map(|(run, errno)| News::SpawnShort { run, errno }),
        run().prop_map(|run| News::Executed { run }),
        (run(), any::<i32>()).prop_map(|(run, pid)| News::Main { run, pid, identity: Some(u64::MAX) }),
        (run(), time(), exit()).prop_map(|(run, at, exit)| News::Exited { run, at, exit }),
        Just(()).prop_map(|()| News::OrphanReaped),
        (1..=64).prop_map(|n| News::Signalled { signal: Signal::from_number(n).expect("signal") }),
    ]
}

proptest! {
    #[test]
    fn a_request_decodes_to_itself(request in request()) {
        let before = text_of(&request);
        let encoded = encode_request(request).expect("encoded");
        prop_assert!(encoded.body.as_slice().len() < MESSAGE_BYTES_MAX);
        let after = decode_request(encoded.body.as_slice(), encoded.fds).expect("decoded");
        prop_assert_eq!(before, text_of(&after));
    }

    #[test]
    fn news_decode_to_themselves(news in news()) {
        let body = encode_news(&news);
        let before = text_of(&news);
        let fds = match news {
            News::Row(row) => row.held.into_iter().map(|(_, fd)| fd).collect(),
            News::Held { fd, .. } => vec![fd],
            _ => vec![],
        };
        prop_assert!(body.as_slice().len() < MESSAGE_BYTES_MAX);
        let after = decode_news(body.as_slice(), fds).expect("decoded");
        prop_assert_eq!(before, text_of(&after));
    }

    #[test]
    fn a_plan_decodes_to_itself(plan in plan()) {
        prop_assert_eq!(decode_plan(&encode_plan(&plan)), Ok(plan));
    }

    /// Random bytes behind a sound header, else every case would end at the magic.
    #[test]
    fn nonsense_is_a_value(kind in any::<u8>(), tail in bytes(300), fds in 0_usize..3) {
        let message = [b"Up\x01".as_slice(), &[kind], &tail].concat();
        let some = || (0..fds).map(|_| fd()).collect::<Vec<_>>();
        let _ = decode_request(&message, some());
        let _ = decode_news(&message, some());
        let _ = decode_plan(&message);
        let _ = decode_request(&tail, some());
        let _ = decode_news(&tail, some());
    }

    /// Every cut and every longer message is refused.
    #[test]
    fn a_cut_message_is_refused(news in news(), request in request(), at in any::<prop::sample::Index>()) {
        let body = encode_news(&news);
        let whole = body.as_slice();
        let cut = &whole[..at.index(whole.len())];
        prop_assert!(decode_news(cut, vec![]).is_err());
        prop_assert!(decode_news(&[whole, b"x"].concat(), vec![fd()]).is_err());
        let encoded = encode_request(request).expect("encoded");
        let whole = encoded.body.as_slice();
        prop_assert!(decode_request(&whole[..at.index(whole.len())], vec![]).is_err());
    }
}

#[test]
fn strangers_and_other_versions_are_named() {
    let error = |bytes: &[u8]| decode_request(bytes, vec![]).expect_err("refused");
    assert_eq!(error(b""), CodecError::Short);
    assert_eq!(error(b"XX\x01\x01"), CodecError::Foreign);
    assert_eq!(error(b"Up\x02\x01"), CodecError::Version(2));
    assert_eq!(error(b"Up\x01\xfe"), CodecError::Kind(254));
}

#[test]
fn what_is_too_long_is_refused_at_the_sender() {
    let spawn = |tag: usize, fds: usize| Request::Spawn {
        run: RunId(1),
        tag: vec![b't'; tag],
        plan: SpawnPlan::default(),
        fds: (0..fds).map(|_| (FdUse::Cgroup, fd())).collect(),
    };
    assert!(encode_request(spawn(TAG_LEN_MAX, FDS_MAX - 1)).is_ok());
    assert!(encode_request(spawn(TAG_LEN_MAX + 1, 0)).is_err());
    assert!(encode_request(spawn(0, FDS_MAX)).is_err());
    assert!(encode_request(Request::Hold { name: vec![0; HOLD_NAME_LEN_MAX + 1], fd: fd() }).is_err());
    assert!(encode_request(Request::LetGo { name: vec![0; HOLD_NAME_LEN_MAX + 1] }).is_err());
}

#[test]
fn a_spawn_whose_fds_got_lost_still_names_its_run() {
    let fds = vec![(FdUse::Child(1), fd())];
    let request = Request::Spawn { run: RunId(77), tag: vec![], plan: SpawnPlan::default(), fds };
    let mut encoded = encode_request(request).expect("encoded");
    encoded.fds.pop();
    let error = decode_request(encoded.body.as_slice(), encoded.fds).expect_err("refused");
    assert_eq!(error, CodecError::FdsLost(RunId(77)));
}
