//! The page at `/`: one pure function from what the API says to HTML, a script and a style sheet.
//!
//! Refuses: asking anybody anything, figures of its own, and markup from outside. Without the script the
//! page is whole; the script only fetches it again when something has happened.

pub mod html;
pub mod alerts;
mod config;
pub mod drills;
mod events;
mod head;
mod kpi;
mod outages;
mod states;
mod time;
mod timeline;
mod units;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::api::drills::DrillLine;
use crate::api::summary::Summary;
use crate::api::types::{AlertList, EventLine, SystemHealth, UnitList};
use crate::dashboard::html::Html;

/// The script, `GET /dashboard.js`.
pub const SCRIPT: &str = include_str!("page.js");

/// The style sheet, `GET /dashboard.css`.
pub const STYLE: &str = include_str!("page.css");

/// Everything that is shown, as the API has it at one moment.
#[derive(Clone, Debug)]
pub struct PageData {
    /// That moment, RFC 3339.
    pub now: String,
    pub list: UnitList,
    pub health: SystemHealth,
    /// What the store could not tell in time is missing, and the page says so.
    pub summary: Option<Summary>,
    /// The newest records, oldest first.
    pub events: Option<Vec<EventLine>>,
    pub alerts: Option<AlertList>,
    /// The newest first.
    pub drills: Option<Vec<DrillLine>>,
    /// Whoever reads has shown no token, and sees nothing that services wrote.
    pub hides_logs: bool,
    /// The last lines of units that are not well.
    pub tails: BTreeMap<String, Vec<String>>,
}

/// Sections that the script puts in the place of older ones, by their id.
const SECTIONS: &str = "head config kpi units timeline alerts drills events foot";

/// The whole page.
pub fn page(data: &PageData) -> String {
    let now_us = time::micros(&data.now);
    let mut html = Html::default();
    head::begin(&mut html, data);
    html.raw("<main id=\"main\" tabindex=\"-1\">\n");
    config::section(&mut html, data);
    units::section(&mut html, data, now_us);
    kpi::section(&mut html, data.summary.as_ref(), now_us);
    timeline::section(&mut html, data, now_us);
    alerts::section(&mut html, data.alerts.as_ref(), now_us);
    drills::section(&mut html, data, now_us);
    events::section(&mut html, data.events.as_deref(), now_us);
    html.raw("</main>\n");
    head::end(&mut html, data, now_us);
    html.into_string()
}

/// A section whose part of history could not be read.
fn missing(html: &mut Html) {
    html.raw("<p class=\"note\">The store did not answer in time: this part of history is missing here. ");
    html.raw("Supervision goes on; load the page again.</p>\n");
}
