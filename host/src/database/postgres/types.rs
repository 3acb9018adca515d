//! The nesting of the types of a statement's parameters and columns.
//!
//! tokio-postgres looks up types that it does not know by recursion, one type inside of the other (a domain over a
//! domain over a domain …), and so does the code that drops them. Both take stack, so the nesting is bounded.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use tokio_postgres::types::{Kind, Type};
use tokio_postgres::{Client, Error as ClientError, Statement as Known};

use super::super::error::{Error, ErrorKind};
use super::super::statement::short;

/// How often the lookup may wait for an answer. It waits at least once for each type.
const WAITS_MAX: usize = 300;
/// The deepest nesting of types.
const DEPTH_MAX: usize = 32;
/// The most types that one type may consist of.
const PARTS_MAX: usize = 10_000;

/// The result of a preparation. None: the preparation looks up too many types.
pub(super) async fn bounded(
    preparation: impl Future<Output = Result<Known, ClientError>>,
) -> Option<Result<Known, ClientError>> {
    let mut preparation = pin!(preparation);
    let mut waits = 0;
    poll_fn(|context| match preparation.as_mut().poll(context) {
        Poll::Ready(prepared) => Poll::Ready(Some(prepared)),
        Poll::Pending if waits == WAITS_MAX => Poll::Ready(None),
        Poll::Pending => {
            waits += 1;
            Poll::Pending
        }
    })
    .await
}

/// Whether the types of a statement are within the bounds.
pub(super) fn are_shallow(known: &Known) -> bool {
    let columns = known.columns().iter().map(|column| column.type_());
    known.params().iter().chain(columns).all(is_shallow)
}

fn is_shallow(ty: &Type) -> bool {
    let (mut open, mut parts) = (vec![(ty, 1)], 0);
    while let Some((ty, depth)) = open.pop() {
        parts += 1;
        if depth > DEPTH_MAX || parts > PARTS_MAX {
            return false;
        }
        match ty.kind() {
            Kind::Array(inner) | Kind::Domain(inner) | Kind::Range(inner) => {
                open.push((inner, depth + 1));
            }
            Kind::Composite(fields) => {
                open.extend(fields.iter().map(|field| (field.type_(), depth + 1)));
            }
            _ => {}
        }
    }
    true
}

/// Returns the error. Clears the client's cache of types, so that another attempt does not go on from the types that
/// were looked up.
pub(super) fn too_deep(client: &Client, sql: &str) -> Error {
    client.clear_type_cache();
    Error::new(
        ErrorKind::Statement,
        format!(
            "the types of the statement's parameters and columns are nested too deep, or too many (a type may have {DEPTH_MAX} others within each other): cast them to text: {}",
            short(sql)
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domains(depth: usize) -> Type {
        (0..depth).fold(Type::INT4, |inner, _| {
            Type::new("d".into(), 1, Kind::Domain(inner), "s".into())
        })
    }

    #[test]
    fn types_may_be_nested_so_deep() {
        assert!(is_shallow(&Type::INT4_ARRAY));
        assert!(is_shallow(&domains(DEPTH_MAX - 1)));
        assert!(!is_shallow(&domains(DEPTH_MAX)));
        // Each type has two fields of the type before it.
        let field = |ty: &Type| tokio_postgres::types::Field::new("a".into(), ty.clone());
        let doubled = (0..30).fold(Type::INT4, |inner, _| {
            let fields = vec![field(&inner), field(&inner)];
            Type::new("c".into(), 1, Kind::Composite(fields), "s".into())
        });
        assert!(!is_shallow(&doubled));
    }
}
