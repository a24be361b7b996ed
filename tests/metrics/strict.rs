//! A strict reader of the OpenMetrics 1.0 text format: what is not allowed is an error.
//!
//! Refuses: exemplars, timestamps and types that Upright does not use. They would be mistakes here.

use std::collections::{BTreeMap, BTreeSet};

/// A family with its samples, as they came.
#[derive(Clone, Debug, Default)]
pub struct Family {
    pub kind: String,
    pub unit: String,
    pub help: String,
    pub samples: Vec<Sample>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// Families by name.
pub fn read(text: &str) -> Result<BTreeMap<String, Family>, String> {
    let body = text.strip_suffix("# EOF\n").ok_or("does not end with `# EOF` and a newline")?;
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut series = BTreeSet::new();
    let mut open: Option<String> = None;
    for (at, line) in body.lines().enumerate() {
        let wrong = |what: &str| Err(format!("line {}: {what}: {line}", at + 1));
        if line.is_empty() {
            return wrong("an empty line");
        }
        let Some(comment) = line.strip_prefix("# ") else {
            let Some(name) = &open else { return wrong("a sample before its TYPE") };
            let family = families.get_mut(name).expect("an open family");
            let sample = sample(line).map_err(|what| format!("line {}: {what}: {line}", at + 1))?;
            check_sample(name, family, &sample).map_err(|what| format!("line {}: {what}: {line}", at + 1))?;
            if !series.insert((sample.name.clone(), sample.labels.clone())) {
                return wrong("this series was there already");
            }
            family.samples.push(sample);
            continue;
        };
        let mut words = comment.splitn(3, ' ');
        let (word, name, rest) = (words.next(), words.next().unwrap_or(""), words.next().unwrap_or(""));
        if word == Some("TYPE") {
            if families.contains_key(name) {
                return wrong("a family comes twice");
            }
            if !["gauge", "counter", "info", "stateset", "histogram"].contains(&rest) {
                return wrong("an unknown type");
            }
            families.insert(name.to_string(), Family { kind: rest.to_string(), ..Family::default() });
            open = Some(name.to_string());
            continue;
        }
        if open.as_deref() != Some(name) {
            return wrong("metadata of another family");
        }
        let family = families.get_mut(name).expect("an open family");
        if !family.samples.is_empty() {
            return wrong("metadata behind samples");
        }
        match word {
            Some("UNIT") if family.unit.is_empty() && name.ends_with(&format!("_{rest}")) => {
                family.unit = rest.to_string();
            }
            Some("HELP") if family.help.is_empty() && !rest.is_empty() => family.help = rest.to_string(),
            _ => return wrong("metadata that does not belong here"),
        }
    }
    for (name, family) in &families {
        check_family(name, family)?;
    }
    Ok(families)
}

/// `name{label="value",…} value`, and nothing else.
fn sample(line: &str) -> Result<Sample, String> {
    let name_end = line.find(['{', ' ']).ok_or("no value")?;
    let (name, mut rest) = line.split_at(name_end);
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    if name.is_empty() || !name.chars().all(fits) || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err("a bad name".to_string());
    }
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, after) = rest.split_once("=\"").ok_or("a label without a value")?;
            if label.is_empty() || !label.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
                return Err("a bad label".to_string());
            }
            let (value, after) = quoted(after)?;
            if labels.insert(label.to_string(), value).is_some() {
                return Err("a label twice".to_string());
            }
            match after.chars().next() {
                Some(',') => rest = &after[1..],
                Some('}') => {
                    rest = &after[1..];
                    break;
                }
                _ => return Err("labels without an end".to_string()),
            }
        }
    }
    let value = rest.strip_prefix(' ').ok_or("no space before the value")?;
    let number: f64 = value.parse().map_err(|_| format!("`{value}` is no number"))?;
    Ok(Sample { name: name.to_string(), labels, value: number })
}

/// Up to the closing quote; what follows it.
fn quoted(text: &str) -> Result<(String, &str), String> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => match chars.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, escaped @ ('\\' | '"'))) => value.push(escaped),
                _ => return Err("a bad escape".to_string()),
            },
            other => value.push(other),
        }
    }
    Err("a quote without an end".to_string())
}

fn check_sample(family: &str, of: &Family, sample: &Sample) -> Result<(), String> {
    let suffix = sample.name.strip_prefix(family).ok_or("a sample of another family")?;
    let allowed: &[&str] = match of.kind.as_str() {
        "counter" => &["_total"],
        "info" => &["_info"],
        "histogram" => &["_bucket", "_count", "_sum"],
        _ => &[""],
    };
    if !allowed.contains(&suffix) {
        return Err(format!("the suffix `{suffix}` is not that of a {}", of.kind));
    }
    let negative = sample.value < 0.0 || sample.value.is_nan();
    if negative && matches!(of.kind.as_str(), "counter" | "histogram") {
        return Err("a count below zero".to_string());
    }
    if of.kind == "info" && sample.value != 1.0 {
        return Err("an info is 1".to_string());
    }
    if of.kind == "stateset" && (!sample.labels.contains_key(family) || ![0.0, 1.0].contains(&sample.value)) {
        return Err("a state is 0 or 1, in a label of the family's name".to_string());
    }
    if (suffix == "_bucket") != sample.labels.contains_key("le") {
        return Err("`le` belongs to buckets, and to nothing else".to_string());
    }
    Ok(())
}

/// Buckets ascend, the last is +Inf and is the count; samples of one label set stand together.
fn check_family(name: &str, family: &Family) -> Result<(), String> {
    if family.help.is_empty() {
        return Err(format!("{name} has no HELP"));
    }
    let mut seen: Vec<BTreeMap<String, String>> = Vec::new();
    for sample in &family.samples {
        let mut labels = sample.labels.clone();
        labels.remove("le");
        if family.kind == "stateset" {
            labels.remove(name);
        }
        if seen.last() != Some(&labels) {
            if seen.contains(&labels) {
                return Err(format!("{name}: the samples of {labels:?} do not stand together"));
            }
            seen.push(labels);
        }
    }
    if family.kind != "histogram" {
        return Ok(());
    }
    for labels in seen {
        let of = |suffix: &str| -> Vec<&Sample> {
            let fits = |sample: &&Sample| {
                let mine = labels.iter().all(|(key, value)| sample.labels.get(key) == Some(value));
                mine && sample.name == format!("{name}{suffix}")
            };
            family.samples.iter().filter(fits).collect()
        };
        let buckets: Vec<(f64, f64)> = of("_bucket")
            .iter()
            .map(|sample| (sample.labels["le"].parse().unwrap_or(f64::NAN), sample.value))
            .collect();
        if !buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1) {
            return Err(format!("{name}{labels:?}: buckets do not ascend"));
        }
        let count: Vec<f64> = of("_count").iter().map(|sample| sample.value).collect();
        let last = buckets.last().copied();
        if last.map(|(le, _)| le) != Some(f64::INFINITY) || last.map(|(_, n)| vec![n]) != Some(count) {
            return Err(format!("{name}{labels:?}: the bucket of +Inf is not the count"));
        }
        if of("_sum").len() != 1 {
            return Err(format!("{name}{labels:?}: no sum"));
        }
    }
    Ok(())
}

#[test]
fn the_reader_refuses_what_is_not_allowed() {
    let good = "# TYPE a counter\n# HELP a x\na_total{u=\"\\\"\\n\"} 1\n# EOF\n";
    assert_eq!(read(good).expect("good")["a"].samples[0].labels["u"], "\"\n");
    for bad in [
        "# TYPE a gauge\n# HELP a x\na 1\n",
        "# TYPE a gauge\n# HELP a x\na 1\na 2\n# EOF\n",
        "# TYPE a gauge\n# HELP a x\na 1\n# TYPE a gauge\n# HELP a x\n# EOF\n",
        "# TYPE a counter\n# HELP a x\na 1\n# EOF\n",
        "# TYPE a gauge\n# HELP a x\nb 1\n# EOF\n",
        "# TYPE a gauge\n# UNIT a seconds\n# HELP a x\na 1\n# EOF\n",
        "# TYPE a gauge\n# HELP a x\na{b=\"c} 1\n# EOF\n",
        "# TYPE a gauge\n# HELP a x\na one\n# EOF\n",
        "# TYPE a gauge\na 1\n# EOF\n",
        "# TYPE a gauge\n# HELP a x\na{b=\"1\"} 1\na{b=\"2\"} 1\na{b=\"1\",c=\"2\"} 1\na{b=\"1\"} 3\n# EOF\n",
        "# TYPE h histogram\n# HELP h x\nh_bucket{le=\"1.0\"} 2\nh_bucket{le=\"+Inf\"} 1\nh_count 1\nh_sum 1\n# EOF\n",
        "# TYPE h histogram\n# HELP h x\nh_bucket{le=\"1.0\"} 1\nh_count 1\nh_sum 1\n# EOF\n",
        "# TYPE a gauge\n# HELP a x\n\na 1\n# EOF\n",
    ] {
        assert!(read(bad).is_err(), "{bad}");
    }
}
