use super::*;

#[test]
fn only_code_of_the_program_itself_is_meant() {
    let line = |rights: &str, inode: u64| {
        format!("55d0c0a00000-55d0c2700000 {rights} 007fa000 fe:00 {inode} /bin/x")
    };
    assert_eq!(code(&line("r-xp", 7), 7), Some((0x55d0_c0a0_0000, 0x1d0_0000)));
    for other in [line("r-xp", 8), line("r--p", 7), line("rw-p", 7), line("rwxp", 7)] {
        assert_eq!(code(&other, 7), None, "{other}");
    }
    assert_eq!(code("7ffd5e9fe000-7ffd5ea00000 r-xp 00000000 00:00 0                  [vdso]", 7), None);
    assert_eq!(code("", 7), None);
}

#[test]
fn the_program_goes_on_without_its_pages() {
    assert!(give_back().unwrap() > 0);
    let sorted: Vec<u32> =
        [3, 1, 2].into_iter().collect::<std::collections::BTreeSet<_>>().into_iter().collect();
    assert_eq!(sorted, [1, 2, 3]);
}
