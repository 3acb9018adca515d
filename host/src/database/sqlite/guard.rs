//! The SQL that views may run. SQLite calls the authorizer here for every part of a statement while it compiles the
//! statement.
//!
//! Everything that [`Guard::authorize`] does not list as allowed is refused. The text of a refusal that authors of
//! views are likely to meet says what to do instead.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};

use super::super::error::{Error, ErrorKind};
use super::limits::Weight;

/// The state that a connection shares with its callbacks.
#[derive(Default)]
pub(super) struct Guard {
    /// Set while a statement of the host is compiled and run: only then are transaction statements allowed.
    pub(super) host: AtomicBool,
    /// Set while the connection is pinned: then statements that change the session are allowed.
    pub(super) pinned: AtomicBool,
    /// Set while the borrower's next statements go to the same connection, as in a transaction.
    pub(super) kept: AtomicBool,
    /// Set when the request that has leased the connection has ended: whatever runs must end, too.
    pub(super) over: AtomicBool,
    /// Set together with `over` when the transaction has written too much.
    pub(super) writes_too_much: AtomicBool,
    /// The most bytes of a value that the statement may make.
    pub(super) values_max: AtomicU64,
    /// The number of rows that the borrower has changed, for `total_changes()`.
    pub(super) total_changes: AtomicI64,
    pub(super) shared: Shared,
    /// Set when SQLite compiles a statement. A statement that is taken from the kept ones is not compiled.
    pub(super) compiled: AtomicBool,
    /// What the authorizer saw of the statement that was compiled last.
    pub(super) found: Mutex<Found>,
    /// The last refusal, which is reported in place of SQLite's error.
    pub(super) refused: Mutex<Option<Error>>,
}

/// The state that all connections to a database share.
#[derive(Clone, Default)]
pub(super) struct Shared {
    /// Counts changes of the schema.
    pub(super) schema: Arc<AtomicU64>,
    /// Whether any view has asked what the last statements on a connection did.
    pub(super) asked: Arc<AtomicBool>,
}

/// What the authorizer sees of a statement while SQLite compiles the statement, together with the triggers and views of
/// the schema that the statement uses.
#[derive(Default)]
pub(super) struct Found {
    /// Calls of functions.
    pub(super) weight: Weight,
    /// Tables that the statement writes to.
    pub(super) written: BTreeSet<String>,
    /// Whether the statement has the operator MATCH, or marks the matches of a search.
    pub(super) searches: bool,
    /// Tables of which the statement reads a column that has the table's name: comparing that with a text is a
    /// full-text search.
    pub(super) searched: BTreeSet<String>,
    /// Whether the statement asks what the last statements on the connection did (`session`), and whether it asks for
    /// the id of the last inserted row (`rowid`).
    pub(super) session: bool,
    pub(super) rowid: bool,
    /// Whether the statement changes the schema.
    pub(super) changes_schema: bool,
    /// The value that `pragma case_sensitive_like` is set to.
    pub(super) like_case: Option<bool>,
}

impl Guard {
    pub(super) fn authorize(&self, context: &AuthContext<'_>) -> Authorization {
        use AuthAction::{
            AlterTable, Analyze, Attach, CreateIndex, CreateTable, CreateTempIndex,
            CreateTempTable, CreateTempTrigger, CreateTempView, CreateTrigger, CreateView,
            CreateVtable, Delete, Detach, DropIndex, DropTable, DropTrigger, DropView, DropVtable,
            Function, Insert, Pragma, Read, Recursive, Reindex, Savepoint, Select, Transaction,
            Update,
        };
        if self.host.load(Relaxed) {
            return Authorization::Allow;
        }
        let mut found = self.found.lock();
        if !self.compiled.swap(true, Relaxed) {
            *found = Found::default();
        }
        found.note(context);
        let pinned = self.pinned.load(Relaxed);
        let refused = match context.action {
            Transaction { .. } | Savepoint { .. } => {
                "a statement that begins or ends a transaction was refused: mark the view `atomic`, or use `begin` (in the SDK: `cx.atomic(..)`), so that the host knows of the transaction".to_owned()
            }
            Pragma { pragma_name, .. } if pinned && of_session(pragma_name) => {
                return Authorization::Allow;
            }
            Pragma { pragma_name, pragma_value } if !reads_only(pragma_name, pragma_value) => {
                if of_session(pragma_name) {
                    format!("`pragma {pragma_name}` was refused: it would change one connection of the pool and be lost for the next statement; use `pin` to keep one connection for several")
                } else {
                    format!("`pragma {pragma_name}` was refused: it would change more than a view may")
                }
            }
            Attach { .. } | Detach { .. } => {
                "`attach`, `detach` and `vacuum` were refused: a module uses the databases it is granted in the app's configuration".to_owned()
            }
            Function { function_name } => match self.function(function_name, context.accessor) {
                Some(refused) => refused,
                None => return Authorization::Allow,
            },
            CreateVtable { module_name, .. } if !VIRTUAL_TABLES.contains(&module_name) => {
                format!("a virtual table of the kind `{module_name}` was refused: views may make {}", VIRTUAL_TABLES.join(", "))
            }
            Select | Read { .. } => return Authorization::Allow,
            _ if pinned && is_temporary(context) => return Authorization::Allow,
            CreateTempTable { .. }
            | CreateTempView { .. }
            | CreateTempTrigger { .. }
            | CreateTempIndex { .. } => TEMPORARY.to_owned(),
            // SQLite reports `create table temp.name` as `CreateTable` in the database `temp`, not as
            // `CreateTempTable`.
            _ if context.database_name == Some("temp") => TEMPORARY.to_owned(),
            AlterTable { .. }
            | Analyze { .. }
            | CreateIndex { .. }
            | CreateTable { .. }
            | CreateTrigger { .. }
            | CreateView { .. }
            | CreateVtable { .. }
            | Delete { .. }
            | DropIndex { .. }
            | DropTable { .. }
            | DropTrigger { .. }
            | DropView { .. }
            | DropVtable { .. }
            | Insert { .. }
            | Pragma { .. }
            | Recursive
            | Reindex { .. }
            | Update { .. } => return Authorization::Allow,
            // Other actions, such as that of `attach` with a parameter for the file's name.
            other => format!("a statement was refused because it is not of the kinds that views may run ({other:?}); `attach`, `detach` and `vacuum` never are"),
        };
        *self.refused.lock() = Some(Error::new(ErrorKind::Denied, refused));
        Authorization::Deny
    }

    /// Notes a refusal with its sentence, and returns an error for SQLite.
    pub(super) fn refuse(&self, kind: ErrorKind, sentence: String) -> rusqlite::Error {
        *self.refused.lock() = Some(Error::new(kind, sentence));
        rusqlite::Error::UserFunctionError("refused".into())
    }

    /// The sentence that refuses the call of a function. None: the function may be called. `within`: the trigger or
    /// view of the schema that has the call in its definition.
    fn function(&self, name: &str, within: Option<&str>) -> Option<String> {
        match name.to_ascii_lowercase().as_str() {
            // `fts3_tokenizer` takes and returns pointers into the host's memory.
            "fts3_tokenizer" | "load_extension" => Some(format!(
                "the function `{name}` was refused: it reaches into the host"
            )),
            // These compare every match in a text with every other match, and nothing can interrupt them.
            "snippet" | "offsets" | "matchinfo" => Some(format!(
                "the function `{name}` was refused: it can take minutes for one text with many matches. Use `highlight`, and cut what it gives in the view"
            )),
            "match" | "highlight" if let Some(within) = within => Some(format!(
                "`{name}` in `{within}` was refused: its length can only be checked in the statement itself, so write it there"
            )),
            "total_changes" if let Some(within) = within => Some(format!(
                "the function `total_changes` was refused in `{within}`: it tells what earlier statements changed, so call it outside"
            )),
            "last_insert_rowid" | "changes" | "total_changes"
                if within.is_none() && !self.kept.load(Relaxed) =>
            {
                Some(format!(
                    "the function `{name}` was refused: outside a transaction, the next statement may go to another connection. Use `returning`, or the number that `execute` returns, or a transaction"
                ))
            }
            _ => None,
        }
    }
}

impl Found {
    fn note(&mut self, context: &AuthContext<'_>) {
        use AuthAction::{
            AlterTable, CreateIndex, CreateTable, CreateTempIndex, CreateTempTable,
            CreateTempTrigger, CreateTempView, CreateTrigger, CreateView, CreateVtable, Delete,
            DropIndex, DropTable, DropTempIndex, DropTempTable, DropTempTrigger, DropTempView,
            DropTrigger, DropView, DropVtable, Function, Insert, Pragma, Read, Update,
        };
        match context.action {
            Function { function_name } => self.note_function(function_name),
            Insert { table_name } | Update { table_name, .. } | Delete { table_name } => {
                self.written.insert(table_name.to_owned());
            }
            Read {
                table_name,
                column_name,
            } if table_name.eq_ignore_ascii_case(column_name) => {
                self.searched.insert(table_name.to_owned());
            }
            Pragma {
                pragma_name,
                pragma_value: Some(value),
            } if pragma_name.eq_ignore_ascii_case("case_sensitive_like") => {
                let off = ["0", "off", "no", "false"];
                self.like_case = Some(!off.iter().any(|off| off.eq_ignore_ascii_case(value)));
            }
            AlterTable { .. }
            | CreateIndex { .. }
            | CreateTable { .. }
            | CreateTempIndex { .. }
            | CreateTempTable { .. }
            | CreateTempTrigger { .. }
            | CreateTempView { .. }
            | CreateTrigger { .. }
            | CreateView { .. }
            | CreateVtable { .. }
            | DropIndex { .. }
            | DropTable { .. }
            | DropTempIndex { .. }
            | DropTempTable { .. }
            | DropTempTrigger { .. }
            | DropTempView { .. }
            | DropTrigger { .. }
            | DropView { .. }
            | DropVtable { .. } => self.changes_schema = true,
            _ => {}
        }
    }

    fn note_function(&mut self, name: &str) {
        let name = name.to_ascii_lowercase();
        match name.as_str() {
            "match" => self.searches = true,
            "highlight" => {
                self.searches = true;
                self.weight.highlights = true;
            }
            "last_insert_rowid" | "changes" | "total_changes" => {
                self.session = true;
                self.rowid |= name == "last_insert_rowid";
            }
            "json_patch" | "jsonb_patch" => self.weight.quadratic += 1,
            name if QUICK.contains(&name) => {}
            _ => self.weight.calls += 1,
        }
    }
}

/// Functions that neither read nor make whole values, or that are the host's own and check the interrupt flag.
const QUICK: &[&str] = &[
    "abs",
    "acos",
    "acosh",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "avg",
    "bm25",
    "ceil",
    "ceiling",
    "coalesce",
    "concat",
    "concat_ws",
    "cos",
    "cosh",
    "count",
    "cume_dist",
    "degrees",
    "dense_rank",
    "exp",
    "first_value",
    "floor",
    "glob",
    "if",
    "ifnull",
    "iif",
    "instr",
    "lag",
    "last_value",
    "lead",
    "like",
    "likelihood",
    "likely",
    "ln",
    "log",
    "log10",
    "log2",
    "ltrim",
    "max",
    "min",
    "mod",
    "nth_value",
    "ntile",
    "nullif",
    "octet_length",
    "percent_rank",
    "pi",
    "pow",
    "power",
    "radians",
    "random",
    "rank",
    "replace",
    "round",
    "row_number",
    "rtrim",
    "sign",
    "sin",
    "sinh",
    "sqrt",
    "sum",
    "tan",
    "tanh",
    "total",
    "trim",
    "trunc",
    "typeof",
    "unlikely",
];

/// The virtual tables that views may make: full-text search and spatial indexes.
const VIRTUAL_TABLES: &[&str] = &["fts5", "fts4", "fts3", "rtree"];

const TEMPORARY: &str = "a temporary table, view, trigger or index was refused: it would exist on one connection of the pool and be lost for the next statement; use `pin` to keep one connection for several";

/// Whether the action is about something temporary, which exists on this connection only.
fn is_temporary(context: &AuthContext<'_>) -> bool {
    use AuthAction::{CreateTempIndex, CreateTempTable, CreateTempTrigger, CreateTempView};
    let makes_one = matches!(
        context.action,
        CreateTempTable { .. }
            | CreateTempView { .. }
            | CreateTempTrigger { .. }
            | CreateTempIndex { .. }
    );
    makes_one || context.database_name == Some("temp")
}

/// The pragmas that change this connection only, and nothing of the file, the process or the host's limits.
/// `cache_size` and `temp_store` are not among them: all connections of the process share SQLite's memory, and one
/// session could take all of it.
fn of_session(name: &str) -> bool {
    matches!(
        name.to_ascii_lowercase().as_str(),
        "analysis_limit"
            | "automatic_index"
            | "case_sensitive_like"
            | "defer_foreign_keys"
            | "foreign_keys"
            | "ignore_check_constraints"
            | "query_only"
            | "recursive_triggers"
            | "reverse_unordered_selects"
    )
}

/// The pragmas that tell something about the schema and change nothing.
fn reads_only(name: &str, value: Option<&str>) -> bool {
    match name.to_ascii_lowercase().as_str() {
        "table_info" | "table_xinfo" | "table_list" | "index_list" | "index_info"
        | "index_xinfo" | "foreign_key_list" | "foreign_key_check" | "integrity_check"
        | "quick_check" => true,
        "user_version" | "data_version" | "compile_options" | "page_count" | "page_size" => {
            value.is_none()
        }
        _ => false,
    }
}
