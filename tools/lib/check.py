"""Runs what tools/check promises, and reports. Called by tools/check; its options are described there."""
import argparse
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter

import tally
from tally import FAILED, PASSED, SKIPPED

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SUITES = ("unit", "property", "fault", "sim", "fuzz", "e2e")
# e2e is left out: a guest under a sanitized program is slow and adds nothing the other suites lack.
SANITIZED_SUITES = ("unit", "property", "fault", "sim", "fuzz")
SANITIZERS = {"address": "build-asan", "thread": "build-tsan"}
# Under a sanitizer a crash suite tries fewer places: there it looks for other mistakes.
CRASH_STRIDES = {"build-asan": "80", "build-tsan": "1600"}
# Real processes and real clocks, beside compilers: a case of these that fails is run once more, alone, when all
# else is over. If it passes then it counts as passed, and is named as unsteady. More than a few are a failure.
RUN_AGAIN_SUITES = ("fault", "e2e")
RUN_AGAIN_MAX = 3
LINT_STEPS = ("format", "shell", "tidy")
LOG_TAIL_LINES = 60
CASE_TAIL_LINES = 30


def environment(extra):
    """The tests' environment: a sanitizer's first finding ends the test, and fails it."""
    stop = "halt_on_error=1:abort_on_error=1"
    return os.environ | {
        "ASAN_OPTIONS": f"{stop}:detect_leaks=1:detect_stack_use_after_return=1",
        "UBSAN_OPTIONS": f"{stop}:print_stacktrace=1",
        "TSAN_OPTIONS": f"{stop}:second_deadlock_stack=1",
    } | extra


def run(command, **extra):
    return subprocess.run(command, cwd=ROOT, env=environment(extra), stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          errors="replace", check=False)


def tail(text, lines=LOG_TAIL_LINES):
    return "\n".join("    " + line for line in text.rstrip().splitlines()[-lines:])


def thread_sanitizer_wrapper():
    """ThreadSanitizer of this age cannot map its shadow where the kernel randomises 32 bits."""
    try:
        bits = int(pathlib.Path("/proc/sys/vm/mmap_rnd_bits").read_text())
    except (OSError, ValueError):
        return []
    return ["--wrapper", "setarch -R"] if bits > 28 and shutil.which("setarch") else []


class Check:
    def __init__(self):
        self.tally = tally.Tally()
        self.failures = []
        self.again = []  # (suite, test, its failed cases): to be run again
        self.unsteady = []

    def begin(self, name):
        """The step's name at once on a terminal, so that one sees what is taking its time."""
        if sys.stdout.isatty():
            print(f"  {name:<18} …", end="\r", flush=True)
        return time.monotonic()

    def row(self, name, what, start):
        print(f"  {name:<18} {what:<44} {time.monotonic() - start:7.1f} s", flush=True)

    def fail(self, title, output, log=None, final=True):
        """Shown now, and, unless it will be run again, named again at the end."""
        if final:
            self.failures.append(title)
        print(f"\n  FAILED {title}\n{output}", flush=True)
        if log:
            print(f"  the full log: {os.path.relpath(log, ROOT)}", flush=True)
        print(flush=True)

    def guarded(self, step, *arguments):
        """A step on a thread of its own: what it raises must not be lost."""
        try:
            step(*arguments)
        except Exception as error:  # the closing line is a promise
            self.tally.add(("tools/check",), FAILED)
            self.fail(f"tools/check itself: {error!r}", "")

    def build(self, name, *options):
        label = f"build {name}"
        start = self.begin(label)
        result = run(["nice", str(ROOT / "tools" / "build"), "--quiet", *options])
        self.row(label, "ok" if result.returncode == 0 else "FAILED", start)
        if result.returncode != 0:
            self.tally.add(("build", name), FAILED)
            self.fail(f"tools/build {' '.join(options)}", tail(result.stdout))
        return result.returncode == 0

    def suite(self, directory, suite, prefix=""):
        """Runs one suite of one build and adds its cases."""
        expected = suite_tests(directory).get(suite, [])
        label = prefix + suite
        start = self.begin(label)
        if not expected:
            if not prefix:
                self.row(label, "no tests", start)
            return
        log = ROOT / directory / "meson-logs" / f"check-{suite}.json"
        log.unlink(missing_ok=True)
        command = ["meson", "test", "-C", directory, "--no-rebuild", "--suite", suite,
                   "--logbase", f"check-{suite}"]
        if suite == "e2e":
            command += ["--num-processes", "2"]  # guests: tests/e2e/meson.build says which go beside
        if directory != "build":
            command += ["--timeout-multiplier", "5"]
        if directory == SANITIZERS["thread"]:
            command += thread_sanitizer_wrapper()
        stride = CRASH_STRIDES.get(directory)
        result = run(command, **({"VMSHADOW_CRASH_STRIDE": stride} if stride else {}))
        tests = tally.read_log(log, expected)
        self.row(label, counts(tests), start)
        for test in tests:
            again = directory == "build" and suite in RUN_AGAIN_SUITES and tally.cases_to_run_again(test) or []
            for case, outcome in test.cases.items():
                if case not in again:
                    self.tally.add((suite, test.name, case), outcome)
            if again:
                self.again.append((suite, test.name, again))
            if test.failed:
                self.fail_test(label, test, log.with_suffix(".txt"), result, final=not again)
        if result.returncode != 0 and not any(test.failed for test in tests):
            self.tally.add((suite, "meson test", directory), FAILED)
            self.fail(f"{label}: meson test", tail(result.stdout))

    def run_again(self):
        """Alone, and once: what fails by itself fails again."""
        most = sum(len(cases) for _, _, cases in self.again) <= RUN_AGAIN_MAX
        for suite, name, cases in self.again:
            label = f"again {suite}"
            start = self.begin(label)
            passed = set()
            if most:
                log = ROOT / "build" / "meson-logs" / "check-again.json"
                log.unlink(missing_ok=True)
                result = run(["meson", "test", "-C", "build", "--no-rebuild", name, "--logbase", "check-again",
                              f"--test-args=--gtest_filter={':'.join(cases)}"])
                test = tally.read_log(log, [name])[0]
                if not test.failed:
                    passed = {case for case, outcome in test.cases.items() if outcome == PASSED}
                self.row(label, counts([test]), start)
                if test.failed:
                    self.fail_test(label, test, log.with_suffix(".txt"), result, final=False)
            for case in cases:
                self.tally.add((suite, name, case), PASSED if case in passed else FAILED)
                (self.unsteady if case in passed else self.failures).append(f"{suite}/{name}: {case}")

    def fail_test(self, label, test, log, result, final=True):
        cases = [name for name, outcome in test.cases.items() if outcome == FAILED]
        # The failed cases' own words; a program that failed otherwise says why at its end.
        told = [tally.gtest_output_of(test.output, case) for case in cases]
        output = "\n".join(tail(each, CASE_TAIL_LINES) for each in told) if all(told) else tail(
            test.output or result.stdout)
        self.fail(f"{label}/{test.name} ({test.result}): {', '.join(cases)}", output, log, final)

    def lint(self):
        for step in LINT_STEPS:
            label = f"lint {step}"
            start = self.begin(label)
            result = run(["nice", str(ROOT / "tools" / "lint"), step])
            ok = result.returncode == 0
            self.row(label, "ok" if ok else "FAILED", start)
            self.tally.add(("lint", step), PASSED if ok else FAILED)
            if not ok:
                self.fail(f"tools/lint {step}", tail(result.stdout))


@functools.cache
def suite_tests(directory):
    """Suite → the names of its tests, in a build that is up to date."""
    result = run(["meson", "introspect", "--tests", directory])
    suites = {}
    for test in json.loads(result.stdout):
        for suite in test["suite"]:
            suites.setdefault(suite.split(":")[-1], []).append(test["name"])
    return suites


def counts(tests):
    count = Counter(outcome for test in tests for outcome in test.cases.values())
    return ", ".join(f"{count[outcome]} {outcome}" for outcome in (PASSED, FAILED, SKIPPED)
                     if count[outcome] or outcome == PASSED)


def parse_options():
    parser = argparse.ArgumentParser(prog="tools/check", usage="tools/check [--full] [--suite NAME]…")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--suite", action="append", choices=(*SUITES, *SANITIZERS, "lint"))
    return parser.parse_args()


def run_all(check, wanted):
    plain = [suite for suite in SUITES if suite in wanted]
    e2e = None
    if "e2e" in plain and check.build("for e2e", "for-e2e"):
        # Its guests mostly wait: all else is built and runs meanwhile, at a lower priority.
        e2e = threading.Thread(target=check.guarded, args=(check.suite, "build", "e2e"))
        e2e.start()
    try:
        built = bool({*plain, "lint"} & wanted - {"e2e"}) and check.build("normal")
        if built:
            for suite in plain:
                if suite != "e2e":
                    check.suite("build", suite)
        run_beside_e2e(check, wanted, built)
    finally:
        if e2e:
            e2e.join()
    check.run_again()
    if built and wanted >= set(SUITES):
        for suite in sorted(set(suite_tests("build")) - set(SUITES)):
            check.suite("build", suite)  # none is forgotten for want of a line in SUITES


def run_beside_e2e(check, wanted, built):
    for sanitizer, directory in SANITIZERS.items():
        if sanitizer in wanted and check.build(sanitizer, "--sanitize", sanitizer):
            for suite in SANITIZED_SUITES:
                check.suite(directory, suite, f"{sanitizer} ")
    if built and "lint" in wanted:
        check.lint()


def main():
    options = parse_options()
    wanted = set(options.suite or ((*SUITES, *SANITIZERS, "lint") if options.full else SUITES))
    check = Check()
    start = time.monotonic()
    try:
        run_all(check, wanted)
    except Exception as error:  # the closing line is a promise
        check.tally.add(("tools/check",), FAILED)
        check.fail(f"tools/check itself: {error!r}", "")
    if not check.tally.outcomes:
        check.tally.add(("tools/check",), FAILED)
        check.fail("nothing ran: there is no test in what was asked for", "")
    check.row("altogether", "", start)
    for case in check.unsteady:
        print(f"  UNSTEADY {case}: failed, and passed when run again alone")
    for failure in check.failures:
        print(f"  FAILED {failure}")
    print(check.tally.line(), flush=True)
    sys.exit(1 if check.tally.count(FAILED) else 0)


if __name__ == "__main__":
    main()
