//! The files of a migrations folder: their names, their SQL, and the directives in their heads.

use std::fmt;
use std::fs;
use std::hash::{Hash as _, Hasher as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use ring::digest::{SHA256, digest};
use siphasher::sip::SipHasher13;

/// The prefix of a line that is a directive for the host. Only the comments before a file's first statement may have
/// such lines.
const DIRECTIVE: &str = "-- amphi:";
const NO_TRANSACTION: &str = "no-transaction";

/// The prefix of checksums in records that Amphi 0.1.0 made with the crate `refinery`.
pub(super) const REFINERY: &str = "refinery:";

/// One migration.
#[derive(Debug)]
pub(super) struct File {
    pub(super) version: i64,
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) sql: String,
    /// Whether the file and its record are applied in one transaction.
    pub(super) in_transaction: bool,
}

/// Prints `V1__name`.
impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "V{}__{}", self.version, self.name)
    }
}

impl File {
    fn read(path: PathBuf) -> anyhow::Result<File> {
        let (version, name) = parse(&path)?;
        let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let Ok(text) = String::from_utf8(bytes) else {
            bail!("{} is not UTF-8: save it as UTF-8", path.display());
        };
        let sql = text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned();
        if sql.contains('\0') {
            bail!(
                "{} has the character NUL (`\\0`) in it: take it out",
                path.display()
            );
        }
        let in_transaction = !says_no_transaction(&path, &sql)?;
        Ok(File {
            version,
            name,
            path,
            sql,
            in_transaction,
        })
    }

    /// The checksum that is recorded for the SQL. Line ends do not count, because version control may change them.
    pub(super) fn checksum(&self) -> String {
        let text = self.sql.replace("\r\n", "\n");
        let mut hex = String::new();
        for byte in digest(&SHA256, text.as_bytes()).as_ref() {
            hex.push_str(&format!("{byte:02x}"));
        }
        hex
    }

    /// Whether `recorded` is a checksum of this SQL.
    pub(super) fn has_checksum(&self, recorded: &str) -> bool {
        match recorded.strip_prefix(REFINERY) {
            None => self.checksum() == recorded,
            Some(number) => i32::try_from(self.version).is_ok_and(|version| {
                let mut hasher = SipHasher13::new();
                self.name.hash(&mut hasher);
                version.hash(&mut hasher);
                self.sql.hash(&mut hasher);
                hasher.finish().to_string() == number
            }),
        }
    }

    /// An error about the SQL. `at`: the byte offset of the mistake, which the error shows as a line.
    pub(super) fn error(&self, at: usize, sentence: &str) -> anyhow::Error {
        let line = self.line(at);
        let what_stays = match self.in_transaction {
            true => "nothing of this file was applied",
            false => {
                "the statements before this line were applied and stay, because the file says `-- amphi: no-transaction`, and run again with it: undo them, or write them so that they can be repeated"
            }
        };
        anyhow::anyhow!("{}:{line}: {sentence} ({what_stays})", self.path.display())
    }

    fn line(&self, at: usize) -> usize {
        let before = &self.sql.as_bytes()[..at.min(self.sql.len())];
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    }
}

/// All migrations in a folder and the folders in it, in the order of their versions.
///
/// # Errors
/// When a file with SQL does not have the name of a migration, or two files have the same version.
pub(super) fn read(folder: &Path) -> anyhow::Result<Vec<File>> {
    let mut paths = Vec::new();
    find(folder, &mut paths)?;
    let mut files = (paths.into_iter().map(File::read)).collect::<anyhow::Result<Vec<_>>>()?;
    files.sort_by_key(|file| file.version);
    for pair in files.windows(2) {
        if pair[0].version == pair[1].version {
            bail!(
                "{} and {} have the same number: give one of them another",
                pair[0].path.display(),
                pair[1].path.display()
            );
        }
    }
    Ok(files)
}

/// Adds the files that end with `.sql`, except for hidden ones, in the order of their paths.
pub(super) fn find(folder: &Path, paths: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let reading = || format!("reading {}", folder.display());
    let mut entries = (fs::read_dir(folder).with_context(reading)?)
        .collect::<std::io::Result<Vec<_>>>()
        .with_context(reading)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let kind = entry.file_type().with_context(reading)?;
        if kind.is_symlink() && path.is_dir() {
            bail!(
                "{} is a link to a folder, which is not followed: have the migrations there themselves, or name the folder in `migrations`",
                path.display()
            );
        }
        if kind.is_dir() {
            find(&path, paths)?;
        } else if (path.extension()).is_some_and(|extension| extension.eq_ignore_ascii_case("sql"))
        {
            paths.push(path);
        }
    }
    Ok(())
}

/// The version and the name in `V1__name.sql`.
fn parse(path: &Path) -> anyhow::Result<(i64, String)> {
    let file = path.display();
    let stem = (path.file_name())
        .and_then(|name| name.to_str())
        .and_then(|name| name.strip_suffix(".sql"))
        .unwrap_or_default();
    let parts = (stem.strip_prefix('V'))
        .and_then(|rest| rest.split_once("__"))
        .filter(|(number, name)| {
            let plain = |c: char| c.is_alphanumeric() || c == '_';
            let digits = |c: char| c.is_ascii_digit();
            !number.is_empty()
                && number.chars().all(digits)
                && !name.is_empty()
                && name.chars().all(plain)
        });
    let Some((number, name)) = parts else {
        if stem.starts_with('U') {
            bail!(
                "{file}: a migration that undoes another is not run: write what is to change into a new one, `V2__name.sql`, and move this file elsewhere"
            );
        }
        bail!(
            "{file} is not named as a migration, so nobody knows when to apply it: name it like `V1__name.sql` (a number, two underscores, a name of letters, digits and `_`), or move it elsewhere"
        );
    };
    match number.parse() {
        Ok(version) => Ok((version, name.to_owned())),
        Err(_) => bail!(
            "{file}: its number is too large: the largest is {}",
            i64::MAX
        ),
    }
}

/// Whether the head of a file, that is the comments before its first statement, says that the file is applied without a
/// transaction.
fn says_no_transaction(path: &Path, sql: &str) -> anyhow::Result<bool> {
    let head = sql.lines().enumerate().take_while(|(_, line)| {
        let line = line.trim();
        line.is_empty() || line.starts_with("--")
    });
    let mut found = false;
    for (index, line) in head {
        match line.trim().strip_prefix(DIRECTIVE).map(str::trim) {
            None => {}
            Some(NO_TRANSACTION) => found = true,
            Some(other) => bail!(
                "{}:{}: `{DIRECTIVE} {other}` is nothing that Amphi knows: the one such line is `{DIRECTIVE} {NO_TRANSACTION}`",
                path.display(),
                index + 1
            ),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(name: &str) -> Result<(i64, String), String> {
        parse(Path::new(name)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_name_is_a_migrations_or_is_refused() {
        assert_eq!(parsed("V1__a.sql"), Ok((1, "a".to_owned())));
        assert_eq!(parsed("V007__add_2.sql"), Ok((7, "add_2".to_owned())));
        let stamp = parsed("V20261128140312345__a.sql");
        assert_eq!(stamp, Ok((20_261_128_140_312_345, "a".to_owned())));
        for (name, part) in [
            ("001_first.sql", "`V1__name.sql`"),
            ("V1_x.sql", "`V1__name.sql`"),
            ("v1__x.sql", "`V1__name.sql`"),
            ("V1__x.SQL", "`V1__name.sql`"),
            ("V1__add-index.sql", "`V1__name.sql`"),
            ("V1__.sql", "`V1__name.sql`"),
            ("V1.5__x.sql", "`V1__name.sql`"),
            ("V-1__x.sql", "`V1__name.sql`"),
            ("U1__x.sql", "undoes"),
            ("V99999999999999999999__x.sql", "too large"),
        ] {
            let refused = parsed(name).expect_err(name);
            assert!(
                refused.contains(name) && refused.contains(part),
                "{refused}"
            );
        }
    }

    #[test]
    fn the_head_of_a_file_says_whether_it_has_a_transaction() {
        let says = |sql: &str| says_no_transaction(Path::new("V1__a.sql"), sql);
        assert!(says("-- why\n\n  -- amphi: no-transaction\nvacuum;").expect("known"));
        assert!(!says("select 1;\n-- amphi: no-transaction").expect("not in the head"));
        let refused = says("-- amphi: no-transactions\n").expect_err("unknown");
        assert!(refused.to_string().contains("V1__a.sql:1"), "{refused}");
    }

    /// The checksum of a record that Amphi 0.1.0 made with the crate `refinery` is still compared correctly.
    #[test]
    fn records_of_earlier_versions_are_understood() {
        let file = |sql: &str| File {
            version: 1,
            name: "initial".to_owned(),
            path: PathBuf::from("V1__initial.sql"),
            sql: sql.to_owned(),
            in_transaction: true,
        };
        let recorded = "CREATE TABLE persons (\n    id int,\n    name varchar(255),\n    city varchar(255)\n);\n";
        let mut hasher = SipHasher13::new();
        "initial".hash(&mut hasher);
        1_i32.hash(&mut hasher);
        recorded.hash(&mut hasher);
        let checksum = format!("{REFINERY}{}", hasher.finish());
        assert!(file(recorded).has_checksum(&checksum));
        assert!(!file("create table persons (id int)").has_checksum(&checksum));
        assert!(file("a;\r\nb;").has_checksum(&file("a;\nb;").checksum()));
    }
}
