"""The short form of scripts/fuzz.sh: odd calls of every operation, and their answers."""

import asyncio

import fuzz, os, time


async def test_no_answer_contradicts_the_description(service, caller):
    """Whatever is sent, there is no 500, and no answer that /openapi.json does not describe."""
    t = time.time()
    report = await asyncio.to_thread(
        fuzz.run,
        service.url,
        caller.key,
        int(os.environ.get("SEED", 1)),
        int(os.environ.get("N", 6)),
    )
    with open("/tmp/fuzz.report", "w") as f:
        print(time.time() - t, report.calls, report.never_well, file=f)
        for k, v in report.statuses.items():
            print(k, dict(v), file=f)
        for k, v in report.problems.items():
            print("=====", k, file=f)
            print(v, file=f)

    assert report.problems == {}
