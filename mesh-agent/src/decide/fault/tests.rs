use super::*;
use crate::model::route::Millionths;

const DELAY: Duration = Duration::from_secs(5);

fn fault(delay: u32, abort: u32) -> Fault {
    Fault { delay: Some((Millionths(delay), DELAY)), abort: Some((Millionths(abort), Abort::Http(500))) }
}

#[test]
fn never_and_always_are_what_they_say() {
    for random in [0, 1, 999_999, 1_000_000, u64::MAX] {
        assert_eq!(draw(&fault(0, 0), [random; 2]), Injected::default());
        let both = Injected { delay: Some(DELAY), abort: Some(Abort::Http(500)) };
        assert_eq!(draw(&fault(1_000_000, 1_000_000), [random; 2]), both);
        assert_eq!(draw(&Fault::default(), [random; 2]), Injected::default());
    }
}

/// The guide's shares: half of the requests late, a tenth of them, whichever those are, refused.
#[test]
fn the_two_are_independent_and_keep_their_shares() {
    let mut counts = [[0_u32; 2]; 2];
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for _ in 0..100_000 {
        let injected = draw(&fault(500_000, 100_000), [next(), next()]);
        counts[usize::from(injected.delay.is_some())][usize::from(injected.abort.is_some())] += 1;
    }
    for (count, wanted) in counts.concat().into_iter().zip([45_000_u32, 5_000, 45_000, 5_000]) {
        assert!(count.abs_diff(wanted) < 600, "{counts:?}");
    }
}
