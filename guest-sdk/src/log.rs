//! Structured log records. The host adds the request's id, the module and the view.
//!
//! ```
//! use amphi_sdk::log;
//!
//! let (user, count) = ("ann", 3);
//! log::info!("saved {count} entries", user = user);
//! log::warn!("slow: {} ms", 1200);
//! ```

pub use crate::bindings::amphi::view::log::Level;
pub use crate::{
    __debug as debug, __error as error, __info as info, __trace as trace, __warn as warn,
};

/// Writes a log record. The macros, such as [`info!`](crate::log::info), are shorter to write.
pub fn write(level: Level, message: &str, fields: &[(&str, &dyn std::fmt::Display)]) {
    let fields: Vec<(String, String)> = fields
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.to_string()))
        .collect();
    crate::host::log(level, message, &fields);
}

/// `log!(Level, "message {inline}", field = value, …)`. Instead of fields, there may be positional arguments for the
/// message.
#[doc(hidden)]
#[macro_export]
macro_rules! __log {
    ($level:ident, $message:literal $(, $name:ident = $value:expr)* $(,)?) => {
        $crate::log::write(
            $crate::log::Level::$level,
            &::std::format!($message),
            &[$((::core::stringify!($name), &$value as &dyn ::core::fmt::Display)),*],
        )
    };
    ($level:ident, $message:literal, $($argument:expr),+ $(,)?) => {
        $crate::log::write($crate::log::Level::$level, &::std::format!($message, $($argument),+), &[])
    };
}

/// Logs a step within a view: `trace!("row {id}", table = name)`.
#[doc(hidden)]
#[macro_export]
macro_rules! __trace {
    ($($record:tt)+) => { $crate::__log!(Trace, $($record)+) };
}

/// Logs something that helps to find a mistake: `debug!("row {id}", table = name)`.
#[doc(hidden)]
#[macro_export]
macro_rules! __debug {
    ($($record:tt)+) => { $crate::__log!(Debug, $($record)+) };
}

/// Logs something that happened as it should: `info!("saved {id}", user = name)`.
#[doc(hidden)]
#[macro_export]
macro_rules! __info {
    ($($record:tt)+) => { $crate::__log!(Info, $($record)+) };
}

/// Logs something that should happen rarely: `warn!("no answer from {url}", tries = 3)`.
#[doc(hidden)]
#[macro_export]
macro_rules! __warn {
    ($($record:tt)+) => { $crate::__log!(Warn, $($record)+) };
}

/// Logs something that someone has to repair: `error!("cannot read {name}")`.
#[doc(hidden)]
#[macro_export]
macro_rules! __error {
    ($($record:tt)+) => { $crate::__log!(Error, $($record)+) };
}
