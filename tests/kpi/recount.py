#!/usr/bin/env python3
"""Counts the KPIs again, from system_resilience.log and the files that it was rotated to.

usage: recount.py LOG --since RFC3339 --until RFC3339 [--through ID]

Shares nothing with Upright but the records and docs/KPI.md. Where the daemon folds hour by hour, this holds
all of history in memory and asks one question after the other. Prints one JSON object.

Refuses: records that come twice or never. A gap in the ids is an error, exit 1.
"""

import argparse
import bz2
import datetime
import gzip
import json
import lzma
import math
import pathlib
import sys

ACTIONS = {"start", "stop", "restart", "reload", "clear", "resync", "signal"}


def micros(text):
    at = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    return (at - epoch) // datetime.timedelta(microseconds=1)


def records_of(log):
    openers = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
    found = {}
    for path in sorted(log.parent.glob(log.name + "*")):
        opener = openers.get(path.suffix, open)
        with opener(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                if line.endswith("\n"):
                    record = json.loads(line)
                    if record["id"] in found:
                        sys.exit(f"record {record['id']} stands there twice")
                    found[record["id"]] = record
    history = [found[number] for number in sorted(found)]
    for before, after in zip(history, history[1:]):
        if after["id"] != before["id"] + 1:
            sys.exit(f"nothing between the records {before['id']} and {after['id']}")
    return history


def field(record, key, default=None):
    """What belongs to an event stands beside the fields of every event."""
    return record.get(key, record.get("data", {}).get(key, default))


class Outage:
    def __init__(self, unit, begin):
        self.unit, self.begin, self.end, self.helped = unit, begin, None, None
        self.drill = bool(field(begin, "drill"))


def outages_of(history):
    """Every outage, and for each record the one that was open of its unit when it was made."""
    every, opened, during = [], {}, {}
    for record in history:
        unit, event = record.get("unit"), record["event"]
        if event == "unit.failed" and field(record, "detect_us") is not None and unit not in opened:
            opened[unit] = Outage(unit, record)
            every.append(opened[unit])
        during[record["id"]] = opened.get(unit)
        if event == "order.asked" and field(record, "verb") in ACTIONS and not field(record, "drill"):
            touched = [opened[name] for name in field(record, "units", []) if name in opened]
            during[record["id"]] = touched
            for outage in touched:
                outage.helped = outage.helped or record
        if event == "unit.gave_up" and unit in opened:
            opened[unit].helped = opened[unit].helped or record
        over = event == "unit.recovered" or field(record, "state") in ("active", "degraded", "inactive")
        if over and unit in opened:
            opened.pop(unit).end = record
    return every, during


def to_three_digits(us):
    step = 10 ** max(len(str(us)) - 3, 0)
    return (us + step // 2) // step * step


def times(samples):
    if not samples:
        return {"count": 0, "mean": None, "p50": None, "p95": None, "p99": None, "max": None}
    samples = sorted(samples)

    def at(per_mille):
        rank = max(math.ceil(len(samples) * per_mille / 1000), 1)
        return min(to_three_digits(samples[rank - 1]), samples[-1]) / 1e6

    mean = sum(samples) / len(samples) / 1e6
    return {
        "count": len(samples), "mean": mean, "p50": at(500), "p95": at(950), "p99": at(990),
        "max": samples[-1] / 1e6,
    }


def share(part, whole):
    return part / whole if whole else None


def state_times(history, since, until):
    """Wall time in each state; a clock that is set in between spoils it, which no test here does."""
    spans, current, before = {}, {}, None
    for record in history:
        ts = micros(record["ts"])
        fresh = record["event"] == "daemon.started"
        if fresh or record["event"] in ("engine.restarted", "engine.replaced", "keeper.restarted"):
            end = before if fresh and before is not None else ts
            for unit, (state, begin) in list(current.items()):
                spans.setdefault(unit, []).append((state, begin, end))
                current[unit] = ("inactive", ts)
        state, unit = field(record, "state"), record.get("unit")
        if unit and state:
            if unit in current:
                spans.setdefault(unit, []).append((*current[unit], ts))
            current[unit] = (state, ts)
        before = ts
    for unit, (state, begin) in current.items():
        spans.setdefault(unit, []).append((state, begin, until))
    sums = {}
    for unit, of_unit in spans.items():
        for state, begin, end in of_unit:
            length = min(end, until) - max(begin, since)
            if length > 0:
                sums.setdefault(unit, {}).setdefault(state, 0)
                sums[unit][state] += length / 1e6
    return sums


def figures(history, within, realm):
    """`realm`: True = drill, False = real, None = both."""
    outages, during = outages_of(history)

    def mine(drill):
        return realm is None or realm == bool(drill)

    def pick(event):
        return [r for r in history if r["event"] == event and within(r)]

    def of_outage(record):
        outage = during[record["id"]]
        return outage.drill if outage else field(record, "drill")

    failed = [r for r in pick("unit.failed") if mine(field(r, "drill"))]
    recovered = [r for r in pick("unit.recovered") if mine(of_outage(r))]
    alone = [r for r in recovered if not (during[r["id"]] and during[r["id"]].helped)]
    helped = [o for o in outages if o.helped and within(o.helped) and mine(o.drill)]
    acted = [o for r in pick("order.asked") for o in (during[r["id"]] or []) if mine(o.drill)]
    resynced = [r for r in pick("resync.succeeded") if mine(field(r, "drill"))]
    exhausted = [
        r for r in pick("resync.failed") if field(r, "next_ms") is None and mine(field(r, "drill"))
    ]

    raised = {field(r, "key"): r for r in history if r["event"] == "alert.raised"}
    first, refused, muted = {}, {}, set()
    for record in history:
        key = field(record, "key")
        if record["event"] == "alert.muted":
            muted.add(key)
        if record["event"] == "alert.delivered":
            first.setdefault(key, record)
        if record["event"] == "alert.parked" and key not in first:
            refused.setdefault(key, record)
    alert_mine = lambda key: key in raised and mine(of_outage(raised[key]))
    delivered = [first[key] for key in first if alert_mine(key) and within(first[key])]
    missed = [key for key in refused if alert_mine(key) and within(refused[key]) and key not in first]
    pending = [key for key in raised if alert_mine(key) and key not in first and key not in refused and key not in muted]

    logs = [r for r in pick("log.counted") if mine(field(r, "drill"))]
    stored, dropped = (sum(field(r, key, 0) for r in logs) for key in ("bytes", "dropped_bytes"))
    count = lambda *events: sum(len([r for r in pick(e) if mine(field(r, "drill"))]) for e in events)
    open_now = [o for o in outages if o.end is None and mine(o.drill)]
    attempted = len(resynced) + len(exhausted)
    return {
        "failures": len(failed),
        "failures_blamed": len([r for r in failed if field(r, "blame")]),
        "outages": len([o for o in outages if within(o.begin) and mine(o.drill)]),
        "open_outages": len(open_now),
        "recoveries": len(recovered),
        "auto_recoveries": len(alone),
        "helped_outages": len(helped),
        "gave_up": len([r for r in pick("unit.gave_up") if mine(of_outage(r))]),
        "auto_recovery_rate": share(len(alone), len(alone) + len(helped)),
        "mttd_s": times([field(r, "detect_us") for r in failed if field(r, "detect_us") is not None]),
        "mttr_s": times([field(r, "down_ms") * 1000 for r in recovered]),
        "resync": {"attempted": attempted, "succeeded": len(resynced), "rate": share(len(resynced), attempted)},
        "alerts": {
            "raised": len([key for key in raised if alert_mine(key) and within(raised[key])]),
            "delivered": len(delivered),
            "pending": len(pending),
            "missed": len(missed),
            "deliveries": len([r for r in pick("alert.delivered") if alert_mine(field(r, "key"))]),
            "latency_s": times([field(r, "after_ms") * 1000 for r in delivered]),
        },
        "log": {
            "bytes": stored,
            "dropped_bytes": dropped,
            "loss_rate": share(dropped, stored + dropped),
            "lost_events": sum(field(r, "events", 0) for r in pick("store.lost") if mine(field(r, "drill"))),
        },
        "manual_interventions": len(acted),
        "fatal_stops": count("daemon.fatal_stop"),
        "engine_deaths": count("engine.died", "engine.hung"),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("log", type=pathlib.Path)
    parser.add_argument("--since", required=True)
    parser.add_argument("--until", required=True)
    parser.add_argument("--through", type=int)
    asked = parser.parse_args()
    history = records_of(asked.log)
    if asked.through is not None:
        history = [record for record in history if record["id"] <= asked.through]
    since, until = micros(asked.since), micros(asked.until)
    within = lambda record: micros(record["ts"]) >= since
    answer = figures(history, within, None)
    answer["real"], answer["drill"] = figures(history, within, False), figures(history, within, True)
    answer["last_event_id"] = history[-1]["id"] if history else 0
    answer["state_s"] = state_times(history, since, until)
    print(json.dumps(answer))


main()
