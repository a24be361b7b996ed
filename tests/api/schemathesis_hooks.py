"""Hooks of tests/api_contract.rs: a followed stream has no end, so it is asked for without `follow`."""

import schemathesis


@schemathesis.hook
def before_call(ctx, case, kwargs):
    if case.query and str(case.query.get("follow")).lower() in ("true", "1"):
        case.query["follow"] = "false"
