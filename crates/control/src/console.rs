//! The status page: one embedded file that polls the admin API. Data reaches the page as JSON only and is shown as text.

use axum::http::{HeaderName, header};
use axum::response::{Html, IntoResponse};

pub async fn page() -> impl IntoResponse {
    let headers: [(HeaderName, &str); 3] = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, Html(PAGE))
}

const PAGE: &str = include_str!("console/page.html");
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The words of one language, by the line that begins its block.
    fn words(begin: &str) -> BTreeSet<&'static str> {
        let (_, block) = PAGE.split_once(begin).unwrap();
        let (block, _) = block.split_once("\n  },").unwrap();
        // What stands before `: "` is a word's name.
        let parts = block.split(": \"");
        let names = parts.filter_map(|part| part.rsplit([' ', ',']).next());
        let names = names.map(|name| name.trim().trim_matches('"'));
        let names = names.filter(|name| name.starts_with(|first: char| first.is_ascii_lowercase()));
        names.collect()
    }

    #[test]
    fn both_languages_have_the_same_words_and_all_that_the_page_asks_for() {
        let (english, chinese) = (words("  en: {"), words("  zh: {"));
        assert!(english.len() > 60, "{english:?}");
        let either: Vec<_> = english.symmetric_difference(&chinese).collect();
        assert!(either.is_empty(), "in one language only: {either:?}");
        for start in ["data-t=\"", " t(\"", "(t(\"", "{t(\""] {
            for part in PAGE.split(start).skip(1) {
                let word = part.split('"').next().unwrap_or_default();
                assert!(english.contains(word), "{word}");
            }
        }
    }
}
