//! Texts that become values of a column: what the type itself makes of them, whatever casts somebody has made.

/// A type that is not PostgreSQL's own: those are always named with their schema.
#[must_use]
pub fn is_users(cast_sql: &str) -> bool {
    cast_sql.contains('.')
}

/// The expression of the value that a type's input function reads from `text`, an SQL expression of type `text`; null where
/// that is. COPY, literals and the stream mean the same by a text.
///
/// A cast from text may be somebody's own (CREATE CAST), and then says what it likes. An array is read from its text by the
/// input function of its elements, so the text becomes the only element of one. Its quotes keep it in one piece whatever
/// delimiter the type has.
#[must_use]
pub fn value_sql(cast_sql: &str, text: &str) -> String {
    if is_users(cast_sql) && !cast_sql.ends_with("[]") {
        format!(r#"(('{{"' || replace(replace({text}, '\', '\\'), '"', '\"') || '"}}')::{cast_sql}[])[1]"#)
    } else {
        format!("{text}::{cast_sql}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_types_of_the_user_take_the_way_through_an_array() {
        assert_eq!(value_sql("integer", "s.v0"), "s.v0::integer");
        assert_eq!(value_sql("public.mood[]", "s.v0"), "s.v0::public.mood[]");
        assert_eq!(
            value_sql("public.mood", "s.v0"),
            r#"(('{"' || replace(replace(s.v0, '\', '\\'), '"', '\"') || '"}')::public.mood[])[1]"#
        );
    }
}
