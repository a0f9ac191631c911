//! Whether a service's database can hold the monolith's text.

use crate::name::quote_literal;
use crate::problem::Problem;

/// PostgreSQL neither verifies nor converts text in a database of this encoding (documentation, section 24.3.4).
pub(crate) const BYTES: &str = "SQL_ASCII";

/// Converted into it, a text of any other encoding stays what it is.
const UNIVERSAL: &str = "UTF8";

/// Why texts of the monolith could be refused in a service's database, or mean something else there: it keeps them in another
/// encoding, which is not UTF8. `None` where it takes them all; of a monolith in SQL_ASCII nobody knows what its bytes are.
/// Said by `check` and `provision`.
#[must_use]
pub(crate) fn unfit(service: &str, (there, monolith): (&str, &str)) -> Option<Problem> {
    if there == monolith || there == UNIVERSAL {
        return None;
    }
    let (code, consequence) = if there == BYTES || monolith == BYTES {
        let consequence = format!(
            "{BYTES} takes any bytes and converts none, so a text may be refused, or read otherwise, on the other side"
        );
        ("sql-ascii", consequence)
    } else {
        ("encoding", "a text with a character that the service's encoding lacks would be refused".to_owned())
    };
    let problem = Problem::error(code, format!("service {service}"))
        .fact(format!("its encoding is {there}, the monolith's is {monolith}"))
        .consequence(consequence)
        .next(format!(
            "create the service's database anew: CREATE DATABASE … ENCODING {} TEMPLATE template0;",
            quote_literal(monolith)
        ));
    Some(problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_fits_that_has_the_same_encoding_or_one_that_can_say_everything() {
        for (there, monolith) in
            [("UTF8", "UTF8"), ("LATIN1", "LATIN1"), ("UTF8", "LATIN1"), ("SQL_ASCII", "SQL_ASCII")]
        {
            assert_eq!(unfit("orders", (there, monolith)), None, "{monolith} into {there}");
        }
        for (there, monolith, code) in [
            ("LATIN1", "UTF8", "encoding"),
            ("LATIN1", "LATIN9", "encoding"),
            ("SQL_ASCII", "UTF8", "sql-ascii"),
            ("LATIN1", "SQL_ASCII", "sql-ascii"),
        ] {
            let problem = unfit("orders", (there, monolith)).unwrap();
            assert_eq!((problem.code, problem.object.as_str()), (code, "service orders"));
            assert!(
                problem.next.contains(&format!("ENCODING '{monolith}' TEMPLATE template0")),
                "{problem:?}"
            );
        }
    }
}
