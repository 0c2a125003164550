#include "shim.h"

int culvert_rte_errno(void) { return rte_errno; }
uint64_t culvert_rte_rdtsc(void) { return rte_rdtsc(); }

struct rte_mbuf *culvert_rte_pktmbuf_alloc(struct rte_mempool *pool) {
    return rte_pktmbuf_alloc(pool);
}

int culvert_rte_pktmbuf_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **mbufs,
                                   unsigned int count) {
    return rte_pktmbuf_alloc_bulk(pool, mbufs, count);
}

void culvert_rte_pktmbuf_free(struct rte_mbuf *m) { rte_pktmbuf_free(m); }

int culvert_rte_pktmbuf_linearize(struct rte_mbuf *m) { return rte_pktmbuf_linearize(m); }

int culvert_rte_pktmbuf_chain(struct rte_mbuf *head, struct rte_mbuf *tail) {
    return rte_pktmbuf_chain(head, tail);
}

uint16_t culvert_rte_eth_rx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs,
                                  uint16_t count) {
    return rte_eth_rx_burst(port, queue, mbufs, count);
}

uint16_t culvert_rte_eth_tx_burst(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs,
                                  uint16_t count) {
    return rte_eth_tx_burst(port, queue, mbufs, count);
}

uint16_t culvert_rte_eth_tx_prepare(uint16_t port, uint16_t queue, struct rte_mbuf **mbufs,
                                    uint16_t count) {
    return rte_eth_tx_prepare(port, queue, mbufs, count);
}
