//! What a valid unit file means: the defaults of the contract, every form of every value,
//! and that table, reader and schema say the same.
//!
//! Refuses: wrong files (`tests/diag.rs` has them).

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use upright::base::check::{Endpoint, HostPort, HttpTarget, NetCheck};
use upright::base::signal::Signal;
use upright::config::{Asked, Home, Loaded, Surroundings, load};
use upright::unit::daemon_file::{self, DaemonSpec, Watch};
use upright::unit::keys::{self, Kind};
use upright::unit::spec::{
    Command, Edge, EnvironmentFile, OnLoss, OnReturn, ReadyWhen, Reload, RestartPolicy, ServiceType,
    StderrTo, UnitSpec, WhenFull,
};
use upright::unit::{parse, schema};

fn spec(text: &str) -> UnitSpec {
    let parsed = parse("units/u.toml", "u", text);
    let [spec] = parsed.specs.as_slice() else { panic!("{:?}", parsed.diagnostics) };
    spec.clone()
}

fn with(text: &str) -> UnitSpec {
    spec(&format!("[service]\ncommand = [\"x\"]\n{text}"))
}

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn command(words: &[&str]) -> Command {
    Command { argv: words.iter().map(|word| word.to_string()).collect() }
}

#[test]
fn what_is_not_written_is_as_the_contract_has_it() {
    let unit = with("");
    assert!(unit.unit.enabled && !unit.unit.critical && !unit.unit.drillable);
    assert_eq!(unit.service.kind, ServiceType::Simple);
    assert_eq!((unit.service.umask, unit.service.user.clone(), unit.service.instance), (0o022, None, None));
    assert_eq!(unit.readiness.when, ReadyWhen::Executed);
    assert_eq!((unit.readiness.timeout, unit.readiness.settle), (Some(s(60)), s(0)));
    assert_eq!(unit.health, None);
    assert_eq!(unit.restart.policy, RestartPolicy::Always);
    assert_eq!(unit.restart.delays, [s(5), s(10), s(15)]);
    assert_eq!((unit.restart.jitter_percent, unit.restart.give_up_after), (0, 0));
    assert_eq!((unit.restart.reset_after, unit.restart.success_exit_status), (s(60), vec![0]));
    assert_eq!((unit.stop.signal, unit.stop.timeout, unit.stop.command), (Signal::TERM, s(10), None));
    assert_eq!(unit.reload, Reload::Signal(Signal::HUP));
    assert_eq!((unit.alert.after_failures, unit.alert.repeat_every, unit.alert.channels), (4, 4, None));
    assert_eq!((unit.log.max_size_bytes, unit.log.max_files, unit.log.compress), (50 << 20, 5, false));
    assert_eq!((unit.log.stderr, unit.log.when_full), (StderrTo::Merge, WhenFull::Block));
    assert_eq!(unit.limits.nofile, None);
    assert!(!unit.sandbox.no_new_privileges);
}

#[test]
fn every_section_reaches_the_spec() {
    let unit = with(
        "type = \"notify\"\nuser = \"1000\"\ngroup = \"shop\"\nsupplementary_groups = [\"a\", \"b\"]\numask = \"027\"\n\
         nice = -5\noom_score_adjust = 500\nworking_directory = \"/srv\"\nenvironment = { A = \"b=c\" }\n\
         environment_files = [\"-/a\", \"/b\"]\nstart_pre = [[\"a\", \"b c\"], \"d 'e f'\"]\nstart_post = [\"p\"]\nstop_post = [\"q\"]\n\
         [unit]\nrequires = [\"b\", \"a\", \"b\"]\n[restart]\npolicy = \"on-failure\"\ndelays = \"1s\"\njitter = \"10%\"\n\
         [stop]\nsignal = \"INT\"\ntimeout = \"1m 30s\"\ncommand = \"stop it\"\n[reload]\ncommand = [\"r\"]\n\
         [dependency.a]\non_loss = \"stop\"\n[limits]\nnofile = 4096\ncore = 0\nas = \"infinity\"\nmemlock = \"64MiB\"\n\
         [resources]\ncpu_quota = \"150%\"\nmemory_max = \"1GiB\"\n[sandbox]\nno_new_privileges = true\n",
    );
    let service = &unit.service;
    assert_eq!(unit.readiness.when, ReadyWhen::Notify);
    assert_eq!((service.user.as_deref(), service.group.as_deref()), (Some("1000"), Some("shop")));
    assert_eq!((service.umask, service.nice, service.oom_score_adjust), (0o027, Some(-5), Some(500)));
    assert_eq!(service.environment, BTreeMap::from([("A".to_string(), "b=c".to_string())]));
    let file = |path: &str, optional| EnvironmentFile { path: path.into(), optional };
    assert_eq!(service.environment_files, [file("/a", true), file("/b", false)]);
    assert_eq!(service.start_pre, [command(&["a", "b c"]), command(&["d", "e f"])]);
    assert_eq!((&service.start_post, &service.stop_post), (&vec![command(&["p"])], &vec![command(&["q"])]));
    let names: Vec<&str> = unit.unit.requires.iter().map(|name| name.as_str()).collect();
    assert_eq!(names, ["b", "a"]);
    assert_eq!((unit.restart.delays.as_slice(), unit.restart.jitter_percent), ([s(1)].as_slice(), 10));
    assert_eq!((unit.stop.signal, unit.stop.timeout), (Signal::INT, s(90)));
    assert_eq!(unit.stop.command, Some(command(&["stop", "it"])));
    assert_eq!(unit.reload, Reload::Command(command(&["r"])));
    let edges: Vec<Edge> = unit.dependency.values().copied().collect();
    let on_return = OnReturn::Resync;
    assert_eq!(
        edges,
        [Edge { on_loss: OnLoss::Stop, on_return }, Edge { on_loss: OnLoss::Degrade, on_return }]
    );
    assert_eq!(
        (unit.limits.nofile, unit.limits.core_bytes, unit.limits.as_bytes),
        (Some(4096), Some(0), Some(u64::MAX))
    );
    assert_eq!((unit.limits.memlock_bytes, unit.resources.cpu_quota_percent), (Some(64 << 20), Some(150)));
    assert!(unit.sandbox.no_new_privileges);
}

#[test]
fn a_string_is_split_or_given_to_a_shell_never_both() {
    let split = spec("[service]\ncommand = \"a 'b c' \\\"d\\\" $HOME *\"\n");
    assert_eq!(split.service.command, command(&["a", "b c", "d", "$HOME", "*"]));
    let shell = spec("[service]\nshell = true\ncommand = \"a | b\"\nstart_pre = [[\"c\", \"|\"]]\n");
    assert_eq!(shell.service.command, command(&["/bin/sh", "-c", "a | b"]));
    assert_eq!(shell.service.start_pre, [command(&["c", "|"])]);
}

#[test]
fn readiness_has_one_way_and_a_limit() {
    let tcp = |host: &str, port| HostPort { host: host.into(), port };
    let net = |check| ReadyWhen::Net(check);
    let http = |method: &str, at, host: &str, path: &str| {
        net(NetCheck::Http(HttpTarget { method: method.into(), at, host: host.into(), path: path.into() }))
    };
    let table = [
        ("tcp = \"localhost:80\"", net(NetCheck::Tcp(tcp("localhost", 80)))),
        ("tcp = \"[::1]:80\"", net(NetCheck::Tcp(tcp("::1", 80)))),
        ("unix = \"/run/x\"", net(NetCheck::Unix("/run/x".into()))),
        ("redis = \"127.0.0.1:6379\"", net(NetCheck::Redis(Endpoint::Tcp(tcp("127.0.0.1", 6379))))),
        ("redis = \"/run/redis.sock\"", net(NetCheck::Redis(Endpoint::Unix("/run/redis.sock".into())))),
        (
            "postgres = \"/run/postgresql\"",
            net(NetCheck::Postgres(Endpoint::Unix("/run/postgresql/.s.PGSQL.5432".into()))),
        ),
        (
            "postgres = \"/x/.s.PGSQL.5433\"",
            net(NetCheck::Postgres(Endpoint::Unix("/x/.s.PGSQL.5433".into()))),
        ),
        ("postgres = \"db:5432\"", net(NetCheck::Postgres(Endpoint::Tcp(tcp("db", 5432))))),
        ("http = \"http://h\"", http("GET", Endpoint::Tcp(tcp("h", 80)), "h", "/")),
        ("http = \"POST http://h:81/a?b=c#d\"", http("POST", Endpoint::Tcp(tcp("h", 81)), "h:81", "/a?b=c")),
        ("http = \"http://[::1]:81?q\"", http("GET", Endpoint::Tcp(tcp("::1", 81)), "[::1]:81", "/?q")),
        ("http = \"http+unix:///run/x:/y\"", http("GET", Endpoint::Unix("/run/x".into()), "localhost", "/y")),
        ("notify = true", ReadyWhen::Notify),
        ("notify = false", ReadyWhen::Executed),
        ("notify_fd = 3", ReadyWhen::NotifyFd(3)),
        ("exec = \"a b\"", ReadyWhen::Exec(command(&["a", "b"]))),
        ("log = '^ready \\d+$'", ReadyWhen::Log("^ready \\d+$".into())),
    ];
    for (text, when) in table {
        assert_eq!(with(&format!("[readiness]\n{text}\n")).readiness.when, when, "{text}");
    }
    assert_eq!(with("type = \"oneshot\"\n").readiness.timeout, None);
    assert_eq!(with("type = \"oneshot\"\n[readiness]\ntimeout = \"5s\"\n").readiness.timeout, Some(s(5)));
    assert_eq!(with("[readiness]\ntimeout = \"infinity\"\n").readiness.timeout, None);
}

#[test]
fn a_template_gives_its_instances() {
    let parsed = parse(
        "units/w.toml",
        "w",
        "[service]\ncommand = [\"w\", \"{instance}\"]\ninstances = 3\nenvironment = { PORT = \"800{instance}\" }\n",
    );
    assert_eq!(parsed.diagnostics, []);
    let seen: Vec<(&str, &str, &str, Option<u32>)> = parsed
        .specs
        .iter()
        .map(|spec| {
            let service = &spec.service;
            (
                spec.name.as_str(),
                service.command.argv[1].as_str(),
                service.environment["PORT"].as_str(),
                service.instance,
            )
        })
        .collect();
    assert_eq!(
        seen,
        [("w@1", "1", "8001", Some(1)), ("w@2", "2", "8002", Some(2)), ("w@3", "3", "8003", Some(3))]
    );
}

/// Loads a home with these unit files.
fn loaded(files: &[(&str, &str)]) -> Loaded {
    let temp = tempfile::tempdir().expect("tempdir");
    let units = temp.path().join("units");
    fs::create_dir(&units).expect("units");
    fs::set_permissions(&units, Permissions::from_mode(0o755)).expect("mode");
    for (file, text) in files {
        fs::write(units.join(file), text).expect("write");
        fs::set_permissions(units.join(file), Permissions::from_mode(0o644)).expect("mode");
    }
    load(&Home::under(temp.path()))
}

#[test]
fn the_name_of_a_template_means_all_its_instances() {
    let set = loaded(&[
        ("w.toml", "[service]\ncommand = \"w\"\ninstances = 11\n"),
        (
            "web.toml",
            "[unit]\nrequires = [\"w\"]\nafter = [\"w@2\"]\n[service]\ncommand = \"x\"\n[dependency.w]\non_loss = \"stop\"\n",
        ),
    ]);
    assert_eq!(set.errors(), 0, "{:?}", set.diagnostics);
    let web = set.units.iter().find(|unit| unit.name.as_str() == "web").expect("web");
    let names: Vec<String> = web.unit.requires.iter().map(ToString::to_string).collect();
    let expected: Vec<String> = (1..=11).map(|n| format!("w@{n}")).collect();
    assert_eq!(names, expected);
    assert_eq!(web.dependency.len(), 11);
    assert!(web.dependency.values().all(|edge| edge.on_loss == OnLoss::Stop));
}

#[test]
fn a_broken_file_leaves_the_others_alone() {
    let set = loaded(&[
        ("a.toml", "[unit]\nrequires = [\"b\"]\n[service]\ncommand = \"x\"\n"),
        ("b.toml", "[service\n"),
        ("c.toml", "[service]\ncommand = \"x\"\n"),
    ]);
    let names: Vec<&str> = set.units.iter().map(|unit| unit.name.as_str()).collect();
    assert_eq!(names, ["a", "c"]);
    assert_eq!(set.units[0].unit.requires.len(), 1);
    assert!(set.broken.iter().any(|name| name.as_str() == "b"));
    assert_eq!((set.errors(), set.warnings()), (1, 1), "{:?}", set.diagnostics);
}

#[test]
fn an_empty_home_is_no_error() {
    let temp = tempfile::tempdir().expect("tempdir");
    let set = load(&Home::under(temp.path()));
    assert!(set.units.is_empty() && set.diagnostics.is_empty());
    assert_eq!(set.daemon, DaemonSpec::default());
    let mut named = Home::under(temp.path());
    named.config_named = true;
    named.units_named = true;
    assert_eq!(load(&named).errors(), 2);
}

#[test]
fn a_thousand_units_are_read_in_time() {
    let files: Vec<(String, String)> = (0..1_000)
        .map(|n| {
            let requires = if n > 0 { format!("\"u{:04}\"", n - 1) } else { String::new() };
            (
                format!("u{n:04}.toml"),
                format!("[unit]\nrequires = [{requires}]\n[service]\ncommand = \"x\"\n"),
            )
        })
        .collect();
    let files: Vec<(&str, &str)> = files.iter().map(|(file, text)| (file.as_str(), text.as_str())).collect();
    let begun = std::time::Instant::now();
    let set = loaded(&files);
    assert_eq!((set.units.len(), set.diagnostics.len()), (1_000, 0));
    assert!(begun.elapsed() < s(20), "{:?}", begun.elapsed());
}

#[test]
fn the_daemon_file_of_nothing_is_the_defaults() {
    let parsed = daemon_file::parse("upright.toml", "");
    assert_eq!((parsed.spec, parsed.diagnostics), (Some(DaemonSpec::default()), vec![]));
    let text = "[daemon]\nwatch = \"off\"\nshutdown_timeout = \"5s\"\n[api]\nlisten = [\"[::1]:9321\"]\nviewers = [\"@staff\"]\n\
                [alert.ops]\nkind = \"exec\"\ncommand = [\"tell\"]\n";
    let spec = daemon_file::parse("upright.toml", text).spec.expect("spec");
    assert_eq!((spec.watch, spec.shutdown_timeout), (Watch::Off, s(5)));
    assert_eq!(spec.api.listen, [HostPort { host: "::1".into(), port: 9321 }]);
    assert_eq!(spec.channels["ops"].command, Some(command(&["tell"])));
}

#[test]
fn homes_are_where_the_contract_puts_them() {
    let root = Home::of_root();
    assert_eq!(root.config_file, PathBuf::from("/etc/upright/upright.toml"));
    assert_eq!(root.unit_dirs, [PathBuf::from("/etc/upright/units")]);
    assert_eq!(root.db, PathBuf::from("/var/lib/upright/upright.db"));
    assert_eq!(root.log_dir, PathBuf::from("/var/log/upright"));
    assert_eq!(root.socket, PathBuf::from("/run/upright/upright.sock"));
    assert_eq!(root.notify_socket, PathBuf::from("/run/upright/notify.sock"));

    let around = Surroundings { uid: 1000, user_home: Some("/h".into()), ..Surroundings::default() };
    let user = Home::resolve(&Asked::default(), &around).expect("home");
    assert_eq!(user.config_file, PathBuf::from("/h/.config/upright/upright.toml"));
    assert_eq!(user.db, PathBuf::from("/h/.local/state/upright/upright.db"));
    assert_eq!(user.log_dir, PathBuf::from("/h/.local/state/upright/log"));
    assert_eq!(user.socket, PathBuf::from("/tmp/upright-1000/upright.sock"));
    let around =
        Surroundings { xdg_runtime_dir: Some("/r".into()), xdg_config_home: Some("/c".into()), ..around };
    let user = Home::resolve(&Asked::default(), &around).expect("home");
    assert_eq!((user.run_dir, user.unit_dirs), ("/r/upright".into(), vec!["/c/upright/units".into()]));

    let sockets = Home::sockets(&Asked::default(), &around).expect("sockets");
    assert_eq!(sockets, [PathBuf::from("/run/upright/upright.sock"), "/r/upright/upright.sock".into()]);

    let around = Surroundings { upright_home: Some("/env".into()), ..around };
    assert_eq!(Home::sockets(&Asked::default(), &around), Ok(vec!["/env/run/upright.sock".into()]));
    let asked = Asked {
        home: Some("/flag".into()),
        units: vec!["/u1".into(), "/u2".into()],
        config: Some("/x.toml".into()),
    };
    let home = Home::resolve(&asked, &around).expect("home");
    assert_eq!(home.db, PathBuf::from("/flag/state/upright.db"));
    assert_eq!((home.unit_dirs, home.config_file), (vec!["/u1".into(), "/u2".into()], "/x.toml".into()));
    assert_eq!(Home::resolve(&Asked::default(), &around).expect("home").run_dir, PathBuf::from("/env/run"));
    assert!(Home::resolve(&Asked::default(), &Surroundings { uid: 5, ..Surroundings::default() }).is_err());
}

#[test]
fn the_schema_has_every_key_with_its_words_and_default() {
    for (dialect, schema) in [(keys::UNIT, schema::schema()), (keys::DAEMON, schema::daemon_schema())] {
        let mut found = 0;
        for key in dialect.keys {
            let section = key.section.strip_suffix(".*");
            let table = &schema["properties"][section.unwrap_or(key.section)];
            let table = if section.is_some() { &table["additionalProperties"] } else { table };
            let property = &table["properties"][key.name];
            assert!(
                property["description"].as_str().is_some_and(|text| text.starts_with(key.doc)),
                "{key:?}"
            );
            assert!(key.doc.ends_with('.'), "{key:?}");
            assert_eq!(property.get("default").is_some(), key.default.is_some(), "{key:?}");
            if let Kind::Choice(choices) = key.kind {
                assert_eq!(property["enum"], serde_json::json!(choices));
            }
            found += 1;
        }
        let written: usize = schema["properties"]
            .as_object()
            .expect("properties")
            .values()
            .map(|table| table.get("properties").or_else(|| table["additionalProperties"].get("properties")))
            .map(|keys| keys.and_then(|keys| keys.as_object()).map_or(0, |keys| keys.len()))
            .sum();
        assert_eq!(written, found, "a key stands twice in the table");
    }
    assert_eq!(schema::schema()["$schema"], "https://json-schema.org/draft/2020-12/schema");
}

/// Editors read it through the `#:schema` line of a unit file. `BLESS=1` rewrites it.
#[test]
fn the_shipped_schema_is_the_one_that_the_table_makes() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("units/unit.schema.json");
    let (text, code) = upright::cli::schema::run(upright::cli::schema::Of::Unit);
    assert_eq!(code, 0);
    if std::env::var_os("BLESS").is_some() {
        fs::write(&file, &text).expect("bless");
    }
    assert_eq!(fs::read_to_string(file).unwrap_or_default(), text, "run with BLESS=1 when this is meant");
}
