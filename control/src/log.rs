//! What is logged of whom, changeable while the gateway runs.
//!
//! The specification of `--log` holds for all of the process. Beside it a connection or a peer may
//! have a level of its own: its lines are written or left out by that level alone. Who has one is
//! looked up only when there is any.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

/// Target of lines about one peer. The filter lets all of them through: whether one is written was
/// decided here.
pub const PEER: &str = "peer";
/// What takes a level of its own away.
pub const DEFAULT: &str = "default";
/// Most connections and peers with a level of their own.
const OWN_MAX: usize = 1024;

/// The levels there are.
const LEVELS: &str = "there are off, error, warn, info, debug and trace";

/// Why a level was not set.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// It is no specification.
    #[error(
        "{text:?} cannot be understood: write a level, or as in info,culvert_ike=debug ({cause})"
    )]
    Specification {
        /// What was asked for.
        text: String,
        /// What is wrong with it.
        cause: String,
    },
    /// It is no level.
    #[error(
        "{0:?} is no level: off, error, warn, info, debug, trace, or default for none of its own"
    )]
    Level(String),
    /// Too many have levels of their own.
    #[error("{OWN_MAX} connections and peers have a level of their own already")]
    TooMany,
}

/// Sets the filter of the whole process.
pub type SetFilter = Box<dyn Fn(EnvFilter) -> Result<(), String>>;

/// A connection, or a peer by its identity or address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Scope {
    /// By its name.
    Connection(String),
    /// By its identity or its address.
    Peer(String),
}

/// The filter of a specification, which lets through what was decided here.
///
/// # Errors
/// It is none.
pub fn filter(text: &str) -> Result<EnvFilter, LogError> {
    let wrong = |cause: String| LogError::Specification { text: text.to_owned(), cause };
    // The library takes a lone word that is no level for a module, of which all is written, and
    // nothing of any other: one slip would silence the log.
    let is_level = |word: &str| word.parse::<LevelFilter>().is_ok();
    let mut words = text.split(',').map(str::trim).filter(|word| !word.contains(['=', '[']));
    if let Some(word) = words.find(|word| !is_level(word)) {
        return Err(wrong(format!("no level is called {word:?}: {LEVELS}")));
    }
    let filter = EnvFilter::try_new(text).map_err(|error| wrong(error.to_string()))?;
    let all = format!("{PEER}=trace").parse();
    let all =
        all.map_err(|error: tracing_subscriber::filter::ParseError| wrong(error.to_string()))?;
    Ok(filter.add_directive(all))
}

/// The levels.
pub struct Log {
    set: SetFilter,
    all: String,
    own: BTreeMap<Scope, LevelFilter>,
}

impl Log {
    /// With the specification in force, and a way to set another.
    #[must_use]
    pub fn new(all: &str, set: SetFilter) -> Self {
        Self { set, all: all.to_owned(), own: BTreeMap::new() }
    }

    /// The specification for all, and the levels of those that have their own.
    pub fn levels(&self) -> (&str, impl Iterator<Item = (&Scope, LevelFilter)>) {
        (&self.all, self.own.iter().map(|(scope, level)| (scope, *level)))
    }

    /// Sets the specification for all.
    ///
    /// # Errors
    /// It is none.
    pub fn set_all(&mut self, text: &str) -> Result<(), LogError> {
        // The library takes an empty one for "error".
        if text.split(',').all(|word| word.trim().is_empty()) {
            let cause = format!("no level is named: {LEVELS}");
            return Err(LogError::Specification { text: text.to_owned(), cause });
        }
        let set = (self.set)(filter(text)?);
        set.map_err(|cause| LogError::Specification { text: text.to_owned(), cause })?;
        text.clone_into(&mut self.all);
        Ok(())
    }

    /// Gives a connection or peer a level of its own, or takes it away (`default`).
    ///
    /// # Errors
    /// There is no such level, or too many have their own.
    pub fn set_own(&mut self, scope: Scope, level: &str) -> Result<(), LogError> {
        if level == DEFAULT {
            self.own.remove(&scope);
            return Ok(());
        }
        let known = level.parse().ok().filter(|_| !level.is_empty());
        let level = known.ok_or_else(|| LogError::Level(level.to_owned()))?;
        if self.own.len() >= OWN_MAX && !self.own.contains_key(&scope) {
            return Err(LogError::TooMany);
        }
        self.own.insert(scope, level);
        Ok(())
    }

    /// Whether a connection or peer has been given a level of its own.
    #[must_use]
    pub fn is_set(&self, scope: &Scope) -> bool {
        self.own.contains_key(scope)
    }

    /// Whether any line of this level may be written: if not, nobody needs to find out whose it is.
    #[must_use]
    pub fn may_write(&self, level: Level) -> bool {
        enabled(level) || self.own.values().any(|own| level <= *own)
    }

    /// Whether a line of this level is written of a peer: of several levels the peer's own counts,
    /// by identity or address, before the connection's, before that of all.
    #[must_use]
    pub fn writes(
        &self,
        level: Level,
        connection: Option<&str>,
        peer: Option<(&str, IpAddr)>,
    ) -> bool {
        self.own(connection, peer).map_or_else(|| enabled(level), |own| level <= *own)
    }

    /// Whether a peer or its connection has a level of its own.
    #[must_use]
    pub fn has_own(&self, connection: Option<&str>, peer: Option<(&str, IpAddr)>) -> bool {
        self.own(connection, peer).is_some()
    }

    fn own(&self, connection: Option<&str>, peer: Option<(&str, IpAddr)>) -> Option<&LevelFilter> {
        if self.own.is_empty() {
            return None;
        }
        let own = |scope| self.own.get(&scope);
        let of_peer = || {
            let (id, address) = peer?;
            own(Scope::Peer(id.to_owned())).or_else(|| own(Scope::Peer(address.to_string())))
        };
        of_peer().or_else(|| own(Scope::Connection(connection?.to_owned())))
    }
}

/// Whether the process's filter lets lines of this level through.
fn enabled(level: Level) -> bool {
    match level {
        Level::ERROR => tracing::enabled!(Level::ERROR),
        Level::WARN => tracing::enabled!(Level::WARN),
        Level::INFO => tracing::enabled!(Level::INFO),
        Level::DEBUG => tracing::enabled!(Level::DEBUG),
        _ => tracing::enabled!(Level::TRACE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> Log {
        Log::new("info", Box::new(|_| Ok(())))
    }

    #[test]
    fn the_peer_s_own_level_counts_before_the_connection_s() {
        let mut log = log();
        let address = "192.0.2.2".parse().expect("an address");
        let writes =
            |log: &Log| log.writes(Level::DEBUG, Some("branch"), Some(("b.example", address)));
        assert!(!writes(&log), "nothing is on in this test");
        log.set_own(Scope::Connection("branch".into()), "debug").expect("set");
        assert!(writes(&log) && log.may_write(Level::DEBUG));
        assert!(!log.writes(Level::DEBUG, Some("other"), None));
        log.set_own(Scope::Peer("192.0.2.2".into()), "warn").expect("set");
        assert!(!writes(&log), "by its address");
        log.set_own(Scope::Peer("b.example".into()), "trace").expect("set");
        assert!(writes(&log), "its identity says more");
        for peer in ["192.0.2.2", "b.example"] {
            log.set_own(Scope::Peer(peer.into()), "default").expect("set");
        }
        log.set_own(Scope::Connection("branch".into()), "default").expect("set");
        assert!(!writes(&log) && !log.may_write(Level::ERROR));
    }

    #[test]
    fn what_is_no_level_is_refused() {
        let mut log = log();
        let refused =
            log.set_own(Scope::Connection("branch".into()), "loud").expect_err("no level");
        assert!(refused.to_string().starts_with("\"loud\" is no level: off, error"), "{refused}");
        let refused = log.set_all("culvert_ike=loud").expect_err("no specification");
        assert!(refused.to_string().starts_with("\"culvert_ike=loud\" cannot"), "{refused}");
        let refused = log.set_all("info,loud").expect_err("no level");
        let ends =
            "(no level is called \"loud\": there are off, error, warn, info, debug and trace)";
        assert!(refused.to_string().ends_with(ends), "{refused}");
        // The library takes these for "error".
        for empty in ["", " ", ","] {
            let refused = log.set_all(empty).expect_err("nothing is said").to_string();
            assert!(refused.contains("cannot be understood: write a level"), "{refused}");
        }
        let refused = log.set_own(Scope::Connection("branch".into()), "").expect_err("no level");
        assert!(refused.to_string().starts_with("\"\" is no level: off, error"), "{refused}");
        assert_eq!(log.levels().0, "info");
        for good in ["warn", "info,culvert_ike=debug", "off,culvert_control[{ike}]=trace"] {
            log.set_all(good).expect(good);
        }
        log.set_all("info").expect("a level");
        for number in 0..OWN_MAX {
            log.set_own(Scope::Peer(number.to_string()), "info").expect("room");
        }
        let full = log.set_own(Scope::Peer("one more".into()), "info");
        assert!(matches!(full, Err(LogError::TooMany)));
        log.set_own(Scope::Peer("7".into()), "debug").expect("it has one already");
    }
}
