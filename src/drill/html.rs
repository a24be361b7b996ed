//! A verdict as one page: no script, no other file, a picture of each recovery inside.
//!
//! Refuses: colour that says what no word says.

use crate::drill::report::{escaped, measured, seconds};
use crate::drill::verdict::{Story, Verdict};

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;\
color:#1a1a1a;background:#fff}table{border-collapse:collapse;width:100%;margin:1rem 0}th,td{text-align:left;\
padding:.3rem .6rem;border-bottom:1px solid #ccc}.pass{color:#0a5c2b}.fail{color:#a30f0f;font-weight:bold}\
svg{width:100%;height:auto}@media(prefers-color-scheme:dark){body{color:#eee;background:#151515}\
.pass{color:#7fe0a3}.fail{color:#ff9d9d}th,td{border-color:#444}}";

/// Most recoveries in the picture; all are in the table of `report.md`.
const BARS_MAX: usize = 60;

/// `report.html`.
pub fn page(verdict: &Verdict) -> String {
    let rows: String = verdict
        .kpis
        .iter()
        .map(|row| {
            let class = if row.verdict == "fail" { "fail" } else { "pass" };
            format!(
                "<tr><td>{}</td><td>{}</td><td>{}</td><td class=\"{class}\">{}</td></tr>\n",
                escaped(&row.kpi),
                escaped(&row.mark),
                escaped(&measured(row)),
                escaped(&row.verdict)
            )
        })
        .collect();
    let latencies: String = verdict
        .latencies
        .iter()
        .map(|one| {
            let (p50, max) = (seconds(one.p50_s), seconds(one.max_s));
            format!(
                "<tr><td>{}</td><td>{}</td><td>{p50}</td><td>{max}</td></tr>\n",
                escaped(&one.what),
                one.count
            )
        })
        .collect();
    let notes: String = verdict.notes.iter().map(|note| format!("<p>{}</p>\n", escaped(note))).collect();
    let (drill, status) = (escaped(&verdict.drill), escaped(&verdict.status));
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>Drill {drill}: {status}</title>\
         <style>{STYLE}</style></head><body>\n<h1>Drill {drill}: {status}</h1>\n\
         <p>Scenario {}, from {} to {}.</p>\n<table><thead><tr><th>KPI</th><th>pass mark</th><th>measured</th>\
         <th>verdict</th></tr></thead><tbody>\n{rows}</tbody></table>\n<h2>From failure to ready</h2>\n{}\n\
         <table><thead><tr><th>latency</th><th>count</th><th>p50</th><th>max</th></tr></thead><tbody>\n{latencies}\
         </tbody></table>\n{notes}</body></html>\n",
        escaped(&verdict.scenario),
        escaped(&verdict.begun),
        escaped(&verdict.ended),
        picture(&verdict.stories)
    )
}

/// A bar a fault, as long as it took to be ready again.
fn picture(stories: &[Story]) -> String {
    let shown: Vec<&Story> = stories.iter().filter(|story| story.outcome != "stood").take(BARS_MAX).collect();
    if shown.is_empty() {
        return "<p>No fault that something had to recover from.</p>".to_string();
    }
    let longest = shown.iter().filter_map(|story| story.recover_s).fold(0.001, f64::max);
    let mut bars = String::new();
    let mut y = 0_u32;
    for story in &shown {
        let label = format!("{} {}", story.kind, story.unit.as_deref().unwrap_or("daemon"));
        let (width, word) = match story.recover_s {
            Some(length) => (length / longest * 400.0, seconds(length)),
            None => (0.0, story.outcome.clone()),
        };
        bars.push_str(&format!(
            "<text x=\"0\" y=\"{}\" font-size=\"13\" fill=\"currentColor\">{}</text>\
             <rect x=\"200\" y=\"{}\" width=\"{width:.1}\" height=\"12\" fill=\"#3b7dd8\"/>\
             <text x=\"{:.1}\" y=\"{}\" font-size=\"12\" fill=\"currentColor\">{}</text>",
            y + 14,
            escaped(&label),
            y + 4,
            206.0 + width,
            y + 14,
            escaped(&word)
        ));
        y += 20;
    }
    format!(
        "<svg viewBox=\"0 0 720 {y}\" role=\"img\" aria-label=\"Time from failure to ready, fault by fault\">{bars}</svg>"
    )
}
