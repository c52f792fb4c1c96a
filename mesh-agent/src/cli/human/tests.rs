use super::*;

#[test]
fn ages_have_two_units_at_most() {
    for (seconds, text) in [
        (0, "0s"),
        (59, "59s"),
        (60, "1m"),
        (200, "3m20s"),
        (600, "10m"),
        (7_199, "119m"),
        (15_000, "4h10m"),
        (36_000, "10h"),
        (183_600, "2d3h"),
        (34_560_000, "400d"),
    ] {
        assert_eq!(age(Duration::from_secs(seconds)), text);
    }
}

#[test]
fn sizes_stay_short() {
    for (count, text) in [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (64 << 20, "64.0 MiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (u64::MAX, "16.0 EiB"),
    ] {
        assert_eq!(bytes(count), text);
    }
    assert_eq!([micros(85), micros(1_900), micros(2_500_000)], ["85us", "1.9ms", "2.50s"]);
}
