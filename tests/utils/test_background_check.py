"""Checks in a thread: their errors, and their end."""

import threading
import time

import pytest

from higgs_native.errors import CheckpointError
from higgs_native.utils.background_check import BackgroundCheck


def test_an_error_is_raised_where_it_is_asked_for_and_each_time():
    begin = threading.Event()

    def fail(go_on):
        begin.wait()
        raise CheckpointError("w is damaged")

    check = BackgroundCheck(fail)
    check.raise_error()  # none so far
    begin.set()
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"^w is damaged$"):
            check.wait()
        with pytest.raises(CheckpointError, match=r"^w is damaged$"):
            check.raise_error()


def test_errors_of_other_kinds_are_not_lost():
    def fail(go_on):
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        BackgroundCheck(fail).wait()


def test_a_check_that_is_stopped_ends_without_an_error():
    def endless(go_on):
        while True:
            go_on()
            time.sleep(0.001)

    check = BackgroundCheck(endless)
    check.stop()
    check.wait()


ENDLESS = """
import time, torch
from higgs_native.utils.background_check import BackgroundCheck

def endless(go_on):
    while True:
        go_on()
        torch.zeros(1 << 20).sum()

check = BackgroundCheck(endless)
print("begun")
"""


def test_an_interpreter_that_exits_ends_a_check(run_python):
    result = run_python(ENDLESS)
    assert (result.returncode, result.stdout, result.stderr) == (0, "begun\n", "")


FORKED = """
import os, time
from higgs_native.utils.background_check import BackgroundCheck

def endless(go_on):
    while True:
        go_on()
        time.sleep(0.001)

check = BackgroundCheck(endless)
pid = os.fork()
if not pid:
    check.wait()  # its thread is not here
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_forked_process_does_not_wait_for_the_thread_of_its_parent(run_python):
    result = run_python(FORKED)
    assert (result.returncode, result.stdout) == (0, "7\n")
