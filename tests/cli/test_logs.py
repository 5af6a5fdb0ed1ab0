"""What the command says of its work: nothing, notices, what it loads, or details."""

import logging

import pytest


SPEAK = ("speak", "Hi.", "--max-new-tokens", 30)


@pytest.fixture
def told(run, model):
    """Returns the lines on standard error of a command that speaks with options before `speak`."""

    def told(*options):
        code, out, err = run(*options, *SPEAK, "--model", model)
        assert (code, out) == (0, "")
        return err.splitlines()

    return told


def test_verbose_tells_what_is_loaded_from_where(told, model):
    tokenizer, language_model, report = told("-v")[:3]
    assert tokenizer.startswith(f"audio tokenizer: on cpu, from {model}/audio_tokenizer in ")
    assert language_model.startswith("language model: 2 layers, torch.")
    assert f"on cpu, from {model} in " in language_model
    assert report.startswith("out.wav: ")


def test_without_options_only_notices_are_shown(told):
    assert told()[0].startswith("out.wav: ")


def test_quiet_shows_nothing_but_errors(told, run):
    assert told("-q") == []
    code, _, err = run("-q", "speak", "")
    assert code == 2
    assert err.startswith("error: text must ")


def test_verbose_and_quiet_contradict_each_other(run):
    assert run("-v", "-q", *SPEAK) == (2, "", "error: -v and -q must not be given together\n")


def test_the_logger_of_a_program_is_left_as_it_was(told):
    logger = logging.getLogger("higgs_native")
    told("-vv")
    assert (logger.handlers, logger.level) == ([], logging.NOTSET)
