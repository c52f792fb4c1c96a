use super::*;

#[test]
fn socket_indices_of_slots_never_meet() {
    let mut seen = [false; 32];
    for slot in 0..8 {
        for kind in SocketKind::ALL {
            let index = kind.index(slot) as usize;
            assert!(!seen[index], "slot {slot} {kind:?}");
            seen[index] = true;
        }
    }
}

#[test]
fn counters_are_listed_in_the_order_of_their_index() {
    for (at, (counter, name)) in Counter::ALL.iter().enumerate() {
        assert_eq!(*counter as usize, at, "{name}");
    }
}
