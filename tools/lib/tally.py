"""From a meson test log to the outcome of every single test case.

A googletest program stands for its cases, read from its output; any other program is one case.
Whatever does not add up is a failure: a case that began and did not end (its program crashed), a
program that failed without a failed case, a program that ran no case, a test without a log entry.
"""
import json
import pathlib
import re
from collections import Counter
from dataclasses import dataclass, field

PASSED, SKIPPED, FAILED = "passed", "skipped", "failed"
_WORSE = {PASSED: 1, SKIPPED: 0, FAILED: 2}  # ran somewhere and passed outweighs skipped elsewhere

_GTEST_STARTS = "[==========] Running "
_GTEST_CASE = re.compile(r"\[( RUN      |       OK |  SKIPPED )\] (\S+?\.\S+)")
_GTEST_CASE_ENDS = re.compile(r"\[ RUN      \] |^\[-{10}\]|^\[={10}\]", re.M)
_GTEST_DISABLED = re.compile(r"YOU HAVE (\d+) DISABLED TEST")


@dataclass
class Test:
    """One test program: the outcome of its cases, and what it printed."""

    name: str
    cases: dict = field(default_factory=dict)
    result: str = ""
    output: str = ""
    returncode: int = None

    @property
    def failed(self):
        return FAILED in self.cases.values()


def gtest_cases(output):
    """Case → outcome. One that is neither OK nor skipped failed, or took the program with it."""
    cases = {}
    for mark, name in _GTEST_CASE.findall(output):
        name = name.rstrip(",")  # "Suite.Case, where GetParam() = …"
        if mark.strip() == "RUN":
            cases[name] = FAILED
        else:
            cases[name] = PASSED if mark.strip() == "OK" else SKIPPED
    disabled = _GTEST_DISABLED.search(output)
    if disabled:
        cases |= {f"disabled test {n + 1}": SKIPPED for n in range(int(disabled.group(1)))}
    return cases


def gtest_output_of(output, case):
    """What a case printed: from its start to the next one's start, or to the program's own end."""
    start = re.search(r"\[ RUN      \] " + re.escape(case) + r"$", output, re.M)
    if not start:
        return ""
    end = _GTEST_CASE_ENDS.search(output, start.end())
    return output[start.start():end.start() if end else len(output)]


def cases_to_run_again(test):
    """The failed cases of a program that ran to its end and whose cases said themselves that they
    failed; None of one that crashed, hung or failed otherwise."""
    failed = [name for name, outcome in test.cases.items() if outcome == FAILED]
    told = all(re.search(r"\[  FAILED  \] " + re.escape(name) + r"(,| \()", test.output) for name in failed)
    return failed if test.returncode == 1 and failed and told else None


def read_test(entry):
    """A test from its entry in the log."""
    output = entry.get("stdout", "") + entry.get("stderr", "")
    test = Test(entry["name"].split(" / ")[-1], result=entry["result"], output=output,
                returncode=entry.get("returncode"))
    good = test.result in ("OK", "EXPECTEDFAIL")
    if _GTEST_STARTS in output:
        test.cases = gtest_cases(output)
        if not test.cases:
            test.cases["(ran no test)"] = FAILED
        elif not good and test.result != "SKIP" and not test.failed:
            test.cases[f"(program: {test.result})"] = FAILED
    else:
        test.cases["(program)"] = PASSED if good else SKIPPED if test.result == "SKIP" else FAILED
    return test


def read_log(path, expected):
    """All tests of a run. `expected` are the names that should be there."""
    path = pathlib.Path(path)
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    tests = [read_test(json.loads(line)) for line in lines if line.strip()]
    for name in sorted((Counter(expected) - Counter(test.name for test in tests)).elements()):
        tests.append(Test(name, {"(did not run)": FAILED}, "not run"))
    return tests


class Tally:
    """Counts cases over several runs; a case that ran more than once counts by its worst outcome."""

    def __init__(self):
        self.outcomes = {}

    def add(self, key, outcome):
        before = self.outcomes.get(key)
        if before is None or _WORSE[outcome] > _WORSE[before]:
            self.outcomes[key] = outcome

    def count(self, outcome):
        return sum(1 for each in self.outcomes.values() if each == outcome)

    def line(self):
        return ", ".join(f"{self.count(o)} {o}" for o in (PASSED, FAILED, SKIPPED))
