//! Checks that `tests/RULES.md` names every test of a rule, and no other.
//!
//! The name of a rule's test begins with the rule's number; `r9_r13_…` is about two rules. Integration tests are found
//! by this binary's `--list`, unit tests in the sources.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The number of the last rule.
const LAST: u32 = 23;

/// A test: the file that it is in, and its name.
type Test = (String, String);

/// Modes and databases of a test, from its row in the table or from the names of its variants.
#[derive(Debug, Clone, PartialEq, Eq)]
struct About {
    modes: String,
    databases: String,
}

#[test]
fn the_table_of_rules_names_every_test_of_a_rule_and_no_other() {
    let table = table();
    let rules: BTreeSet<u32> = table.keys().copied().collect();
    assert!(
        rules.iter().copied().eq(1..=LAST),
        "the table has the rules {rules:?}"
    );
    let tests = tests();
    let mut wrong = Vec::new();
    for (rule, rows) in &table {
        for (test, about) in rows {
            match tests.get(test) {
                None => wrong.push(format!(
                    "R{rule}: there is no test {} in {}",
                    test.1, test.0
                )),
                Some(known) if !known.agrees(about) => wrong.push(format!(
                    "R{rule}: {} is {known:?}, and not {about:?}",
                    test.1
                )),
                Some(_) if !rules_of(&test.1).contains(rule) => {
                    wrong.push(format!("R{rule}: {} is not about it", test.1))
                }
                Some(_) => {}
            }
        }
        if rows.is_empty() {
            wrong.push(format!("R{rule} has no test"));
        }
    }
    for ((file, name), about) in &tests {
        for rule in rules_of(name) {
            let known = table.get(&rule).is_some_and(|rows| {
                rows.iter()
                    .any(|(test, _)| test == &(file.clone(), name.clone()))
            });
            if !known {
                wrong.push(format!(
                    "R{rule} lacks | `{name}` | {file} | {} | {} |",
                    about.modes, about.databases
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "tests/RULES.md:\n{}", wrong.join("\n"));
}

impl About {
    /// Whether a row agrees with the variants. Where the variants say nothing, the row agrees if its cell has any text.
    fn agrees(&self, row: &About) -> bool {
        let agree = |known: &str, said: &str| known == said || known.is_empty() && !said.is_empty();
        agree(&self.modes, &row.modes) && agree(&self.databases, &row.databases)
    }

    /// The modes and databases in the names of a test's variants, which the macros of the harness make.
    fn of(variants: &BTreeSet<String>) -> About {
        let has = |word: &str| {
            variants
                .iter()
                .any(|name| name.split('_').any(|part| part == word))
        };
        let both = |one: &str, other: &str| {
            let text = if has(one) && has(other) { "both" } else { "" };
            text.to_owned()
        };
        About {
            modes: both("sync", "asynch"),
            databases: both("sqlite", "postgres"),
        }
    }
}

/// The rules that a test's name begins with.
fn rules_of(name: &str) -> Vec<u32> {
    name.split('_')
        .map_while(|word| word.strip_prefix('r')?.parse().ok())
        .collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the package is in the workspace")
}

/// The table by rule: a heading `## R7. …` for each rule, and below it a row for each test.
fn table() -> BTreeMap<u32, Vec<(Test, About)>> {
    let text = fs::read_to_string(root().join("tests/RULES.md")).expect("the table is there");
    let mut table: BTreeMap<u32, Vec<(Test, About)>> = BTreeMap::new();
    let mut rule = None;
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            rule = heading
                .strip_prefix('R')
                .and_then(|rest| rest.split('.').next()?.parse().ok());
            if let Some(rule) = rule {
                table.entry(rule).or_default();
            }
        }
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if let (Some(rule), ["", test, file, modes, databases, ""]) = (rule, &cells[..])
            && let Some(name) = test
                .strip_prefix('`')
                .and_then(|test| test.strip_suffix('`'))
        {
            let about = About {
                modes: (*modes).to_owned(),
                databases: (*databases).to_owned(),
            };
            table
                .entry(rule)
                .or_default()
                .push((((*file).to_owned(), name.to_owned()), about));
        }
    }
    table
}

/// All tests whose names begin with a rule's number.
fn tests() -> BTreeMap<Test, About> {
    let mut tests = integration_tests();
    for folder in ["host/src", "guest-sdk/src", "guest-sdk/tests"] {
        let mut files = Vec::new();
        sources(&root().join(folder), &mut files);
        for path in files {
            let text = fs::read_to_string(&path).expect("sources are texts");
            let file = path
                .strip_prefix(root())
                .expect("it is below")
                .display()
                .to_string();
            let names = text.lines().filter_map(|line| {
                let (_, rest) = line.split_once("fn ")?;
                let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_')?;
                Some(&rest[..end])
            });
            for name in names.filter(|name| !rules_of(name).is_empty()) {
                tests.insert((file.clone(), name.to_owned()), About::of(&BTreeSet::new()));
            }
        }
    }
    tests
}

/// The tests of this binary, from lines of its list such as `transactions::r7_…::sync: test`.
fn integration_tests() -> BTreeMap<Test, About> {
    let output = Command::new(std::env::current_exe().expect("this is a program"))
        .args(["--list", "--format", "terse"])
        .output()
        .expect("it can be started");
    let text = String::from_utf8(output.stdout).expect("names are texts");
    let mut variants: BTreeMap<Test, BTreeSet<String>> = BTreeMap::new();
    for path in text.lines().filter_map(|line| line.strip_suffix(": test")) {
        let words: Vec<&str> = path.split("::").collect();
        let Some(at) = words.iter().position(|word| !rules_of(word).is_empty()) else {
            continue;
        };
        let file = format!("tests/integration/{}.rs", words[..at].join("/"));
        let of_this = variants.entry((file, words[at].to_owned())).or_default();
        of_this.extend(words.get(at + 1).map(|word| (*word).to_owned()));
    }
    let about = |(test, variants)| (test, About::of(&variants));
    variants.into_iter().map(about).collect()
}

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in folder.read_dir().expect("the folder is there") {
        let path = entry.expect("it can be listed").path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}
