"""Loads and saves policies, the instructions and demos of `act`, by name or by file.

A policy is a JSON object: `version`, `name`, `model` (what it was found for), `provenance` (how, on what, with
which result) and `act` (the state of the predictor).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, PositiveInt, ValidationError

from rlm_dspy.signatures.first_message import Environment
from rlm_dspy.text import write_whole
from rlm_dspy.trajectory import Trajectory

_SHIPPED = Path(__file__).parent / "policies"
_SHIPPED_FOR = {
    "smollm2-135m-instruct": "small-models",
    "qwen2.5-coder-0.5b-instruct": "small-coders",
    "qwen2.5-coder-1.5b-instruct": "small-coders",
}
"""The shipped policy of each model that has one."""
POLICY_VERSION = 1
_LEARNED = ("signature", "demos", "demos_per_run", "traces", "train")
"""What a policy is. DSPy sets anything else that a state holds as an attribute of the predictor."""


class _Demo(BaseModel):
    reasoning: str = ""
    code: str = ""
    environment: str | Environment = ""
    trajectory: str | Trajectory = ""


class _Field(BaseModel):
    prefix: str
    description: str


class _Signature(BaseModel):
    instructions: str
    fields: list[_Field]


class _Act(BaseModel):
    signature: _Signature
    demos: list[_Demo]
    demos_per_run: PositiveInt | None = None


class _Policy(BaseModel):
    """What of a policy file is looked at before the first turn."""

    version: Literal[1]
    act: _Act


def load_policy(policy: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the state of `act` in a policy, for `Act.load_state`: instructions, demos, how many a run shows.

    Never a model, nor options of its calls such as an address, whatever the file says: files are passed on.

    Args:
        policy: The name of a shipped policy (see `shipped_policies`), or the path of a policy file.

    Raises:
        ValueError: If there is no such policy, or the file is none.
    """
    state: dict[str, Any] = read_policy(policy)["act"]
    return {"demos_per_run": None, **{name: state[name] for name in _LEARNED if name in state}, "lm": None}


def read_policy(policy: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the contents of a policy file: `act`, `name`, `model`, `provenance` and `version`.

    Args:
        policy: The name of a shipped policy, or the path of a file.

    Raises:
        TypeError: If it is neither.
        ValueError: If there is no such policy, or the file is none.
    """
    if not isinstance(policy, str | os.PathLike):
        raise TypeError(
            f"A policy is the name or the path of a file, not a {type(policy).__name__}. Save that of a program "
            "with rlm_dspy.optimize.save_policy(program, path, name=...)."
        )
    try:
        content: dict[str, Any] = json.loads(_path_of(policy).read_text(encoding="utf-8"))
        _Policy.model_validate(content)
    except ValidationError as error:
        parts = ((".".join(map(str, part["loc"])) or "the file", part["msg"]) for part in error.errors())
        wrong = "; ".join(f"{where}: {why}" for where, why in parts)
        version = content.get("version") if isinstance(content, dict) else None
        if isinstance(content, dict) and "metadata" in content:
            wrong = "it is the state of a program, which program.load(path) loads"
        elif isinstance(version, int) and version > POLICY_VERSION:
            wrong = f"it is of version {version}, and this release reads {POLICY_VERSION}; install a newer one"
        raise _invalid(policy, wrong) from error
    except OSError as error:
        raise _invalid(policy, error.strerror or str(error)) from error
    except ValueError as error:
        raise _invalid(policy, f"it is not JSON ({error})") from error
    return content


def _invalid(policy: str | os.PathLike[str], why: str) -> ValueError:
    return ValueError(
        f"Invalid policy {str(policy)!r}: {why}. Name a policy file, or one of {shipped_policies()}."
    )


def write_policy(
    path: str | os.PathLike[str], act: dict[str, Any], *, name: str, model: str, provenance: dict[str, Any]
) -> None:
    """Write a policy file atomically.

    Args:
        path: The file; its folder is made.
        act: The state of the predictor, from `Act.dump_state`.
        name: The name of the policy.
        model: The model that it was found for.
        provenance: How, on what, with which result it was found; anything JSON can hold.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    content = {"version": POLICY_VERSION, "name": name, "model": model, "provenance": provenance, "act": act}
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_whole(text, target)


def policy_for(lm: Any) -> str | None:
    """Return the name of the policy shipped for an LM, by its model's name; None if there is none.

    Args:
        lm: A `dspy.LM`, or None.
    """
    model = getattr(lm, "model", None) or ""
    return _SHIPPED_FOR.get(str(model).rsplit("/", 1)[-1].lower())


def shipped_policies() -> list[str]:
    """Return the names of the policies in the package."""
    return sorted(path.stem for path in _SHIPPED.glob("*.json"))


def _path_of(policy: str | os.PathLike[str]) -> Path:
    if str(policy) in shipped_policies():
        return _SHIPPED / f"{policy}.json"
    return Path(policy)
