//! Which files the databases of an app have opened.

use std::collections::BTreeMap;

use super::file_id::FileId;
use crate::config::Storage;
use crate::database::{Database, Databases};

/// The files that an app's databases have opened. A file can be removed while it is open. A new file with the same path
/// is another database.
#[derive(Debug, Clone, Default)]
pub(super) struct DatabaseFiles(BTreeMap<String, Option<FileId>>);

impl DatabaseFiles {
    pub(super) fn of(databases: &Databases) -> DatabaseFiles {
        let id = |database: &Database| match &database.config().storage {
            Storage::Sqlite(sqlite) => FileId::of(&sqlite.file),
            Storage::Postgres(_) => None,
        };
        let each = databases.iter();
        DatabaseFiles(
            each.map(|(name, database)| (name.clone(), id(database)))
                .collect(),
        )
    }

    /// Of these databases, those whose path still leads to the file that they have open.
    pub(super) fn still_there(&self, databases: &Databases) -> Databases {
        let now = DatabaseFiles::of(databases);
        let mut same = databases.clone();
        same.retain(|name, _| self.0.get(name) == now.0.get(name));
        same
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;
    use crate::database;

    /// When a developer removes the file of a database, the next reload makes a new file and does not keep the removed
    /// one open.
    #[test]
    fn a_database_whose_file_was_removed_is_opened_anew() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(folder.path().join("public")).expect("making a folder");
        let toml = "[app]\nname = \"a\"\n[static]\ndir = \"public\"\n\
                    [databases.one]\nsqlite = \"one.db\"\n[databases.other]\nsqlite = \"other.db\"\n";
        let config = Config::parse(&folder.path().join("amphi.toml"), toml).expect("it is right");
        let opened = database::open_all(&config, &Databases::new()).expect("they open");
        let make = |name: &str| {
            rusqlite::Connection::open(folder.path().join(name))
                .and_then(|database| database.execute_batch("create table t (a)"))
                .expect("it is made");
        };
        make("one.db");
        make("other.db");
        let files = DatabaseFiles::of(&opened);
        let names = |databases: &Databases| {
            let mut names: Vec<_> = databases.keys().cloned().collect();
            names.sort();
            names
        };
        assert_eq!(names(&files.still_there(&opened)), ["one", "other"]);
        let remove = |path: &Path| std::fs::remove_file(path).expect("it is there");
        remove(&folder.path().join("one.db"));
        assert_eq!(names(&files.still_there(&opened)), ["other"]);
        make("one.db");
        assert_eq!(names(&files.still_there(&opened)), ["other"]);
    }
}
