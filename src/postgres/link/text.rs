//! Takes the two written forms of a link apart into names and values.

use std::collections::BTreeMap;

use super::LinkSyntaxError;

/// Names and values; the later of two wins, and an empty value means the default, as libpq reads it.
pub(super) fn pairs(text: &str) -> Result<BTreeMap<String, String>, LinkSyntaxError> {
    let url = text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://"));
    let pairs = match url {
        Some(rest) => url_pairs(rest),
        // A URL of another scheme, as jdbc:postgresql://, whose parameters would pass for a list.
        None if text.split('=').next().is_some_and(|name| name.contains("://")) => None,
        None => listed_pairs(text),
    };
    let pairs = pairs.ok_or(LinkSyntaxError::Shape)?;
    Ok(pairs.into_iter().filter(|(_, value)| !value.is_empty()).collect())
}

type Pairs = Vec<(String, String)>;

/// `[user[:password]@][host[:port],…][/dbname][?name=value&…]`; `None` when it can't be read.
fn url_pairs(rest: &str) -> Option<Pairs> {
    let mut pairs = Pairs::new();
    let mut push = |name: &str, value: Option<String>| {
        pairs.push((name.to_owned(), value?));
        Some(())
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    // An @ after the slash belongs to the database name, one before it ends the credentials.
    let (credentials, hosts) = authority.split_once('@').unwrap_or(("", authority));
    let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
    push("user", decoded(user))?;
    push("password", decoded(password))?;
    push("dbname", decoded(database))?;
    if !hosts.is_empty() {
        let parts = hosts.split(',').map(host_and_port).collect::<Option<Vec<_>>>()?;
        let (hosts, ports): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        push("host", Some(hosts.join(",")))?;
        push("port", Some(ports.join(",")))?;
    }
    for item in query.split('&').filter(|item| !item.is_empty()) {
        let (name, value) = item.split_once('=')?;
        match (decoded(name)?.as_str(), decoded(value)) {
            // The spelling of JDBC links, which libpq understands too.
            ("ssl", Some(value)) if value == "true" => push("sslmode", Some("require".to_owned()))?,
            (name, value) => push(name, value)?,
        }
    }
    Some(pairs)
}

/// `host`, `host:port`, `[::1]`, `[::1]:port`.
fn host_and_port(text: &str) -> Option<(String, String)> {
    if let Some(bracketed) = text.strip_prefix('[') {
        let (host, rest) = bracketed.split_once(']')?;
        let port = if rest.is_empty() { "" } else { rest.strip_prefix(':')? };
        return Some((host.to_owned(), port.to_owned()));
    }
    let (host, port) = text.split_once(':').unwrap_or((text, ""));
    Some((decoded(host)?, decoded(port)?))
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut digit = || char::from(rest.next()?).to_digit(16);
            let value = digit()? << 4 | digit()?;
            bytes.push(u8::try_from(value).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

/// `name = value`, values in single quotes where they hold spaces, `\` before a quote or a backslash.
fn listed_pairs(text: &str) -> Option<Pairs> {
    let mut pairs = Pairs::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=')?;
        let name = name.trim_end();
        if name.is_empty() || name.contains(char::is_whitespace) {
            return None;
        }
        let (value, after) = listed_value(after.trim_start())?;
        pairs.push((name.to_owned(), value));
        rest = after.trim_start();
    }
    Some(pairs)
}

/// The value at the start of `text`, and what follows it.
fn listed_value(text: &str) -> Option<(String, &str)> {
    let (quoted, text) = match text.strip_prefix('\'') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.push(chars.next()?.1),
            '\'' if quoted => return Some((value, text.get(at + 1..)?)),
            c if c.is_whitespace() && !quoted => return Some((value, text.get(at..)?)),
            c => value.push(c),
        }
    }
    (!quoted).then_some((value, ""))
}
