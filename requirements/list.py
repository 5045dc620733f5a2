"""Print the requirements of pyproject.toml, extras included, one a line: what `make resolve` resolves."""

import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
requirements = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
print("\n".join(r.replace(" ", "") for r in requirements if not r.startswith(project["name"])))
