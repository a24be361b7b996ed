//! The two text formats: OpenMetrics 1.0 (openmetrics.io) and the older one of Prometheus (text/plain,
//! version 0.0.4), which knows neither info nor state sets nor units.
//!
//! Refuses: native histograms. Neither format can carry them.

use std::fmt::Write;

use crate::base::histogram::Counted;
use crate::telemetry::metrics::facts::{Facts, tell};
use crate::telemetry::metrics::{Family, Kind, Listener, Value};

/// Bytes of a sample, about: what is made room for.
const SAMPLE_BYTES: usize = 96;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    OpenMetrics,
    Prometheus,
}

/// Everything that is known, as text. `# EOF` ends both: a comment in the older one, by which a reader sees
/// that nothing is missing.
pub fn text(form: Form, facts: &Facts) -> String {
    let samples = facts.units.len() * 30 + 1_000;
    let mut writer = Writer { form, out: String::with_capacity(samples * SAMPLE_BYTES) };
    tell(facts, &mut writer);
    writer.out.push_str("# EOF\n");
    writer.out
}

struct Writer {
    form: Form,
    out: String,
}

impl Listener for Writer {
    fn family(&mut self, family: &'static Family) {
        let Family { name, kind, unit, help, .. } = family;
        // Writing to a string does not fail.
        match self.form {
            Form::OpenMetrics => {
                let _ = writeln!(self.out, "# TYPE {name} {}", kind.as_str());
                if !unit.is_empty() {
                    let _ = writeln!(self.out, "# UNIT {name} {unit}");
                }
                let _ = writeln!(self.out, "# HELP {name} {help}");
            }
            Form::Prometheus => {
                let name = family.sample_name();
                let kind = match kind {
                    Kind::Info | Kind::StateSet => Kind::Gauge,
                    Kind::Gauge | Kind::Counter | Kind::Histogram => *kind,
                };
                let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {}", kind.as_str());
            }
        }
    }

    fn sample(&mut self, family: &'static Family, labels: &[&str], value: Value<'_>) {
        let suffix = match family.kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Gauge | Kind::StateSet | Kind::Histogram => "",
        };
        match value {
            Value::Count(count) => {
                self.series(family, suffix, labels, None);
                let _ = writeln!(self.out, " {count}");
            }
            Value::Number(number) => {
                self.series(family, suffix, labels, None);
                let _ = writeln!(self.out, " {number:?}");
            }
            Value::Histogram(counted) => self.histogram(family, labels, counted),
        }
    }
}

impl Writer {
    fn histogram(&mut self, family: &'static Family, labels: &[&str], counted: &Counted) {
        for (bound, count) in &counted.buckets {
            self.series(family, "_bucket", labels, Some(*bound));
            let _ = writeln!(self.out, " {count}");
        }
        self.series(family, "_bucket", labels, Some(f64::INFINITY));
        let _ = writeln!(self.out, " {}", counted.count);
        self.series(family, "_count", labels, None);
        let _ = writeln!(self.out, " {}", counted.count);
        self.series(family, "_sum", labels, None);
        let _ = writeln!(self.out, " {:?}", counted.sum_s);
    }

    /// Name and labels.
    fn series(&mut self, family: &'static Family, suffix: &str, values: &[&str], bound: Option<f64>) {
        self.out.push_str(family.name);
        self.out.push_str(suffix);
        let mut opened = false;
        for (label, value) in family.labels.iter().zip(values) {
            self.out.push(if std::mem::replace(&mut opened, true) { ',' } else { '{' });
            self.out.push_str(label);
            self.out.push_str("=\"");
            escape(value, &mut self.out);
            self.out.push('"');
        }
        if let Some(bound) = bound {
            self.out.push(if std::mem::replace(&mut opened, true) { ',' } else { '{' });
            let _ = if bound.is_infinite() {
                write!(self.out, "le=\"+Inf\"")
            } else {
                write!(self.out, "le=\"{bound:?}\"")
            };
        }
        if opened {
            self.out.push('}');
        }
    }
}

/// Both formats escape the same three.
fn escape(value: &str, out: &mut String) {
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            other => out.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::histogram::{Histogram, QUICK};
    use crate::telemetry::metrics::Id;
    use crate::telemetry::metrics::facts::{Channel, UnitFacts};
    use std::time::Duration;

    fn facts() -> Facts {
        let histogram = Histogram::new(QUICK);
        histogram.observe(Duration::from_millis(2));
        let web = UnitFacts { name: "web".into(), state: "active", restarts: 3, ..UnitFacts::default() };
        let odd = Channel { name: "a\"b\\c\nd".into(), ..Channel::default() };
        Facts {
            version: "1.2.3",
            mode: "normal",
            units: vec![web],
            channels: vec![odd],
            histograms: vec![(Id::Commit, histogram.read())],
            ..Facts::default()
        }
    }

    #[test]
    fn open_metrics_has_types_units_and_an_end() {
        let text = text(Form::OpenMetrics, &facts());
        assert!(text.starts_with("# TYPE upright_build info\n# HELP upright_build "), "{text}");
        assert!(text.contains("\nupright_build_info{version=\"1.2.3\"} 1\n"), "{text}");
        assert!(text.contains("# TYPE upright_unit_restarts counter\n"), "{text}");
        assert!(text.contains("\nupright_unit_restarts_total{unit=\"web\"} 3\n"), "{text}");
        assert!(
            text.contains("\nupright_unit_state{unit=\"web\",upright_unit_state=\"active\"} 1\n"),
            "{text}"
        );
        assert!(
            text.contains("\nupright_unit_state{unit=\"web\",upright_unit_state=\"failed\"} 0\n"),
            "{text}"
        );
        assert!(text.contains("# UNIT upright_store_commit_seconds seconds\n"), "{text}");
        assert!(text.contains("\nupright_store_commit_seconds_bucket{le=\"0.0025\"} 1\n"), "{text}");
        assert!(text.contains("\nupright_store_commit_seconds_bucket{le=\"+Inf\"} 1\n"), "{text}");
        assert!(text.contains("\nupright_store_commit_seconds_sum 0.002\n"), "{text}");
        assert!(text.contains("{channel=\"a\\\"b\\\\c\\nd\",outcome=\"failed\"} 0\n"), "{text}");
        assert!(text.ends_with("\n# EOF\n"), "{text}");
    }

    #[test]
    fn the_older_format_has_its_own_types() {
        let text = text(Form::Prometheus, &facts());
        assert!(text.contains("# TYPE upright_build_info gauge\n"), "{text}");
        assert!(text.contains("# TYPE upright_unit_restarts_total counter\n"), "{text}");
        assert!(text.contains("# TYPE upright_unit_state gauge\n"), "{text}");
        assert!(!text.contains("# UNIT"), "{text}");
    }
}
