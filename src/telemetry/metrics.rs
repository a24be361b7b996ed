//! `GET /metrics`: numbers in the OpenMetrics text format (openmetrics.io, "Text Format").
//!
//! Refuses: anything that has to be counted for it alone: each number is there already when it is asked for.

use std::fmt::Write;

/// What is known when it is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    pub version: &'static str,
    /// Units by state.
    pub units: Vec<(&'static str, u64)>,
    pub fatal_stops: u64,
    /// Since this engine began.
    pub log_stored_bytes: u64,
    pub log_dropped_bytes: u64,
    pub log_rotations: u64,
    /// Streams that cannot be written now.
    pub log_blocked: u64,
    /// What ails the daemon itself now.
    pub troubles: u64,
}

#[derive(Clone, Copy)]
enum Kind {
    Gauge,
    Counter,
    Info,
}

/// The text, with its `# EOF`.
pub fn text(metrics: &Metrics) -> String {
    let mut out = String::new();
    let version = [("version", metrics.version)];
    family(&mut out, Kind::Info, "upright_build", "", "What runs.", &[(&version, 1)]);
    let units: Vec<([(&str, &str); 1], u64)> =
        metrics.units.iter().map(|(state, count)| ([("state", *state)], *count)).collect();
    let units: Vec<(&[(&str, &str)], u64)> =
        units.iter().map(|(label, count)| (&label[..], *count)).collect();
    family(&mut out, Kind::Gauge, "upright_units", "", "Units by state.", &units);
    let single = |out: &mut String, kind, name, unit, help, value| {
        family(out, kind, name, unit, help, &[(&[], value)])
    };
    let fatal = "Times the whole ended without having stopped its units.";
    single(&mut out, Kind::Counter, "upright_fatal_stops", "", fatal, metrics.fatal_stops);
    let stored = "Bytes of services moved into log files since the engine began.";
    single(&mut out, Kind::Counter, "upright_log_stored_bytes", "bytes", stored, metrics.log_stored_bytes);
    let dropped = "Bytes of services dropped because the disk was full.";
    single(&mut out, Kind::Counter, "upright_log_dropped_bytes", "bytes", dropped, metrics.log_dropped_bytes);
    single(
        &mut out,
        Kind::Counter,
        "upright_log_rotations",
        "",
        "Log files that were ended.",
        metrics.log_rotations,
    );
    let blocked = "Streams that cannot be written now.";
    single(&mut out, Kind::Gauge, "upright_log_blocked_streams", "", blocked, metrics.log_blocked);
    single(
        &mut out,
        Kind::Gauge,
        "upright_troubles",
        "",
        "What ails the daemon itself now.",
        metrics.troubles,
    );
    out.push_str("# EOF\n");
    out
}

/// Labels of a sample, and its value.
type Sample<'a> = (&'a [(&'a str, &'a str)], u64);

fn family(out: &mut String, kind: Kind, name: &str, unit: &str, help: &str, samples: &[Sample<'_>]) {
    let (word, suffix) = match kind {
        Kind::Gauge => ("gauge", ""),
        Kind::Counter => ("counter", "_total"),
        Kind::Info => ("info", "_info"),
    };
    // Writing to a string does not fail.
    let _ = writeln!(out, "# TYPE {name} {word}");
    if !unit.is_empty() {
        let _ = writeln!(out, "# UNIT {name} {unit}");
    }
    let _ = writeln!(out, "# HELP {name} {help}");
    for (labels, value) in samples {
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(out, "{name}{suffix}{labels} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_what_the_format_asks_for() {
        let metrics = Metrics {
            version: "1.2.3",
            units: vec![("active", 2), ("failed", 0)],
            log_dropped_bytes: 17,
            ..Metrics::default()
        };
        let text = text(&metrics);
        let units = "# TYPE upright_units gauge\n# HELP upright_units Units by state.\n\
                     upright_units{state=\"active\"} 2\nupright_units{state=\"failed\"} 0\n";
        assert!(text.contains(units), "{text}");
        assert!(text.starts_with("# TYPE upright_build info\n") && text.ends_with("\n# EOF\n"), "{text}");
        assert!(text.contains("upright_build_info{version=\"1.2.3\"} 1\n"), "{text}");
        let dropped = "# TYPE upright_log_dropped_bytes counter\n# UNIT upright_log_dropped_bytes bytes\n";
        assert!(text.contains(dropped) && text.contains("\nupright_log_dropped_bytes_total 17\n"), "{text}");
    }
}
