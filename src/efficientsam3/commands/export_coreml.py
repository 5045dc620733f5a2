"""`efficientsam3 export-coreml`: a model's image encoder as a CoreML package."""

from efficientsam3.export.coreml.request import ExportCoremlRequest

REQUEST = ExportCoremlRequest


def run(request: ExportCoremlRequest) -> None:
    """Export, and print what was written and measured."""
    from efficientsam3.export.coreml.run import export_coreml
    from efficientsam3.runtime.console import Console

    report = export_coreml(
        request.model,
        request.out,
        precision=request.precision,
        images=request.images,
        overwrite=request.overwrite,
    )
    kept = f", {len(report.float32_operations)} of them in float32" if report.float32_operations else ""
    Console(soft_wrap=True).print(
        f"{report.bytes / 1e6:9.1f} MB  {request.out}: {request.precision}, {report.operations} operations{kept}; "
        f"{report.compared}"
    )
