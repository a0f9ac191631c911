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

/// As [`value_sql`], of a value that a key column is compared with.
#[must_use]
pub fn key_value_sql(cast_sql: &str, text: &str) -> String {
    value_sql(key_type(cast_sql), text)
}

/// The type of a value that a key column of type `type_sql` is compared with. A column may be a larger integer on the other
/// side, so a key from there need not fit; indexes find integers of any width.
#[must_use]
pub fn key_type(type_sql: &str) -> &str {
    if ["smallint", "integer"].contains(&type_sql) { "bigint" } else { type_sql }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_types_of_the_user_take_the_way_through_an_array() {
        assert_eq!(value_sql("integer", "s.v0"), "s.v0::integer");
        assert_eq!(key_value_sql("integer", "s.k0"), "s.k0::bigint");
        assert_eq!(value_sql("public.mood[]", "s.v0"), "s.v0::public.mood[]");
        assert_eq!(
            value_sql("public.mood", "s.v0"),
            r#"(('{"' || replace(replace(s.v0, '\', '\\'), '"', '\"') || '"}')::public.mood[])[1]"#
        );
    }
}
