//! What SQL views may run: SQLite's authorizer asks here about every part of a statement while it is prepared.
//!
//! What is not on the list is refused. Where people will run into it, the refusal says what to do instead.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::Mutex;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};

/// What a connection's callbacks share with it.
#[derive(Default)]
pub(super) struct Guard {
    /// Whether the connection is the one that writes.
    pub(super) writes: bool,
    /// Set while the host itself speaks: only then are transaction statements let through.
    pub(super) host: AtomicBool,
    /// Set while the connection is pinned: then statements are let through that change it.
    pub(super) pinned: AtomicBool,
    /// What the authorizer refused last.
    pub(super) refused: Mutex<Option<String>>,
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
            Function { function_name } => match self.function(function_name) {
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
            // To the authorizer, `create table temp.name` makes no temporary table.
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
            // Such as `attach` with a parameter for the file's name.
            other => format!("a statement was refused because it is not of the kinds that views may run ({other:?}); `attach`, `detach` and `vacuum` never are"),
        };
        *self.refused.lock() = Some(refused);
        Authorization::Deny
    }
}

impl Guard {
    /// Why a function may not be called, if so.
    fn function(&self, name: &str) -> Option<String> {
        match name.to_ascii_lowercase().as_str() {
            // The first takes and gives pointers into the host.
            "fts3_tokenizer" | "load_extension" => Some(format!(
                "the function `{name}` was refused: it reaches into the host"
            )),
            "last_insert_rowid" | "changes" | "total_changes"
                if !self.writes && !self.pinned.load(Relaxed) =>
            {
                Some(format!(
                    "the function `{name}` was refused: outside a transaction, the next statement may go to another connection. Use `returning`, or the number that `execute` returns, or a transaction"
                ))
            }
            _ => None,
        }
    }
}

/// The virtual tables that views may make: full-text search and spatial indexes.
const VIRTUAL_TABLES: &[&str] = &["fts5", "fts4", "fts3", "rtree"];

const TEMPORARY: &str = "a temporary table, view, trigger or index was refused: it would exist on one connection of the pool and be lost for the next statement; use `pin` to keep one connection for several";

/// Whether something is done to what only this connection has.
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

/// The pragmas that change this connection only, and nothing of the file, the process or the host's own limits.
fn of_session(name: &str) -> bool {
    matches!(
        name.to_ascii_lowercase().as_str(),
        "analysis_limit"
            | "automatic_index"
            | "cache_size"
            | "case_sensitive_like"
            | "defer_foreign_keys"
            | "foreign_keys"
            | "ignore_check_constraints"
            | "query_only"
            | "recursive_triggers"
            | "reverse_unordered_selects"
            | "temp_store"
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
