#!/usr/bin/env python3
"""Writes transport_mode.vectors: ESP in transport mode (RFC 4303, 3.1.1) as scapy makes it.

    /usr/bin/python3 transport_mode_vectors.py > transport_mode.vectors

Needs Debian's python3-scapy. Addresses, keys, SPIs and the flow label are those of the tests' fixture;
the IV is the 64-bit sequence number, as RFC 4106, 3.1 allows. Each line has a direction, what carries
ESP, a packet that is given to the gateway, and the packet that it has to make of it, one hop further.
"""

from scapy import VERSION
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import ESP, SecurityAssociation

KEY_IN, KEY_OUT = bytes([0x11] * 20), bytes([0x22] * 20)
SPI_IN, SPI_OUT = 0x12345600, 0xDEADBEEF
LABEL = 1
ENDS = {IP: ("192.0.2.1", "192.0.2.7"), IPv6: ("2001:db8::1", "2001:db8::7")}


def header(family, source, destination, hops, number=0x4321, label=0x54321):
    if family is IP:
        return IP(src=source, dst=destination, ttl=hops, id=number, flags="DF", tos=0x48)
    return IPv6(src=source, dst=destination, hlim=hops, fl=label, tc=0x48)


def payloads(family):
    # Every length of padding, and an empty datagram.
    for length in (0, 1, 2, 3, 900):
        yield UDP(sport=1701, dport=1702) / bytes([length % 251] * length)
    yield TCP(sport=40000, dport=80, seq=7, ack=9, flags="PA") / b"GET / HTTP/1.0\r\n\r\n"
    if family is IP:
        yield ICMP(id=1, seq=2) / b"echo"


def sealed(packet, spi, key, udp):
    encapsulation = UDP(sport=4500, dport=4500) if udp else None
    association = SecurityAssociation(
        ESP, spi=spi, crypt_algo="AES-GCM", crypt_key=key, esn_en=True, nat_t_header=encapsulation
    )
    packet = association.encrypt(packet, seq_num=1, iv=(1).to_bytes(8, "big"))
    if udp:
        # scapy counts the header alone.
        packet[UDP].len = len(packet[UDP])
    return packet


def vectors():
    for family, (own, other) in ENDS.items():
        # scapy knows the encapsulation over IPv4 only.
        for udp in (False, True) if family is IP else (False,):
            for payload in payloads(family):
                kind = "udp" if udp else "native"
                given = header(family, own, other, 64) / payload
                # What must not be cut needs no number (RFC 6864, 4.1): the gateway writes none. The
                # flow label is that of the SAs (RFC 6438, 3).
                passed = header(family, own, other, 63, 0, LABEL) / payload
                out = sealed(passed, SPI_OUT, KEY_OUT, udp)
                yield "out", kind, bytes(given).hex(), bytes(out).hex()
                into = sealed(header(family, other, own, 64) / payload, SPI_IN, KEY_IN, udp)
                passed = header(family, other, own, 63, 0, 0) / payload
                yield "in", kind, bytes(into).hex(), bytes(passed).hex()


print(f"# Made by transport_mode_vectors.py with scapy {VERSION}.")
for vector in vectors():
    print(*vector)
