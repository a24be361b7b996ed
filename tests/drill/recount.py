#!/usr/bin/env python3
"""Counts the KPIs of a drill from its samples, without any code of Upright.

    recount.py <logs>/drills/<id>.jsonl [verdict.json]

The samples may be packed by gzip. Prints them as JSON. With the verdict it compares, and exits 1 where one differs.
"""
import gzip
import json
import sys


def between(a, b):
    return max(0, b - a) / 1e9


def main():
    unpacked = gzip.open if sys.argv[1].endswith(".gz") else open
    samples = [json.loads(line) for line in unpacked(sys.argv[1], "rt", encoding="utf-8") if line.endswith("\n")]
    begin = next(s for s in samples if s["sample"] == "begin")
    end = next((s for s in samples if s["sample"] == "end"), None)
    faults = [s for s in samples if s["sample"] == "fault"]
    events = [s["event"] for s in samples if s["sample"] == "event"]
    hurt = {f["unit"] for f in faults if f["unit"]}
    expected = recovered = 0
    lengths = []
    last = {}  # unit: whether its last failure was recovered from
    for index, fault in enumerate(faults):
        later = [f["at_ns"] for f in faults[index + 1:] if f["unit"] == fault["unit"]]
        until = later[0] if later else float("inf")

        def mine(name):
            for event in events:
                whose = fault["unit"] is None or event["unit"] == fault["unit"] or fault["kind"] == "config-corrupt"
                if event["event"] == name and whose and fault["at_ns"] <= event["at_ns"] < until:
                    return event
            return None

        kind = fault["kind"]
        if kind in ("kill", "hang", "outage"):
            expected += 1
            failed, back = mine("unit.failed"), mine("unit.recovered")
            recovered += back is not None
            last[fault["unit"]] = back is not None
            if failed and back:
                lengths.append(between(failed["at_ns"], back["at_ns"]))
        elif kind == "engine-kill":
            expected += 1
            back = mine("engine.restarted")
            recovered += back is not None
            if back:
                lengths.append(between(fault["at_ns"], back["at_ns"]))
        elif kind == "config-corrupt":
            expected += 1
            mended = mine("config.error") is not None and mine("config.mended") is not None
            recovered += mended
            last[fault["unit"]] = mended
    good = sum(e["event"] == "resync.succeeded" for e in events)
    bad = sum(e["event"] == "resync.failed" and e["data"].get("next_ms") is None for e in events)
    acts = {"start", "stop", "restart", "reload", "clear", "resync", "signal"}
    interventions = sum(
        e["event"] == "order.asked" and "drill" not in e["data"] and e["data"].get("verb") in acts
        and bool(hurt & set(e["data"].get("units", []))) for e in events)
    counted = {
        "auto-recovery-rate": recovered / expected if expected else None,
        "mean-time-to-recovery": sum(lengths) / len(lengths) if lengths else None,
        "resync-rate": good / (good + bad) if good + bad else None,
        "manual-interventions": interventions,
    }
    if end:
        whole = end["log_bytes"] + end["log_dropped_bytes"]
        counted["fatal-stops"] = end["fatal_stops"] - begin["fatal_stops"]
        counted["log-loss"] = end["log_dropped_bytes"] / whole if whole else None
        counted["missed-alerts"] = sum(
            not any(c["state"] in ("delivered", "muted") for c in alert["channels"]) for alert in end["alerts"])
        counted["collateral-restarts"] = sum(
            max(end["units"].get(name, was)["restarts"] - was["restarts"],
                int(name in end["units"] and end["units"][name]["run"] != was["run"]))
            for name, was in begin["units"].items() if name not in hurt)
        counted["units-not-as-before"] = sum(
            name not in end["units"] or end["units"][name]["state"] != was["state"]
            for name, was in begin["units"].items() if last.get(name, True))
    cut = [f["at_ns"] for f in faults if f["kind"] == "channels"]
    if cut:
        counted["alerts-raised"] = sum(e["event"] == "alert.raised" and e["at_ns"] >= cut[0] for e in events)
    load = [s for s in samples if s["sample"] == "load" and s["status"] is not None]
    for found in (s for s in samples if s["sample"] == "found"):
        if found["lines"] is not None:
            counted["log-lines-lost"] = len({s["number"] for s in load} - set(found["lines"]))
        if found["stored"] is not None:
            kept = {s["number"] for s in load if s["status"] in (200, 202) and s["id"] is not None}
            counted["sessions-lost"] = len(kept - set(found["stored"]))
        elif found["uncounted"] is not None:
            counted["sessions-lost"] = None
    print(json.dumps(counted, indent=2, sort_keys=True))
    if len(sys.argv) < 3:
        return 0
    verdict = {row["kpi"]: row["value"] for row in json.load(open(sys.argv[2], encoding="utf-8"))["kpis"]}
    wrong = []
    for kpi, value in counted.items():
        theirs = verdict.get(kpi)
        same = value == theirs if value is None or theirs is None else abs(value - theirs) < 1e-9
        if not same:
            wrong.append(f"{kpi}: counted {value}, the verdict has {theirs}")
    print("\n".join(wrong), file=sys.stderr, end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
