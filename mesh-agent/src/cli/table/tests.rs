use super::*;
use crate::admin::Timestamp;

fn style(colour: bool) -> Style {
    Style { colour, wide: false, now: Timestamp(0) }
}

fn table() -> Table {
    let mut table = Table::new(&["NAME", "STATE"]);
    table.row(vec!["frontend".into(), Cell::painted("ready", Paint::Good)]);
    table.row(vec!["é".into(), Cell::new("")]);
    table
}

#[test]
fn columns_line_up_with_and_without_colour_and_no_line_ends_in_a_space() {
    let plain = table().draw(style(false));
    assert_eq!(plain, "NAME       STATE\nfrontend   ready\né          -\n");
    let mut coloured = table().draw(style(true));
    assert!(coloured.contains("\x1b[32mready\x1b[0m"));
    for code in ["\x1b[32m", "\x1b[2m", "\x1b[0m"] {
        coloured = coloured.replace(code, "");
    }
    assert_eq!(coloured, plain);
}

#[test]
fn an_escape_sequence_in_a_name_does_not_reach_the_terminal() {
    let mut table = Table::plain(2);
    table.row(vec!["a\x1b[2J\nb\u{9b}31m".into()]);
    assert_eq!(table.draw(style(false)), "  a\u{fffd}[2J\u{fffd}b\u{fffd}31m\n");
}
