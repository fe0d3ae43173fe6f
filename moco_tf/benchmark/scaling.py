"""A model of how a step's time grows with the number of ranks at fixed work for each: compute, then exchanges.

    T(n) = crowding(n) x ( compute + sum over collectives of ( calls x exchange_ms + time on the links ) )

Nothing overlaps: the keys wait for the shuffle, and gradients are sent when the last of them is there. On the links a
rank sends what `counting.sent` counts. A ring (allreduce, allgather) leaves each host once and goes at the speed of its
slowest link; in an alltoall each of a host's h ranks sends (n - h) / n of its images through the host's one link.
docs/scaling.md compares it with measurements.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping

from moco_tf.training.counting import sent


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Machines that are alike.

    ranks_per_host: h. local_gbps: of each rank's link inside a host, in 1e9 bits a second. link_gbps: of a host's link
    to the others. exchange_ms: until an exchange of no bytes is done: Horovod's cycle and the ranks' agreement.
    cores: that a host's ranks share, of which each wants `threads`; infinitely many where each rank has a GPU.
    """

    ranks_per_host: int = 8
    local_gbps: float = 400.0
    link_gbps: float = 100.0
    exchange_ms: float = 1.0
    cores: float = math.inf
    threads: int = 1

    def crowding(self, ranks: int) -> float:
        """How many times as long a rank takes as with cores of its own, for exchanges, too: Gloo's are CPU work."""
        return max(1.0, min(ranks, self.ranks_per_host) * self.threads / self.cores)

    def link_seconds(self, collective: str, given: int, ranks: int) -> float:
        """Seconds for what leaves a rank that hands `given` bytes to a collective, see `sent`."""
        bits, here = 8 * sent(collective, given, ranks), min(ranks, self.ranks_per_host)
        local, link = 1e9 * self.local_gbps, 1e9 * self.link_gbps
        if here == ranks:
            return bits / local
        if collective != "alltoall":
            return bits / min(local, link)
        away = (ranks - here) / max(1, ranks - 1)  # of a rank's n - 1 receivers
        return max(bits * (1 - away) / local, bits * away * here / link)

    def exchange_seconds(self, collectives: Mapping[str, Mapping[str, int]], ranks: int) -> float:
        """Seconds for all exchanges of a step, {name: {"calls", "bytes"}} as bench counts them; 0 of one rank."""
        if ranks == 1:
            return 0.0
        return sum(
            each["calls"] * self.exchange_ms / 1000 + self.link_seconds(name, each["bytes"], ranks)
            for name, each in collectives.items()
        )


def compute_seconds(
    step_seconds: float, collectives: Mapping[str, Mapping[str, int]], ranks: int, cluster: Cluster
) -> float:
    """What of a step that so many ranks took is a rank's own work, had it cores of its own."""
    return max(0.0, step_seconds / cluster.crowding(ranks) - cluster.exchange_seconds(collectives, ranks))


def predict(
    compute: float,
    collectives: Mapping[str, Mapping[str, int]],
    batch: int,
    ranks: Iterable[int],
    cluster: Cluster,
) -> list[dict[str, float]]:
    """For each number of ranks {"ranks", "step_ms", "exchange_ms", "images_per_second", "efficiency"}.

    Args:
        compute: seconds of a rank's own work in a step, with cores of its own.
        collectives: calls and bytes of each in a step of one rank, the same for any number of them.
        batch: images of a rank.
        ranks: numbers of them.
        cluster: what they run on.

    efficiency is the images a second over those of as many ranks that need no exchange and share nothing.
    """
    rows = []
    for n in ranks:
        exchange = cluster.crowding(n) * cluster.exchange_seconds(collectives, n)
        step = cluster.crowding(n) * compute + exchange
        row = {"ranks": n, "step_ms": 1000 * step, "exchange_ms": 1000 * exchange}
        rows.append(row | {"images_per_second": n * batch / step, "efficiency": compute / step})
    return rows
