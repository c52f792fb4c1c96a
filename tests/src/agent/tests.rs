use super::sum;

/// Series are told apart by whole names and labels.
#[test]
fn metrics_add_up() {
    let text = "# HELP opened\nopened_total{a=\"1\",b=\"x,y\"} 2\nopened_total{a=\"2\",b=\"x\"} 3 1700000000\n\
                opened_total_more{a=\"1\"} 50\nplain 7\n";
    assert_eq!(sum(text, "opened_total", &[]), 5.0);
    assert_eq!(sum(text, "opened_total", &[("a", "1")]), 2.0);
    assert_eq!(sum(text, "opened_total", &[("b", "x,y")]), 2.0);
    assert_eq!(sum(text, "opened_total", &[("b", "x"), ("a", "1")]), 0.0);
    assert_eq!(sum(text, "plain", &[]), 7.0);
}
