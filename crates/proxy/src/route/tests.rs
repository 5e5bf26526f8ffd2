use super::*;

#[test]
fn prefixes_are_replaced_by_whole_segments() {
    let prefix = |new: &str, path: &str, len| rewritten(&PathRewrite::Prefix(new.into()), path, Some(len)).unwrap();
    // The table of the Gateway API's HTTPPathModifier.
    assert_eq!(prefix("/xyz", "/foo/bar", 4), "/xyz/bar");
    assert_eq!(prefix("/xyz/", "/foo/bar", 4), "/xyz/bar");
    assert_eq!(prefix("/xyz", "/foo", 4), "/xyz");
    assert_eq!(prefix("/xyz", "/foo/", 4), "/xyz");
    assert_eq!(prefix("/", "/foo/bar", 4), "/bar");
    assert_eq!(prefix("/", "/foo", 4), "/");
    assert_eq!(prefix("/xyz", "/foo", 1), "/xyz/foo");
    assert_eq!(rewritten(&PathRewrite::Full("/a".into()), "/foo", None).unwrap(), "/a");
    assert_eq!(rewritten(&PathRewrite::Prefix("/a".into()), "/foo", None), None);
}
