"""A result in the JSON of fio, for what reads that.

Field names are those of fio 3 (`--output-format=json+` documents them in its HOWTO).
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import fdstash
from fdstash.bench.io import IoResult
from fdstash.bench.latency import Latency

__all__ = ["as_fio"]

_PERCENTILES = (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99, 99.5, 99.9, 99.95, 99.99)
_LADDER = (2, 4, 10, 20, 50, 100, 250, 500, 750, 1000)
_MS_LADDER = (*_LADDER, 2000)


def as_fio(result: IoResult) -> dict[str, Any]:
    """One job, as with `group_reporting`; beside fio's fields, `fdstash` has ours."""
    settings = result.settings
    both = Latency.sum_of(result.found.latency[times] for times in ("READ_DUE", "WRITE_DUE"))
    user, system = (100 * part / result.seconds if result.seconds else 0.0 for part in result.cpu)
    options = {
        "name": "fdstash",
        "filename": str(result.image["path"]),
        "rw": settings.rw,
        "bs": str(settings.block_bytes),
        "iodepth": str(settings.depth),
        "numjobs": str(settings.jobs),
        "ioengine": settings.engine,
        "direct": str(int(settings.cache in ("none", "directsync"))),
        "rwmixread": str(settings.read_percent),
        "fsync": str(settings.fsync),
    }
    job = {
        "jobname": "fdstash",
        "groupid": 0,
        "error": next((-t.error for t in result.found.totals if t.failed), 0),
        "eta": 0,
        "elapsed": max(1, round(result.seconds)),
        "job options": options,
        "read": _direction(result, 0),
        "write": _direction(result, 1),
        "trim": _direction(result, None),
        "sync": {
            "total_ios": result.found.flushes,
            "lat_ns": _stats(result.found.latency["FLUSH"]),
        },
        "job_runtime": round(1000 * result.seconds),
        "usr_cpu": user,
        "sys_cpu": system,
        "ctx": 0,
        "majf": 0,
        "minf": 0,
        "iodepth_level": {str(settings.depth): 100.0},
        "latency_ns": _shares(both, 1, _LADDER),
        "latency_us": _shares(both, 1000, _LADDER),
        "latency_ms": _shares(both, 1_000_000, _MS_LADDER),
    }
    return {
        "fio version": f"fdstash-{fdstash.__version__}",
        "timestamp": int(result.started),
        "timestamp_ms": int(1000 * result.started),
        "time": time.ctime(result.started),
        "global options": {},
        "jobs": [job],
        "fdstash": _ours(result),
    }


def _ours(result: IoResult) -> dict[str, Any]:
    marked, placebo = result.found.latency["MARKED"], result.found.latency["PLACEBO"]
    return {
        "engine": result.engine,
        "image": result.image,
        "failed_requests": result.found.failed,
        "wrong_blocks": result.found.wrong,
        "verified": result.settings.verify,
        "reopens": len(result.reopen_ns),
        "failed_reopens": result.failed_reopens,
        "reopen_ns": sorted(result.reopen_ns),
        "in_flight": len(marked),
        "in_flight_p999_ns": marked.percentile(99.9),
        "placebo": len(placebo),
        "placebo_p999_ns": placebo.percentile(99.9),
        "messages": result.messages,
    }


def _direction(result: IoResult, write: int | None) -> dict[str, Any]:
    percentiles: dict[str, Any] = {}
    if write is None:
        due = service = Latency.sum_of(())
        count = moved = 0
    else:
        name = ("READ", "WRITE")[write]
        due, service = result.found.latency[f"{name}_DUE"], result.found.latency[name]
        count, moved = result.requests[write], result.found.bytes[write]
        told = {f"{p:.6f}": service.percentile(p) for p in _PERCENTILES}
        percentiles = {"percentile": told}
    seconds = result.seconds or 1
    rates = _rates(result, count)
    mean_bw = moved / seconds / 1024
    per_request = moved / count / 1024 if count else 0.0
    return {
        "io_bytes": moved,
        "io_kbytes": moved >> 10,
        "bw_bytes": int(moved / seconds),
        "bw": int(mean_bw),
        "iops": count / seconds,
        "runtime": round(1000 * result.seconds) if count else 0,
        "total_ios": count,
        "short_ios": 0,
        "drop_ios": 0,
        "slat_ns": _stats(Latency.sum_of(())),
        "clat_ns": _stats(service) | percentiles,
        "lat_ns": _stats(due),
        "bw_min": int(rates[0] * per_request),
        "bw_max": int(rates[1] * per_request),
        "bw_agg": 100.0 if count else 0.0,
        "bw_mean": mean_bw,
        "bw_dev": rates[2] * per_request,
        "bw_samples": rates[3],
        "iops_min": int(rates[0]),
        "iops_max": int(rates[1]),
        "iops_mean": count / seconds,
        "iops_stddev": rates[2],
        "iops_samples": rates[3],
    }


def _stats(latency: Latency) -> dict[str, Any]:
    return {
        "min": latency.smallest,
        "max": latency.largest,
        "mean": latency.mean,
        "stddev": latency.deviation,
        "N": len(latency),
    }


def _rates(result: IoResult, count: int) -> tuple[float, float, float, int]:
    """Requests a second, over stretches of time: least, most, deviation, how many stretches.

    Stretches count both kinds; a kind has its share of them.
    """
    every = sum(result.requests)
    if not count or len(result.found.intervals) < 3:
        return 0, 0, 0, 0
    # The last stretch is not a whole one.
    starts = [each.start_ns for each in result.found.intervals]
    width = min(b - a for a, b in pairwise(starts) if b > a) / 1e9
    share = count / every
    rates = [share * each.requests / width for each in result.found.intervals[:-1]]
    mean = sum(rates) / len(rates)
    deviation = (sum((rate - mean) ** 2 for rate in rates) / len(rates)) ** 0.5
    return min(rates), max(rates), deviation, len(rates)


def _shares(latency: Latency, unit: int, ladder: tuple[int, ...]) -> dict[str, float]:
    """Percentages of all requests: below each step, and not below the one before."""
    total = len(latency) or 1
    lowest = 0 if unit == 1 else unit
    shares: dict[str, float] = {}
    before = latency.below(lowest)
    for step in ladder:
        until = latency.below(step * unit)
        shares[str(step)] = 100 * max(0, until - before) / total
        before = max(before, until)
    if unit == 1_000_000:
        shares[">=2000"] = 100 * (len(latency) - before) / total
    return shares
