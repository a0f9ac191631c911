//! Plan files: good ones are read, bad ones are explained.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use strangler::name::TableName;
use strangler::plan::{
    self, AtWalLimit, ColumnRule, Ddl, Others, Parsed, Plan, PlanProblems, Severity, TableSelector, Variables,
};

/// The plan of the design, with every feature that the format will have.
const WHOLE_FORMAT: &str = include_str!("../fixtures/plans/whole_format.yaml");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files of a folder with this ending, sorted.
fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(root().join(folder))
        .unwrap_or_else(|error| panic!("{folder}: {error}"))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == ending))
        .collect();
    files.sort();
    files
}

fn stem(path: &Path) -> &str {
    path.file_stem().unwrap().to_str().unwrap()
}

fn good(text: &str) -> Parsed {
    plan::parse(text.as_bytes(), "plan.yaml").unwrap_or_else(|problems| panic!("{}", problems.render(false)))
}

fn bad(text: &[u8]) -> PlanProblems {
    plan::parse(text, "plan.yaml").expect_err("the plan is bad")
}

/// Snapshots of what the operator reads. `INSTA_UPDATE=always` writes them.
fn settings() -> insta::Settings {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings
}

#[test]
fn every_bad_plan_is_explained() {
    let files = files("tests/fixtures/plans/bad", "yaml");
    assert!(files.len() >= 32, "only {} bad plans", files.len());
    for path in files {
        let name = stem(&path);
        let outcome = plan::parse(&fs::read(&path).unwrap(), &format!("{name}.yaml"));
        let problems = match outcome {
            Ok(parsed) => {
                assert!(name.starts_with("warn_"), "{name} was taken for a good plan");
                assert!(!parsed.warnings.has_errors(), "{name}");
                parsed.warnings
            }
            Err(problems) => {
                assert!(!name.starts_with("warn_"), "{name} was refused:\n{}", problems.render(false));
                assert!(problems.has_errors(), "{name}");
                problems
            }
        };
        assert!(!problems.is_empty(), "{name}");
        for problem in &problems {
            assert!(problem.help.is_some(), "{name}: no help for: {}", problem.message);
        }
        let text = problems.render(false);
        assert!(!text.contains("hunter2"), "{name} shows a password:\n{text}");
        settings().bind(|| insta::assert_snapshot!(format!("bad_plan_{name}"), text));
    }
}

/// What a file on disk can do wrong, without a fixture for it.
#[test]
fn files_that_are_no_plans_are_refused_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("latin1.yaml"), b"version: 1\nplan: retail # caf\xe9\n").unwrap();
    let dump = fs::File::create(at("dump.yaml")).unwrap();
    dump.set_len(50 * 1024 * 1024).unwrap();
    fs::create_dir(at("plans")).unwrap();
    fs::write(at("nothing.yaml"), "").unwrap();
    fs::write(at("one_line.yaml"), format!("version: 1\nplan: {}\n", "x".repeat(10_000))).unwrap();
    fs::write(at("zero_bytes.yaml"), b"version: 1\nplan: a\0b\n").unwrap();

    let names = [
        "absent.yaml",
        "dump.yaml",
        "latin1.yaml",
        "nothing.yaml",
        "one_line.yaml",
        "plans",
        "zero_bytes.yaml",
    ];
    let mut settings = settings();
    let shown = as_pattern(folder.path());
    settings.add_filter(&shown, "FOLDER");
    for name in names {
        let problems = plan::read(&at(name)).expect_err(name);
        assert!(problems.has_errors(), "{name}");
        let text = problems.render(false);
        assert!(text.len() < 4000, "{name} floods the terminal");
        settings.bind(|| insta::assert_snapshot!(format!("bad_file_{}", name.replace(".yaml", "")), text));
    }
}

/// The path as a filter's pattern.
fn as_pattern(path: &Path) -> String {
    path.display().to_string().replace('.', "\\.")
}

#[test]
fn a_file_that_grows_while_it_is_read_is_cut_off_and_refused() {
    // A device without an end and without a size.
    let problems = plan::read(Path::new("/dev/zero")).expect_err("no plan");
    assert_eq!(problems.iter().map(|problem| problem.code).collect::<Vec<_>>(), ["plan.too-large"]);
}

#[test]
fn the_whole_format_is_refused_exactly_for_what_is_not_available_yet() {
    let problems = bad(WHOLE_FORMAT.as_bytes());
    let told: Vec<(Severity, &str)> =
        problems.iter().map(|problem| (problem.severity, problem.message.as_str())).collect();
    let later = |key: &str| format!("`{key}` is not available in this version of strangler");
    assert_eq!(
        told,
        [
            (Severity::Error, later("lookup").as_str()),
            (Severity::Error, later("lookup").as_str()),
            (Severity::Error, later("expr").as_str()),
            (Severity::Error, later("replicas").as_str()),
            (Severity::Warning, "no slice moves a table `customers`, so its class has no effect"),
        ]
    );
    settings().bind(|| insta::assert_snapshot!("whole_format", problems.render(false)));
}

/// The design's plan as far as this version goes.
fn available_part() -> Parsed {
    let later = ["lookup:", "expr:", "replicas:", "customer_cache:"];
    let text: Vec<&str> =
        WHOLE_FORMAT.lines().filter(|line| !later.iter().any(|key| line.contains(key))).collect();
    good(&text.join("\n"))
}

#[test]
fn the_whole_format_is_read_once_what_is_not_available_yet_is_taken_out() {
    let Plan { name, monolith, services, slices, policy, classify } = available_part().plan;
    assert_eq!(name, "retail");
    assert_eq!(monolith.app_roles, ["retail_app"]);
    assert_eq!(monolith.links.read.variables(), ["MONOLITH_READ_URL"]);
    let products = &services["products"];
    assert_eq!((products.owner.as_str(), products.app.as_str()), ("product_owner", "product_user"));
    assert_eq!((products.ddl, products.into.as_deref()), (Ddl::Create, None));
    assert_eq!(products.links.read, products.links.apply);
    let orders = &services["orders"];
    assert_eq!((orders.owner.as_str(), orders.app.as_str()), ("orders_owner", "orders_app"));
    assert_eq!((orders.ddl, orders.into.as_deref()), (Ddl::Adopt, Some("sales")));
    assert_eq!(orders.links.admin.variables(), ["ORDERS_URL"]);

    let table = |name: &str| TableSelector::Table(TableName::new("public", name));
    let catalog = &slices["catalog"].tables;
    assert_eq!(
        catalog.iter().map(|rule| &rule.selector).collect::<Vec<_>>(),
        [&table("Products"), &table("ProductImages")]
    );
    assert_eq!(catalog[1].to.as_deref(), Some("images"));
    let lines = &slices["ordering"].tables[1];
    assert_eq!(
        (lines.selector.clone(), lines.to.as_deref(), lines.others),
        (table("OrderLines"), Some("order_lines"), Others::Keep)
    );
    assert_eq!(lines.filter, BTreeMap::from([("Region".to_owned(), vec!["EU".to_owned(), "UK".to_owned()])]));
    let keep = |to: &str, references: Option<&str>| ColumnRule::Keep {
        to: Some(to.to_owned()),
        references: references.map(|table| TableName::new("public", table)),
    };
    assert_eq!(
        lines.columns,
        BTreeMap::from([
            ("Id".to_owned(), keep("id", None)),
            ("LegacyFlag".to_owned(), ColumnRule::Drop),
            ("ProductId".to_owned(), keep("product_id_ref", Some("Products"))),
        ])
    );
    // The design shows the defaults.
    assert_eq!(plan::Policy { flip_together: Vec::new(), ..policy.clone() }, plan::Policy::default());
    assert_eq!(policy.flip_together, [["catalog", "ordering"]]);
    assert_eq!(slices["catalog"].policy, policy);
    assert_eq!(classify[0].class, "pii");
}

#[test]
fn a_slices_policy_replaces_numbers_and_adds_groups_and_classes() {
    let parsed = good(
        "version: 1\nplan: p\nmonolith: {url: '${M}'}\nservices: {a: {url: '${A}', accepts: [pii]}, b: {url: '${B}'}}\n\
         slices:\n  x: {service: a, tables: {T: {}}, policy: {min_mirror_time: 1h, flip_together: [[x, y]], \
         classify: [{table: T, column: c, class: pii}]}}\n  y: {service: b, tables: {U: }}\n\
         policy: {min_mirror_time: 2d, wal_budget: 1GiB, at_wal_limit: drop_slot}\n",
    );
    assert!(parsed.warnings.is_empty(), "{}", parsed.warnings.render(false));
    let plan = parsed.plan;
    assert_eq!(plan.slices["x"].policy.min_mirror_time, Duration::from_secs(3_600));
    assert_eq!(plan.slices["y"].policy.min_mirror_time, Duration::from_secs(2 * 86_400));
    assert_eq!(plan.slices["x"].policy.wal_budget_bytes, 1 << 30);
    assert_eq!(plan.slices["x"].policy.at_wal_limit, AtWalLimit::DropSlot);
    assert_eq!(plan.policy.flip_together, [["x", "y"]]);
    assert_eq!(plan.slices["y"].policy.flip_together, [["x", "y"]]);
    assert_eq!(plan.classify.len(), 1);
}

#[test]
fn aliases_repeat_values() {
    let plan = good(
        "version: 1\nplan: p\nmonolith: {url: '${M}'}\nservices: {a: {url: '${A}'}}\nslices:\n  x:\n    service: a\n    \
         tables:\n      T: &eu { where: { Region: [NO, 0042] } }\n      U: *eu\n",
    )
    .plan;
    let filters: Vec<_> = plan.slices["x"].tables.iter().map(|rule| &rule.filter["Region"]).collect();
    assert_eq!(filters, [&["NO", "0042"], &["NO", "0042"]]);
}

#[test]
fn every_example_plan_is_good() {
    let files = files("plans", "yaml");
    assert!(files.len() >= 3);
    for path in files {
        match plan::read(&path) {
            Ok(parsed) => assert!(parsed.warnings.is_empty(), "{}", parsed.warnings.render(false)),
            Err(problems) => panic!("{}", problems.render(false)),
        }
    }
}

/// Blocks fenced as ```` ```yaml plan ````.
fn plan_blocks(text: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut open: Option<String> = None;
    for line in text.lines() {
        match &mut open {
            None if line.trim() == "```yaml plan" => open = Some(String::new()),
            None => {}
            Some(_) if line.trim() == "```" => blocks.extend(open.take()),
            Some(block) => {
                block.push_str(line);
                block.push('\n');
            }
        }
    }
    assert!(open.is_none(), "a block is not closed");
    blocks
}

#[test]
fn every_plan_in_the_documentation_is_good() {
    let mut pages = files("docs", "md");
    pages.extend(fs::exists(root().join("README.md")).unwrap().then(|| root().join("README.md")));
    let mut count = 0;
    for page in pages {
        for block in plan_blocks(&fs::read_to_string(&page).unwrap()) {
            count += 1;
            match plan::parse(block.as_bytes(), &page.display().to_string()) {
                Ok(parsed) => assert!(parsed.warnings.is_empty(), "{}", parsed.warnings.render(false)),
                Err(problems) => panic!("block {count}: {}", problems.render(false)),
            }
        }
    }
    assert!(count >= 5, "only {count} plans in the documentation");
}

#[test]
fn the_documented_schema_is_the_one_of_the_code() {
    let path = root().join("docs/plan.schema.json");
    let schema = plan::json_schema();
    if std::env::var_os("STRANGLER_BLESS").is_some() {
        fs::write(&path, &schema).unwrap();
    }
    let documented = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        documented == schema,
        "docs/plan.schema.json is out of date: type `strangler schema > docs/plan.schema.json`, or run this test \
         with STRANGLER_BLESS=1"
    );
}

#[test]
fn the_schema_knows_every_key_and_describes_it() {
    let schema: serde_json::Value = serde_json::from_str(&plan::json_schema()).unwrap();
    let page = fs::read_to_string(root().join("docs/plan.md")).unwrap();
    let definitions = schema["$defs"].as_object().unwrap().values();
    let mut keys = 0;
    for object in definitions.chain([&schema]).filter(|object| object["properties"].is_object()) {
        assert_eq!(object["additionalProperties"], false, "{object}");
        for (key, property) in object["properties"].as_object().unwrap() {
            keys += 1;
            assert!(property["description"].is_string(), "{key} has no description");
            assert!(page.contains(&format!("`{key}`")), "docs/plan.md does not speak of {key}");
        }
    }
    assert!(keys >= 30, "only {keys} keys");
    assert_eq!(schema["required"], serde_json::json!(["version", "plan", "monolith", "services", "slices"]));
}

#[test]
fn every_code_is_documented() {
    let page = fs::read_to_string(root().join("docs/plan.md")).unwrap();
    let documented: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `plan.")?.split_once('`'))
        .map(|(code, _)| code)
        .collect();
    let mut used = Vec::new();
    for path in files("src/plan", "rs")
        .into_iter()
        .chain(files("src/plan/check", "rs"))
        .chain([root().join("src/plan.rs")])
    {
        let text = fs::read_to_string(path).unwrap();
        used.extend(
            text.split("\"plan.")
                .skip(1)
                .filter_map(|rest| rest.split_once('"'))
                .map(|(code, _)| code.to_owned()),
        );
    }
    used.sort();
    used.dedup();
    used.retain(|code| code != "yaml"); // Also a file name in a test.
    assert!(used.len() > 30);
    for code in &used {
        assert!(documented.contains(&code.as_str()), "plan.{code} is not in docs/plan.md");
    }
    for code in documented {
        assert!(
            code == "yaml" || used.iter().any(|used| used == code),
            "plan.{code} is documented and not used"
        );
    }
}

#[derive(Debug)]
struct Fixed(&'static [(&'static str, &'static str)]);

impl Variables for Fixed {
    fn variable(&self, name: &str) -> Option<String> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    }

    fn file(&self, path: &str) -> std::io::Result<String> {
        self.variable(path).ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }
}

const LINKED: &str = "version: 1
plan: p
monolith:
  url: postgres://${MONOLITH_USER}:${file:/run/secrets/monolith}@db/m
services:
  a: { admin: \"${A_ADMIN_URL}\", apply: \"${A_APPLY_URL}\" }
slices:
  x: { service: a, tables: { T: {} } }
";

#[test]
fn missing_variables_are_told_with_their_places_all_at_once() {
    let parsed = good(LINKED);
    let problems =
        parsed.source.problems(parsed.plan.missing_variables(&Fixed(&[("A_APPLY_URL", "postgres://a")])));
    settings().bind(|| insta::assert_snapshot!("missing_variables", problems.render(false)));
}

#[test]
fn links_are_filled_in_when_nothing_is_missing() {
    use secrecy::ExposeSecret;
    let parsed = good(LINKED);
    let all = Fixed(&[
        ("MONOLITH_USER", "app"),
        ("/run/secrets/monolith", "pw"),
        ("A_ADMIN_URL", "postgres://b"),
        ("A_APPLY_URL", "postgres://a"),
    ]);
    assert!(parsed.plan.missing_variables(&all).is_empty());
    let read = parsed.plan.monolith.links.read.resolve(&all).unwrap();
    assert_eq!(read.expose_secret(), "postgres://app:pw@db/m");
}

#[test]
fn problems_found_later_are_shown_at_their_place() {
    let parsed = good(
        "version: 1\nplan: p\nmonolith: {url: '${M}'}\nservices: {a: {url: '${A}'}}\nslices:\n  x:\n    service: a\n    \
         tables:\n      Orders:\n        columns:\n          Idd: id\n        where: { Regin: EU }\n",
    );
    let rule = &parsed.plan.slices["x"].tables[0];
    assert_eq!(rule.place, (9, 7));
    let source = &parsed.source;
    let unknown = |path: &[&str], what: &str| {
        plan::PlanProblem::error("catalog.unknown", what)
            .at(source.key_under(rule.place, path))
            .help("look at \\d")
    };
    let problems = source.problems(vec![
        unknown(&["where", "Regin"], "no column is called `Regin`"),
        unknown(&["columns", "Idd"], "no column is called `Idd`"),
        unknown(&[], "no table is called `Orders`"),
    ]);
    settings().bind(|| insta::assert_snapshot!("problems_found_later", problems.render(false)));
    assert_eq!(
        source.find(&["slices", "x", "service"]).map(|place| (place.line, place.column)),
        Some((7, 14))
    );
    assert_eq!(
        source.under(rule.place, &["columns", "Idd"]).map(|place| (place.line, place.column)),
        Some((11, 16))
    );
    assert_eq!(source.under(rule.place, &["columns", "absent"]), None);
}

#[test]
fn warnings_never_crowd_out_an_error() {
    let mut text = "version: 1\nplan: p\nmonolith: {url: '${M}'}\nservices: {a: {url: '${A}'}}\nslices:\n  x:\n    service: a\n    \
                    tables:\n"
        .to_owned();
    for number in 0..1000 {
        text.push_str(&format!("      T{number}: {{columns: {{c: {{references: T{number}x}}}}}}\n"));
    }
    good(&text);
    text.push_str("policy: {sequence_margin: 0}\n");
    assert!(bad(text.as_bytes()).iter().any(|problem| problem.code == "plan.bad-limit"));
}

#[test]
fn problems_are_values_and_have_a_stable_json_form() {
    let problems = bad(b"version: 2\nplan: p\nplan: q\n");
    settings().bind(|| {
        insta::assert_snapshot!("problems_as_json", serde_json::to_string_pretty(&problems).unwrap())
    });
    assert_eq!(problems.to_string(), "5 errors in plan.yaml");
}

#[test]
fn colour_is_there_only_when_asked_for() {
    let problems = bad(b"version: 2\n");
    assert!(problems.render(true).contains('\u{1b}'));
    assert!(!problems.render(false).contains('\u{1b}'));
}

#[test]
fn secrets_of_a_plan_are_in_no_debug_output_and_no_json() {
    let text = fs::read(root().join("tests/fixtures/plans/bad/warn_secret_in_clear.yaml")).unwrap();
    let parsed = plan::parse(&text, "plan.yaml").unwrap();
    let json = serde_json::to_string(&parsed.warnings).unwrap();
    for shown in [format!("{parsed:?}"), format!("{:?}", parsed.source), json, parsed.warnings.render(true)] {
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}

/// A valid plan with one thing done to it.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let seeds: Vec<Vec<u8>> = files("plans", "yaml")
        .iter()
        .map(|path| fs::read(path).unwrap())
        .chain([WHOLE_FORMAT.as_bytes().to_vec()])
        .collect();
    let pieces = prop::sample::select(vec![
        "\t",
        "\n",
        " ",
        ":",
        ": ",
        "- ",
        "{",
        "}",
        "[",
        "]",
        "\"",
        "'",
        "&a ",
        "*a",
        "!!str ",
        "<<: ",
        "|",
        ">",
        "#",
        "~",
        "${",
        "${}",
        "é",
        "\u{feff}",
        "\0",
        "\u{1b}",
        "---\n",
        "%YAML 1.2\n",
        "999999999999999999999",
        "null",
        "? ",
        ", ",
    ]);
    let edit = (any::<prop::sample::Index>(), 0_usize..30, pieces);
    (prop::sample::select(seeds), prop::collection::vec(edit, 1..6)).prop_map(|(mut text, edits)| {
        for (at, cut, piece) in edits {
            let start = at.index(text.len() + 1);
            let end = (start + cut).min(text.len());
            text.splice(start..end, piece.bytes());
        }
        text
    })
}

/// Whatever comes in, an answer comes out, and it can be shown.
fn is_answered(text: &[u8]) {
    match plan::parse(text, "plan.yaml") {
        Ok(parsed) => assert!(!parsed.warnings.has_errors()),
        Err(problems) => {
            assert!(problems.has_errors());
            assert!(!problems.render(false).is_empty());
            for place in problems.iter().filter_map(|problem| problem.place) {
                assert!(place.line >= 1 && place.column >= 1, "{place:?}");
                // Bytes that are no UTF-8 are shown as longer ones.
                assert!(
                    std::str::from_utf8(text).is_err() || place.offset + place.length <= text.len(),
                    "{place:?}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_plans_never_panic(text in mutated()) {
        is_answered(&text);
    }

    #[test]
    fn arbitrary_bytes_never_panic(text in prop::collection::vec(any::<u8>(), 0..2000)) {
        is_answered(&text);
    }

    #[test]
    fn arbitrary_text_never_panics(text in "[a-z:{}\\[\\],&*!|>'\"%@`# \\n\\t-]{0,300}") {
        is_answered(text.as_bytes());
    }
}

/// Big plans, built to cost as much as they can.
#[test]
fn hostile_plans_are_answered_in_bounded_time() {
    const HEAD: &str =
        "version: 1\nplan: p\nmonolith: {url: '${M}'}\nservices: {a: {url: '${A}'}}\nslices:\n";
    let fill = |head: &str, line: &dyn Fn(usize) -> String| {
        let mut text = head.to_owned();
        for number in 0.. {
            let next = line(number);
            if text.len() + next.len() > 256 * 1024 {
                return text;
            }
            text.push_str(&next);
        }
        text
    };
    let tables = format!("{HEAD}  x:\n    service: a\n    tables:\n");
    let cases = [
        (
            "slices",
            fill(HEAD, &|n| format!("  s{n}: {{service: a, tables: {{T: {{where: {{R: {n}}}}}}}}}\n")),
        ),
        ("unknown services", fill(HEAD, &|n| format!("  s{n}: {{service: b{n}, tables: {{T{n}: }}}}\n"))),
        ("tables", fill(&tables, &|n| format!("      T{n}: {{to: u}}\n"))),
        (
            "references",
            fill(&tables, &|n| format!("      T{n}: {{columns: {{a: {{references: T{n}x}}}}}}\n")),
        ),
        ("unknown keys", fill("", &|n| format!("k{n}: 1\n"))),
        ("duplicate keys", fill("", &|_| "k: 1\n".to_owned())),
        ("wrong types", fill(&tables, &|n| format!("      T{n}: []\n"))),
        ("one line", fill("a: [", &|_| "x,".to_owned())),
        ("anchors", fill("", &|n| format!("k{n}: &a{n} [[[[[x]]]]]\n"))),
        ("long key", fill("", &|_| "kkkkkkkkkkkkkkkkkkkk".to_owned())),
        (
            "flip groups",
            fill(&format!("{tables}      T:\npolicy:\n  flip_together:\n"), &|n| format!("  - [x, y{n}]\n")),
        ),
        (
            "classes",
            fill(&format!("{tables}      T:\npolicy:\n  classify:\n"), &|n| format!("  - {{table: U{n}}}\n")),
        ),
    ];
    for (name, text) in cases {
        let start = std::time::Instant::now();
        let shown = match plan::parse(text.as_bytes(), "plan.yaml") {
            Ok(parsed) => parsed.warnings.render(false),
            Err(problems) => problems.render(false),
        };
        assert!(!shown.is_empty(), "{name}");
        let took = start.elapsed();
        assert!(took < Duration::from_secs(15), "{name} took {took:?}");
        assert!(shown.len() < 200_000, "{name} prints {} bytes", shown.len());
    }
}
