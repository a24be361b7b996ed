//! HTML as it is written: markup that stands in the source, and text that may be anybody's.
//!
//! Refuses: markup that does not stand in the source. `raw` takes nothing else, so that what a service or
//! a file says is text wherever it comes out.

use std::fmt::Display;

use crate::base::visible;

/// A page on its way.
#[derive(Debug, Default)]
pub struct Html(String);

impl Html {
    /// Markup.
    pub fn raw(&mut self, markup: &'static str) -> &mut Html {
        self.0.push_str(markup);
        self
    }

    /// Text of anybody, between tags or within a quoted attribute.
    pub fn text(&mut self, text: &str) -> &mut Html {
        for c in text.chars() {
            match c {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                c => visible::push(&mut self.0, c),
            }
        }
        self
    }

    /// What writes itself, as text.
    pub fn show(&mut self, value: impl Display) -> &mut Html {
        self.text(&value.to_string())
    }

    /// ` name="value"`.
    pub fn attr(&mut self, name: &'static str, value: impl Display) -> &mut Html {
        self.raw(" ").raw(name).raw("=\"").show(value).raw("\"")
    }

    pub fn into_string(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_never_markup() {
        let mut html = Html::default();
        html.raw("<p").attr("title", "a\" onload='x'>").raw(">").text("<script>&\u{202e}\x1b[2J\n</script>");
        assert_eq!(
            html.into_string(),
            "<p title=\"a&quot; onload=&#39;x&#39;&gt;\">&lt;script&gt;&amp;\\u{202e}\\x1b[2J\\n&lt;/script&gt;"
        );
    }
}
