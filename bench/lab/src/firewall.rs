//! The firewall between the two sites: nftables rules over forwarded packets.
//!
//! Rules are always loaded as a whole, in one transaction, from a [`Policy`]: what a policy does
//! not say is let through.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};

use crate::command;
use crate::namespace::Namespace;
use crate::topology::SIDE_B;

/// Number of ports that [`Policy::mapped_from`] maps to.
pub const MAPPED: u16 = 100;

/// What the firewall does with packets between the sites.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// Drops UDP, so that neither IKE nor ESP in UDP passes.
    pub drop_udp: bool,
    /// Drops native ESP (IP protocol 50).
    pub drop_esp: bool,
    /// Drops TCP: a connection that stands is cut without a word.
    pub drop_tcp: bool,
    /// Answers each TCP segment with an RST in its receiver's name: a connection that stands is
    /// torn at both ends as soon as both have sent something.
    pub reset_tcp: bool,
    /// Rewrites side a's source addresses (IPv4) to the firewall's own towards side b.
    pub masquerade_a: bool,
    /// Where that is done, source ports become some of the [`MAPPED`] from this one on. With another
    /// number, [`Firewall::apply`] is a NAT that has lost its mappings and makes new ones.
    pub mapped_from: Option<u16>,
    /// Takes TCP connections from side a to port 4500 itself, and those that it makes to side a come
    /// from side b's gateway: a [`Relay`](crate::relay::Relay) on the firewall stands for that.
    pub intercept_tcp: bool,
}

impl Policy {
    /// The firewall of the demonstration: nothing but TCP passes.
    pub const TCP_ONLY: Self = Self {
        drop_udp: true,
        drop_esp: true,
        drop_tcp: false,
        reset_tcp: false,
        masquerade_a: false,
        mapped_from: None,
        intercept_tcp: false,
    };

    /// What happens to source addresses and ports, mostly side a's.
    fn translation(self, side_a: Ipv4Addr) -> String {
        if self.intercept_tcp {
            return format!("ip daddr {side_a}/24 tcp dport 4500 snat to {}", SIDE_B.outer.v4);
        }
        if !self.masquerade_a {
            return String::new();
        }
        let from_a = format!("ip saddr {side_a}/24 oifname \"b0\"");
        let ports = self.mapped_from.map(|first| {
            let last = first.saturating_add(MAPPED - 1);
            format!("{from_a} meta l4proto {{ tcp, udp }} masquerade to :{first}-{last}")
        });
        [ports.unwrap_or_default(), format!("{from_a} masquerade")].join("\n        ")
    }

    fn rules(self, side_a: Ipv4Addr) -> String {
        let rule = |on: bool, text: &'static str| if on { text } else { "" };
        format!(
            "flush ruleset
table inet lab {{
    counter udp_dropped {{ }}
    counter esp_dropped {{ }}
    counter tcp_dropped {{ }}
    counter tcp_reset {{ }}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        {}
        {}
        {}
        {}
    }}
    chain prerouting {{
        type nat hook prerouting priority dstnat; policy accept;
        {}
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        {}
    }}
}}
",
            rule(self.drop_udp, "meta l4proto udp counter name udp_dropped drop"),
            rule(self.drop_esp, "meta l4proto esp counter name esp_dropped drop"),
            rule(self.drop_tcp, "meta l4proto tcp counter name tcp_dropped drop"),
            rule(self.reset_tcp, "meta l4proto tcp counter name tcp_reset reject with tcp reset"),
            rule(self.intercept_tcp, "iifname \"a0\" tcp dport 4500 redirect"),
            self.translation(side_a),
        )
    }
}

/// The firewall's namespace and its rules. Interface `a0` is towards side a, `b0` towards side b.
#[derive(Debug)]
pub struct Firewall {
    /// The namespace it routes in.
    pub namespace: Namespace,
    side_a: Ipv4Addr,
}

impl Firewall {
    pub(crate) fn new(namespace: Namespace, side_a: Ipv4Addr) -> Self {
        Self { namespace, side_a }
    }

    /// Replaces all rules by those of `policy`, and forgets every flow, so that no old decision or
    /// address translation lives on.
    pub fn apply(&self, policy: Policy) -> Result<()> {
        self.relax(policy)?;
        self.namespace.run("conntrack -F").map(drop)
    }

    /// The same, but what flows goes on as it is: an address translation that is forgotten under a TCP
    /// connection makes the router itself reset it.
    pub fn relax(&self, policy: Policy) -> Result<()> {
        let mut command = self.namespace.command("nft");
        command.args(["-f", "-"]);
        command::succeed(command, &policy.rules(self.side_a)).map(drop)
    }

    /// Packets that the named rule has met since the rules were loaded: `udp_dropped`,
    /// `esp_dropped`, `tcp_dropped` or `tcp_reset`.
    pub fn count(&self, counter: &str) -> Result<u64> {
        let text = self.namespace.run(&format!("nft -j list counter inet lab {counter}"))?;
        let json: serde_json::Value = serde_json::from_str(&text)?;
        json["nftables"]
            .as_array()
            .and_then(|rows| rows.iter().find_map(|row| row["counter"]["packets"].as_u64()))
            .with_context(|| format!("no counter {counter} in {text}"))
    }
}
