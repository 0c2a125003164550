//! Each kind of segment in each synchronized state (RFC 9293, 3.10.7.4).

use crate::play::play;

/// A state: the steps that lead to it, and what is expected next of us and of the peer.
struct State {
    name: &'static str,
    steps: &'static str,
    ours: u64,
    peers: u64,
    /// The caller has not been told of an end.
    open: bool,
}

const STATES: [State; 7] = [
    State { name: "ESTABLISHED", steps: "open 65535", ours: 1, peers: 1, open: true },
    State {
        name: "FIN-WAIT-1",
        steps: "open 65535
                close
                > F. 1(0) ack 1
                event closed local-closed",
        ours: 2,
        peers: 1,
        open: false,
    },
    State {
        name: "FIN-WAIT-2",
        steps: "open 65535
                close
                > F. 1(0) ack 1
                event closed local-closed
                < . 1(0) ack 2",
        ours: 2,
        peers: 1,
        open: false,
    },
    State {
        name: "CLOSE-WAIT",
        steps: "lazy
                open 65535
                < F. 1(10) ack 1
                > . 1(0) ack 12",
        ours: 1,
        peers: 12,
        open: true,
    },
    State {
        name: "CLOSING",
        steps: "open 65535
                close
                > F. 1(0) ack 1
                event closed local-closed
                < F. 1(0) ack 1
                > . 2(0) ack 2",
        ours: 2,
        peers: 2,
        open: false,
    },
    State {
        name: "LAST-ACK",
        steps: "open 65535
                < F. 1(0) ack 1
                > F. 1(0) ack 2
                event closed peer-closed",
        ours: 2,
        peers: 2,
        open: false,
    },
    State {
        name: "TIME-WAIT",
        steps: "open 65535
                close
                > F. 1(0) ack 1
                event closed local-closed
                < . 1(0) ack 2
                < F. 1(0) ack 2
                > . 2(0) ack 2",
        ours: 2,
        peers: 2,
        open: false,
    },
];

/// Plays `steps` in each state of which `is_meant` is true.
fn in_states(is_meant: impl Fn(&str) -> bool, steps: impl Fn(&State) -> String) {
    for state in STATES.iter().filter(|state| is_meant(state.name)) {
        play(&format!("{}\n{}", state.steps, steps(state)));
    }
}

fn everywhere(steps: impl Fn(&State) -> String) {
    in_states(|_| true, steps);
}

/// The connection is gone: whatever comes is refused.
fn gone(State { ours, peers, .. }: &State) -> String {
    format!("< . {peers}(0) ack {ours} => no-connection\n> R {ours}(0)")
}

/// Second check, 2: a RST exactly at the next octet ends the connection, with or without an
/// acknowledgment.
#[test]
fn rfc9293_3_10_7_4_an_exact_reset_in_every_state() {
    for flags in ["R", "R."] {
        everywhere(|state| {
            let State { ours, peers, open, .. } = state;
            let ack = if flags == "R." { format!("ack {ours}") } else { String::new() };
            let told = if *open { "event closed peer-reset" } else { "event none" };
            format!("< {flags} {peers}(0) {ack} => accepted\n{told}\n{}", gone(state))
        });
    }
}

/// Second check, 1 and 3: one elsewhere in the window is challenged, one outside it is dropped.
#[test]
fn rfc9293_3_10_7_4_another_reset_in_every_state() {
    everywhere(|State { ours, peers, .. }| {
        format!(
            "< R {}(0) => out-of-window
             < R {}(0) => out-of-window
             > nothing
             < R {}(0) => challenged
             > . {ours}(0) ack {peers}
             event none",
            peers - 1,
            peers + 70_000,
            peers + 1,
        )
    });
}

/// Fourth check: a SYN is challenged, with or without an acknowledgment, whatever its number.
#[test]
fn rfc9293_3_10_7_4_a_syn_in_every_state() {
    for syn in ["S 0(0)", "S 5(0)", "S 90000(0)", "S. 0(0) ack 1"] {
        everywhere(|State { ours, peers, .. }| {
            format!(
                "< {syn} mss 1000 => challenged
                 > . {ours}(0) ack {peers}
                 event none"
            )
        });
    }
}

/// First check: what lies outside the window is answered by an acknowledgment.
#[test]
fn rfc9293_3_10_7_4_outside_the_window_in_every_state() {
    for beyond in [-2_000_000_000, -100, 70_000, 2_000_000_000] {
        everywhere(|State { ours, peers, .. }| {
            format!(
                "< . {}(20) ack 900000 => out-of-window
                 > . {ours}(0) ack {peers}
                 event none",
                i64::try_from(*peers).unwrap() + beyond,
            )
        });
    }
}

/// Fifth check: without an acknowledgment a segment is dropped, with one of nothing sent it is
/// answered.
#[test]
fn rfc9293_3_10_7_4_acknowledgments_in_every_state() {
    everywhere(|State { ours, peers, .. }| {
        format!(
            "< P {peers}(20) => malformed
             < F {peers}(0) => malformed
             > nothing
             < . {peers}(20) ack {} => bad-acknowledgment
             > . {ours}(0) ack {peers}
             event none",
            ours + 1,
        )
    });
}

/// Fifth check in FIN-WAIT-1, CLOSING and LAST-ACK: an acknowledgment of what was sent before the FIN
/// leads nowhere.
#[test]
fn rfc9293_3_10_7_4_an_acknowledgment_below_our_fin() {
    let waits_for_our_fin = |name: &str| ["FIN-WAIT-1", "CLOSING", "LAST-ACK"].contains(&name);
    in_states(waits_for_our_fin, |State { ours, peers, .. }| {
        format!(
            "< . {peers}(0) ack {} => accepted
             +0.02~0.03 > F. {}(0) ack {peers}    # the tail loss probe
             < . {peers}(0) ack {ours} => accepted
             +1 > nothing",
            ours - 1,
            ours - 1,
        )
    });
}

/// Seventh and eighth check: behind the peer's FIN there is neither text nor another FIN, whoever
/// sends them.
#[test]
fn rfc9293_3_10_7_4_text_behind_the_peers_fin() {
    let has_finished =
        |name: &str| ["CLOSE-WAIT", "CLOSING", "LAST-ACK", "TIME-WAIT"].contains(&name);
    in_states(has_finished, |State { ours, peers, .. }| {
        format!(
            "< F. {peers}(20) ack 1 => accepted
             < R {peers}(0) => accepted
             < . {peers}(0) ack {ours} => no-connection
             > R {ours}(0)",
        )
    });
}

/// Eighth check: the peer repeats its FIN, for it has not seen that we have it.
#[test]
fn rfc9293_3_10_7_4_a_repeated_fin() {
    let has_finished =
        |name: &str| ["CLOSE-WAIT", "CLOSING", "LAST-ACK", "TIME-WAIT"].contains(&name);
    in_states(has_finished, |State { ours, peers, .. }| {
        format!(
            "< F. {}(0) ack 1 => out-of-window
             > . {ours}(0) ack {peers}
             event none",
            peers - 1,
        )
    });
}

/// RFC 9293, 3.10.5: ABORT in CLOSE-WAIT, where the peer may still listen, sends a RST.
#[test]
fn rfc9293_3_10_5_abort_in_close_wait() {
    in_states(
        |name| name == "CLOSE-WAIT",
        |state| format!("abort\n> R. 1(0) ack 12\nevent closed local-aborted\n{}", gone(state)),
    );
}
