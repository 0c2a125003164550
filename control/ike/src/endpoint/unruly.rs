//! What a peer gets that is authenticated, and breaks the rules or asks for too much.

use std::time::Duration;

use super::tests::{ask, take_sa};
use crate::event::{DownReason, Event};
use crate::message::{ExchangeType, NotifyType, Payload};
use crate::pair::{Pair, config};

// RFC 7296, 2.21.3: "all requests having errors MUST result in a response notifying the other end of the
// error", and INVALID_SYNTAX is fatal in both peers. IKE_AUTH is over, 43 was not agreed on.
#[test]
fn a_request_of_an_exchange_that_is_not_expected_is_answered_and_ends_the_ike_sa() {
    for exchange in [ExchangeType::IKE_AUTH, ExchangeType(43)] {
        let mut pair = Pair::up(config());
        let mut sa = take_sa(&mut pair);
        let answer = ask(&mut pair, &mut sa, exchange, vec![]);
        assert_eq!((answer.header.exchange, answer.header.response), (exchange, true));
        assert_eq!(answer.payloads, [Payload::notify(NotifyType::INVALID_SYNTAX, [])]);
        let down =
            |e: &Event| matches!(e, Event::IkeDown { reason: DownReason::ProtocolError(_), .. });
        assert!(pair.b.events.iter().any(down));
        pair.run(Duration::from_secs(10));
        pair.b.assert_empty();
    }
}
