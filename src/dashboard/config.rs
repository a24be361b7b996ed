//! What is wrong in the files, and with the daemon itself.
//!
//! Refuses: hiding a mistake behind a click.

use crate::api::types::ConfigError;
use crate::dashboard::head::counted;
use crate::dashboard::html::Html;
use crate::dashboard::{PageData, time};

/// Most mistakes shown; `upright check` shows the others.
const ERRORS_MAX: usize = 50;

pub fn section(html: &mut Html, data: &PageData) {
    let (config, troubles) = (&data.health.config, &data.health.troubles);
    html.raw("<div id=\"config\">\n");
    if !config.errors.is_empty() {
        let title = counted(config.errors.len(), "mistake", "mistakes");
        html.raw("<section class=\"box red\" role=\"alert\" aria-labelledby=\"config-title\">\n");
        html.raw("<h2 id=\"config-title\">RED: ").text(&title).raw(" in the configuration</h2>\n");
        html.raw("<p>Of each broken file the last good version stays in force, if there is one.</p>\n<ul>\n");
        config.errors.iter().take(ERRORS_MAX).for_each(|error| mistake(html, error));
        html.raw("</ul>\n");
        if let Some(more) = config.errors.len().checked_sub(ERRORS_MAX).filter(|more| *more > 0) {
            html.raw("<p>And ").show(more).raw(" more: <code>upright check</code> shows them.</p>\n");
        }
        html.raw("</section>\n");
    }
    if config.unapplied {
        html.raw("<section class=\"box yellow\"><h2>Files have changed and are not in force</h2>\n");
        html.raw("<p><code>upright plan</code> shows what they would do, <code>upright apply</code> does it.</p></section>\n");
    }
    for trouble in troubles {
        html.raw("<section class=\"box yellow\"><h2>The daemon itself: <code>").text(&trouble.code);
        html.raw("</code></h2>\n<p>").text(&trouble.message).raw("</p>\n<p class=\"help\">help: ");
        html.text(&trouble.help).raw("</p></section>\n");
    }
    for mute in &data.list.daemon.mutes {
        html.raw("<section class=\"box yellow\"><h2>Alerts of ");
        html.text(mute.unit.as_deref().unwrap_or("every unit")).raw(" are muted</h2>\n<p>Until ");
        time::at(html, &mute.until, time::micros(&data.now));
        html.raw(".</p></section>\n");
    }
    html.raw("</div>\n");
}

/// `units/web.toml:7:10`, what is wrong, and what to do.
fn mistake(html: &mut Html, error: &ConfigError) {
    html.raw("<li class=\"mistake\"><code class=\"place\">").text(&error.file);
    for number in [error.line, error.column].into_iter().flatten() {
        html.raw(":").show(number);
    }
    html.raw("</code>\n<p class=\"cause\">").text(&error.message).raw("</p>\n");
    if let Some(help) = &error.help {
        html.raw("<p class=\"help\">help: ").text(help).raw("</p>\n");
    }
    html.raw("<p class=\"code\">code: <code>").text(&error.code).raw("</code></p></li>\n");
}
