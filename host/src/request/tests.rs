//! What of a request goes to a guest.

use proptest::prelude::*;

use super::*;
use crate::config::Server;

#[test]
fn header_values_become_text_without_loss() {
    assert_eq!(text("Zoë".as_bytes()), "Zoë");
    assert_eq!(text(b"Zo\xeb"), "Zoë", "ISO-8859-1, where it is not UTF-8");
}

async fn received(body: Vec<u8>, limits: &Server) -> Result<Vec<u8>, StatusCode> {
    match body::receive(Full::<Bytes>::from(body), limits).await {
        Ok(Received::Inline(bytes)) => Ok(bytes),
        Ok(Received::Kept(kept)) => {
            let mut all = Vec::new();
            loop {
                let piece = kept.read(all.len() as u64, 1000).expect("it can be read");
                if piece.is_empty() {
                    assert_eq!(all.len() as u64, kept.length());
                    return Ok(all);
                }
                all.extend(piece);
            }
        }
        Err(failure) => Err(failure.status),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_body_comes_back_as_it_was_wherever_it_was_kept(body in prop::collection::vec(any::<u8>(), 0..4000)) {
        let mut limits = Server::default();
        (limits.body_inline_bytes, limits.body_memory_bytes, limits.body_max_bytes) = (500, 1500, 3000);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let back = runtime.block_on(received(body.clone(), &limits));
        if body.len() > 3000 {
            prop_assert_eq!(back, Err(StatusCode::PAYLOAD_TOO_LARGE));
        } else {
            prop_assert_eq!(back, Ok(body));
        }
    }
}
