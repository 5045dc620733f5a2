"""`efficientsam3 serve`: a page that prompts an ONNX directory in the browser."""

import argparse
from pathlib import Path

from rich.console import Console

from efficientsam3.predict.request import ONNXRUNTIME_WEB
from efficientsam3.predict.serve import build_site, open_server, serve_forever


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    flag = parser.add_argument
    flag("directory", type=Path, metavar="DIR", help="what export-onnx wrote")
    flag(
        "--onnxruntime-web",
        type=Path,
        default=ONNXRUNTIME_WEB,
        metavar="DIR",
        help="the dist folder of npm's onnxruntime-web, which runs the graphs (default: %(default)s, where `npm "
        "install onnxruntime-web` puts it)",
    )
    flag("--pictures", type=Path, metavar="DIR", help="pictures that the page offers, and opens as ?picture=NAME")
    flag("--port", type=int, default=8000, help="where to listen; 0 takes any free one (default: %(default)s)")
    flag(
        "--host",
        default="127.0.0.1",
        help="which address to listen on; 0.0.0.0 lets other machines in, whose browsers then compute with one thread "
        "(default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """Serve until Ctrl-C."""
    site = build_site(args.directory, args.onnxruntime_web, args.pictures)
    server = open_server(site, args.host, args.port)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"{args.directory} is at http://{args.host}:{server.server_port}/ until Ctrl-C.")
    serve_forever(server)
