"""The counting behind tools/check's closing line: what must never count as passed."""
import json
import os
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "..", "tools", "lib"))
import tally  # noqa: E402
from tally import FAILED, PASSED, SKIPPED  # noqa: E402

GTEST = "[==========] Running 2 tests from 1 test suite.\n"


def cases(result, output):
    return tally.read_test({"name": "vmshadow:unit / t", "result": result, "stdout": output}).cases


class GtestTest(unittest.TestCase):
    def test_each_case_counts(self):
        self.assertEqual(
            cases("FAIL", GTEST +
                  "[ RUN      ] S.A\n[       OK ] S.A (0 ms)\n"
                  "[ RUN      ] S.B\nx.cc:1: Failure\n[  FAILED  ] S.B (0 ms)\n"
                  "[ RUN      ] S.C\nno qemu\n[  SKIPPED ] S.C (0 ms)\n"
                  "[  PASSED  ] 1 test.\n[  SKIPPED ] 1 test, listed below:\n[  SKIPPED ] S.C\n"
                  "[  FAILED  ] 1 test, listed below:\n[  FAILED  ] S.B\n 1 FAILED TEST\n"),
            {"S.A": PASSED, "S.B": FAILED, "S.C": SKIPPED})

    def test_output_without_a_newline_hides_nothing(self):
        self.assertEqual(cases("OK", GTEST + "[ RUN      ] S.A\npartial[       OK ] S.A (0 ms)\n"),
                         {"S.A": PASSED})

    def test_the_case_that_crashed_the_program_failed(self):
        self.assertEqual(
            cases("FAIL", GTEST + "[ RUN      ] S.A\n[       OK ] S.A (0 ms)\n[ RUN      ] S.B\n"),
            {"S.A": PASSED, "S.B": FAILED})

    def test_a_program_that_fails_after_its_cases_failed(self):
        self.assertEqual(
            cases("FAIL", GTEST + "[ RUN      ] S.A\n[       OK ] S.A (0 ms)\nleak\n"),
            {"S.A": PASSED, "(program: FAIL)": FAILED})

    def test_a_program_without_cases_failed(self):
        self.assertEqual(cases("OK", "[==========] Running 0 tests from 0 test suites.\n"),
                         {"(ran no test)": FAILED})

    def test_parameters_and_disabled_tests(self):
        self.assertEqual(
            cases("FAIL", GTEST + "[ RUN      ] I/S.A/0\n[  FAILED  ] I/S.A/0, where GetParam() = 1 (0 ms)\n"
                  "[ RUN      ] I/S.A/1\n[       OK ] I/S.A/1 (0 ms)\n  YOU HAVE 1 DISABLED TEST\n"),
            {"I/S.A/0": FAILED, "I/S.A/1": PASSED, "disabled test 1": SKIPPED})


    def test_what_a_failed_case_printed(self):
        output = (GTEST + "[ RUN      ] S.A\n[       OK ] S.A (0 ms)\n[ RUN      ] S.AB\nx.cc:1: Failure\n"
                  "[  FAILED  ] S.AB (0 ms)\n[ RUN      ] S.C\n[       OK ] S.C (0 ms)\n")
        self.assertEqual(tally.gtest_output_of(output, "S.AB"),
                         "[ RUN      ] S.AB\nx.cc:1: Failure\n[  FAILED  ] S.AB (0 ms)\n")
        self.assertEqual(tally.gtest_output_of(output, "S.A"), "[ RUN      ] S.A\n[       OK ] S.A (0 ms)\n")
        self.assertEqual(tally.gtest_output_of(output, "(program: FAIL)"), "")
        self.assertEqual(tally.gtest_output_of(GTEST + "[ RUN      ] S.D\ndied", "S.D"), "[ RUN      ] S.D\ndied")


class ProgramTest(unittest.TestCase):
    def test_exit_status_is_the_case(self):
        for result, outcome in (("OK", PASSED), ("SKIP", SKIPPED), ("FAIL", FAILED),
                                ("TIMEOUT", FAILED), ("ERROR", FAILED), ("INTERRUPT", FAILED),
                                ("UNEXPECTEDPASS", FAILED)):
            self.assertEqual(cases(result, "hello"), {"(program)": outcome}, result)


class AgainTest(unittest.TestCase):
    def again(self, result, output, returncode=1):
        return tally.cases_to_run_again(tally.read_test(
            {"name": "t", "result": result, "stdout": GTEST + output, "returncode": returncode}))

    def test_cases_that_said_so_are_run_again(self):
        output = "[ RUN      ] S.A\n[       OK ] S.A (0 ms)\n[ RUN      ] S.B\n[  FAILED  ] S.B (0 ms)\n"
        self.assertEqual(self.again("FAIL", output), ["S.B"])
        self.assertIsNone(self.again("TIMEOUT", output, -15))
        self.assertIsNone(self.again("FAIL", output, -11))

    def test_one_that_took_the_program_with_it_is_not(self):
        self.assertIsNone(self.again("FAIL", "[ RUN      ] S.A\n[       OK ] S.A (0 ms)\n[ RUN      ] S.B\n"))
        self.assertIsNone(self.again("FAIL", "[ RUN      ] S.A\n[       OK ] S.A (0 ms)\nleak\n"))
        self.assertIsNone(self.again(
            "FAIL", "[ RUN      ] S.AB\n[  FAILED  ] S.AB (0 ms)\n[ RUN      ] S.A\n"))

    def test_parameters(self):
        self.assertEqual(
            self.again("FAIL", "[ RUN      ] I/S.A/0\n[  FAILED  ] I/S.A/0, where GetParam() = 1 (0 ms)\n"),
            ["I/S.A/0"])


class LogTest(unittest.TestCase):
    def test_a_test_without_an_entry_failed(self):
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "log.json")
            with open(path, "w", encoding="utf-8") as file:
                file.write(json.dumps({"name": "a", "result": "OK", "stdout": ""}) + "\n")
            tests = {test.name: test.failed for test in tally.read_log(path, ["a", "b"])}
            self.assertEqual(tests, {"a": False, "b": True})
            self.assertTrue(tally.read_log(path + ".gone", ["a"])[0].failed)


class TallyTest(unittest.TestCase):
    def test_a_case_counts_once_by_its_worst_outcome(self):
        count = tally.Tally()
        for key, outcome in (("a", PASSED), ("a", FAILED), ("a", PASSED), ("b", SKIPPED),
                             ("b", PASSED), ("c", SKIPPED), ("d", PASSED), ("d", SKIPPED)):
            count.add(key, outcome)
        self.assertEqual(count.line(), "2 passed, 1 failed, 1 skipped")


if __name__ == "__main__":
    unittest.main()
