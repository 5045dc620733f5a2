"""`efficientsam3 export-onnx`: a model as ONNX graphs."""

from efficientsam3.export.onnx.request import ExportOnnxRequest

REQUEST = ExportOnnxRequest


def run(request: ExportOnnxRequest) -> None:
    """Export, and print what was measured."""
    from efficientsam3.export.onnx.run import export_onnx
    from efficientsam3.runtime.console import Console

    manifest = export_onnx(
        request.model,
        request.out,
        variants=request.variants,
        calibrate=request.calibrate,
        images=request.images,
        overwrite=request.overwrite,
    )
    console = Console(soft_wrap=True)
    for graph in (*manifest.graphs.values(), *manifest.variants.values()):
        figures = ", ".join(f"{name.replace('_', ' ')} {value:.2g}" for name, value in graph.measured.items())
        console.print(f"{graph.bytes / 1e6:9.1f} MB  {request.out / graph.file}: {figures}")
