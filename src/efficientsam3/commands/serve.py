"""`efficientsam3 serve`: a page that prompts an ONNX directory in the browser."""

from efficientsam3.predict.request import ServeRequest

REQUEST = ServeRequest


def run(request: ServeRequest) -> None:
    """Serve until Ctrl-C."""
    from efficientsam3.predict.serve import build_site, open_server, serve_forever
    from efficientsam3.runtime.console import Console

    site = build_site(request.directory, request.onnxruntime_web, request.images, request.max_hole_area)
    server = open_server(site, request.host, request.port)
    console = Console(soft_wrap=True)
    console.print(f"{request.directory} is at http://{request.host}:{server.server_port}/ until Ctrl-C.")
    serve_forever(server)
