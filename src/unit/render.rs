//! Diagnostics as a person reads them, in the form of rustc.
//!
//! Refuses: deciding what is wrong, and writing to a terminal.

use annotate_snippets::{AnnotationKind, Group, Level as Shown, Origin, Renderer, Snippet};

use crate::unit::diag::{Diagnostic, Level};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    Plain,
    Coloured,
}

/// Longest line shown whole, in bytes; of a longer one only the message is shown, so that a
/// minified file does not fill the screen.
const LINE_BYTES_MAX: usize = 1_000;

/// All diagnostics of one file, each followed by an empty line. `text` is what the file
/// held; empty when it could not be read.
pub fn render(diagnostics: &[Diagnostic], text: &str, colour: Colour) -> String {
    let renderer = match colour {
        Colour::Plain => Renderer::plain(),
        Colour::Coloured => Renderer::styled(),
    };
    let mut out = String::new();
    for diagnostic in diagnostics {
        out.push_str(&renderer.render(&groups(diagnostic, text)));
        out.push_str("\n\n");
    }
    out
}

fn groups<'a>(diagnostic: &'a Diagnostic, text: &'a str) -> Vec<Group<'a>> {
    let level = match diagnostic.level {
        Level::Error => Shown::ERROR,
        Level::Warning => Shown::WARNING,
    };
    let title = level.primary_title(printable(&diagnostic.message)).id(diagnostic.code.as_str());
    let mut groups = vec![with_source(Group::with_title(title), diagnostic, text)];
    if let Some(help) = &diagnostic.help {
        groups.push(Group::with_title(Shown::HELP.secondary_title(printable(help))));
    }
    groups
}

fn with_source<'a>(group: Group<'a>, diagnostic: &'a Diagnostic, text: &'a str) -> Group<'a> {
    let file = diagnostic.file.as_str();
    let Some(place) = &diagnostic.place else {
        return group.element(Origin::path(file));
    };
    let start = place.span.start.min(text.len());
    let line_start = text.get(..start).and_then(|before| before.rfind('\n')).map_or(0, |at| at + 1);
    let line_end = text.get(start..).and_then(|rest| rest.find('\n')).map_or(text.len(), |at| start + at);
    let Some(line) = text.get(line_start..line_end).filter(|line| line.len() <= LINE_BYTES_MAX) else {
        let line = usize::try_from(place.line).unwrap_or(0);
        let column = usize::try_from(place.column).unwrap_or(0);
        return group.element(Origin::path(file).line(line).char_column(column));
    };
    let line = line.strip_suffix('\r').unwrap_or(line);
    let from = (start - line_start).min(line.len());
    let to = place.span.end.saturating_sub(line_start).clamp(from, line.len());
    let snippet = Snippet::source(line)
        .path(file)
        .line_start(usize::try_from(place.line).unwrap_or(1))
        .annotation(AnnotationKind::Primary.span(from..to));
    group.element(snippet)
}

/// Control characters escaped: a unit file must not be able to paint the terminal.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}
