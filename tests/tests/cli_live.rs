//! What a running agent tells: every CLI verb in every format, exit codes, logs, metrics, and where settings come from.
#[path = "cli_live/figures.rs"]
mod figures;
#[path = "cli_live/settings.rs"]
mod settings;
#[path = "life/shop.rs"]
mod shop;
#[path = "cli_live/verbs.rs"]
mod verbs;
