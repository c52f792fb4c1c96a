//! Prints an answer in the format that was asked for.
//! Owns: the choice of format and colour. Called by every verb.

use std::io::{self, IsTerminal, Write};
use std::time::SystemTime;

use serde::Serialize;

use super::{CliError, Exit};
use crate::admin::Timestamp;

/// `-o`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// For reading
    #[default]
    Table,
    /// The same with more columns
    Wide,
    /// For programs
    Json,
    /// For programs that people read
    Yaml,
}

/// What a table may depend on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    pub(super) colour: bool,
    pub(super) wide: bool,
    /// Ages are told relative to it.
    pub(super) now: Timestamp,
}

/// Knows format and terminal.
#[derive(Clone, Copy, Debug)]
pub(super) struct Printer {
    format: Format,
    style: Style,
}

impl Printer {
    pub(super) fn stdout(format: Format) -> Self {
        let plain =
            std::env::var_os("NO_COLOR").is_some() || std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        let style = Style {
            colour: !plain && io::stdout().is_terminal(),
            wide: format == Format::Wide,
            now: SystemTime::now().into(),
        };
        Self { format, style }
    }

    /// Prints `value`: the table of `draw`, or the value itself.
    pub(super) fn print<T: Serialize>(
        self,
        value: &T,
        draw: impl FnOnce(&T, Style) -> String,
    ) -> Result<(), CliError> {
        let text = match self.format {
            Format::Table | Format::Wide => draw(value, self.style),
            Format::Json => json(value)?,
            Format::Yaml => yaml(value)?,
        };
        write(&text)?;
        Ok(())
    }

    /// As [`Self::print`], with a good end.
    pub(super) fn show<T: Serialize>(
        self,
        value: &T,
        draw: impl FnOnce(&T, Style) -> String,
    ) -> Result<Exit, CliError> {
        self.print(value, draw).map(|()| Exit::Good)
    }
}

pub(super) fn json<T: Serialize>(value: &T) -> Result<String, CliError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| CliError::Format { format: "JSON", message: error.to_string() })?;
    Ok(text + "\n")
}

pub(super) fn yaml<T: Serialize>(value: &T) -> Result<String, CliError> {
    let text = serde_saphyr::to_string(value)
        .map_err(|error| CliError::Format { format: "YAML", message: error.to_string() })?;
    Ok(if text.ends_with('\n') { text } else { text + "\n" })
}

pub(super) fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}
