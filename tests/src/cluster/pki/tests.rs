use super::*;

#[test]
fn base64_is_that_of_the_rfc() {
    let cases = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
    for (plain, wanted) in cases {
        assert_eq!(base64(plain.as_bytes()), wanted);
    }
}
