//! Links between the documents of this repository lead to files and headings that exist.

use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn links_between_documents_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the package is in the workspace");
    let mut documents = Vec::new();
    find_documents(root, &mut documents);
    let (mut count, mut broken) = (0, Vec::new());
    for document in &documents {
        let text = fs::read_to_string(document).expect("documents are texts");
        for link in links(&text) {
            count += 1;
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => document.clone(),
                path => document.with_file_name("").join(path),
            };
            let leads_there = match heading {
                "" => target.exists(),
                heading => fs::read_to_string(&target)
                    .is_ok_and(|text| headings(&text).any(|known| known == heading)),
            };
            if !leads_there {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert!(count > 20, "only {count} links were found");
}

/// All Markdown files below a folder, without those that are built or hidden.
fn find_documents(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in folder.read_dir().expect("the folder is there") {
        let path = entry.expect("it can be listed").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') || name == "target" || path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            find_documents(&path, into);
        } else if name.ends_with(".md") {
            into.push(path);
        }
    }
}

/// The lines that are not within a block of code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.starts_with("```");
        in_code ^= is_fence;
        !in_code && !is_fence
    })
}

/// The links to files, as in `[text](path#heading)`.
fn links(text: &str) -> impl Iterator<Item = &str> {
    prose(text)
        .flat_map(|line| line.split("](").skip(1))
        .filter_map(|rest| rest.split(')').next())
        .filter(|link| !link.contains("://"))
}

/// The names by which headings can be linked to: lower case, without punctuation, with hyphens for spaces.
fn headings(text: &str) -> impl Iterator<Item = String> {
    prose(text)
        .filter(|line| line.starts_with('#'))
        .map(|line| {
            line.trim_start_matches('#')
                .trim()
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
                .map(|c| match c {
                    ' ' => '-',
                    c => c.to_ascii_lowercase(),
                })
                .collect()
        })
}
