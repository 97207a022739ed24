"""Run one cache simulator over a trace; prints one JSON object a policy.

    python peer.py NAME TRACE CAPACITY

Runs in the peer's own environment, so it may import nothing of youngbit. TRACE
is oracleGeneral: 24 bytes a request, little-endian `u4 time, u8 id, u4 size,
i8 next`, every size 1.
"""

from __future__ import annotations

import json
import struct
import sys
import time
from importlib.metadata import version
from pathlib import Path


def ids(path: str) -> list[int]:
    """Identifiers of the requests."""
    return [record[1] for record in struct.iter_unpack("<IQIq", Path(path).read_bytes())]


def libcachesim(path: str, capacity: int):
    """Native, driven natively: the trace is read and simulated in C."""
    import libcachesim as lcs

    # Its default table is for 16 million objects, and slower for fewer.
    options = {"hashpower": max(10, capacity.bit_length())}
    requests = lcs.TraceReader(path, lcs.TraceType.ORACLE_GENERAL_TRACE).get_num_of_req()
    for name in ("LRU", "Clock", "ARC", "S3FIFO", "Sieve"):

        def run(name: str = name) -> int:
            reader = lcs.TraceReader(path, lcs.TraceType.ORACLE_GENERAL_TRACE)
            ratio, _ = getattr(lcs, name)(capacity, **options).process_trace(reader)
            return round(ratio * requests)

        yield name, requests, run


def _dictionary(path: str, capacity: int, kinds: dict[str, type]):
    """A container, driven by a loop in Python: what its users do."""
    requests = ids(path)
    for name, kind in kinds.items():

        def run(kind: type = kind) -> int:
            cache = kind(capacity)
            misses = 0
            for request in requests:
                if cache.get(request) is None:
                    misses += 1
                    cache[request] = True
            return misses

        yield name, len(requests), run


def cachetools(path: str, capacity: int):
    """Python."""
    import cachetools as ct

    return _dictionary(path, capacity, {"LRU": ct.LRUCache, "FIFO": ct.FIFOCache})


def cachebox(path: str, capacity: int):
    """Native, driven from Python."""
    import cachebox as cb

    return _dictionary(path, capacity, {"LRU": cb.LRUCache, "FIFO": cb.FIFOCache})


PEERS = {"libcachesim": libcachesim, "cachetools": cachetools, "cachebox": cachebox}


def main() -> None:
    """Run each policy twice; the second time is told, for caches are warm then."""
    name, path, capacity = sys.argv[1], sys.argv[2], int(sys.argv[3])
    for policy, requests, run in PEERS[name](path, capacity):
        times, found = [], []
        for _ in range(2):
            start = time.perf_counter()
            found.append(run())
            times.append(time.perf_counter() - start)
        if len(set(found)) != 1:
            raise SystemExit(f"{name} {policy}: {found} misses in two runs of one trace")
        print(
            json.dumps(
                {
                    "peer": name,
                    "version": version(name),
                    "policy": policy,
                    "requests": requests,
                    "misses": found[0],
                    "seconds": min(times),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
