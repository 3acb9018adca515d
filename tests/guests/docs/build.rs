//! Copies the examples with views from the README, the SDK's pages and the SDK's documentation into one source file.

use std::fs;
use std::path::{Path, PathBuf};

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
    let pages = [
        "README.md",
        "guest-sdk/GUIDE.md",
        "guest-sdk/FROM_DJANGO.md",
        "guest-sdk/FROM_SPIN_AND_AXUM.md",
    ];
    let mut files: Vec<PathBuf> = pages.iter().map(|page| root.join(page)).collect();
    sources(&root.join("guest-sdk/src"), &mut files);
    files.sort();
    let mut made = String::new();
    let mut listed: Vec<String> = ["sign_in", "slow", "big", "archive", "fragment", "member"]
        .map(str::to_owned)
        .into();
    for file in files {
        println!("cargo:rerun-if-changed={}", file.display());
        let text = fs::read_to_string(&file).expect("it is there");
        let stem = file
            .file_stem()
            .and_then(|stem| stem.to_str())
            .expect("it has a name");
        let examples = examples(&text, file.extension().is_some_and(|is| is == "rs"));
        for (number, example) in (1..).zip(examples) {
            let module = format!("{}_{number}", stem.to_lowercase());
            let (code, names) = prepared(&example, &module);
            made += &format!("pub mod {module} {{\n{code}\n}}\n");
            listed.extend(names.iter().map(|name| format!("{module}::{name}")));
        }
    }
    made += &format!("views![{}];\n", listed.join(", "));
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    fs::write(out.join("examples.rs"), made).expect("there is room");
}

fn sources(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("it is there") {
        let path = entry.expect("it can be read").path();
        // The module `testing` is for native tests: its examples cannot run in a component.
        let is_testing = path.file_stem().is_some_and(|stem| stem == "testing");
        if path.is_dir() && !is_testing {
            sources(&path, files);
        } else if path.extension().is_some_and(|is| is == "rs") && !is_testing {
            files.push(path);
        }
    }
}

/// The blocks of Rust code in a page that have views, middleware, subscribers or web sockets, and that import the prelude.
fn examples(text: &str, in_comments: bool) -> Vec<String> {
    let mut found = Vec::new();
    // The block that is being read: whether it is Rust code, and its text.
    let mut current: Option<(bool, String)> = None;
    for line in text.lines() {
        let line = match in_comments {
            false => line,
            true => {
                let line = line.trim_start();
                match line.strip_prefix("///").or(line.strip_prefix("//!")) {
                    Some(line) => line.strip_prefix(' ').unwrap_or(line),
                    None => {
                        current = None;
                        continue;
                    }
                }
            }
        };
        match (line.strip_prefix("```"), current.take()) {
            (Some(_), Some((true, block))) => found.push(block),
            (Some(_), Some((false, _))) => {}
            (Some(language), None) => {
                current = Some((matches!(language, "" | "rust"), String::new()));
            }
            (None, Some((taken, block))) => current = Some((taken, block + line + "\n")),
            (None, None) => {}
        }
    }
    let is_of_views = |block: &String| {
        ["#[view(", "#[middleware", "#[subscriber(", "#[socket("]
            .iter()
            .any(|attribute| block.contains(attribute))
            && block.contains("prelude")
    };
    found.into_iter().filter(is_of_views).collect()
}

/// The example without its native test, its paths beginning with the module's name; and its functions, for `views!`.
fn prepared(example: &str, module: &str) -> (String, Vec<String>) {
    let (mut code, mut names, mut marked) = (String::new(), Vec::new(), false);
    let mut within = String::new();
    for line in example.lines() {
        if line.starts_with("views![") {
            break;
        }
        if line.starts_with("# ") {
            continue;
        }
        if let Some(name) = line
            .strip_prefix("mod ")
            .and_then(|line| line.strip_suffix(" {"))
        {
            within = format!("{name}::");
            code += "pub ";
        } else if line == "}" {
            within.clear();
        }
        let attribute = line.trim_start();
        marked |= ["#[view(", "#[middleware", "#[subscriber(", "#[socket("]
            .iter()
            .any(|is| attribute.starts_with(is));
        let has_path = ["#[view(", "#[socket("]
            .iter()
            .any(|is| attribute.starts_with(is));
        let line = match has_path {
            true => line
                .replacen("\"/", &format!("\"/{module}/"), 1)
                .replace("/\"", "\""),
            false => line.to_owned(),
        };
        if marked && let Some((_, rest)) = line.split_once("fn ") {
            names.push(within.clone() + rest.split('(').next().unwrap_or(rest));
            // The function is public, since `views!` names it from outside the module.
            if !line.trim_start().starts_with("pub ") {
                code += "pub ";
            }
            marked = false;
        }
        code += &line;
        code.push('\n');
    }
    (code, names)
}
