"""The command line, called in this process."""

from __future__ import annotations

from click.testing import CliRunner, Result

from pipelines.cli import cli


def curate(*arguments: object, code: int = 0) -> str:
    """What a command said, all of it; it has to end with this code."""
    return _result(arguments, code).output


def answer(*arguments: object, code: int = 0) -> str:
    """What a command printed, without what it said beside it; of one that fails, all of it."""
    result = _result(arguments, code)
    return result.stdout if code == 0 else result.output


def _result(arguments: tuple[object, ...], code: int) -> Result:
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result
