//! Text to HTML, and the frame of the page.

use std::fmt::Write;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("hover.js");

/// Makes text safe inside elements and inside quoted attributes.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Control characters are not allowed in HTML at all.
            c if c.is_control() && c != '\n' && c != '\t' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A command, whole: it wraps between its words (a browser would also break `--flag` behind a hyphen), and copies as it
/// was typed.
pub(super) fn command(text: &str) -> String {
    let word = |word: &str| match word.chars().count() {
        0..=48 => format!("<span>{}</span>", escape(word)),
        _ => escape(word),
    };
    format!("<pre class=\"command\">{}</pre>\n", text.split(' ').map(word).collect::<Vec<_>>().join(" "))
}

/// A document in the making. Sections are collected first, because the links at the top list them.
pub(super) struct Page {
    title: String,
    top: String,
    sections: Vec<(String, String)>,
}

impl Page {
    pub(super) fn new(title: &str) -> Self {
        Self { title: escape(title), top: String::new(), sections: Vec::new() }
    }

    /// Sets what stands above the links.
    pub(super) fn set_top(&mut self, html: String) {
        self.top = html;
    }

    /// Adds a section; `html` is trusted, `title` is not.
    pub(super) fn section(&mut self, title: &str, html: String) {
        self.sections.push((escape(title), html));
    }

    pub(super) fn finish(self) -> String {
        let mut body = String::new();
        let mut links = String::new();
        for (n, (title, html)) in self.sections.iter().enumerate() {
            let _ = write!(links, "<a href=\"#s{n}\">{title}</a>");
            let _ = writeln!(body, "<section id=\"s{n}\"><h2>{title}</h2>\n{html}</section>");
        }
        let nav = if self.sections.len() > 1 { format!("<nav>{links}</nav>\n") } else { String::new() };
        // The policy makes the promise checkable: a browser loads nothing from outside.
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; \
             style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"generator\" content=\"beit2\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{top}{nav}{body}</main>\n\
             <script>\n{SCRIPT}</script>\n</body>\n</html>\n",
            title = self.title,
            top = self.top,
        )
    }
}
