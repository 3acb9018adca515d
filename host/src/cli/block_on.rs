//! The main runtime of a command.

use std::time::Duration;

use anyhow::Context as _;

use crate::database;

/// How long the process waits at its end for threads that still do blocking work, such as writing to a disk.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// Runs a command on the main runtime, which does everything but requests: signals, accepting connections, watching
/// files, and the work that sync workers wait for.
pub(super) fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .thread_stack_size(database::STACK_BYTES)
        .build()
        .context("the runtime")?;
    let done = runtime.block_on(work);
    runtime.shutdown_timeout(LAST_WAIT);
    done
}
