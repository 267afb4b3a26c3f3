"""Builds a home with a project and an environment in it, and lists what code can read of them.

`python homes.py <layers> <user>` prints JSON: the planted files that were read, and what each import came to.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

SECRET = "canary-7e2b91"
"""What every file holds that is not to be read."""

RECORD = "{name}-1.0.dist-info/RECORD"
SECRETS = (
    *(".env", "notes.txt", ".ssh/id_rsa", ".local/share/keys.json", "proj/.env", "proj/data/rows.csv"),
    *(
        "proj/.venv/pyvenv.cfg",
        "proj/src/editable_one/settings.py",
        "proj/helper_data/key",
        "proj/sidecar/key.pem",
    ),
    *("proj/.venv/{site}/acme_config/secrets.json", "proj/.venv/{site}/__editable___editable_one_finder.py"),
    *("proj/.venv/{site}/alpha-1.0.dist-info/direct_url.json", "proj/.venv/{site}/extra_of_alpha/key"),
    *("proj/.venv/{site}/shared_space/of_another/key", "proj/.venv/bin/activate", "other/package/__init__.py"),
)
"""Paths in the home, `{site}` for the folder of installed packages."""
CODE = {
    "proj/.venv/{site}/alpha/__init__.py": "",
    "proj/.venv/{site}/alpha/later.py": "import six_of_alpha, shared_space.of_alpha; found = True",
    "proj/.venv/{site}/alpha.libs/liba.so": "",
    "proj/.venv/{site}/loaded_by_flat/__init__.py": "",
    "proj/.venv/{site}/six_of_alpha.py": "",
    "proj/.venv/{site}/shared_space/of_alpha/__init__.py": "",
    "proj/.venv/{site}/acme_config/__init__.py": "",
    "proj/.venv/{site}/extra_of_alpha/__init__.py": "",
    "proj/flat.py": "import loaded_by_flat, sidecar.part",
    "proj/sidecar/__init__.py": "",
    "proj/sidecar/part.py": "",
}
DISTRIBUTIONS = {
    "alpha": (
        "alpha/__init__.py alpha/later.py alpha.libs/liba.so",
        "Beta_Dist>=1; extra_of-alpha ; extra == 'x'",
    ),
    "beta-dist": ("six_of_alpha.py shared_space/of_alpha/__init__.py ../../../bin/beta", ""),
    "extra-of-alpha": ("extra_of_alpha/__init__.py", ""),
    "another": ("shared_space/of_another/key", ""),
    "acme-config": ("acme_config/__init__.py", ""),
}
"""What each has installed, and what it requires."""

READ = """
import importlib, os
read, listed = [], []
for path in files:
    try:
        with open(path, errors="replace") as file: text = file.read()
        read.append(path)
    except OSError: pass
for path in folders:
    try: listed += [os.path.join(path, name) for name in os.listdir(path)]
    except OSError: pass
imports = {}
for name in names:
    try: importlib.import_module(name); imports[name] = ""
    except ImportError as error: imports[name] = str(error)
SUBMIT({"read": read, "listed": listed, "imports": imports})
"""


def build(home: Path) -> Path:
    """Fill a home; return the folder of packages that are installed in it."""
    site = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    folder = home / "proj/.venv" / site
    for name in SECRETS:
        write(home / name.format(site=site), SECRET)
    for name, code in CODE.items():
        write(home / name.format(site=site), code)
    for name, (files, requires) in DISTRIBUTIONS.items():
        info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
        lines = [f"Requires-Dist: {line.strip()}" for line in requires.split("; ", 1) if line]
        write(info / "METADATA", "\n".join(["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0", *lines, ""]))
        write(info / "RECORD", "".join(f"{file},,\n" for file in files.split()))
    write(folder / "editable_one.pth", f"{home}/proj/src")
    (home / "proj/.venv" / site / "alpha/link").symlink_to(home / "proj/.env")
    return folder


def write(path: Path, text: str) -> None:
    """Write a file, and the folders on the way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def main() -> None:
    """Read what can be read with these layers."""
    from tests.attacked import become_ordinary, open_python

    layers, user = sys.argv[1:3]
    if os.getuid() == 0:
        open_python()
        if user == "ordinary":
            become_ordinary()
    home = Path(tempfile.mkdtemp(prefix="home-"))
    home.chmod(0o755)
    try:
        print(json.dumps(tried(home, build(home), frozenset(layers.split("+")))))
    finally:
        subprocess.run(["rm", "-r", str(home)], check=True)


def tried(home: Path, site: Path, layers: frozenset[str]) -> dict[str, Any]:
    """Let a cell read, list and import."""
    from rlm_dspy.interpreters import ConfinementPolicy, PythonInterpreter

    sys.path[:0] = [str(home), str(home / "proj"), str(site), str(home / "proj/src")]
    base = Path(sysconfig.get_path("purelib", vars={"base": sys.base_prefix, "platbase": sys.base_prefix}))
    elsewhere = [path for path in base.rglob("*") if path.is_file()][:200] if base.is_dir() else []
    files = [str(path) for path in (*home.rglob("*"), *elsewhere) if path.is_file()]
    names = ["alpha.later", "six_of_alpha", "wave", "acme_config", "extra_of_alpha", "editable_one", "dspy"]
    with PythonInterpreter(packages=["alpha", "flat"], confinement=ConfinementPolicy(layers=layers)) as repl:
        given = {"files": files, "names": names, "folders": [str(home), str(site), str(site.parent), str(base)]}
        output = repl.execute(READ, given)
    found: dict[str, Any] = output.output["output"]
    inside = [name for name in found["read"] if name.startswith(f"{home}/")]
    return {
        "read": sorted(os.path.relpath(name, home) for name in inside),
        "elsewhere": len(found["read"]) - len(inside),
        "listed": sorted(os.path.relpath(name, home) for name in found["listed"]),
        "imports": found["imports"],
    }


if __name__ == "__main__":
    main()
