import pytest

from higgs_native.errors import ParameterError, exit_on_bad_input


def fail_with(error, *others):
    @exit_on_bad_input(*others)
    def program():
        raise error

    return program


@pytest.mark.parametrize(
    ("error", "others"), [(ParameterError("one\ntwo"), ()), (FileNotFoundError("one two"), (OSError, KeyError))]
)
def test_a_program_tells_bad_input_in_one_line(error, others, capsys):
    program = fail_with(error, *others)
    for _ in range(2):
        with pytest.raises(SystemExit) as exit:
            program()
        assert exit.value.code == 2
        assert capsys.readouterr() == ("", "error: one two\n")


def test_other_errors_are_the_program_s_own():
    with pytest.raises(OSError, match="broken"):
        fail_with(OSError("broken"), KeyError)()
