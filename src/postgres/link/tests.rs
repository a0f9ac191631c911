use secrecy::ExposeSecret;

use super::*;

fn host(name: &str, port: u16) -> Endpoint {
    Endpoint { place: Place::Host { name: name.to_owned(), address: None }, port }
}

#[test]
fn a_url_is_read_in_full() {
    let link =
        parse("postgresql://me:p%40ss%2F@db.example:6000,[::1]/shop?sslmode=verify-full&connect_timeout=3");
    let link = link.unwrap();
    assert_eq!(link.endpoints, [host("db.example", 6000), host("::1", 5432)]);
    assert_eq!((link.user.as_str(), link.database.as_str()), ("me", "shop"));
    assert_eq!(link.password.unwrap().expose_secret(), "p@ss/");
    assert_eq!((link.tls.mode, link.tls.roots), (SslMode::VerifyFull, Roots::System));
    assert_eq!(link.connect_timeout, Duration::from_secs(3));
}

#[test]
fn a_list_is_read_in_full() {
    let text =
        r"host=/run/pg  port = 6001 user=me password='it\'s a \\ secret' dbname='my db' options='-c a=b'";
    let link = parse(text).unwrap();
    let place = Place::Directory(PathBuf::from("/run/pg"));
    assert_eq!(link.endpoints, [Endpoint { place, port: 6001 }]);
    assert_eq!(link.password.unwrap().expose_secret(), r"it's a \ secret");
    assert_eq!((link.database.as_str(), link.options.as_deref()), ("my db", Some("-c a=b")));
    assert_eq!((link.tls.mode, link.connect_timeout), (SslMode::Prefer, Duration::from_secs(10)));
}

#[test]
fn socket_directories_addresses_and_several_hosts_are_read() {
    let directory = Place::Directory(PathBuf::from("/tmp/pg"));
    let expected = [Endpoint { place: directory, port: 5433 }];
    assert_eq!(parse("postgres://u@/d?host=/tmp/pg&port=5433").unwrap().endpoints, expected);
    assert_eq!(parse("postgres://u@%2Ftmp%2Fpg:5433/d").unwrap().endpoints, expected);
    let link = parse("host=a,b port=1 user=u target_session_attrs=read-write").unwrap();
    assert_eq!((link.endpoints, link.wanted), (vec![host("a", 1), host("b", 1)], WantedSession::ReadWrite));
    let link = parse("host=a hostaddr=127.0.0.1 user=u").unwrap();
    let address = Some(IpAddr::from([127, 0, 0, 1]));
    assert_eq!(link.endpoints[0].place, Place::Host { name: "a".to_owned(), address });
    assert_eq!(link.database, "u", "the database defaults to the user, as in libpq");
}

#[test]
fn certificate_rules_are_those_of_libpq() {
    let tls =
        |text: &str| parse(&format!("host=h user=u {text}")).map(|link| (link.tls.mode, link.tls.roots));
    let file = || Roots::File(PathBuf::from("/ca"));
    assert_eq!(tls("sslmode=require sslrootcert=/ca"), Ok((SslMode::VerifyCa, file())));
    assert_eq!(tls("sslmode=allow"), Ok((SslMode::Allow, Roots::Unnamed)));
    assert_eq!(tls("sslrootcert=system"), Ok((SslMode::VerifyFull, Roots::System)));
    assert!(tls("sslmode=require sslrootcert=system").is_err());
    assert!(tls("sslmode=verify-ca").is_err());
    assert!(tls("sslcert=/a").is_err());
    assert!(tls("sslnegotiation=direct").is_err());
}

#[test]
fn refusals_name_the_parameter_and_never_show_the_secret() {
    for (text, words) in [
        ("postgres://u:hunter2@h/d?passfile=x&sslcrl=y", "passfile, sslcrl"),
        ("postgres://u:hunter2@h:port/d", "port"),
        ("postgres://u:hunter@2@h/d", "%40"),
        ("postgres://:hunter2@h/d", "user"),
        ("postgres://u:hunter2@/d", "host"),
        ("postgres://u:hunter2%zz@h/d", "percent-encode"),
        ("host=h user=u password=hunter2 sslmode=maybe", "verify-full"),
        ("host=h user=u password=my hunter2 dbname=x", "single quotes"),
        ("host=h user=u password=my hunter2=x", "no word"),
        ("host=h user=u password='hunter2", "single quotes"),
        ("host=a,b,c port=1,2 user=u password=hunter2", "port"),
        ("hunter2", "neither"),
        ("jdbc:postgresql://h/d?user=u&password=hunter2", "neither"),
        ("", "user"),
    ] {
        let error = parse(text).expect_err(text).to_string();
        assert!(error.contains(words), "{text}: {error}");
        assert!(!error.contains("hunter"), "{error}");
    }
}

#[test]
fn a_link_hides_its_password_when_it_is_debugged() {
    let link = parse("postgres://u:hunter2@h/d").unwrap();
    assert!(!format!("{link:?}").contains("hunter2"));
}

proptest::proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "(postgres://)?[ -~]{0,60}") {
        drop(parse(&text));
    }

    #[test]
    fn values_in_quotes_come_back(value in "[^\\x00]{1,20}") {
        let quoted = value.replace('\\', "\\\\").replace('\'', "\\'");
        let link = parse(&format!("host=h user=u dbname='{quoted}'")).unwrap();
        proptest::prop_assert_eq!(link.database, value);
    }
}
