//! Tables as kubectl draws them: capital headers, columns three spaces apart, no lines.
//! Owns: layout, colour codes, and keeping control characters of names away from the terminal.
//! Called by every verb.

use super::output::Style;

/// Columns are this far apart.
const GAP: &str = "   ";

/// A colour with a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Paint {
    Good,
    Warn,
    Bad,
    Dim,
    Strong,
}

impl Paint {
    const fn code(self) -> &'static str {
        match self {
            Self::Good => "\x1b[32m",
            Self::Warn => "\x1b[33m",
            Self::Bad => "\x1b[31m",
            Self::Dim => "\x1b[2m",
            Self::Strong => "\x1b[1m",
        }
    }
}

/// One cell: text without control characters, and a colour.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    text: String,
    paint: Option<Paint>,
}

impl Cell {
    pub(super) fn new(text: impl AsRef<str>) -> Self {
        let text = clean(text.as_ref());
        Self { text: if text.is_empty() { "-".to_owned() } else { text }, paint: None }
    }

    pub(super) fn painted(text: impl AsRef<str>, paint: Paint) -> Self {
        Self { paint: Some(paint), ..Self::new(text) }
    }

    fn draw(&self, style: Style) -> String {
        paint(&self.text, self.paint.filter(|_| style.colour))
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text)
    }
}

/// A name may hold anything; an escape sequence must not reach the terminal.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// `text` in a colour.
pub(super) fn paint(text: &str, paint: Option<Paint>) -> String {
    paint.map_or_else(|| text.to_owned(), |paint| format!("{}{text}\x1b[0m", paint.code()))
}

/// Rows under headers.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    headers: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
    indent: usize,
}

impl Table {
    pub(super) fn new(headers: &[&'static str]) -> Self {
        Self { headers: headers.to_vec(), ..Self::default() }
    }

    /// Rows without headers, each moved right.
    pub(super) fn plain(indent: usize) -> Self {
        Self { indent, ..Self::default() }
    }

    pub(super) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table, or `empty` where it has no row.
    pub(super) fn draw_or(&self, style: Style, empty: &str) -> String {
        if self.is_empty() { format!("{empty}\n") } else { self.draw(style) }
    }

    pub(super) fn draw(&self, style: Style) -> String {
        let headers: Vec<Cell> = self.headers.iter().map(|text| Cell::painted(text, Paint::Dim)).collect();
        let lines = || std::iter::once(&headers).filter(|cells| !cells.is_empty()).chain(&self.rows);
        let columns = lines().map(Vec::len).max().unwrap_or(0);
        let width = |at: usize| lines().filter_map(|cells| cells.get(at)).map(Cell::width).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut out = String::new();
        for cells in lines() {
            out.push_str(&" ".repeat(self.indent));
            for (at, (cell, width)) in cells.iter().zip(&widths).enumerate() {
                out.push_str(&cell.draw(style));
                // The last cell of a line has nothing behind it to be in line with.
                if at + 1 < cells.len() {
                    out.push_str(&" ".repeat(width - cell.width()));
                    out.push_str(GAP);
                }
            }
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests;
