"""Calling the page's modules with Node.js, as the browser would."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

import efficientsam3.predict.serve

PAGE = Path(efficientsam3.predict.serve.__file__).parent / "page"
_CALL = """
import { readFileSync } from "node:fs";
const given = JSON.parse(readFileSync(0, "utf8"));
const module = await import(given.module);
const plain = (_, value) => (ArrayBuffer.isView(value) ? Array.from(value) : value);
console.log(JSON.stringify(await BODY, plain));
"""


def call(module: str, body: str, **given: Any) -> Any:
    """The value of a JavaScript expression, in which `module` is a module of the page and `given` the keywords."""
    # From `data:` Node reads a module as a module, whatever its name ends with.
    source = (PAGE / module).read_text(encoding="utf-8")
    assert "\nimport " not in source, "only modules that import none can be called"
    url = "data:text/javascript," + quote(source)
    return run(_CALL.replace("BODY", body), module=url, **given)


def run(script: str, **given: Any) -> Any:
    """What a module of JavaScript, which reads `given` as JSON from its input, writes as JSON."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js (node) is not installed")
    done = subprocess.run(
        [node, "--input-type=module", "--eval", script],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
