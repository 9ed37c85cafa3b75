"""What every driver shares: flags made from `RunConfig`, and how errors reach a person.

The flags of a run are generated from the fields of `RunConfig`, so that a setting is described in
one place. Bad input ends with status 2 and one to three lines, a failure while running with status
1, and neither shows a traceback.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging

from jaxenergy.arguments import POSITIVE, Argument, Interval
from jaxenergy.config import RunConfig, field_type, parse_setting
from jaxenergy.errors import JaxenergyError, RunError, UsageError

# A flag belongs to the driver that has it defined here, so that the driver's --help shows it.
flags.disclaim_key_flags()


class _SettingParser(flags.ArgumentParser):
    """Parses a flag by the rules of `RunConfig`, so that both give the same errors."""

    def __init__(self, name: str):
        self.name = name
        self.syntactic_help = {int: "a whole number", float: "a number"}.get(field_type(name), "")

    def flag_type(self) -> str:
        return field_type(self.name).__name__

    def parse(self, argument: Any) -> Any:
        return parse_setting(self.name, argument) if isinstance(argument, str) else argument


class _ArgumentParser(flags.ArgumentParser):
    """Parses a flag that is no setting of a run, by an `Argument`."""

    def __init__(self, name: str, argument: Argument):
        self.name = name
        self.argument = argument
        self.syntactic_help = argument.describe()

    def flag_type(self) -> str:
        return getattr(self.argument.kind, "__name__", "text")

    def parse(self, argument: Any) -> Any:
        return self.argument.read(argument, f"--{self.name}")


def define_flag(name: str, argument: Argument, help: str) -> flags.FlagHolder:
    """Defines a flag of a driver's own, which refuses what the argument does not allow."""
    return flags.DEFINE(_ArgumentParser(name, argument), name, argument.default, help)


class _FileParser(flags.ArgumentParser):
    """Parses the name of a file to be written, which may exist, in a folder that does exist."""

    def __init__(self, name: str):
        self.name = name

    def parse(self, argument: Any) -> Any:
        file = Path(argument)
        if not argument or file.is_dir() or not file.parent.is_dir():
            raise UsageError(
                f"--{self.name}={argument} is not possible; allowed: a file in an existing folder."
            )
        return argument


def define_measuring_flags(max_seconds: float) -> None:
    """Defines the flags of drivers that measure until enough is known: when to end, a file."""
    define_flag(
        "target_relative_ci",
        Argument(float, 0.02, Interval(0.0, 1.0, closed_low=False)),
        "Half-width of the 95 % interval, over the mean, at which to end.",
    )
    define_flag(
        "max_seconds",
        Argument(float, max_seconds, POSITIVE),
        "When to end at the latest, compilation and idle included.",
    )
    flags.DEFINE(_FileParser("json"), "json", None, "Write the result to this file, too.")


def define_run_flags(names: Collection[str] | None = None) -> None:
    """Defines one flag for each setting of `RunConfig`, or for those that are named."""
    for field in dataclasses.fields(RunConfig):
        if names is not None and field.name not in names:
            continue
        if field_type(field.name) is bool:
            flags.DEFINE_boolean(field.name, field.default, field.metadata["help"])
        else:
            flags.DEFINE(
                _SettingParser(field.name), field.name, field.default, field.metadata["help"]
            )


def run_config(**overrides: Any) -> RunConfig:
    """The `RunConfig` that the flags describe, with some settings given by the driver."""
    settings = {
        field.name: flags.FLAGS[field.name].value
        for field in dataclasses.fields(RunConfig)
        if field.name in flags.FLAGS
    }
    return RunConfig(**{**settings, **overrides})


def _parse(
    argv: Sequence[str],
    positional: str | None,
    default: str | None,
    refused: Mapping[str, str],
) -> list[str]:
    """Parses the command line; anything wrong with it ends the process with status 2.

    Args:
        argv: the program's name and its arguments.
        positional: what the one argument that is no flag is called; None where there is none.
        default: what it is where it is not given; None where it must be.
        refused: flags of other drivers, and why this one does not take them.

    Returns:
        The program's name and that argument.
    """
    # `--list` may stand alone or carry a value, which absl knows for booleans only.
    argv = ["--list=all" if arg in ("--list", "-list") else arg for arg in argv]
    try:
        rest = flags.FLAGS(argv)
    except SystemExit:  # --help was asked for and shown; absl ends that with status 1
        sys.exit(0)
    except flags.IllegalFlagValueError as error:
        # absl puts "flag --name=value: " before our own message, which names both already.
        flag, _, message = str(error).removeprefix("flag ").partition(": ")
        if "allowed" not in message.lower():
            message = f"{flag} is not allowed.\nAllowed: true or false."
        _exit_with(UsageError(message))
    except flags.UnrecognizedFlagError as error:
        why = refused.get(error.flagname)
        message = f"--{error.flagname} {why}" if why else f"{error}\nAll flags: --help."
        _exit_with(UsageError(message))
    except flags.Error as error:
        _exit_with(UsageError(f"{error}\nAll flags: --help."))
    wanted = 2 if positional else 1
    if len(rest) > wanted:
        extra = rest[wanted]
        _exit_with(UsageError(f"{extra!r} is not a flag.\nFlags are --name=value; see --help."))
    if len(rest) < wanted and default is not None:
        rest.append(default)
    if len(rest) < wanted:
        _exit_with(UsageError(f"{positional} is missing; see --help."))
    return rest


def _exit_with(error: JaxenergyError) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1 if isinstance(error, RunError) else 2)


def launch(
    run: Callable[..., int | None],
    positional: str | None = None,
    default: str | None = None,
    refused: Mapping[str, str] | None = None,
) -> None:
    """Parses the flags, calls `run` and exits with what it returns.

    Args:
        run: the driver's work; returns the exit status, None for 0. What it raises on purpose is
            printed without a traceback: `UsageError` ends with status 2, anything else of
            `JaxenergyError` with 1.
        positional: the name of the one argument that is no flag, e.g. `MODULE:FUNCTION`; `run` is
            called with it. By default there is none.
        default: what it is where it is not given; None where it must be.
        refused: flags of other drivers that one might look for here, and why they are not taken:
            the rest of a sentence that begins with the flag.
    """

    def main(argv: list[str]) -> int | None:
        try:
            return run(*argv[1:])
        except UsageError as error:
            _exit_with(error)
        except JaxenergyError as error:
            _exit_with(RunError(str(error)))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    # absl's handler would show what libraries log for their developers.
    logging.set_verbosity(logging.WARNING)
    parse = functools.partial(_parse, positional=positional, default=default, refused=refused or {})
    app.run(main, flags_parser=parse)
