//! Everything that a database's catalogs say, and its server's of roles, by name and never by number: two of them are equal only where
//! nobody could tell that something was there in between.

use tokio_postgres::Client;

/// Rights as they are in force: one that was granted and taken back leaves the default written out, which means the same as none.
fn acl(of: &str, kind: char, owner: &str) -> String {
    format!(
        "(SELECT string_agg(format('%s=%s%s/%s', coalesce(g.rolname, 'PUBLIC'), a.privilege_type, \
            CASE WHEN a.is_grantable THEN '*' END, b.rolname), ',' ORDER BY 1) \
          FROM aclexplode(coalesce({of}, acldefault('{kind}', {owner}))) a LEFT JOIN pg_roles g ON g.oid = a.grantee \
              LEFT JOIN pg_roles b ON b.oid = a.grantor)"
    )
}

/// Names of what a server makes by itself hold numbers.
const OURS: &str = "n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND n.nspname !~ '^pg_(temp|toast_temp)'";

fn queries(major: u32) -> Vec<String> {
    let relation = "c JOIN pg_namespace n ON n.oid = c.relnamespace";
    let mut all = vec![
        format!("SELECT 'namespace', n.nspname, n.nspowner::regrole, {} FROM pg_namespace n WHERE {OURS}", acl("n.nspacl", 'n', "n.nspowner")),
        format!(
            "SELECT 'class', n.nspname, c.relname, c.relkind, c.relowner::regrole, c.relpersistence, c.relreplident, c.reloptions, \
                c.relrowsecurity, c.relforcerowsecurity, pg_get_expr(c.relpartbound, c.oid), obj_description(c.oid, 'pg_class'), \
                CASE WHEN c.relkind NOT IN ('i', 'I') THEN CASE WHEN c.relkind = 'S' THEN {} ELSE {} END END FROM pg_class {relation} WHERE {OURS}",
            acl("c.relacl", 's', "c.relowner"),
            acl("c.relacl", 'r', "c.relowner")
        ),
        format!(
            "SELECT 'attribute', n.nspname, c.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, \
                a.attgenerated, a.attstorage, a.attisdropped, a.attoptions, pg_get_expr(d.adbin, d.adrelid), col_description(c.oid, a.attnum), \
                CASE WHEN a.attacl IS NOT NULL THEN {} END FROM pg_attribute a JOIN pg_class {relation} ON c.oid = a.attrelid \
                LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum WHERE a.attnum > 0 AND {OURS}",
            acl("a.attacl", 'c', "c.relowner")
        )
        .replace("JOIN pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace ON c.oid = a.attrelid", "JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace"),
        // What the server makes for partitions of a referenced table stays unproven after NOT VALID; nothing looks at that.
        format!(
            "SELECT 'constraint', n.nspname, k.conrelid::regclass, k.conname, k.contype, k.confrelid::regclass, \
                CASE WHEN k.conparentid = 0 THEN pg_get_constraintdef(k.oid) || k.convalidated END, k.condeferrable, k.condeferred, \
                obj_description(k.oid, 'pg_constraint') FROM pg_constraint k JOIN pg_namespace n ON n.oid = k.connamespace WHERE {OURS}"
        ),
        format!(
            "SELECT 'index', pg_get_indexdef(i.indexrelid), i.indisunique, i.indisprimary, i.indisvalid, i.indisreplident, i.indisclustered, \
                i.indimmediate FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {OURS}"
        ),
        format!(
            "SELECT 'trigger', n.nspname, c.relname, CASE WHEN NOT t.tgisinternal THEN pg_get_triggerdef(t.oid) ELSE t.tgfoid::regproc::text END, \
                t.tgenabled, count(*) FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
                WHERE {OURS} GROUP BY 1, 2, 3, 4, 5"
        ),
        format!(
            "SELECT 'proc', n.nspname, p.oid::regprocedure, md5(p.prosrc), p.prokind, p.prosecdef, p.proconfig, p.proowner::regrole, {} FROM pg_proc p \
                JOIN pg_namespace n ON n.oid = p.pronamespace WHERE {OURS}",
            acl("p.proacl", 'f', "p.proowner")
        ),
        format!(
            "SELECT 'type', n.nspname, t.typname, t.typtype, t.typowner::regrole, {} FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace \
                WHERE {OURS}",
            acl("t.typacl", 'T', "t.typowner")
        ),
        "SELECT 'policy', polrelid::regclass, polname, polcmd, polpermissive, polroles::regrole[], pg_get_expr(polqual, polrelid), \
            pg_get_expr(polwithcheck, polrelid) FROM pg_policy"
            .to_owned(),
        "SELECT 'publication', pubname, pubowner::regrole, puballtables, pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot, \
            ARRAY(SELECT prrelid::regclass::text FROM pg_publication_rel r WHERE r.prpubid = p.oid ORDER BY 1) FROM pg_publication p"
            .to_owned(),
        "SELECT 'slot', slot_name, plugin, database FROM pg_replication_slots".to_owned(),
        "SELECT 'default acl', defaclrole::regrole, defaclnamespace::regnamespace, defaclobjtype, defaclacl FROM pg_default_acl".to_owned(),
        "SELECT 'event trigger', evtname, evtevent, evtfoid::regproc, evtenabled, evttags FROM pg_event_trigger".to_owned(),
        "SELECT 'member', roleid::regrole, member::regrole, grantor::regrole, admin_option FROM pg_auth_members".to_owned(),
        "SELECT 'role', rolname, rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication, rolconnlimit, rolbypassrls \
            FROM pg_roles"
            .to_owned(),
        "SELECT 'setting', setdatabase, setrole::regrole, setconfig FROM pg_db_role_setting".to_owned(),
        "SELECT 'rule', ev_class::regclass, rulename, ev_enabled, pg_get_ruledef(oid) FROM pg_rewrite WHERE ev_class >= 16384".to_owned(),
        "SELECT 'inherits', inhrelid::regclass, inhparent::regclass, inhseqno FROM pg_inherits".to_owned(),
        "SELECT 'sequence', seqrelid::regclass, seqincrement, seqmax, seqcache FROM pg_sequence".to_owned(),
        "SELECT 'statistics', stxrelid::regclass, stxname, pg_get_statisticsobjdef(oid) FROM pg_statistic_ext".to_owned(),
        "SELECT 'extension', extname, extversion FROM pg_extension".to_owned(),
        "SELECT 'database', datname, datdba::regrole, datacl FROM pg_database".to_owned(),
    ];
    if major >= 15 {
        all.push("SELECT 'parameter', parname, paracl FROM pg_parameter_acl".to_owned());
    }
    all
}

/// All of it, a line for each object.
pub async fn catalogs(client: &Client) -> Vec<String> {
    let version: i32 =
        client.query_one("SELECT current_setting('server_version_num')::int", &[]).await.unwrap().get(0);
    let mut lines = Vec::new();
    for sql in queries(u32::try_from(version / 10_000).unwrap()) {
        let sql = format!("SELECT q::text FROM ({sql}) AS q ORDER BY 1");
        let rows = client.query(&sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        lines.extend(rows.iter().map(|row| row.get::<_, String>(0)));
    }
    lines.sort();
    lines
}

/// Fails with the lines that are on one side only.
pub fn assert_untouched(before: &[String], after: &[String]) {
    let only = |one: &[String], other: &[String]| -> Vec<String> {
        one.iter().filter(|line| !other.contains(line)).cloned().collect()
    };
    let (gone, new) = (only(before, after), only(after, before));
    assert!(gone.is_empty() && new.is_empty(), "gone:\n{}\nnew:\n{}", gone.join("\n"), new.join("\n"));
}
