//! Values with whatever can't be seen, or would act on a terminal or a page, made visible.

use unicode_width::UnicodeWidthChar;

/// The text on one line, with nothing in it that acts: control characters, and those that are invisible or change the
/// direction, by name or number: `<LF>`, `<U+200B>`. Unicode's pictures for them are missing in too many fonts.
pub(super) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for (at, c) in text.chars().enumerate() {
        // A combining mark at the start would sit on whatever stands before the text.
        let mark = at == 0 && c.width() == Some(0);
        match c {
            '\n' => shown.push_str("<LF>"),
            '\r' => shown.push_str("<CR>"),
            '\t' => shown.push_str("<TAB>"),
            _ if mark || is_hidden(c) => shown.push_str(&format!("<{}>", code_point(c))),
            _ => shown.push(c),
        }
    }
    shown
}

/// `U+0430`.
pub(super) fn code_point(c: char) -> String {
    format!("U+{:04X}", u32::from(c))
}

/// Characters that look like nothing or like a plain space, that change the direction of what follows, or that XML
/// and HTML do not allow.
fn is_hidden(c: char) -> bool {
    matches!(c,
        '\0'..='\u{1F}' | '\u{7F}'..='\u{A0}' | '\u{AD}' | '\u{34F}' | '\u{61C}' | '\u{115F}' | '\u{1160}' | '\u{1680}'
        | '\u{17B4}' | '\u{17B5}' | '\u{180B}'..='\u{180F}' | '\u{2000}'..='\u{200F}'
        | '\u{2028}'..='\u{202F}' | '\u{205F}'..='\u{206F}' | '\u{3000}' | '\u{3164}' | '\u{FEFF}'
        | '\u{FFA0}' | '\u{FFF0}'..='\u{FFFB}' | '\u{1D173}'..='\u{1D17A}' | '\u{E0000}'..='\u{E0FFF}')
        || u32::from(c) & 0xFFFE == 0xFFFE
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_can_not_be_seen_is_shown() {
        assert_eq!(visible("a\nb\t\u{1b}[31m\0\u{7f}"), "a<LF>b<TAB><U+001B>[31m<U+0000><U+007F>");
        assert_eq!(
            visible("a\u{a0}b\u{202e}c\u{feff}\u{85}\u{ffff}"),
            "a<U+00A0>b<U+202E>c<U+FEFF><U+0085><U+FFFF>"
        );
        assert_eq!(visible("e\u{301}"), "e\u{301}");
        assert_eq!(visible("\u{301}e"), "<U+0301>e");
        assert_eq!(visible("Grüße, 日本 🙂"), "Grüße, 日本 🙂");
    }

    proptest! {
        #[test]
        fn nothing_that_acts_is_left(text in any::<String>()) {
            prop_assert!(!visible(&text).chars().any(|c| c.is_control() || is_hidden(c)));
        }
    }
}
