"""What the page's server gives out, and what it refuses."""

import http.client
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from efficientsam3.cli import main
from efficientsam3.predict.serve import build_site, open_server
from efficientsam3.runtime.errors import UserError
from unit.predict.page.node import PAGE

Get = Callable[..., tuple[int, dict[str, str], bytes]]
PREPROCESSING = {"image_size": 64, "resize": "square", "mean": [0.5] * 3, "std": [0.5] * 3}
SECRET = b"not to be seen"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`onnx`, `runtime` and `images` as they would be given, and a secret beside them."""
    folder = tmp_path_factory.mktemp("serve")
    for name in ("onnx", "runtime", "images"):
        (folder / name).mkdir()
        (folder / name / "secret.txt").write_bytes(SECRET)
    (folder / "secret.txt").write_bytes(SECRET)
    _write_manifest(folder / "onnx", "image_encoder.onnx")
    (folder / "onnx" / "image_encoder.onnx").write_bytes(b"graph")
    for name in ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm", "ort.all.js"):
        (folder / "runtime" / name).write_text(name)
    for name in ("sun & moon.PNG", "d\u00e9j\u00e0.jpg"):
        (folder / "images" / name).write_bytes(b"image")
    return folder


def _write_manifest(folder: Path, file: str) -> None:
    graph = {"file": file, "bytes": 5, "sha256": "", "opset": 17, "inputs": [], "outputs": [], "measured": {}}
    manifest = {"source": "m.pt", "preprocessing": PREPROCESSING, "graphs": {"image_encoder": graph}}
    manifest |= {"tokenizer": None, "visual_prompt": None, "pictures": [], "versions": {}}
    (folder / "model.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def get(folders: Path) -> Iterator[Get]:
    """A function from a path, exactly as sent, to status, headers and content."""
    server = open_server(build_site(folders / "onnx", folders / "runtime", folders / "images"), "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def ask(path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        found = answer.status, dict(answer.getheaders()), answer.read()
        connection.close()
        return found

    yield ask
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/?image=d%C3%A9j%C3%A0.jpg", "text/html; charset=utf-8"),
        ("/style.css", "text/css; charset=utf-8"),
        ("/app.js", "text/javascript; charset=utf-8"),
        ("/worker.js", "text/javascript; charset=utf-8"),
        ("/model/model.json", "application/json"),
        ("/model/image_encoder.onnx", "application/octet-stream"),
        ("/onnxruntime-web/ort.wasm.min.mjs", "text/javascript; charset=utf-8"),
        ("/onnxruntime-web/ort-wasm-simd-threaded.wasm", "application/wasm"),
        ("/images.json", "application/json"),
        ("/settings.json", "application/json"),
        ("/images/d%C3%A9j%C3%A0.jpg", "image/jpeg"),
        ("/images/sun%20%26%20moon.PNG", "image/png"),
    ],
)
def test_files_come_with_their_type(path: str, kind: str, get: Get) -> None:
    status, headers, content = get(path)
    assert (status, headers["Content-Type"]) == (200, kind)
    assert int(headers["Content-Length"]) == len(content) > 0
    of_head = get(path, "HEAD")
    assert of_head == (200, {**headers, "Date": of_head[1]["Date"]}, b"")


def test_every_module_that_the_page_names_is_served(get: Get) -> None:
    named = {"app.js", "style.css"} | {
        name
        for path in PAGE.glob("*.js")
        for name in re.findall(r'"(?:\./)?(\w+\.js)"', path.read_text(encoding="utf-8"))
    }
    assert {"worker.js", "model.js", "tokenizer.js"} <= named
    assert {get(f"/{name}")[0] for name in named} == {200}


def test_the_browser_may_ask_no_other_host(get: Get) -> None:
    for path in ("/", "/worker.js", "/nothing"):
        headers = get(path)[1]
        policy = dict(rule.split(" ", 1) for rule in headers["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert {word for rule in policy.values() for word in rule.split()} <= {
            "'none'",
            "'self'",
            "'wasm-unsafe-eval'",
            "blob:",
            "data:",
        }
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"


@pytest.mark.parametrize(
    "path",
    [
        "/secret.txt",
        "/model/secret.txt",
        "/images/secret.txt",
        "/onnxruntime-web/secret.txt",
        "/onnxruntime-web/ort.all.js",
        "/model/../../secret.txt",
        "/../secret.txt",
        "/images/..%2fsecret.txt",
        "/images/%2e%2e/%2e%2e/secret.txt",
        "/images/..\\secret.txt",
        "/model//etc/passwd",
        "//etc/passwd",
        "/etc/passwd",
        "/model/image_encoder.onnx%00.txt",
        "/model/",
        "/index.html/../serve.py",
        "/serve.py",
        "http://127.0.0.1/secret.txt",
        "//[",
        "*",
        "/%",
        "/%ff%fe",
    ],
)
def test_nothing_else_is_given_out(path: str, get: Get) -> None:
    status, _, content = get(path)
    assert status == 404
    assert SECRET not in content
    assert b"root:" not in content


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from(["..", "/", "%2e", "%2f", "\\", "%5c", "model", "images", "secret.txt", "."]), max_size=9)
)
def test_no_path_leads_out(get: Get, parts: list[str]) -> None:
    assert SECRET not in get("/" + "".join(parts))[2]


def test_other_methods_are_refused(get: Get) -> None:
    assert get("/", "POST")[0] == get("/", "PUT")[0] == 501


@pytest.mark.parametrize(
    ("host", "status"), [("localhost:9", 200), ("127.0.0.1", 200), ("evil.example:8000", 403), ("[", 403)]
)
def test_a_strange_host_name_is_refused(host: str, status: int, get: Get) -> None:
    assert get("/model/model.json", Host=host)[0] == status


def test_a_file_that_has_gone_is_not_found(folders: Path, get: Get, tmp_path: Path) -> None:
    image = folders / "images" / "sun & moon.PNG"
    image.rename(tmp_path / "kept")
    try:
        assert get("/images/sun%20%26%20moon.PNG")[0] == 404
    finally:
        (tmp_path / "kept").rename(image)


def test_what_is_missing_is_said_before_serving(folders: Path, tmp_path: Path) -> None:
    onnx, runtime = folders / "onnx", folders / "runtime"
    with pytest.raises(UserError, match=r"model.json cannot be read.*export-onnx"):
        build_site(tmp_path, runtime)
    with pytest.raises(UserError, match="npm install onnxruntime-web"):
        build_site(onnx, tmp_path)
    with pytest.raises(UserError, match="--images"):
        build_site(onnx, runtime, tmp_path / "none")
    _write_manifest(tmp_path, "image_encoder.onnx")
    with pytest.raises(UserError, match=r"image_encoder.onnx is missing"):
        build_site(tmp_path, runtime)
    for outside in ("../secret.txt", "/etc/passwd"):
        _write_manifest(tmp_path, outside)
        with pytest.raises(UserError, match="outside its folder"):
            build_site(tmp_path, runtime)


def test_an_address_that_cannot_be_had_is_said() -> None:
    with pytest.raises(UserError, match="--port 70000"):
        open_server({}, "127.0.0.1", 70000)
    with open_server({}, "127.0.0.1", 0) as server, pytest.raises(UserError, match="another --port"):
        open_server({}, "127.0.0.1", server.server_port)
    with pytest.raises(UserError, match="--host"):
        open_server({}, "no.such.host.invalid", 0)


def test_the_command_says_what_to_install(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(folders / "onnx"), "--onnxruntime-web", str(tmp_path)]) == 2
    assert "npm install onnxruntime-web" in capsys.readouterr().err


def test_the_command_needs_neither_pytorch_nor_onnxruntime() -> None:
    code = "import efficientsam3.commands.serve, sys; print({'torch', 'onnxruntime', 'transformers'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
