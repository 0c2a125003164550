/* What culvert needs of DPDK: the headers bindgen reads, and out-of-line names for the functions
 * that DPDK only has as static inlines. Each shim function does what the one named after the
 * prefix does; nothing is decided here. */
#ifndef CULVERT_DPDK_SHIM_H
#define CULVERT_DPDK_SHIM_H

#include <rte_cycles.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_launch.h>
#include <rte_lcore.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_version.h>

/* A thread-local variable of DPDK, which Rust cannot name. */
int culvert_rte_errno(void);
uint64_t culvert_rte_rdtsc(void);

struct rte_mbuf *culvert_rte_pktmbuf_alloc(struct rte_mempool *pool);
int culvert_rte_pktmbuf_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **mbufs,
                                   unsigned int count);
void culvert_rte_pktmbuf_free(struct rte_mbuf *m);
int culvert_rte_pktmbuf_linearize(struct rte_mbuf *m);
int culvert_rte_pktmbuf_chain(struct rte_mbuf *head, struct rte_mbuf *tail);

uint16_t culvert_rte_eth_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs,
                                  uint16_t count);
uint16_t culvert_rte_eth_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs,
                                  uint16_t count);
uint16_t culvert_rte_eth_tx_prepare(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs,
                                    uint16_t count);

/* Constants that are macros with casts, which bindgen does not evaluate. */
#define CULVERT_CONST(name) static const uint64_t CULVERT_##name = (name)
CULVERT_CONST(RTE_MBUF_F_EXTERNAL);
CULVERT_CONST(RTE_MBUF_F_INDIRECT);
CULVERT_CONST(RTE_MBUF_F_RX_RSS_HASH);
CULVERT_CONST(RTE_MBUF_F_RX_IP_CKSUM_MASK);
CULVERT_CONST(RTE_MBUF_F_RX_IP_CKSUM_BAD);
CULVERT_CONST(RTE_MBUF_F_RX_IP_CKSUM_GOOD);
CULVERT_CONST(RTE_MBUF_F_RX_L4_CKSUM_MASK);
CULVERT_CONST(RTE_MBUF_F_RX_L4_CKSUM_BAD);
CULVERT_CONST(RTE_MBUF_F_RX_L4_CKSUM_GOOD);
CULVERT_CONST(RTE_MBUF_F_RX_L4_CKSUM_NONE);
CULVERT_CONST(RTE_MBUF_F_TX_IPV4);
CULVERT_CONST(RTE_MBUF_F_TX_IPV6);
CULVERT_CONST(RTE_MBUF_F_TX_IP_CKSUM);
CULVERT_CONST(RTE_MBUF_F_TX_TCP_CKSUM);
CULVERT_CONST(RTE_MBUF_F_TX_UDP_CKSUM);
CULVERT_CONST(RTE_MBUF_F_TX_L4_MASK);
CULVERT_CONST(RTE_MBUF_F_TX_TCP_SEG);
CULVERT_CONST(RTE_ETH_RX_OFFLOAD_IPV4_CKSUM);
CULVERT_CONST(RTE_ETH_RX_OFFLOAD_TCP_CKSUM);
CULVERT_CONST(RTE_ETH_RX_OFFLOAD_UDP_CKSUM);
CULVERT_CONST(RTE_ETH_RX_OFFLOAD_SCATTER);
CULVERT_CONST(RTE_ETH_RX_OFFLOAD_TCP_LRO);
CULVERT_CONST(RTE_ETH_RX_OFFLOAD_RSS_HASH);
CULVERT_CONST(RTE_ETH_TX_OFFLOAD_IPV4_CKSUM);
CULVERT_CONST(RTE_ETH_TX_OFFLOAD_TCP_CKSUM);
CULVERT_CONST(RTE_ETH_TX_OFFLOAD_UDP_CKSUM);
CULVERT_CONST(RTE_ETH_TX_OFFLOAD_TCP_TSO);
CULVERT_CONST(RTE_ETH_TX_OFFLOAD_MULTI_SEGS);
CULVERT_CONST(RTE_ETH_RSS_IP);
CULVERT_CONST(RTE_ETH_RSS_TCP);
CULVERT_CONST(RTE_ETH_RSS_UDP);

#endif
