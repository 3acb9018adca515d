//! The picture of `host/src` in ARCHITECTURE.md is true: every file has a floor, imports only from its own floor or
//! below, and files that import each other in a circle are few and known.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Circles of files, each with its reason. None has more than seven files.
const CIRCLES: &[(&[&str], &str)] = &[
    (
        &[
            "channels/exchange.rs",
            "channels/group.rs",
            "channels/history.rs",
            "channels/mod.rs",
            "channels/nats.rs",
            "channels/presence.rs",
            "channels/report.rs",
        ],
        "the methods of one hub, by subject, and what it keeps of each group",
    ),
    (
        &[
            "config/check.rs",
            "config/check/middleware.rs",
            "config/database.rs",
            "config/deploy.rs",
            "config/mod.rs",
            "config/place.rs",
            "config/raw.rs",
        ],
        "checking makes the types of the parent module from the raw ones, key by key",
    ),
    (
        &[
            "database/postgres/execute.rs",
            "database/postgres/lease.rs",
            "database/postgres/mod.rs",
            "database/postgres/session.rs",
        ],
        "a lease gives its session back to the pool that it came from",
    ),
    (
        &["database/sqlite/lease.rs", "database/sqlite/mod.rs"],
        "a lease gives its connection back to the pool that it came from",
    ),
    (
        &["database/error.rs", "database/statement.rs"],
        "an error names its statement, and rows that cannot be read are errors",
    ),
    (
        &["config/error.rs", "config/postgres_url.rs"],
        "an error hides passwords in URLs, and a URL that is wrong names the nearest right key",
    ),
    (
        &[
            "http/middleware/compression.rs",
            "http/middleware/compression/encode.rs",
            "http/middleware/compression/files.rs",
        ],
        "one middleware in three files",
    ),
    (
        &[
            "http/websocket/deflate.rs",
            "http/websocket/encode.rs",
            "http/websocket/frame.rs",
            "http/websocket/mod.rs",
        ],
        "one protocol in four files",
    ),
    (
        &[
            "request/dispatch.rs",
            "request/dispatch/loop_tasks.rs",
            "request/dispatch/subrequest_transaction.rs",
        ],
        "links of a chain call for others, which are links of a chain",
    ),
    (
        &[
            "scope/transaction.rs",
            "scope/transaction/effects.rs",
            "scope/transaction/state.rs",
        ],
        "one state machine in three files",
    ),
    (
        &["scope/mod.rs", "scope/socket.rs"],
        "a scope knows the socket whose event it is for, and a socket that is being opened the scope of its opening",
    ),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The floors of the picture, from the top: the files and folders of each.
fn floors(picture: &str) -> Vec<Vec<String>> {
    let block = picture
        .split("```")
        .nth(1)
        .expect("the picture is the first block of code");
    let lines = block
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()));
    let name = |word: &str| {
        let name = word.strip_suffix('/').or_else(|| word.strip_suffix(".rs"));
        name.map(str::to_owned)
    };
    lines
        .filter_map(|line| line.split("  ").next())
        .map(|names| names.split_whitespace().filter_map(name).collect())
        .collect()
}

/// The modules of the host by path (`http::body`), each with its file and its code without comments and unit tests.
fn modules() -> BTreeMap<String, (String, String)> {
    fn visit(folder: &Path, source: &Path, into: &mut BTreeMap<String, (String, String)>) {
        for entry in fs::read_dir(folder).expect("a folder of sources") {
            let path = entry.expect("it can be listed").path();
            if path.is_dir() {
                visit(&path, source, into);
                continue;
            }
            let file = path
                .strip_prefix(source)
                .expect("it is below")
                .display()
                .to_string();
            let Some(module) = file.strip_suffix(".rs") else {
                continue;
            };
            if ["lib", "main"].contains(&module) || module.ends_with("tests") {
                continue;
            }
            let module = module
                .strip_suffix("/mod")
                .unwrap_or(module)
                .replace('/', "::");
            let text = fs::read_to_string(&path).expect("sources are texts");
            let text = text
                .split("#[cfg(test)]\nmod tests {")
                .next()
                .unwrap_or_default();
            let code = text
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"));
            into.insert(module, (file, code.collect::<Vec<_>>().join("\n")));
        }
    }
    let mut modules = BTreeMap::new();
    let source = root().join("host/src");
    visit(&source, &source, &mut modules);
    modules
}

/// The paths of an import tree such as `crate::a::{b, c::{self, D}}`.
fn flatten(tree: &str) -> Vec<String> {
    let Some((before, rest)) = tree.split_once('{') else {
        return vec![tree.to_owned()];
    };
    let inner = rest.strip_suffix('}').unwrap_or(rest);
    let (mut depth, mut start, mut paths) = (0, 0, Vec::new());
    for (at, c) in inner.char_indices().chain([(inner.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let part = inner[start..at].trim();
                paths.extend(flatten(part).iter().map(|path| format!("{before}{path}")));
                start = at + 1;
            }
            _ => {}
        }
    }
    paths
}

/// The paths by which a file names modules of the host: its imports, and the paths in its code that begin with
/// `crate::`.
fn named(code: &str) -> Vec<String> {
    let mut paths = Vec::new();
    let mut rest = code;
    while let Some(at) = rest.find("use ") {
        let (before, after) = rest.split_at(at);
        let is_statement = before.is_empty() || before.ends_with(['\n', ' ', ')']);
        let end = after.find(';').unwrap_or(after.len());
        if is_statement {
            let tree: String = after[4..end].split_whitespace().collect();
            paths.extend(flatten(&tree));
        }
        rest = &after[end..];
    }
    for (at, _) in code.match_indices("crate::") {
        let path = code[at..].split(|c: char| !(c.is_alphanumeric() || "_:".contains(c)));
        if !code[..at].ends_with("in ") {
            paths.extend(path.take(1).map(str::to_owned));
        }
    }
    paths
}

/// For each module, the modules that it imports from.
fn imports() -> BTreeMap<String, BTreeSet<String>> {
    let modules = modules();
    let resolve = |from: &str, path: &str| {
        let mut at: Vec<&str> = from.split("::").collect();
        let mut words = path
            .split("::")
            .map(|word| word.trim_start_matches("r#"))
            .peekable();
        match words.peek() {
            Some(&"crate") => at.clear(),
            Some(&"super" | &"self") => {}
            // The path may begin with the name of a child module.
            Some(first) if modules.contains_key(&format!("{from}::{first}")) => {}
            _ => return None,
        }
        for word in words {
            match word {
                "crate" | "self" => {}
                "super" => drop(at.pop()),
                _ => at.push(word),
            }
        }
        while !at.is_empty() && !modules.contains_key(&at.join("::")) {
            at.pop();
        }
        Some(at.join("::")).filter(|found| !found.is_empty() && found != from)
    };
    let all = modules.iter().map(|(module, (_, code))| {
        let paths = named(code);
        let imported = paths.iter().filter_map(|path| resolve(module, path));
        (module.clone(), imported.collect())
    });
    all.collect()
}

/// The modules that can be reached from the module `from` by following imports.
fn reachable<'a>(
    from: &'a str,
    imports: &'a BTreeMap<String, BTreeSet<String>>,
) -> BTreeSet<&'a str> {
    let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
    while let Some(module) = next.pop() {
        for imported in &imports[module] {
            if seen.insert(imported.as_str()) {
                next.push(imported);
            }
        }
    }
    seen
}

#[test]
fn every_file_imports_only_from_its_floor_or_below() {
    let picture = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("it is there");
    let floors = floors(&picture);
    let floor = |module: &str| {
        let top = module.split("::").next().unwrap_or_default();
        let found = floors
            .iter()
            .position(|names| names.iter().any(|name| name == top));
        found.unwrap_or_else(|| panic!("the picture in ARCHITECTURE.md has no `{top}`"))
    };
    let mut upward = Vec::new();
    for (module, imported) in imports() {
        let above = imported
            .iter()
            .filter(|other| floor(other) < floor(&module));
        upward.extend(above.map(|other| format!("{module} imports {other}, which is above")));
    }
    assert!(upward.is_empty(), "{}", upward.join("\n"));
    for name in floors.iter().flatten() {
        let path = root().join("host/src").join(name);
        assert!(
            path.is_dir() || path.with_extension("rs").is_file(),
            "{name} is only in the picture"
        );
    }
}

#[test]
fn circles_of_files_are_few_small_and_have_a_reason() {
    let (modules, imports) = (modules(), imports());
    let reached: BTreeMap<&str, BTreeSet<&str>> = imports
        .keys()
        .map(|module| (module.as_str(), reachable(module, &imports)))
        .collect();
    let mut circles = BTreeSet::new();
    for (module, others) in &reached {
        let circle = others
            .iter()
            .filter(|other| reached[*other].contains(module));
        let files: BTreeSet<&str> = circle.map(|other| modules[*other].0.as_str()).collect();
        if files.len() > 1 {
            circles.insert(files);
        }
    }
    let known: BTreeSet<BTreeSet<&str>> = CIRCLES
        .iter()
        .map(|(files, _)| files.iter().copied().collect())
        .collect();
    for circle in &circles {
        assert!(
            known.contains(circle),
            "a circle of files that has no reason: {circle:?}"
        );
        assert!(circle.len() <= 7, "{circle:?}");
    }
    for circle in &known {
        assert!(
            circles.contains(circle),
            "this circle is no more: {circle:?}"
        );
    }
}
