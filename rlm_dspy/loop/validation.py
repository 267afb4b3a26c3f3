"""Validates the arguments and saved states of `RLM`; each error message says what to pass instead."""

from __future__ import annotations

import functools
import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, get_args

import dspy

from rlm_dspy._dspy_compat import load_partial_states
from rlm_dspy.cache.sub_call_cache import SubCallCache
from rlm_dspy.errors import InvalidInputs
from rlm_dspy.inputs import HostInput, Text, opened
from rlm_dspy.inputs.media import MEDIA, check_media_size
from rlm_dspy.json_values import jsonable
from rlm_dspy.limits import Limits, OptionGroup
from rlm_dspy.redaction import in_strings, without_passwords
from rlm_dspy.repl.tools import _is_reserved
from rlm_dspy.text import logger, unknown_argument

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping


Group = TypeVar("Group", bound=OptionGroup)
RESULT_NAMES = frozenset({"trajectory", "final_reasoning"})
"""Names on the prediction that no output field may take, as in `dspy.RLM`."""

_OF_A_CALL = frozenset({"interpreter_factory", "self", "instance"})
"""Names of parameters of `dspy.Module.__call__` and `RLM.forward`, which an input cannot have."""
OWN_NAMES = frozenset({"stop", "usage", "artifacts"})
"""Names of the run on the prediction that an output field replaces, so that signatures of `dspy.RLM` work."""
_logger = logger()


def check_limits(limits: Limits | None, **short: Any) -> Limits:
    """Return the limits, the defaults for None, with the fields of `short` that are not None.

    Raises:
        TypeError: If it is something else.
    """
    if limits is not None and not isinstance(limits, Limits):
        raise TypeError(f"limits must be rlm_dspy.Limits(max_iters=..., ...), not {limits!r}.")
    return replace(limits or Limits(), **{name: value for name, value in short.items() if value is not None})


def check_group(kind: type[Group], name: str, example: str, value: Group | None) -> Group:
    """Return a group of options, the defaults for None.

    Raises:
        TypeError: If it is something else.
    """
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, e.g. {example}, not {value!r}.")
    return kind() if value is None else value


def check_unknown(unknown: Iterable[str], owner: type[dspy.Module]) -> None:
    """Refuse arguments that `RLM` does not have.

    Raises:
        TypeError: If there is one; the message says what to pass instead.
    """
    limits = Limits.__dataclass_fields__
    for name in unknown:
        if name == "lm":
            raise TypeError(
                f"{owner.__name__} has no argument 'lm'; call rlm.set_lm(lm) or dspy.configure(lm=lm)."
            )
        if name in limits:
            raise TypeError(f"{owner.__name__} has no argument {name!r}; pass limits=Limits({name}=...).")
        known = [each for each in inspect.signature(owner).parameters if each not in ("self", "unknown")]
        raise unknown_argument(owner.__name__, name, known)


def check_names(signature: type[dspy.Signature], tools: dict[str, dspy.Tool], subs: Iterable[str] = ()) -> None:
    """Check that inputs, outputs, tools, subs and the REPL's own names do not clash.

    Raises:
        ValueError: If they do; the message lists the names.
    """
    inputs = set(signature.input_fields)
    reserved = {name for name in inputs if _is_reserved(name) or name in _OF_A_CALL}
    for what, names in {"names of the REPL": reserved, "tools": set(tools), "subs": set(subs)}.items():
        if clash := inputs & names:
            raise ValueError(f"Input fields conflict with {what}: {sorted(clash)}. Rename them.")
    _warn_of(*sorted(set(signature.output_fields) & OWN_NAMES))
    if clash := set(signature.output_fields) & RESULT_NAMES:
        raise ValueError(
            f"Output fields conflict with attributes of the prediction: {sorted(clash)}. Rename them."
        )


@functools.cache
def _warn_of(*hidden: str) -> None:
    """Log once that output fields hide attributes of the prediction with the same names."""
    if hidden:
        names = ", ".join(f"prediction.{name}" for name in hidden)
        _logger.warning("%s: the output field, not the run's own. Rename the field to have both.", names)


class HasState(dspy.Module):
    """A module whose saved state is checked when it is loaded, by itself or with the program that contains it."""

    signature: type[dspy.Signature]

    def __new__(cls, *_: object, **__: object) -> Self:
        """Make a module, also when it is loaded, and let DSPy load states that lack a part from now on."""
        _let_dspy_load_partial_states()
        made: Self = super().__new__(cls)
        return made

    def load(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Load a file that `save` wrote, as `dspy.Module.load` does.

        Raises:
            ValueError: If it is not the file of an RLM.
        """
        try:
            super().load(path, *args, **kwargs)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            what = f"has no {error}" if isinstance(error, KeyError) else f"is not a JSON object ({error})"
            raise ValueError(
                f"Invalid state: {path} {what}, so `save` did not write it. To load a policy, pass "
                "RLM(policy=...)."
            ) from error

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """Return the state of the predictors, without passwords in addresses, and the texts of the signature.

        Values of demos that JSON cannot hold, such as a DataFrame or a Decimal, are as they are shown.
        """
        state: dict[str, Any] = super().dump_state(json_mode)
        for part in state.values():
            if isinstance(part, dict) and part.get("lm"):
                part["lm"] = in_strings(part["lm"], without_passwords)
            if json_mode and isinstance(part, dict) and "demos" in part:
                part["demos"] = jsonable(part["demos"])
        return {**state, "signature": _texts_of(self.signature)}

    def load_state(self, state: Mapping[str, Any], *, allow_unsafe_lm_state: bool = False) -> None:
        """Load the state of the predictors from a saved state; predictors it lacks stay unchanged.

        The signature gets the saved instructions and descriptions if its fields have the same names: of an RLM for
        another task, what its predictors learned is loaded.

        Args:
            state: The state from `dump_state` or `save`.
            allow_unsafe_lm_state: As in `dspy.Module.load`.

        Raises:
            ValueError: If it is the state of another class, e.g. `dspy.RLM`; nothing is changed.
        """
        names = [name for name, _ in self.named_parameters()]
        found = {name: part for name, part in state.items() if name in names}
        parts = {name: {"lm": None, **part} if isinstance(part, dict) else {} for name, part in found.items()}
        if not parts or any(not part.keys() >= {"signature", "demos"} for part in parts.values()):
            raise _refused_state(state, names)
        if differing := (state.keys() - {"metadata", "signature"}) ^ set(names):
            _warn_of_difference(differing, "RLM")
        for module in (self.deepcopy(), self):  # on a copy first, so that a failure changes nothing
            for name, predictor in module.named_parameters():
                if name in parts:
                    predictor.load_state(parts[name], allow_unsafe_lm_state=allow_unsafe_lm_state)
            texts, own = state.get("signature"), _texts_of(module.signature)
            if texts and texts != own and texts["names"] == own["names"]:
                module.signature = module.signature.load_state(texts)


def _texts_of(signature: type[dspy.Signature]) -> dict[str, Any]:
    """Return the names, instructions and descriptions of a signature, as `Signature.load_state` takes them."""
    return {"names": list(signature.fields), **signature.dump_state()}


def _refused_state(state: Iterable[str], names: list[str], rlm: str = "rlm") -> ValueError:
    return ValueError(
        f"Invalid state: it has {', '.join(map(repr, state)) or 'nothing'}, but the predictors of this "
        f"RLM are {', '.join(map(repr, names))}, each with its signature and demos. Load the state of an "
        f"RLM; that of one predictor with {rlm}.act.load_state(...), a policy with RLM(policy=...). "
        "Compile this RLM instead of loading the state of another class, such as dspy.RLM."
    )


@functools.cache
def _let_dspy_load_partial_states() -> None:
    load_partial_states(_load_partial)


def _load_partial(program: dspy.Module, state: Mapping[str, Any], **options: Any) -> bool:
    """Load a program's state that lacks predictors of an RLM in it; these stay unchanged, as in `RLM.load_state`.

    Return whether it did: not if the state lacks something else.

    Raises:
        ValueError: If the state has none of the predictors of an RLM.
    """
    known = {id(parameter): name for name, parameter in program.named_parameters()}
    of_rlms: set[str] = set()
    for _, rlm in program.named_sub_modules(HasState):
        inside = [(known[id(part)], inner) for inner, part in rlm.named_parameters() if id(part) in known]
        names = [name for name, _ in inside]
        of_rlms.update(names)
        if inside and state.keys().isdisjoint(names):
            path = names[0].removesuffix(f".{inside[0][1]}")
            of_rlm = [key for key in state if key.startswith(f"{path}.")]
            there = of_rlm or [key for key in state if key != "metadata"]
            raise _refused_state(there, names, f"program.{path}")
    lacking = set(known.values()) - state.keys()
    if not lacking or not lacking <= of_rlms:
        return False
    for module in (program.deepcopy(), program):  # on a copy first, so that a failure changes nothing
        for name, parameter in module.named_parameters():
            if name not in lacking:
                parameter.load_state(state[name], **(options if isinstance(parameter, dspy.Module) else {}))
    _warn_of_difference((state.keys() - {"metadata"}) ^ set(known.values()), "program")
    return True


def _warn_of_difference(names: Iterable[str], what: str) -> None:
    _logger.warning("Not in both the state and this %s, so left as they are: %s.", what, sorted(names))


def check_lms(lms: Mapping[str, Any]) -> None:
    """Check the LMs of a call by the name that a user set each under; None is one that is not set.

    Raises:
        ValueError: If one is something else, as a `dspy.Predict` raises.
    """
    for name, lm in lms.items():
        if lm is not None and not isinstance(lm, dspy.BaseLM):
            made = f"dspy.LM({lm!r})" if isinstance(lm, str) else "dspy.LM('openai/gpt-5-mini')"
            raise ValueError(f"{name} must be a dspy.LM, such as {made}, not {lm!r:.100}.")


def check_inputs(signature: type[dspy.Signature], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs in the signature's order, with defaults filled in.

    Raises:
        InvalidInputs: If one is missing or unknown, or an image, a sound or a file is too large.
    """
    fields = signature.input_fields
    given = {name: f.get_default(call_default_factory=True) for name, f in fields.items() if not f.is_required()}
    given |= inputs
    wrong = {"unknown": given.keys() - fields.keys(), "missing": fields.keys() - given.keys()}
    if problems := ", ".join(f"{what}: {sorted(names)}" for what, names in wrong.items() if names):
        raise InvalidInputs(f"The signature takes the inputs {list(fields)}; {problems}.")
    values = {name: given[name] for name in fields}
    for name, value in values.items():
        for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]:
            try:
                if isinstance(part, MEDIA):
                    check_media_size(part)
            except ValueError as error:
                raise InvalidInputs(f"Input {name!r}: {error}") from error
    return {name: value.of_a_run() if isinstance(value, HostInput) else value for name, value in values.items()}


def open_paths(signature: type[dspy.Signature], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs with each `pathlib.Path` opened, also in lists and dicts, unless its field has that type.

    Raises:
        InvalidInputs: If one cannot be opened.
    """
    found = dict(inputs)
    for name, value in inputs.items():
        field = signature.input_fields.get(name)
        if field is None or not _names_paths(field.annotation):
            try:
                found[name] = opened(value) if isinstance(value, Path) else _with_texts(value)
            except (OSError, ValueError) as error:
                raise InvalidInputs(f"Input {name!r}: {error}") from error
    return found


def _names_paths(annotation: Any) -> bool:
    """Return whether a type is `pathlib.Path`, or has it inside, as `list[Path]`."""
    return annotation is Path or any(map(_names_paths, get_args(annotation)))


def _with_texts(value: Any) -> Any:
    """Return a list or dict with the paths in it opened.

    Raises:
        ValueError: If one is a folder or a table.
    """
    parts = value.values() if type(value) is dict else value if type(value) in (list, tuple) else ()
    if not any(isinstance(part, Path) for part in parts):
        return value
    if isinstance(value, dict):
        return {name: _text(part) for name, part in value.items()}
    return type(value)(map(_text, value))


def _text(part: Any) -> Any:
    if not isinstance(part, Path):
        return part
    if isinstance(text := opened(part), Text):
        return text
    raise ValueError(f"{part} is a folder or a table. Pass it alone, or a list of files as Files.open([...]).")


def check_factory(factory: Callable[[], dspy.CodeInterpreter] | None) -> Any:
    """Return the factory.

    Raises:
        TypeError: If it is an interpreter itself, or cannot be called.
    """
    if not isinstance(factory, type) and isinstance(factory, dspy.CodeInterpreter):
        raise TypeError(
            f"interpreter_factory got a {type(factory).__name__} instance, but every run closes its interpreter. "
            "Pass the class, or lambda: YourInterpreter(...)."
        )
    if factory is not None and not callable(factory):
        raise TypeError(f"interpreter_factory must be callable without arguments, not {type(factory).__name__}.")
    return factory


def check_cache(cache: SubCallCache | bool) -> Any:
    """Return the cache.

    Raises:
        TypeError: If it is neither a `SubCallCache` nor a bool.
    """
    if not isinstance(cache, SubCallCache | bool):
        raise TypeError(f"cache must be True, False or an rlm_dspy.SubCallCache(...), not {cache!r}.")
    return cache


def check_hook(name: str, hook: Any) -> Any:
    """Return the hook.

    Args:
        name: `on_code`, `on_tool` or `on_submit`.
        hook: What was given as it.

    Raises:
        TypeError: If it cannot be called.
    """
    if hook is not None and not callable(hook):
        example = "lambda name, arguments" if name == "on_tool" else f"lambda {name.removeprefix('on_')}"
        raise TypeError(f"{name} must be a function, such as {name}={example}: None, not {hook!r}.")
    return hook
